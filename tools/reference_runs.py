"""Train `toy` and keep the averaged weights at five moments of every stage: `python tools/reference_runs.py OUT --seeds 0 1 2`.

Each run is `imagen-nb train toy --seed SEED --processes 1` to the letter; only the moments are kept beside it, in `OUT/seedN/moments`.
"""

import argparse
from pathlib import Path

from imagen_nb import training
from imagen_nb.recipes import toy
from imagen_nb.runs import run as runs
from imagen_nb.store.checkpoint import save_directory

SHARES = (0.05, 0.15, 0.3, 0.6, 1.0)  # of a stage's steps


def keep_moments(step):
    "`Trainer.train_step`, and the average saved whenever a moment has come."

    def run(self, *batch):
        result = step(self, *batch)
        if self.rank == 0 and self.step in {round(share * self.config.steps) for share in SHARES}:
            folder = self.out.parent / "moments" / self.out.name / f"step_{self.step:08d}"
            save_directory(
                folder,
                dict(average=dict(self.learned.average.state_dict())),
                dict(kind="moment", step=self.step),
            )
        return result

    return run


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("out", type=Path)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = p.parse_args()
    training.Trainer.train_step = keep_moments(training.Trainer.train_step)
    for seed in args.seeds:
        runs.train(toy(seed), args.out / f"seed{seed}", processes=1)


if __name__ == "__main__":
    main()

"""Go on with the base of a `toy-full` run where it is weakest, then draw and score the cascade anew.

    imagen-nb train toy-full --out RUN
    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node=2 tools/make/train_crowded.py RUN

One and two things come out right; of three or four, each quarter of the picture chooses its own, and some
are drawn twice. Which quarter shows what is decided at high noise, so that is what these steps train on: two
thirds groups and lists, times around 0.8. Everything goes to RUN/crowded; the weights that ship are
RUN/crowded/model.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

from imagen_nb.cascade import Imagen
from imagen_nb.engine.captions import EmbeddingCache
from imagen_nb.evaluation import draw_and_score
from imagen_nb.runs.results import HELD_OUT, score_run
from imagen_nb.runs.setup import load_recipe, make_encoder, open_data, trained_stages
from imagen_nb.stage import Stage
from imagen_nb.training import Trainer


class Crowded:
    "Scenes of ShapesWorld, two thirds of them with several things that stand in no named relation."

    def __init__(self, world):
        scenes = range(len(world))
        crowd = [i for i in scenes if (s := world.scene(i)).relation is None and len(s.things) > 1]
        is_crowd = set(crowd)
        others = [i for i in scenes if i not in is_crowd]
        self.world, self.rows = world, crowd + others[: len(crowd) // 2]
        self.identity = f"{world.identity}, two thirds crowded"

    def __len__(self):
        return len(self.rows)

    def caption(self, i, epoch=None):
        return self.world.caption(self.rows[i], epoch)

    def images(self, indices, *args):
        return self.world.images([self.rows[int(i)] for i in indices], *args)


def main(run: Path):
    since, recipe, out = time.time(), load_recipe(run), run / "crowded"
    encoder, (base, *others) = make_encoder(recipe.encoder), trained_stages(recipe, run)
    text = EmbeddingCache.open(run / "captions", encoder)
    training = replace(recipe.training[0], steps=2200, lr=2e-3, warmup=40, seed=1)
    trainer = Trainer(
        Stage(replace(base.config, time_law=(1.4, 1.2)), base.network),
        Crowded(open_data(recipe)),
        text,
        training,
        out / "32px",
    )
    imagen = Imagen(encoder, [Stage(base.config, trainer.fit().network), *others])
    if trainer.process.rank == 0:
        imagen.save_pretrained(out / "model")
    draw_and_score(
        imagen,
        open_data(recipe, "test"),
        list(range(HELD_OUT))[trainer.process.rank :: trainer.process.ranks],
        out / "samples",
        progress=trainer.process.rank == 0,
    )
    trainer.process.wait()
    if trainer.process.rank == 0:
        score_run(recipe, out, HELD_OUT, time.time() - since)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The Efficient U-Net and the classic one learn to enlarge 16 -> 64, on the same pictures, noise and time.

    python tools/measure/enlargers_learn.py --seconds 40

Both have about as many parameters, the same target, optimizer and draws. They take turns, so that a busy machine slows
both alike. Writes the run card `enlargers-learn` and pictures that both draw after the last step.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from cards import RUNS, write_card
from torch import Tensor

from imagen_nb.data import ShapesWorld
from imagen_nb.diffusion import cosine_log_snr, diffusion_loss, q_sample
from imagen_nb.efficient_unet import EfficientUNetConfig
from imagen_nb.engine.optim import make_optimizers, take_step
from imagen_nb.pictures.pixels import resize
from imagen_nb.plots import save_picture, show_images
from imagen_nb.recipes import toy
from imagen_nb.sampling import sample_dpmpp_2m, time_grid
from imagen_nb.unet import UNetConfig

NO = (False, False, False)
NETWORKS = dict(
    classic=UNetConfig(
        dim=16,
        mults=(1, 2, 4),
        blocks=2,
        attention=NO,
        head_dim=16,
        text_dim=0,
        emb_dim=64,
        has_lowres=True,
    ),
    efficient=EfficientUNetConfig(
        channels=(24, 48, 96),
        blocks=(1, 1, 2),
        strides=(2, 2, 2),
        self_attention=NO,
        text_attention=NO,
        stem=16,
        text_dim=0,
        emb_dim=64,
    ),
)
SEEDS, BATCH, PICTURES, HELD_OUT, RATE = 2, 8, 1000, 32, 2e-3


def pictures(split: str, n: int) -> tuple[Tensor, Tensor]:  # 64 px; from 16 px, enlarged
    "Pictures of `full` and what an enlarger sees of them."
    world = ShapesWorld(split, level="full", size=64)
    x0 = torch.cat([world.images(range(i, min(i + 250, n))) for i in range(0, n, 250)])
    return x0, resize(resize(x0, (16, 16)), (64, 64))


def guess(network, z_t: Tensor, log_snr: Tensor, low: Tensor) -> Tensor:  # x0_hat, (b 3 64 64)
    "The network predicts what the enlarged picture lacks; that picture carries no noise."
    clean = cosine_log_snr(torch.zeros(len(z_t)))
    return low + network(z_t, log_snr, None, low, clean)


@dataclass
class Pupil:
    "One network that learns."

    name: str
    seed: int
    seconds: float = 0.0  # of computation in training steps
    steps: int = 0
    curve: list = field(default_factory=list)  # (seconds, steps, held-out loss)

    def __post_init__(self):
        torch.manual_seed(self.seed)
        self.network = NETWORKS[self.name].build()
        self.optimizers = make_optimizers(self.network, toy().training[0])
        self.g = torch.Generator().manual_seed(self.seed)

    def step(self, x0: Tensor, low: Tensor):
        "One step; only its own time counts."
        start = time.process_time()
        rows = torch.randint(len(x0), (BATCH,), generator=self.g)
        eps = torch.randn(BATCH, 3, 64, 64, generator=self.g)
        log_snr = cosine_log_snr(torch.rand(BATCH, generator=self.g))
        x0_hat = guess(self.network, q_sample(x0[rows], eps, log_snr), log_snr, low[rows])
        diffusion_loss(x0_hat, x0[rows], eps, log_snr, "x0", "capped").mean().backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        take_step(self.optimizers, RATE * min(1, (self.steps + 1) / 20))
        self.network.zero_grad()
        self.steps += 1
        self.seconds += time.process_time() - start

    @torch.no_grad()
    def look(self, x0: Tensor, low: Tensor):
        "Held-out loss: the same noise each time, noise levels spread evenly."
        eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
        log_snr = cosine_log_snr((torch.arange(len(x0)) + 0.5) / len(x0))
        x0_hat = guess(self.network, q_sample(x0, eps, log_snr), log_snr, low)
        loss = diffusion_loss(x0_hat, x0, eps, log_snr, "x0", "capped").mean().item()
        self.curve.append((round(self.seconds, 1), self.steps, round(loss, 5)))

    @torch.no_grad()
    def draw(self, low: Tensor) -> Tensor:
        "Eight steps from noise."
        z = torch.randn(low.shape, generator=torch.Generator().manual_seed(0))

        def denoise(z, log_snr):
            return guess(self.network, z, log_snr.expand(len(z)), low).clamp(-1, 1)

        *_, (_, _, x0_hat) = sample_dpmpp_2m(denoise, z, time_grid(8, cosine_log_snr, 0.995))
        return x0_hat


def lessons(pupils: list[Pupil], seconds: float, data, held_out) -> Iterator[float]:
    "Turns of a tenth of the time; after each, all are asked."
    for turn in range(1, 11):
        for pupil in pupils:
            while pupil.seconds < seconds * turn / 10:
                pupil.step(*data)
            pupil.look(*held_out)
        yield seconds * turn / 10


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--seconds", type=float, default=40.0, help="of computation for each network")
    seconds = p.parse_args().seconds
    data, held_out = pictures("train", PICTURES), pictures("valid", HELD_OUT)
    pupils = [Pupil(name, seed) for seed in range(SEEDS) for name in NETWORKS]
    for pupil in pupils:
        pupil.look(*held_out)
    for done in lessons(pupils, seconds, data, held_out):
        print(f"{done:.0f} s", [o.curve[-1][1:] for o in pupils], flush=True)
    x0, low = (o[:5] for o in held_out)
    rows = {"low-res": low, **{o.name: o.draw(low) for o in pupils[:2]}, "true": x0}
    fig = show_images(torch.cat([*rows.values()]), columns=5, width=0.75, rows=list(rows))
    save_picture(fig, RUNS / "enlargers-learn.jpg")
    write_card(
        RUNS / "enlargers-learn.json",
        "held-out loss (x0, capped) of two enlargers 16 -> 64 over seconds of one thread and over steps",
        f"python tools/measure/enlargers_learn.py --seconds {seconds:g}",
        parameters={o.name: sum(p.numel() for p in o.network.parameters()) for o in pupils[:2]},
        batch=BATCH,
        curves=[dict(network=o.name, seed=o.seed, points=o.curve) for o in pupils],
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

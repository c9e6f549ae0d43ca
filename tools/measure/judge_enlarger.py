"""How well photographs that were never trained on are enlarged, beside bicubic interpolation.

    python tools/measure/judge_enlarger.py

Each held-out photograph of 256 px is taken to 64 px by the one resize, and enlarged again: by bicubic interpolation,
and by the shipped enlarger, one sample and the mean of several. PSNR asks how near each pixel is. Blur wins there: the
mean of all details that are possible is nearer than any of them. Sharpness asks how much of the details' energy is
there, wherever it lies.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from cards import RUNS, write_card
from torch import Tensor

from imagen_nb.cascade import Imagen
from imagen_nb.pictures.captioned import load_captioned
from imagen_nb.pictures.pixels import resize
from imagen_nb.plots import image_grid
from imagen_nb.stage import SAMPLING, sampling_config
from imagen_nb.store.files import assets


def psnr(
    images: Tensor,  # (b 3 h w) in [-1, 1]
    originals: Tensor,  # likewise
) -> Tensor:  # (b,), decibel; 2 is the range of a pixel
    "Nearness of pixels."
    return 10 * torch.log10(4 / (images - originals).square().mean((1, 2, 3)))


def energy(
    images: Tensor,  # (b 3 h w) in [-1, 1]
) -> Tensor:  # (b,)
    "Mean square of the differences between neighbors."
    return sum(images.diff(dim=d).square().mean((1, 2, 3)) for d in (2, 3))


def fine(
    images: Tensor,  # (b 3 h w) in [-1, 1]
) -> Tensor:  # what 64 px cannot hold
    "A picture without what its small version says."
    low = resize(images, images.shape[-1] // 4)
    return images - F.interpolate(low, scale_factor=4, mode="bicubic")


def judge(
    images: Tensor,  # enlarged, (b 3 256 256)
    originals: Tensor,  # likewise
    low: Tensor,  # what was enlarged, (b 3 64 64)
) -> dict:  # name -> a number for each picture
    "Every figure of one way to enlarge."
    found = dict(
        psnr=psnr(images, originals),
        sharpness=energy(images) / energy(originals),
        detail=fine(images).square().mean((1, 2, 3)) / fine(originals).square().mean((1, 2, 3)),
        faithful=psnr(resize(images, 64), low),
    )
    return {name: [round(x, 3) for x in values.tolist()] for name, values in found.items()}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", default="photo-enlarger")
    p.add_argument("--split", default="test", help="test: never trained on")
    p.add_argument("--n", type=int, default=4, help="samples whose mean is judged, too")
    p.add_argument("--steps", type=int, help="of sampling (default: the stage's)")
    p.add_argument("--aug-t", type=float, help="noise on what is enlarged (default: the stage's)")
    p.add_argument("--out", type=Path, default=RUNS / "photo-enlarger.json")
    args = p.parse_args()
    imagen = Imagen.from_pretrained(args.model)
    photos = load_captioned(assets() / "photos", 256, args.split)
    originals = photos.images(range(len(photos)))
    low, given = resize(originals, 64), dict(steps=args.steps, aug_t=args.aug_t)
    options = {name: value for name, value in given.items() if value is not None}
    since = time.process_time()
    rounds = [range(k * len(low), (k + 1) * len(low)) for k in range(args.n)]
    samples = [imagen.sample([""] * len(low), lowres=low, seeds=list(o), **options) for o in rounds]
    seconds = (time.process_time() - since) / (args.n * len(low))
    bicubic = F.interpolate(low, scale_factor=4, mode="bicubic").clamp(-1, 1)
    ways = dict(bicubic=bicubic, sample=samples[0], mean=torch.stack(samples).mean(0))
    found = {name: judge(images, originals, low) for name, images in ways.items()}
    for name, figures in found.items():
        print(name, {k: round(sum(v) / len(v), 3) for k, v in figures.items()})
    drawn = sampling_config(imagen.stages[-1].config, **options)
    write_card(
        args.out,
        "Photographs enlarged from 64 to 256 px: psnr (dB) to the original and, `faithful`, of their 64 px version"
        " to what was enlarged; sharpness, energy of neighbors' differences / the original's; detail, energy of what"
        " 64 px cannot hold / the original's",
        "python tools/measure/judge_enlarger.py",
        split=args.split,
        photos=[Path(photos.catalog.name(photos.row(i))).stem for i in range(len(photos))],
        samples=args.n,
        drawn={name: getattr(drawn, name) for name in SAMPLING},
        seconds_per_picture=round(seconds, 2),
        found=found,
    )
    columns = [F.interpolate(low, scale_factor=4), bicubic, samples[0], originals]
    shown = torch.stack(columns, 1).flatten(0, 1)[..., 32:224, 32:224]
    image_grid(shown, columns=4).save(args.out.with_suffix(".jpg"), quality=88)


if __name__ == "__main__":
    main()

"""Train a small 64 -> 256 enlarger on squares of photographs, and save it.

    python tools/make/photos.py runs/squares --squares 950
    python tools/make/photo_enlarger.py runs/photo-enlarger data/photo-enlarger

It reads no text. It can be stopped and goes on. A saved model begins with a base, so an untrained one of a few kB lies
before it, which refuses to draw: pictures are given with `lowres`.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from imagen_nb.cascade import Imagen
from imagen_nb.engine.captions import EmbeddingCache
from imagen_nb.pictures.captioned import load_captioned
from imagen_nb.recipes import toy, toy_stages
from imagen_nb.stage import Stage, StageConfig
from imagen_nb.store.checkpoint import load_into, newest_checkpoint
from imagen_nb.text import TextEncoder
from imagen_nb.training import Trainer
from imagen_nb.unet import UNetConfig

LIKE = toy_stages(48, ((64, 96), (64, 96)), (0.5, 1.15))[1]  # what is known of the toy's enlarger
ENLARGER = replace(  # it sees edges and textures, and no captions
    LIKE,
    size=256,
    lowres_size=64,
    network=replace(LIKE.network, text_dim=0),
    aug_t=0.0,  # what it is given is true; on training photographs 0.02 and 0.05 were worse
)
TRAINING = replace(toy().training[1], batch=16, steps=800, decay="late", save_every=50)
ABOUT = """\
---
license: apache-2.0
library_name: imagen_nb
pipeline_tag: image-to-image
tags:
- imagen
- diffusion
- super-resolution
---

# An enlarger of photographs, 64 → 256 px

```python
from imagen_nb.cascade import Imagen
imagen = Imagen.from_pretrained("photo-enlarger")
images = imagen.sample([""], lowres=picture)  # (1 3 64 64) in, (1 3 256 256) out, values in [-1, 1]
```

One diffusion model of {parameters:,} parameters, saved by [imagen_nb](https://github.com/imagen-nb/imagen_nb). It reads
no caption, and it does not draw from nothing: the base before it was never trained and refuses.

It began as the toy's 32 → 128 enlarger without the parts that read, and learned from {steps} steps of {batch} crops of
nineteen photographs. `photos/README.md` names them, who took them, and their licences: public domain, CC0, CC BY, BSD.

Edges become sharper than by bicubic interpolation; flat surfaces become a little grainy, and small faces are not
restored but made up. Figures on photographs that it has never seen: run card `photo-enlarger`.
"""
NO_BASE = StageConfig(
    size=64,
    network=UNetConfig(
        dim=8, mults=(1,), blocks=1, attention=(False,), head_dim=8, text_dim=0, emb_dim=8
    ),
)


def first_weights() -> Stage:
    "The toy's 32 -> 128 enlarger, which has this shape, without the parts that read."
    stage = Stage(ENLARGER)
    knows = Imagen.from_pretrained("toy").stages[1].network.state_dict()
    stage.network.load_state_dict({name: knows[name] for name in stage.network.state_dict()})
    return stage


def train(squares: Path, run: Path):
    "Train, or go on."
    text = EmbeddingCache.build(TextEncoder.toy(), [""], run / "captions")
    pictures = load_captioned(squares, 256)
    Trainer(first_weights(), pictures, text, TRAINING, run / "256px").fit()


def so_far(run: Path) -> tuple[Stage, int]:  # and the steps done
    "The averaged weights of the newest checkpoint."
    found, stage = newest_checkpoint(run / "256px"), first_weights()
    if found is None:
        raise SystemExit(f"photo_enlarger: {run}, got no checkpoint, expected a run that has begun")
    load_into(stage.network, found[0]["average"], f"{run}, 256 px")
    stage.is_trained = True
    return stage, found[1]["step"]


def save(run: Path, out: Path):
    "Write the model, and what it has learned from."
    stage, steps = so_far(run)
    Imagen(TextEncoder.toy(), [Stage(NO_BASE), stage]).save_pretrained(out)
    parameters = sum(p.numel() for p in stage.network.parameters())
    about = ABOUT.format(steps=steps, batch=TRAINING.batch, parameters=parameters)
    (out / "README.md").write_text(about, encoding="utf-8")  # in place of a cascade's card


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("run", type=Path, help="checkpoints and logs")
    p.add_argument("out", type=Path, help="the model")
    p.add_argument("--squares", type=Path, default=Path("runs/squares"), help="pictures")
    p.add_argument("--so-far", action="store_true", help="save what the run has learned, no more")
    args = p.parse_args()
    if not args.so_far:
        train(args.squares, args.run)
    save(args.run, args.out)


if __name__ == "__main__":
    main()

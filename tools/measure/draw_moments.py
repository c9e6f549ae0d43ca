"""What a stage drew at several moments of its training: `python tools/measure/draw_moments.py RUN FIGURE`.

RUN is a run on drawn scenes; the moments are training checkpoints `step_*` still in it: train with
`--set training.0.keep=100`.
The base draws captions; the others enlarge the true low-resolution pictures of the same scenes.
"""

import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from imagen_nb.plots import image_grid
from imagen_nb.runs.setup import load_recipe, make_encoder, open_data
from imagen_nb.stage import Stage
from imagen_nb.store.checkpoint import checkpoints, load_directory

SCENES, SIDE, SHARES = (0, 2, 3, 4, 6), 84, (0, 0.25, 0.5, 0.75, 1)


def chosen(paths: list, shares) -> list:
    "Those nearest to shares of the last one's step."
    steps = {int(p.name.split("_")[1]): p for p in paths}
    near = (min(steps, key=lambda step: abs(step - share * max(steps))) for share in shares)
    return [steps[step] for step in sorted(set(near))]


def tile(images: torch.Tensor, scenes: list) -> torch.Tensor:
    "Pictures at the size of the figure; of large ones the edge of the first thing."
    side = images.shape[-1]
    if side <= 2 * SIDE:
        return torch.nn.functional.interpolate(
            images, (SIDE, SIDE), mode="nearest" if side < SIDE else "area"
        )
    corners = [
        [round((c - o.r / 2) * side) - SIDE // 2 for c in (o.y, o.x)]
        for o in (scene.things[0] for scene in scenes)
    ]
    return torch.stack(
        [image[:, y : y + SIDE, x : x + SIDE] for image, (y, x) in zip(images, corners)]
    )


def draw_stage(config, folder: Path, shares, world, encoder) -> Image.Image:
    "A row for each moment, the truth last."
    text, rows, labels = encoder([world.caption(i) for i in SCENES]), [], []
    lowres = world.images(SCENES, config.lowres_size) if config.lowres_size else None
    scenes = [world.scene(i) for i in SCENES]
    for path in chosen(checkpoints(folder), shares):
        stage = Stage(config)
        stage.network.load_state_dict(load_directory(path)[0]["average"])
        stage.is_trained = True
        rows.append(tile(stage.sample(text, lowres, seeds=list(SCENES)), scenes))
        labels.append(f"{config.size} px, step {int(path.name.split('_')[1]):,}")
    rows.append(tile(world.images(SCENES, config.size), scenes))
    labels.append(f"{config.size} px, truth")
    grid = image_grid(torch.cat(rows), columns=len(SCENES))
    out = Image.new("RGB", (grid.width + 150, grid.height), "white")
    out.paste(grid, (150, 0))
    for k, label in enumerate(labels):
        ImageDraw.Draw(out).text((6, k * (SIDE + 2) + SIDE // 2), label, "black")
    return out


def main(run: Path, figure: Path, shares=SHARES):
    "Draw every stage at these shares of its steps."
    recipe = load_recipe(run)
    world, encoder = open_data(recipe, "test"), make_encoder(recipe.encoder)
    parts = [
        draw_stage(config, run / f"{config.size}px", shares, world, encoder)
        for config in recipe.stages
    ]
    out = Image.new("RGB", (max(p.width for p in parts), sum(p.height + 8 for p in parts)), "white")
    top = 0
    for part in parts:
        out.paste(part, (0, top))
        top += part.height + 8
    out.save(figure, quality=62)
    print(f"{figure}: {figure.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Captions chosen by a person, drawn by the emoji that ship: `python tools/measure/draw_chosen.py FIGURE`.

First samples, seed 0 for each; what was chosen is the captions. Grids that nobody picked are made by `emoji.py`.
"""

import sys
from pathlib import Path

from imagen_nb.cascade import Imagen
from imagen_nb.plots import show_images

CAPTIONS = (
    "a 3d emoji of a strawberry",
    "a noto emoji of a strawberry",
    "a flat emoji of a strawberry",
    "a black and white emoji of a strawberry",
    "a flat emoji of a watermelon",
    "a 3d emoji of a red apple",
    "a 3d emoji of a tulip",
    "a flat emoji of an avocado",
    "a noto emoji of a cactus",
    "a flat emoji of a guitar",
    "a black and white emoji of a bicycle",
    "a noto emoji of a sunflower",
)


def main(figure: Path, captions: tuple[str, ...] = CAPTIONS):
    images = Imagen.from_pretrained("emoji").sample(list(captions), seeds=[0] * len(captions))
    show_images(images, captions, columns=6, path=figure, width=1.5)


if __name__ == "__main__":
    main(Path(sys.argv[1]), tuple(sys.argv[2:]) or CAPTIONS)

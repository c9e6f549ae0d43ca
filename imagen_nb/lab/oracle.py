"""A reader that says what is really in a picture of the drawn world."""

import dataclasses
import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from imagen_nb.data import STRIPE_PERIOD, TINT, paint, pixel_centres, sinc
from imagen_nb.pictures.pixels import resize
from imagen_nb.pictures.scenes import BACKGROUNDS, COLOURS, VOCABULARY, Scene, Thing


def chroma(
    images: Tensor,  # (... 3 h w) in [-1, 1]
) -> Tensor:  # (... 2 h w): direction is hue, length is strength
    "Colour without lightness: what is left of RGB when its gray part is projected away."
    r, g, b = ((images + 1) / 2).unbind(-3)
    return torch.stack([(2 * r - g - b) / math.sqrt(6), (g - b) / math.sqrt(2)], -3)


def _hues(colours: tuple[str, ...]) -> Tensor:
    "Chroma of each colour at full strength, (n, 2)."
    rgb = torch.tensor([COLOURS[c] for c in colours], dtype=torch.float32, device="cpu") * 2 - 1
    return chroma(rgb.T[:, None])[:, 0].T


def connected(
    mask: Tensor,  # bool (h w)
) -> Tensor:  # int64 (h w): 0 off the mask, one positive number per connected patch
    "Label patches (8 neighbours): pixels take the largest label beside them until none changes."
    h, w = mask.shape
    labels = torch.arange(1, h * w + 1, device=mask.device).view(1, 1, h, w).float() * mask
    while True:
        grown = F.max_pool2d(labels, 3, 1, 1) * mask
        if torch.equal(grown, labels):
            return labels[0, 0].long()
        labels = grown


def _patches(image: Tensor, colours: tuple[str, ...]) -> list[tuple[str, Tensor]]:
    "Coloured patches of a picture: (colour, strength along its hue (h w), 0 away from the patch)."
    c, hues = chroma(image), _hues(colours)
    strength, side = torch.hypot(c[0], c[1]), image.shape[-1]
    labels = connected(strength > 0.11)
    nearest = torch.einsum("nc,chw->nhw", F.normalize(hues, dim=1), c).argmax(0)
    out = []
    for label in labels.unique()[1:] if (labels == 0).any() else labels.unique():
        here = labels == label
        votes = torch.bincount(nearest[here], strength[here], minlength=len(colours))
        keep = (votes > 0.2 * votes.sum()).nonzero()[:, 0].tolist()
        for k in keep:  # a patch of two hues is two things that touch
            part = here if len(keep) == 1 else here & (nearest == k)
            near = F.max_pool2d(part[None, None].float(), 5, 1, 2)[0, 0]
            near = near * (part | (labels == 0))
            share = torch.einsum("c,chw->hw", hues[k] / hues[k].square().sum(), c) * near
            if share.sum() > 0.006 * side**2:
                out.append((colours[k], share))
    return out


def _strength(things: list[Thing], size: int) -> Tensor:
    "Strength of colour of things drawn alone, (n h w): coverage, less the white in it."
    at = pixel_centres(size, size).expand(len(things), size)
    alpha, tint = paint(things, at[:, None, :], at[:, :, None], size)
    return (alpha * (1 - tint))[:, 0]


def _middles(side: int) -> Tensor:
    "Centres of a row of pixels in units of the row, (side,)."
    return (torch.arange(side, dtype=torch.float32, device="cpu") + 0.5) / side


@functools.cache
def _moments(shape: str, fill: str) -> tuple[float, float]:
    "Summed strength of a shape of radius 1, and how far below its centre that strength lies."
    share = _strength([Thing(shape, "red", None, fill, 0.5, 0.5, 0.4)], 256)[0]
    y = _middles(256) - 0.5
    return (share.mean() / 0.4**2).item(), ((share.sum(1) * y).sum() / share.sum() / 0.4).item()


def _candidates(share: Tensor, shapes: tuple[str, ...]) -> list[Thing]:
    "Things of every shape and fill with the area and the centre of a patch."
    side = share.shape[-1]
    at, total = _middles(side), share.sum()
    x, y = ((share.sum(0) * at).sum() / total).item(), ((share.sum(1) * at).sum() / total).item()
    out = []
    for shape in shapes:
        for fill in ("plain", "gradient", "striped"):
            area, below = _moments(shape, fill)
            r = math.sqrt(total.item() / side**2 / area)
            out.append(Thing(shape, "red", None, fill, x, y - below * r, r))
    return out


def _recognise(share: Tensor, shapes: tuple[str, ...]) -> tuple[Thing, float]:
    "The thing most like a patch, and the likeness (cosine between the two drawings)."
    options = _candidates(share, shapes)
    drawn = _strength(options, share.shape[-1])
    likeness = F.cosine_similarity(drawn.flatten(1), share.flatten()[None])
    best = int(likeness.argmax())
    return options[best], likeness[best].item()


def _wave(size: int, blur: float = 0.6) -> float:
    "Amplitude of stripes drawn at this size and then blurred by so many pixels."
    f = 1 / (STRIPE_PERIOD * math.sqrt(2) * size)  # cycles per pixel along each axis
    return 2 / math.pi * TINT * sinc(f) ** 4 * math.exp(-4 * (math.pi * blur * f) ** 2)


def _read_fill(image: Tensor, thing: Thing) -> str:
    "Fill of a thing from its inside, by fitting a slope and waves; needs 128 pixels or more."
    side = image.shape[-1]
    inner = dataclasses.replace(thing, fill="plain", r=thing.r - 1.5 / side)
    x, y = (_middles(side) - c for c in (thing.x, thing.y))
    alpha, _ = paint([inner], x[None, None] + thing.x, y[None, :, None] + thing.y, side)
    rows, cols = (alpha[0, 0] > 0.99).nonzero(as_tuple=True)
    hue = _hues((thing.colour,))[0]
    q = (chroma(image[:, rows, cols][..., None])[..., 0] * hue[:, None]).sum(0) / hue.square().sum()
    y, phase = y[rows], 2 * math.pi / (STRIPE_PERIOD * math.sqrt(2)) * (x[cols] + y[rows])
    waves = []
    for pitch in (0.9, 1.0, 1.1):
        turns = pitch * phase
        basis = torch.stack([torch.ones_like(y), y / thing.r, turns.sin(), turns.cos()], 1)
        fit = torch.linalg.lstsq(basis, q[:, None]).solution[:, 0]
        waves.append(fit[2:].norm().item())
    if max(waves) > 0.5 * _wave(side):
        return "striped"
    return "gradient" if fit[1] > 0.25 * TINT else "plain"


def read(
    image: Tensor,  # (3 h w) in [-1, 1], square, 32 pixels or more
    level: str = "quick",  # whose colours and shapes to look for
) -> Scene:  # shape is "unknown" where nothing fits
    "Say what is in a picture, from its pixels alone."
    image = image.detach().float().cpu()
    small = resize(image[None], 64)[0] if image.shape[-1] > 64 else image
    colours, shapes = VOCABULARY[level]
    things = []
    for colour, share in _patches(small, colours):
        thing, likeness = _recognise(share, shapes)
        size = None if level == "quick" else "small" if thing.r < 0.1425 else "big"
        thing = dataclasses.replace(thing, colour=colour, size=size)
        if image.shape[-1] >= 128:
            thing = dataclasses.replace(thing, fill=_read_fill(image, thing))
        things.append(thing if likeness > 0.85 else dataclasses.replace(thing, shape="unknown"))
    things.sort(key=lambda o: o.x + o.y)
    relation = stands(*things) if len(things) == 2 else None
    return Scene(tuple(things), _read_background(small), relation)


def stands(a: Thing, b: Thing) -> str:
    "Relation of a to b: the direction of the longer of the two offsets."
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def _read_background(image: Tensor) -> str:
    "The background whose gray is nearest to the middle value of all pixels far from colour."
    strong = (torch.hypot(*chroma(image)) > 0.06)[None, None].float()
    far = F.max_pool2d(strong, 3, 1, 1)[0, 0] == 0
    gray = (image.mean(0)[far] if far.any() else image.mean(0)).median() / 2 + 0.5
    return min(BACKGROUNDS, key=lambda b: abs(BACKGROUNDS[b] - gray.item()))


def compare(
    wanted: Scene,  # what the caption says
    found: Scene,  # what was read
    fill: bool = False,  # is the fill to be judged?
) -> dict[str, bool | None]:  # count, colour, shape, relation, size, fill, background, all
    "Score what was read; None where the wanted scene has no such attribute."

    def alike(*names):
        a, b = ([tuple(getattr(o, n) for n in names) for o in s.things] for s in (wanted, found))
        return sorted(a) == sorted(b)

    marks = dict(
        count=len(wanted.things) == len(found.things),
        colour=alike("colour"),
        shape=alike("colour", "shape"),
        relation=_relation_holds(wanted, found) if wanted.relation else None,
        size=alike("colour", "size") if wanted.things[0].size else None,
        fill=alike("colour", "fill") if fill else None,
        background=wanted.background == found.background,
    )
    return marks | {"all": all(m for m in marks.values() if m is not None)}


def _relation_holds(wanted: Scene, found: Scene) -> bool:
    "Do the two named things, found by colour, stand as wanted?"
    alike = [[o for o in found.things if o.colour == w.colour] for w in wanted.things[:2]]
    if not all(alike):
        return False
    a, b = (max(things, key=lambda o: o.r) for things in alike)
    return stands(a, b) == wanted.relation


def score(
    scene: Scene,  # what should be in the picture
    image: Tensor,  # (3 h w) in [-1, 1]
) -> dict[str, bool | None]:  # per attribute; None: does not apply
    "Read a picture and compare it with a scene, attribute by attribute."
    level = "full" if scene.things[0].size else "quick"
    fill = level == "full" and image.shape[-1] >= 128
    return compare(scene, read(image, level), fill)

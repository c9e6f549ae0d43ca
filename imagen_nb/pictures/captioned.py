"""Captioned pictures from files, in random access."""

import collections
import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from imagen_nb.pictures.cache import NoRoom
from imagen_nb.pictures.catalog import Catalog, open_catalog
from imagen_nb.pictures.decode import KINDS, cause, decode_picture, reason
from imagen_nb.pictures.layout import SPLITS
from imagen_nb.pictures.pixels import Crop, crop_images, cut_square
from imagen_nb.pictures.sources import find_source
from imagen_nb.store.config import counted
from imagen_nb.store.keyed import keyed_share

FEW = 3  # unreadable pictures that never stop a run, however small the collection


KEPT = 2**29  # bytes of decoded squares kept in memory, for one size


class CaptionedImages:
    "Pictures with captions in random access; made by `load_captioned`."

    def __init__(
        self,
        catalog: Catalog,  # what a pass over the source found
        keep,  # rows of it that are used, int64 (n,)
        size: int,  # side of ds[i] in pixels
        name: str = "pictures",  # for people
        square: str = "centre",  # "centre", or "random": a place for each picture, keyed
        seed: int = 0,  # of captions, squares and stand-ins
        max_skipped: float = 0.05,  # share of unreadable pictures that stops a run
        choice: str = "",  # how rows were chosen, for the record
    ):
        self.catalog, self.keep, self.size, self.name = catalog, keep, size, name
        self.square, self.seed, self.max_skipped, self.choice = square, seed, max_skipped, choice
        self.broken: dict[int, str] = {}  # index: reason
        self.stopped = ""  # why reading stopped
        self._kept: dict[int, Tensor] = {}  # index: square, of one size
        self._kept_size = 0
        meta = catalog.meta
        self.skipped = collections.Counter(meta["problems"]) + collections.Counter(meta["left_out"])
        self.examples = {
            why: (meta["names"].get(why, []) + meta["examples"].get(why, []))[:3]
            for why in self.skipped
        }  # reason -> some names

    def __getstate__(self):
        return self.__dict__ | {"_kept": {}}  # workers begin without squares

    def __len__(self):
        return len(self.keep)

    def __getitem__(self, i: int) -> tuple[Tensor, str]:
        return self.images([i])[0], self.caption(i)

    def row(self, i: int) -> int:
        "Row of the catalog that place i shows: its own, or its stand-in's."
        if not 0 <= i < len(self):
            raise IndexError(f"CaptionedImages: index, got {i}, expected 0 to {len(self) - 1}")
        return int(self.keep[self._stand_in(int(i))])

    def _stand_in(self, i: int) -> int:
        j, k = i, 0
        while j in self.broken and len(self.broken) < len(self):
            k += 1
            j = int(keyed_share(f"stand-in {self.seed} {i} {k}") * len(self))
        return j

    def captions(self, i: int) -> list[str]:
        "All captions of picture i, each in one line."
        return self.catalog.captions(self.row(i))

    def caption(self, i: int, epoch: int | None = None) -> str:
        "Caption of picture i: of several the first, or one drawn for each epoch; empty without any."
        texts = self.captions(i) or [""]
        if epoch is None:
            return texts[0]
        return texts[int(keyed_share(f"caption {self.seed} {epoch} {i}") * len(texts))]

    def images(
        self,
        indices,  # int64 (b,) or a list of ints
        size: int | None = None,  # side of the whole frame; None: the dataset's own
        crop: Crop | None = None,  # windows of it
        device=None,  # where to put them
    ) -> Tensor:  # (b 3 h w) in [-1, 1]
        "Pictures by index: squares at any size, or windows of them."
        size, views = size or self.size, []
        for k, i in enumerate(indices):
            window = crop and Crop(crop.top[k : k + 1], crop.left[k : k + 1], *crop[2:])
            views.append(self._view(int(i), size, window))
        return torch.stack(views).float().div_(127.5).sub_(1).to(device)

    def _view(self, i: int, size: int, window: Crop | None) -> Tensor:
        while True:
            if self.stopped:
                raise ValueError(self.stopped)
            self.row(i)  # is there such a place?
            j = self._stand_in(i)
            try:
                return _view(self, j, size, window)
            except NoRoom:
                raise
            except (OSError, ValueError) as e:
                _lose(self, j, reason(e), cause(e))

    def sizes(self) -> np.ndarray:
        "Shorter sides of the pictures; 0 where headers were not read."
        rows = self.catalog.rows[self.keep]
        return np.minimum(rows["width"], rows["height"])

    @property
    def identity(self) -> str:
        "These data in a run's record: name, number, choice, digest of names and captions."
        return f"{self.name}, {len(self)} pictures{self.choice}, {self.catalog.meta['digest']}"

    def report(self) -> str:
        "What was found, kept, left out and why, in a few lines."
        return "\n".join(_report(self))


def _lose(ds: CaptionedImages, i: int, why: str, behind: str):
    "Count a picture that could not be read after all; stop where they are too many."
    name, ds.broken[i] = ds.catalog.name(int(ds.keep[i])), why
    n, what = len(ds.broken), f"CaptionedImages: {name}, got {why}{behind}"
    if n > max(FEW, ds.max_skipped * len(ds)) or n == len(ds):
        counts = _counts(collections.Counter(ds.broken.values()))
        ds.stopped = (
            f"{what}, expected a picture that can be read;"
            f" {n} of {counted(len(ds), 'picture')} cannot: {counts}"
        )
        raise ValueError(ds.stopped)
    warnings.warn(f"{what}; another picture stands in ({n} so far)")


def _view(ds: CaptionedImages, i: int, size: int, crop: Crop | None) -> Tensor:
    "A square or a window of it, uint8 (3 h w); squares that fit are kept."
    at = 0.5 if ds.square == "centre" else keyed_share(f"square {ds.seed} {i}")

    def cut(window):
        return cut_square(decode_picture(ds.catalog.blob(int(ds.keep[i]))), size, at, window)

    is_kept = (i + 1) * 3 * size**2 <= KEPT  # by index, not by history: the same after a resume
    if crop is not None and not is_kept:
        return _window(cut, size, crop)
    if ds._kept_size != size:
        ds._kept, ds._kept_size = {}, size
    square = ds._kept.get(i)
    square = cut((0, 0, size, size)) if square is None else square
    if is_kept:
        ds._kept[i] = square
    return square if crop is None else crop_images(square[None], crop)[0]


def _window(cut: Callable, size: int, crop: Crop) -> Tensor:
    "The part of a crop that lies inside the frame, its edge repeated where the crop hangs over."
    top, left = max(0, int(crop.top)), max(0, int(crop.left))
    h = min(size, int(crop.top) + crop.height) - top
    w = min(size, int(crop.left) + crop.width) - left
    part = cut((top, left, h, w))
    return crop_images(part[None], Crop(crop.top - top, crop.left - left, *crop[2:]))[0]


def evenly(
    pictures,  # a data set
    most: int,  # how many to take, or all there are
) -> list[int]:  # indices, rising
    "Some of the pictures, from all over the data."
    n = min(most, len(pictures))
    return [k * len(pictures) // n for k in range(n)]


def _counts(reasons: collections.Counter) -> str:
    "How many of each."
    return "; ".join(f"{n} {why}" for why, n in reasons.most_common())


def _report(ds: CaptionedImages):
    "The lines of `CaptionedImages.report`."
    total, sides = len(ds.catalog) + sum(ds.catalog.meta["problems"].values()), ds.sizes()
    yield f"{ds.name}: {counted(total, 'picture')}, {len(ds)} kept, {ds.skipped.total()} left out"
    for why, n in ds.skipped.most_common():
        yield f"  {n} {why}: {', '.join(ds.examples[why])}{', ...' * (n > 3)}"
    if ds.catalog.meta["lost"]:
        yield f"  {ds.catalog.meta['lost']:,} bytes of damaged tar files hold nothing that can be read"
    if rest := total - len(ds) - ds.skipped.total():
        yield f"  {rest} not asked for{ds.choice}"
    yield from _report_captions(ds)
    if len(sides) and sides.max():
        yield f"shorter sides: {sides.min()} to {sides.max()} pixels, median {int(np.median(sides))}"
        edges = [0, *EDGES, 10**9]
        names = [f"of {a} to {b - 1}" for a, b in zip(edges, edges[1:])]
        names[0], names[-1] = f"under {EDGES[0]}", f"of {EDGES[-1]} and more"
        counts = np.histogram(sides, edges)[0]
        yield "  " + ", ".join(f"{n} {what}" for what, n in zip(names, counts) if n)
    if aside := _not_looked_at(ds):
        yield aside
    yield from ds.catalog.meta["remarks"]


def _not_looked_at(ds: CaptionedImages) -> str:
    "What a source holds besides."
    ranked = sorted(ds.catalog.meta["ignored"].items(), key=lambda o: -o[1])
    return "not looked at: " * bool(ranked) + ", ".join(f"{n} {what}" for what, n in ranked)


EDGES = (64, 128, 256, 512, 1024)  # of the histogram of shorter sides, in pixels


def _report_captions(ds: CaptionedImages):
    "How many captions there are, and how long."
    seen: set[int] = set()
    lengths: list[int] = []
    missing, damaged, count = 0, 0, 0
    for i in range(len(ds)):
        texts = ds.captions(i)
        missing, count = missing + (not texts), count + len(texts)
        damaged += sum("\ufffd" in text for text in texts)
        seen.update(map(hash, texts))
        lengths += map(len, texts)
    several = f", {count / max(1, len(ds) - missing):.1f} for each picture that has any"
    yield (
        f"captions: {len(seen)} different, {missing} missing"
        + several * (count > len(ds) - missing)
        + f", {damaged} with undecodable characters" * bool(damaged)
    )
    if lengths:
        yield (
            f"  {min(lengths)} to {max(lengths)} characters, median {int(np.median(lengths))},"
            f" 95 % under {int(np.quantile(lengths, 0.95)) + 1}"
        )


def load_captioned(
    source,  # folder, file or files, Dataset, hub name: see the recipes
    size: int,  # side of ds[i] in pixels
    split: str = "train",  # "train", "valid" or "test"
    image_column: str | None = None,  # of a table; None: guessed from types and usual names
    caption_column: str | None = None,  # of a table or .json; None: a usual name
    check: bool | str = True,  # look at both ends of each file; "all": decode; False: no
    *,
    min_size: int = 0,  # leave out pictures whose shorter side has fewer pixels
    held_out: float = 0.0,  # share of "train" that is "valid", and as much "test"
    square: str = "centre",  # of each picture, or "random": a keyed place along it
    max_skipped: float = 0.05,  # stop if a larger share (and over three) is unreadable
    seed: int = 0,  # of the share, of squares and of captions' draws
) -> CaptionedImages:
    "Captioned pictures from files or from Hugging Face datasets, in random access."
    level = {True: "header", False: "nothing", "all": "all"}.get(check, "")
    for name, value, is_right, wanted in (
        ("check", check, level, "True, False or 'all'"),
        ("square", square, square in ("centre", "random"), "'centre' or 'random'"),
        ("held_out", held_out, 0 <= held_out < 0.5, "a share below 0.5"),
        ("min_size", min_size, not min_size or check, "0 where headers are not read"),
    ):
        if not is_right:
            raise ValueError(f"load_captioned: {name}, got {value!r}, expected {wanted}")
    found = find_source(source, "train" if held_out else split, image_column, caption_column)
    if split != "train" and not found.has_split and not (held_out and split in SPLITS):
        raise ValueError(
            f"load_captioned: split of {found.name}, got {split!r}, which it does not"
            " have; held_out=0.05 takes a share of train for it"
        )
    catalog = open_catalog(found, (image_column, caption_column), level)
    keep, choice = _choose(catalog.rows, split, min_size, held_out, seed)
    choice += f", random squares of seed {seed}" * (square == "random")
    ds = CaptionedImages(catalog, keep, size, found.name, square, seed, max_skipped, choice)
    _tell_skipped(ds, found.cause)
    return ds


def _choose(rows, split: str, min_size: int, held_out: float, seed: int):
    "Rows that are sound and asked for, and the choice in words."
    is_used, choice = rows["reason"] == 0, ""
    if min_size:
        is_used &= np.minimum(rows["width"], rows["height"]) >= min_size
        choice = f", at least {min_size} px"
    if held_out:
        u = (rows["key"] ^ np.uint32(keyed_share(f"held out {seed}") * 2**32)) / 2**32
        low, high = {"valid": (0, 1), "test": (1, 2), "train": (2, math.inf)}[split]
        is_used &= (u >= low * held_out) & (u < high * held_out)
        choice += f", {split} beside shares of {held_out:g} by seed {seed}"
    return np.flatnonzero(is_used), choice


WHERE = "captions are read from 1.txt, 1.caption or 1.json beside 1.jpg, or from metadata.csv"


def _tell_skipped(ds: CaptionedImages, cause: Exception | None):
    "One warning with all counts; an error where too much is unreadable."
    n, problems = ds.skipped.total(), sum(ds.catalog.meta["problems"].values())
    total, why, aside = len(ds.catalog) + problems, _counts(ds.skipped), _not_looked_at(ds)
    names = "; ".join(f"{r}: {', '.join(names)}" for r, names in ds.examples.items())
    if not len(ds):
        told = "; ".join(filter(None, [why, names and f"for example {names}", aside]))
        raise ValueError(
            f"load_captioned: {ds.name}: got no readable picture of {total}{ds.choice}"
            + f": {told}" * bool(told)
            + f"; expected some of {KINDS}"
        ) from cause
    if n > max(FEW, ds.max_skipped * total):
        raise ValueError(
            f"load_captioned: {ds.name}: {n} of {counted(total, 'picture')} cannot be used, more than"
            f" max_skipped={ds.max_skipped:g}: {why}. For example {names}. Mend or remove"
            " them, or allow a larger share"
        ) from cause
    said = [f"left out {n} of {counted(total, 'picture')}: {why}"] * bool(why) + ds.catalog.meta[
        "remarks"
    ]
    if aside and not any(ds.captions(i) for i in range(len(ds))):
        said.append(f"no picture has a caption; {aside}; {WHERE}")
    if said:
        warnings.warn(f"load_captioned: {ds.name}: {'; '.join(said)}", stacklevel=3)

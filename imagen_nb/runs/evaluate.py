"""A model against real pictures: `imagen-nb evaluate`. Each picture is drawn once and kept, so that a run goes on.

A protocol fixes captions, number and size. Captions are drawn by lot, keyed by the seed; pictures are drawn in parts of
`PART`, always the same, so that neither a stop nor the number of processes changes a number.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from imagen_nb.cascade import Imagen
from imagen_nb.evaluation import (
    bootstrap_mean,
    clip_score,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from imagen_nb.lab.extractors import Extractor
from imagen_nb.pictures.decode import decode_picture
from imagen_nb.pictures.pixels import Pictures, to_square
from imagen_nb.plots import save_picture
from imagen_nb.store.card import table
from imagen_nb.store.checkpoint import load_directory, save_directory
from imagen_nb.store.config import config_diff, config_to_dict
from imagen_nb.store.files import assets, replace_text
from imagen_nb.store.identity import digest_tensors
from imagen_nb.store.keyed import permute

__all__ = ["PROTOCOLS", "Protocol", "Asked", "choose_captions", "draw", "evaluate"]

PART = 16  # pictures drawn together, and kept together
LOOKED = 64  # pictures that an extractor is given at a time


class Protocol(NamedTuple):
    "What an evaluation fixes."

    split: str  # of the real pictures
    n: int | None  # pictures to draw; None: as many as there are real ones
    size: int | None  # side that is compared, pixels; None: the model's last
    text: str  # for people


PROTOCOLS = {
    "coco-fid30k": Protocol(
        "valid",
        30_000,
        256,
        "zero-shot COCO: random validation captions, all pictures are the reals",
    ),
    "own": Protocol("train", None, None, "captions and pictures of a folder"),
}


@dataclass(frozen=True)
class Asked:
    "What is drawn: one caption for each picture, the same in every process."

    captions: list[str]
    stages: int  # of the cascade
    size: int  # of the pictures that are compared
    options: dict  # of `Imagen.sample`
    seed: int  # picture k has noise seed + k


def choose_captions(
    pictures: Pictures,  # real ones, with captions
    n: int | None,  # how many; None: as many as pictures
    seed: int,  # another seed, another lot
) -> list[str]:
    "Captions by lot, without repetition; all captions of a picture take part."
    every = [caption for i in range(len(pictures)) for caption in pictures.captions(i)]
    n = n or min(len(pictures), len(every))
    if not 2 <= n <= len(every):
        raise ValueError(
            f"evaluate: captions, got {len(every):,}, expected 2 or more, at least {n:,}"
        )
    return [every[permute(k, len(every), seed)] for k in range(n)]


def stages_for(
    imagen: Imagen,  # a cascade
    size: int | None,  # wanted side in pixels; None: its last
) -> tuple[int, int]:  # stages to draw with; side of their pictures
    "The first stages, up to the one that draws this size."
    sizes = [o.config.size for o in imagen.stages if o.is_trained]
    size = size or (sizes[-1] if sizes else None)
    if size not in sizes:
        raise ValueError(f"evaluate: model, got stages of {sizes} px, expected one of {size} px")
    return sizes.index(size) + 1, size


# ---------------------------------------------------------------- pictures


def claim(
    out: Path,  # folder of the evaluation
    facts: dict,  # all that its pictures depend on, as JSON can hold it
):
    "Note what is evaluated, or refuse a folder of something else."
    path, facts = out / "asked.json", json.loads(json.dumps(facts))
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return replace_text(path, json.dumps(facts, indent=1))
    if diff := config_diff(json.loads(path.read_text()), facts):
        raise ValueError(
            f"evaluate: {out} holds another evaluation:\n  "
            + "\n  ".join(diff)
            + "\nUse another --out."
        )


def picture_path(out: Path, k: int) -> Path:
    "File of picture k."
    return out / "pictures" / f"{k // 1000:03d}" / f"{k:06d}.png"


def draw(
    imagen: Imagen,  # who draws
    asked: Asked,  # what
    out: Path,  # folder of the evaluation
    share: tuple[int, int] = (0, 1),  # this process's: the k-th of n
) -> int:  # pictures that are still missing, in all shares
    "Draw this share of the pictures that are missing; a part that was cut is drawn again, whole."
    from tqdm.auto import tqdm

    n = len(asked.captions)
    parts = [range(k, min(k + PART, n)) for k in range(0, n, PART)]

    def missing(part):
        return [k for k in part if not picture_path(out, k).exists()]

    left = [part for part in parts[share[0] :: share[1]] if missing(part)]
    for part in tqdm(left, "drawing", unit="part", disable=not left):
        captions, seeds = [asked.captions[k] for k in part], [asked.seed + k for k in part]
        images = imagen.sample(captions, seeds=seeds, stages=asked.stages, **asked.options)
        for k in missing(part):
            picture_path(out, k).parent.mkdir(parents=True, exist_ok=True)
            save_picture(images[k - part[0]], picture_path(out, k))
    return sum(len(missing(part)) for part in parts)


def looked_at(
    look: Callable[[Tensor], Tensor],  # an extractor
    n: int,  # pictures
    load: Callable[[range], Tensor],  # pictures by number, (b 3 h w)
    kept: Path,  # folder of the vectors, made if it is not there
) -> Tensor:  # (n d)
    "Vectors of many pictures, a few at a time, computed once."
    from tqdm.auto import tqdm

    if not kept.exists():
        parts = [range(k, min(k + LOOKED, n)) for k in range(0, n, LOOKED)]
        vectors = [look(load(part)) for part in tqdm(parts, f"looking, {kept.name}", unit="part")]
        save_directory(kept, {"vectors": {"x": torch.cat(vectors)}}, dict(n=n))
    return load_directory(kept)[0]["vectors"]["x"]


# ---------------------------------------------------------------- numbers


def evaluate(
    imagen: Imagen,  # a trained cascade
    pictures: Pictures,  # the real ones, with captions
    protocol: str,  # of `PROTOCOLS`
    out: Path,  # folder: pictures, vectors, scores.json
    extractor: Extractor,  # looks at pictures for the distances
    matcher: Extractor | None = None,  # compares pictures with captions; None: nobody does
    *,
    n: int | None = None,  # pictures to draw; None: the protocol's
    seed: int = 0,  # of captions and noise
    share: tuple[int, int] = (0, 1),  # draw the k-th of n shares
    **options,  # of `Imagen.sample`
) -> dict | None:  # what scores.json holds; None: other shares have still to draw
    "Draw captions by lot, and compare with real pictures (paper 4.2)."
    rules = PROTOCOLS[protocol]
    if matcher and not (matcher.images and matcher.captions):
        raise ValueError(f"evaluate: matcher, got {matcher.name}, expected one that reads captions")
    stages, size = stages_for(imagen, rules.size)
    asked = Asked(choose_captions(pictures, n or rules.n, seed), stages, size, options, seed)
    weights = (
        (f"{k} {name}", v)
        for k, o in enumerate(imagen.stages[:stages])
        for name, v in sorted(o.network.state_dict().items())
    )
    facts = dict(protocol=protocol, n=len(asked.captions), size=size, seed=seed, options=options)
    model = dict(
        weights=digest_tensors(weights),
        stages=[config_to_dict(o.config) for o in imagen.stages[:stages]],
        encoder=imagen.encoder.identity,
    )
    claim(out, facts | dict(data=pictures.identity, model=model))
    if draw(imagen, asked, out, share):
        return None
    scores = facts | compare(pictures, asked, out, extractor, matcher)
    replace_text(out / "scores.json", json.dumps(scores, indent=1))
    return scores


def compare(
    pictures: Pictures, asked: Asked, out: Path, extractor: Extractor, matcher: Extractor | None
) -> dict:
    "All numbers, and by whom."
    n, m, size = len(asked.captions), len(pictures), asked.size

    def drawn(part):
        blobs = (picture_path(out, k).read_bytes() for k in part)
        return torch.stack([to_square(decode_picture(blob), size) for blob in blobs])

    def vectors(who, look, what, count, load):
        mark = hashlib.blake2b(f"{who.name} {who.rule}".encode(), digest_size=4).hexdigest()
        return looked_at(look, count, load, out / "vectors" / f"{what}-{mark}")

    real = vectors(extractor, extractor.features, "real", m, lambda k: pictures.images(k, size))
    ours = vectors(extractor, extractor.features, "drawn", n, drawn)
    precision, recall = precision_recall(real, ours)
    found: dict = dict(
        extractor=extractor.name,
        resize=f"real pictures: middle square to {size} px, bilinear with anti-aliasing; then all: {extractor.rule}",
        real=m,
        fid=frechet_distance(real, ours),
        kid=kernel_distance(real, ours),
        precision=precision,
        recall=recall,
    )
    if m >= 4:  # what two samples of the same pictures score
        order = [permute(k, m, "halves") for k in range(m)]
        found["fid_of_halves"] = frechet_distance(real[order[::2]], real[order[1::2]])
    if matcher and matcher.images and matcher.captions:
        seen = vectors(matcher, matcher.images, "matched", n, drawn)
        read = torch.cat([matcher.captions(part) for part in batches(asked.captions)])
        found |= dict(matcher=matcher.name, match_resize=matcher.rule)
        found["match"] = bootstrap_mean(clip_score(seen, read), resamples=1000)
    return found


def batches(captions: list[str]) -> list[list[str]]:
    "A few captions at a time."
    return [captions[k : k + LOOKED] for k in range(0, len(captions), LOOKED)]


def report(
    scores: dict,  # what `evaluate` gave
) -> str:  # Markdown
    "Every number with its n, its extractor and its resize rule; for COCO the paper's table below."
    n, m, who = scores["n"], scores["real"], scores["extractor"]
    rows = [
        ("FID", f"{scores['fid']:.4g}", f"{n:,} drawn, {m:,} real", who),
        ("KID x 1000", f"{1000 * scores['kid']:.4g}", f"{n:,} drawn, {m:,} real", who),
        ("precision", f"{scores['precision']:.3f}", f"{n:,} drawn", who),
        ("recall", f"{scores['recall']:.3f}", f"{m:,} real", who),
    ]
    if "fid_of_halves" in scores:
        rows.insert(
            1, ("FID of the real halves", f"{scores['fid_of_halves']:.4g}", f"{m // 2:,} each", who)
        )
    if "match" in scores:
        match = scores["match"]
        value = f"{match['mean']:.2f} ({match['low']:.2f} to {match['high']:.2f})"
        rows.append(("CLIP score", value, f"{n:,} drawn", scores["matcher"]))
    lines = [table(("measure", "value", "pictures", "by"), rows), f"resize: {scores['resize']}"]
    if "match" in scores:
        lines.append(f"resize for CLIP score: {scores['match_resize']}")
    if scores["protocol"] == "coco-fid30k":
        lines.append("\n" + paper_table())
    return "\n".join(lines)


def paper_table() -> str:
    "FID on COCO as the paper has it."
    paper = json.loads((assets() / "paper.json").read_text(encoding="utf-8"))["coco_fid"]
    rows = [
        (row["model"], "zero-shot" if row["zero_shot"] else "trained on COCO", row["fid"])
        for row in paper["rows"]
    ]
    head = f"The paper's {paper['where']}: other models, trained on other data, {paper['protocol']}.\n\n"
    return head + table(("model", "training", "FID"), rows)

"""The claims page: thirteen findings of the paper beside what run cards of this repository say, by one rule.

A claim is held against one difference that is positive if the paper is right. The verdict reads the 95 % interval of
that difference and nothing else, so a new card can change it. `facts.py` puts the page's sections in their place.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

PERCENT = 100


@dataclass(frozen=True)
class Difference:
    "A value with its 95 % interval; positive means that the paper's finding was seen."

    mean: float
    low: float
    high: float
    unit: str = ""
    digits: int = 1

    @classmethod
    def of(cls, found: dict, sign: float = 1, unit: str = "", digits: int = 1) -> "Difference":
        "From a card's mean, low and high."
        ends = sorted([sign * found["low"], sign * found["high"]])
        return cls(sign * found["mean"], *ends, unit, digits)

    @classmethod
    def between(cls, a: dict, b: dict, key: str, scale: float = 1, **told) -> "Difference":
        "a - b from two intervals of their own (square-and-add, Newcombe 1998)."
        mean = a[key] - b[key]
        low = mean - math.hypot(a[key] - a["low"], b["high"] - b[key])
        high = mean + math.hypot(a["high"] - a[key], b[key] - b["low"])
        return cls(scale * mean, scale * low, scale * high, **told)

    @classmethod
    def of_pairs(cls, values: list[float], **told) -> "Difference":
        "Mean of one difference for each seed, by Student's t."
        n, mean = len(values), sum(values) / len(values)
        error = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
        half = {2: 12.706, 3: 4.303, 4: 3.182}[n] * error
        return cls(mean, mean - half, mean + half, **told)

    def __sub__(self, other: "Difference") -> "Difference":
        mean = self.mean - other.mean
        low = mean - math.hypot(self.mean - self.low, other.high - other.mean)
        high = mean + math.hypot(self.high - self.mean, other.mean - other.low)
        return Difference(mean, low, high, self.unit, self.digits)

    def __str__(self) -> str:
        mean, low, high = (f"{v:+.{self.digits}f}" for v in (self.mean, self.low, self.high))
        return f"{mean}{self.unit} ({low} to {high})"

    @property
    def least(self) -> str:
        "Half of the interval: a smaller difference could not have been told from none."
        return f"{(self.high - self.low) / 2:.{self.digits}f}{self.unit}"


@dataclass(frozen=True)
class Found:
    "What our cards say of one claim."

    setting: str  # what was compared
    difference: Difference | None  # None: not testable here
    seeds: int = 0
    cost: str = ""  # equal samples, and what each side took
    margin: float | None = None  # for claims that two things are equal: how near that is
    only: str = ""  # what stands for the paper's measure, said beside the verdict
    limits: str = ""  # what else the reader must know

    @property
    def verdict(self) -> str:
        "agrees, differs, undecided, or not testable here."
        d = self.difference
        if d is None:
            return "not testable here"
        if self.seeds < 2:
            return "undecided"
        if self.margin is not None:
            if -self.margin < d.low and d.high < self.margin:
                return "agrees"
            return "differs" if d.low > self.margin or d.high < -self.margin else "undecided"
        return "agrees" if d.low > 0 else "differs" if d.high < 0 else "undecided"


@dataclass(frozen=True)
class Claim:
    "One row of the paper's ledger."

    name: str
    place: str  # in the paper
    finding: str  # of the paper
    cards: tuple[str, ...]  # run cards
    page: str  # where it is explained, from docs/pages
    look: Callable[..., Found] = field(repr=False)  # given the cards


# ---------------------------------------------------------------- what each card says


def times(a: float, b: float) -> str:
    "a / b in words."
    return f"{a / b:.2g} times"


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def arms_of(card: dict, *names: str) -> list[dict]:
    "Some arms of a card."
    return [card["arms"][name] for name in names]


def share_gap(card: dict, a: str, b: str, part: str, by: str = "object") -> Difference:
    "Share of right things of arm a minus that of arm b, in points of per cent."
    one, other = arms_of(card, a, b)
    return Difference.between(one[part][by], other[part][by], "share", PERCENT, unit=" points")


def text_cost(card: dict, a: str, b: str) -> str:
    "Samples and time of two arms of the experiment on text encoders."
    one, other = arms_of(card, a, b)
    ratio = times(mean(one["cpu_seconds"]), mean(other["cpu_seconds"]))
    return (
        f"{card['data']['samples']:,} samples each; {a} took {ratio} the CPU time of {b};"
        f" {one['parameters'] / 1e6:.1f} and {other['parameters'] / 1e6:.1f} M parameters"
    )


def seeds_of(card: dict, *names: str) -> int:
    return min(arm["seeds"] for arm in arms_of(card, *names))


def of_texts(card: dict, a: str, b: str, part: str, setting: str, **told) -> Found:
    "Two arms of the experiment on text encoders: of new words one of five guesses must be right, else the first."
    by, lists = (
        ("top5", "new words, among five") if part == "words" else ("object", "captions of training")
    )
    return Found(
        f"the share of right things for {lists}: {setting}",
        share_gap(card, a, b, part, by),
        seeds_of(card, a, b),
        text_cost(card, a, b),
        **told,
    )


def text_size(card: dict) -> Found:
    return of_texts(
        card,
        "english",
        "layer 1",
        "words",
        "all six layers of the English model against its first",
        only="depth of one encoder, not size",
        limits="The paper compares four sizes of T5. Of three small T5s of our own, which had read for some minutes,"
        f" the largest is {share_gap(card, 'T5 large', 'T5 small', 'words', 'top5')} ahead of the smallest,"
        " and on such words all are near chance.",
    )


def text_kind(card: dict) -> Found:
    lead = share_gap(card, "judge", "english", "trained")
    return of_texts(
        card,
        "english",
        "judge",
        "words",
        "the English model against the text half of a small CLIP",
        limits="The judge's text half was trained with pictures of these very things. On captions of"
        f" training it leads by {lead}, where the paper finds both equal.",
    )


def unet_size(card: dict) -> Found:
    reader = share_gap(card, "english", "layer 0", "words", "top5")
    painter = share_gap(card, "U-Net 96", "U-Net 32", "words", "top5")
    names = ("english", "layer 0", "U-Net 96", "U-Net 32")
    wide, narrow = arms_of(card, "U-Net 96", "U-Net 32")
    return Found(
        "the gain of six layers of reading over none, minus the gain of"
        f" {times(wide['gflops'], narrow['gflops'])} the U-Net's operations, on new words",
        reader - painter,
        seeds_of(card, *names),
        text_cost(card, "U-Net 96", "U-Net 32"),
        only="depth of the encoder against width of the U-Net",
        limits=f"The wider U-Net alone gains {painter}. On captions of training it gains"
        f" {share_gap(card, 'U-Net 96', 'U-Net 32', 'trained')}, and depth gains"
        f" {share_gap(card, 'english', 'layer 0', 'trained')}.",
    )


def threshold(card: dict, where: dict) -> Found:
    rows = [r for r in card["contrasts"] if r["rules"] == ["dynamic", "static"] and r["w"] == 6.0]
    right = {k: PERCENT * rows[0]["right"][k] for k in ("mean", "low", "high")}
    errors = {r["rule"]: r["error"] for r in where["gray"]["arms"] if r["w"] == 10.0}
    on_gray = Difference.between(errors["static"], errors["dynamic"], "mean", digits=3)
    return Found(
        "the share of right attributes at w = 6, dynamic against static, on drawn shapes",
        Difference.of(right, unit=" points"),
        card["config"]["seeds"],
        f"{card['config']['captions']} captions, equal samples and equal time",
        limits="One trained model; the seeds are of the noise. These shapes and their grounds are pure colours, so"
        " that static thresholding has little to spoil. Where the ground is gray the finding is seen: the drawing"
        f" error at w = 10 is lower with dynamic thresholding by {on_gray}, with one seed.",
    )


def contrast(card: dict, first: str, second: str) -> dict:
    "A compared pair of the card."
    return next(r for r in card["contrasts"] if r["first"] == first and r["second"] == second)


def arm_cost(card: dict, a: str, b: str) -> str:
    "Samples and time of two arms of one stage."
    one, other = arms_of(card, a, b)
    part = card["config"]["base" if a.startswith("base") else "enlarger"]
    ratio = times(mean(one["cpu_seconds"]), mean(other["cpu_seconds"]))
    return (
        f"{part['steps'] * part['batch']:,} samples each; {a} took {ratio} the CPU time of {b};"
        f" {one['parameters'] / 1e6:.1f} and {other['parameters'] / 1e6:.1f} M parameters"
    )


DISTANCE = "the Fréchet distance of patches"
SOME = "up to 0.2"


def enlarger_guidance(card: dict) -> Found:
    weak, at = f"{SOME}, aug_t 0.1, w 1", f"{SOME}, aug_t 0.1, w "
    moderate = Difference.of(contrast(card, weak, at + "4")["frechet"], digits=3)
    return Found(
        f"{DISTANCE}, w = 1 minus w = 8, of an enlarger 32 to 128",
        Difference.of(contrast(card, weak, at + "8")["frechet"], digits=3),
        len(card["seeds"]),
        "one network; w = 8 takes twice the evaluations",
        limits=f"With w = 4 the difference is {moderate}.",
    )


def level_at_inference(card: dict) -> Found:
    pair, more = (
        contrast(card, f"{SOME}, aug_t {a}, w 1", f"{SOME}, aug_t 0, w 1") for a in ("0.1", "0.2")
    )
    return Found(
        f"{DISTANCE}, aug_t = 0.1 minus aug_t = 0, from what the shipped base drew",
        Difference.of(pair["frechet"], digits=3),
        len(card["seeds"]),
        "one network, equal samples and equal time",
        limits=f"With aug_t = 0.2 the difference is {Difference.of(more['frechet'], digits=3)}."
        " Which level looks best was asked of nobody.",
    )


def level_in_training(card: dict) -> Found:
    none, every = "no augmentation, aug_t 0, w ", "every level, aug_t 0.1, w "
    pair = contrast(card, none + "1", f"{SOME}, aug_t 0.1, w 1")
    still, moved = (contrast(card, o + "1", o + "8")["frechet"] for o in (none, every))
    reacts = Difference.of(moved, -1, digits=3) - Difference.of(still, -1, digits=3)
    return Found(
        f"{DISTANCE}, trained without noise on the small picture minus trained with noise up to 0.2",
        Difference.of(pair["frechet"], digits=3),
        len(card["seeds"]),
        arm_cost(card, "no augmentation", SOME),
        limits="That the network without noise hardly reacts to w is seen: from w = 1 to w = 8 the distance of the"
        f" network that knows every level changes by {reacts} more.",
    )


def text_entry(card: dict) -> Found:
    pooled = share_gap(card, "english", "attention pool", "trained")
    return of_texts(
        card,
        "english",
        "mean pool",
        "trained",
        "attention over words against the mean of the words",
        limits=f"Against attention pooling the difference is {pooled}."
        " A caption here names one thing and one style.",
    )


def text_norm(card: dict) -> Found:
    return of_texts(
        card,
        "raw tokens",
        "raw tokens, no LayerNorm",
        "trained",
        "LayerNorm on the words against none",
        limits="All other arms standardise the numbers of the reader first; these two do not.",
    )


def efficient(card: dict) -> Found:
    last = {(c["network"], c["seed"]): c["points"][-1] for c in card["curves"]}
    seeds = sorted({seed for _, seed in last})
    gaps = [last["classic", k][2] - last["efficient", k][2] for k in seeds]
    seconds = last["classic", 0][0]
    at_equal_steps = []
    for k in seeds:
        steps = last["classic", k][1]
        points = next(
            c["points"] for c in card["curves"] if c["network"] == "efficient" and c["seed"] == k
        )
        near = min(points, key=lambda p: abs(p[1] - steps))
        at_equal_steps.append(last["classic", k][2] - near[2])
    return Found(
        "the held-out loss of 16 to 64 after equal time, classic U-Net minus Efficient U-Net",
        Difference.of_pairs(gaps, digits=4),
        len(seeds),
        f"{seconds:.0f} s of one thread each;"
        f" {card['parameters']['classic'] / 1e6:.1f} and {card['parameters']['efficient'] / 1e6:.1f} M parameters",
        only="loss, not FID",
        limits=f"After equal steps the difference is {Difference.of_pairs(at_equal_steps, digits=4)}.",
    )


def optimizer_of_enlargers(card: dict) -> Found:
    a, b = card["best"]["adafactor"], card["best"]["adam"]
    pair = contrast(card, f"{a}, aug_t 0.1, w 1", f"{b}, aug_t 0.1, w 1")
    names = card["best"]["base, adafactor"], card["best"]["base, adam"]
    base = [[curve[-1][1] for curve in arm["curves"]] for arm in arms_of(card, *names)]
    gap = Difference.of_pairs([x - y for x, y in zip(*base)], digits=4)
    return Found(
        f"{DISTANCE}, enlarger trained with Adafactor minus with Adam, each at the better of two rates",
        Difference.of(pair["frechet"], digits=3),
        min(len(arm["curves"]) for arm in arms_of(card, a, b)),
        arm_cost(card, a, b),
        limits=f"On the base, where the paper finds both equal, the held-out loss differs by {gap}."
        " A short run favours the optimizer that starts faster.",
    )


def words_in_last(card: dict) -> Found:
    pair = contrast(card, "pooled text, aug_t 0.1, w 1", f"{SOME}, aug_t 0.1, w 1")
    none = contrast(card, "no text, aug_t 0.1, w 1", f"{SOME}, aug_t 0.1, w 1")
    return Found(
        f"{DISTANCE}, an enlarger without self-attention that has only pooled text,"
        " minus one that attends to words",
        Difference.of(pair["frechet"], digits=3),
        len(card["seeds"]),
        arm_cost(card, "pooled text", SOME),
        limits=f"Without any text the distance differs by {Difference.of(none['frechet'], digits=3)}."
        " The paper's network enlarges 256 to 1024.",
    )


def frozen_cost(card: dict) -> Found:
    found, step = card["found"], card["found"]["step"]["seconds"][0]
    value, low, high = (PERCENT * s / step for s in found["cached"]["seconds"])
    return Found(
        "the CPU time of reading a batch's embeddings, of a training step of the emoji base",
        Difference(value, low, high, " %", 2),
        card["rounds"],
        f"medians of {card['rounds']} rounds in turn; encoding each batch anew takes"
        f" {PERCENT * found['encoded']['share']:.0f} % of a step",
        margin=1.0,
        limits="The interval is from the least to the most.",
    )


TEXT, ARMS = "experiment-text_encoder", "../../nbs/experiments"
CLAIMS = (
    Claim(
        "A larger text encoder helps",
        "§4.4, Fig. 4a, A.5a",
        "Larger T5 encoders are better in alignment and in FID, with a 300 M base.",
        (TEXT,),
        f"{ARMS}/text_encoder.ipynb",
        text_size,
    ),
    Claim(
        "T5 against CLIP",
        "§4.4, Fig. A.5b",
        "T5-XXL and CLIP are equal on COCO; on DrawBench people prefer T5 in all eleven categories.",
        (TEXT,),
        f"{ARMS}/text_encoder.ipynb",
        text_kind,
    ),
    Claim(
        "The encoder's size matters more than the U-Net's",
        "§4.4, Fig. 4b",
        "A larger U-Net helps, and a larger encoder helps more.",
        (TEXT,),
        f"{ARMS}/text_encoder.ipynb",
        unet_size,
    ),
    Claim(
        "Dynamic thresholding is best",
        "§4.4, Fig. 4c, A.8",
        "Without thresholding large weights fail; static thresholding helps, dynamic thresholding is best.",
        ("experiment-thresholding", "thresholding-where"),
        f"{ARMS}/thresholding.ipynb",
        threshold,
    ),
    Claim(
        "Guidance helps super-resolution",
        "D.2, Fig. A.11a",
        "FID falls up to w of about 7 to 10.",
        ("experiment-augmentation",),
        f"{ARMS}/augmentation.ipynb",
        enlarger_guidance,
    ),
    Claim(
        "No noise at sampling has the best FID",
        "D.2, Fig. A.11a",
        "aug_level 0 has the best FID; 0.1 to 0.3 look best.",
        ("experiment-augmentation",),
        f"{ARMS}/augmentation.ipynb",
        level_at_inference,
    ),
    Claim(
        "Noise in training is needed",
        "D.2, Fig. A.11b",
        "Without it CLIP score and FID are worse, and the network hardly reacts to w.",
        ("experiment-augmentation",),
        f"{ARMS}/augmentation.ipynb",
        level_in_training,
    ),
    Claim(
        "Cross-attention is the best way in for text",
        "D.1, Fig. A.13a",
        "Cross-attention is clearly better than mean or attention pooling.",
        (TEXT,),
        f"{ARMS}/text_encoder.ipynb",
        text_entry,
    ),
    Claim(
        "LayerNorm on text helps",
        "§2.5",
        "A considerable gain for every way in.",
        (TEXT,),
        f"{ARMS}/text_encoder.ipynb",
        text_norm,
    ),
    Claim(
        "The Efficient U-Net learns faster",
        "§4.4, B.1, Fig. A.14",
        "It converges much faster, has a better FID, and samples two to three times faster.",
        ("enlargers-learn",),
        "../../nbs/09_efficient_unet.ipynb",
        efficient,
    ),
    Claim(
        "Adafactor is for the base alone",
        "§4.1",
        "Equal to Adam on the base; it hurts super-resolution.",
        ("experiment-optimizers",),
        f"{ARMS}/optimizers.ipynb",
        optimizer_of_enlargers,
    ),
    Claim(
        "The last network needs the caption",
        "§2.5",
        "Self-attention can go from 256 to 1024; cross-attention to the text is critical.",
        ("experiment-words",),
        f"{ARMS}/enlarger_text.ipynb",
        words_in_last,
    ),
    Claim(
        "A frozen encoder costs nothing",
        "§2.1, D.1",
        "Embeddings are computed once, so that training carries next to no cost of the encoder.",
        ("frozen-encoder",),
        "../../nbs/02_text.ipynb",
        frozen_cost,
    ),
)


# ---------------------------------------------------------------- the page


def judged(read: Callable[[str], Any]) -> list[tuple[Claim, Found]]:
    "Each claim with what the cards say now."
    return [(claim, claim.look(*map(read, claim.cards))) for claim in CLAIMS]


def told(found: Found) -> str:
    "The verdict, and what it is about where that is not the paper's measure."
    return f"**{found.verdict}**" + (f" ({found.only})" if found.only else "")


def summary(rows: list[tuple[Claim, Found]]) -> list[list[str]]:
    "A table: claim, difference, verdict."
    table = [["claim", "difference that would be positive", "verdict"]]
    for k, (claim, found) in enumerate(rows, 1):
        table.append([f"{k}. {claim.name}", str(found.difference or "–"), told(found)])
    return table


def section(k: int, claim: Claim, found: Found) -> str:
    "One claim in words."
    cards = ", ".join(f"[{name}](../../data/runs/{name}.json)" for name in claim.cards)
    lines = [
        f"## {k}. {claim.name}",
        f"**In the paper** ({claim.place}). {claim.finding}",
        f"**Here**: {told(found)}. We compare {found.setting}.",
    ]
    if d := found.difference:
        lines += [
            f"The difference is {d}, where positive is the paper's finding."
            f" A difference below {d.least} could not have been seen.",
            f"Seeds or rounds: {found.seeds}. Cost: {found.cost}.",
        ]
    if found.limits:
        lines.append(found.limits)
    lines.append(f"[Explained here]({claim.page}); run card: {cards}.")
    return "\n\n".join(lines)

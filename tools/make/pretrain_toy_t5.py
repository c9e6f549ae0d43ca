"""Pretrain the small T5 that ships with the package: text only, never a picture.

    python tools/make/pretrain_toy_t5.py --minutes 2.5 --out data/t5-toy

A grammar writes short documents: a caption of a scene in free words, then the same
facts in fixed words and order ("a blue square right of a red disc on gray . on the left
is a red circle . on the right is a blue square . the background is gray"). A unigram
tokenizer is fitted to them; then a T5 is trained by span corruption, short spans and
whole sentences. To restore a hidden sentence the encoder must know which colour belongs
to which shape, and what is where. Its decoder has one layer, so that this knowledge must
be in the encoder's tokens already. Kept are the encoder, the tokenizer, and the mean and
standard deviation of every dimension.
"""

import argparse
import json
import math
import random
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from imagen_nb.data import NUMBERS, wordings  # noqa: E402
from imagen_nb.pictures.scenes import BACKGROUNDS, COLOURS, INVERSE, SHAPES, Scene, Thing  # noqa: E402

# ---------------------------------------------------------------- the grammar
NOUNS = {
    "circle": ("circle", "disc", "disk", "dot"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "cross": ("cross", "plus"),
    "star": ("star",),
    "ring": ("ring", "hoop"),
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")}
FILL_WORDS = {
    "plain": ("plain", "solid"),
    "striped": ("striped", "stripy"),
    "gradient": ("shaded", "gradient"),
}
RELATIONS = {
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}
OPENINGS = ("", "", "", "there is ", "a picture of ", "an image of ", "a drawing of ", "we see ")


def article(words):
    "a or an, and the words."
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def call(rng, shape):
    "A shape's name, now and then a synonym."
    return NOUNS[shape][0] if rng.random() < 0.6 else rng.choice(NOUNS[shape])


def plural(noun):
    "More than one."
    return noun + ("es" if noun[-1] in "sx" else "s")


def draw_thing(rng, size, colour=None):
    "A thing as a caption may speak of it; places play no part in text."
    fill = rng.choice(("plain", "plain", "gradient", "striped")) if size else "plain"
    return Thing(
        rng.choice(SHAPES),
        colour or rng.choice([*COLOURS]),
        rng.choice(("small", "big")) if size else None,
        fill,
        0.5,
        0.5,
        0.2,
    )


def draw(rng):
    "Facts for one document: any combination of words, held out from pictures or not."
    size, background = rng.random() < 0.5, rng.choice([*BACKGROUNDS])
    kind = rng.choices(("one", "two", "same", "list"), (0.2, 0.5, 0.12, 0.18))[0]
    if kind == "one":
        return Scene((draw_thing(rng, size),), background)
    if kind == "same":
        return Scene((draw_thing(rng, size),) * rng.choice((2, 3, 4)), background)
    n = 2 if kind == "two" else rng.choice((2, 3, 3, 4))
    things = tuple(draw_thing(rng, size, c) for c in rng.sample([*COLOURS], n))
    return Scene(things, background, rng.choice([*INVERSE]) if kind == "two" else None)


def name(rng, o, n=1):
    "A thing in free words, or n things alike."
    noun = call(rng, o.shape)
    noun = noun if n == 1 else plural(noun)
    size = rng.choice(SIZE_WORDS[o.size]) if o.size else ""
    fill = (
        rng.choice(FILL_WORDS[o.fill])
        if o.size and (o.fill != "plain" or rng.random() < 0.3)
        else ""
    )
    words = [size, fill, o.colour] if rng.random() < 0.7 else [size, o.colour, fill]
    tail, u = "", rng.random()
    if u < 0.1:
        words.remove(o.colour)
        tail = f" that {'is' if n == 1 else 'are'} {o.colour}"
    elif fill and u < 0.3:
        words.remove(fill)
        tail = (
            " with stripes"
            if o.fill == "striped"
            else (" with a gradient" if o.fill == "gradient" else "")
        )
    words = " ".join(w for w in [*words, noun] if w) + tail
    return article(words) if n == 1 else f"{NUMBERS[n]} {words}"


def alike(scene):
    "Several things, all the same?"
    return len(scene.things) > 1 and len(set(scene.things)) == 1


def caption(rng, scene):
    "One caption: the data set's own wordings, or freer ones."
    if rng.random() < 0.5:
        return rng.choice(wordings(scene))
    if scene.relation:
        (a, b), relation = scene.things, scene.relation
        if rng.random() < 0.5:
            a, b, relation = b, a, INVERSE[relation]
        text = f"{name(rng, a)} {rng.choice(RELATIONS[relation])} {name(rng, b)}"
    elif alike(scene):
        text = name(rng, scene.things[0], len(scene.things))
    else:
        parts = [name(rng, o) for o in rng.sample(scene.things, len(scene.things))]
        text = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]
    ground = rng.choice(
        ("on a {} background", "on {}", "against {}", "on a {} ground", "with a {} background")
    ).format(scene.background)
    return f"{rng.choice(OPENINGS)}{text} {ground}".strip()


def plain_name(o, n=1):
    "A thing in fixed words and order, or n things alike."
    noun = NOUNS[o.shape][0]
    fill = FILL_WORDS[o.fill][0] if o.size and o.fill != "plain" else ""
    words = [SIZE_WORDS[o.size][0] if o.size else "", fill, o.colour]
    words = " ".join(w for w in [*words, noun if n == 1 else plural(noun)] if w)
    return article(words) if n == 1 else f"{NUMBERS[n]} {words}"


def description(scene):
    "The same facts in fixed words and order: what is where, then the background."
    things = list(scene.things)
    if scene.relation in ("right", "below"):
        things.reverse()
    if scene.relation:
        places = (
            ("on the left", "on the right")
            if scene.relation in ("left", "right")
            else ("at the top", "at the bottom")
        )
        said = [f"{place} is {plain_name(o)}" for place, o in zip(places, things)]
    elif len(things) == 1:
        said = [f"in the middle is {plain_name(things[0])}"]
    elif alike(scene):
        said = [f"there are {plain_name(things[0], len(things))}"]
    else:
        things.sort(key=lambda o: [*COLOURS].index(o.colour))
        said = [f"there is {plain_name(o)}" for o in things]
    return [*said, f"the background is {scene.background}"]


def document(rng):
    "A caption, and the same scene in fixed words: each can be told from the other."
    scene = draw(rng)
    return [caption(rng, scene), *description(scene)]


# ---------------------------------------------------------------- the tokenizer
SENTINELS = 32


def fit_tokenizer(texts, size=512):
    "A unigram tokenizer with byte fallback: any text can be encoded."
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )
    from transformers import PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as tmp:
        words = sorted({word for text in texts for word in text.replace(",", "").split()})
        texts = texts + [f"{word}, {word}." for word in words]  # a seed is seen in two ways
        Path(tmp, "corpus.txt").write_text("\n".join(texts))
        sentencepiece.SentencePieceTrainer.train(
            input=f"{tmp}/corpus.txt",
            model_prefix=f"{tmp}/m",
            vocab_size=size,
            model_type="unigram",
            byte_fallback=True,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            hard_vocab_limit=False,
            num_threads=1,
            minloglevel=2,
            normalization_rule_name="nmt_nfkc_cf",
            character_coverage=1.0,
            required_chars="abcdefghijklmnopqrstuvwxyz0123456789.,'-",
        )
        proto = sentencepiece_model_pb2.ModelProto()
        proto.ParseFromString(Path(tmp, "m.model").read_bytes())
    vocab = [(piece.piece, piece.score) for piece in proto.pieces]
    vocab += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(SENTINELS))]
    core = Tokenizer(models.Unigram(vocab, unk_id=2, byte_fallback=True))
    core.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(replacement="▁")])
    core.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=[f"<extra_id_{i}>" for i in range(SENTINELS)],
    )


# ---------------------------------------------------------------- span corruption
def spans(rng, n, density=0.2, mean=2.0):
    "True where a token is hidden: a `density` of n tokens in runs of `mean` on average."
    hidden = [False] * n
    for _ in range(max(1, round(n * density / mean))):
        start = rng.randrange(n)
        length = 1 + min(int(rng.expovariate(1 / (mean - 0.5))), 5)
        hidden[start : start + length] = [True] * len(hidden[start : start + length])
    return hidden


def corrupt(rng, sentences, stop):
    "Sentences (lists of ids) -> what is hidden: whole sentences, or spans."
    rows = [ids + [stop] for ids in sentences]
    u = rng.random()
    if u < 0.65:  # everything but the caption, or a part of it
        hide = [False] + [u < 0.45 or rng.random() < 0.6 for _ in rows[1:]]
        if not any(hide):
            hide[1] = True
        hidden = [h for row, h in zip(rows, hide) for _ in row]
    elif u < 0.75:  # the caption
        hidden = [k == 0 for k, row in enumerate(rows) for _ in row]
    else:
        hidden = spans(rng, sum(map(len, rows)))
    return [i for row in rows for i in row], hidden


def to_pair(ids, hidden, first, eos=1):
    "Input with a sentinel for each hidden run; target with each sentinel and its run."
    source, target, k = [], [], 0
    for i, (token, h) in enumerate(zip(ids, hidden)):
        if h and (i == 0 or not hidden[i - 1]):
            source.append(first - k)
            target.append(first - k)
            k += 1
        (target if h else source).append(token)
    return source + [eos], target + [eos]


def padded(rows, value):
    "Rows of ids -> int64 (b, l)."
    out = torch.full((len(rows), max(map(len, rows))), value)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row)
    return out


def batches(rng, tokenizer, batch, pool=16):
    "Endless (input ids, labels), sorted by length inside a pool so that little is padded."
    first = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    stop = tokenizer(".", add_special_tokens=False)["input_ids"][-1]
    while True:
        docs = [document(rng) for _ in range(batch * pool)]
        flat = tokenizer([s for d in docs for s in d], add_special_tokens=False)["input_ids"]
        pairs, start = [], 0
        for d in docs:
            pairs.append(to_pair(*corrupt(rng, flat[start : start + len(d)], stop), first))
            start += len(d)
        pairs.sort(key=lambda p: (len(p[0]), len(p[1])))
        order = list(range(0, len(pairs), batch))
        rng.shuffle(order)
        for i in order:
            source, target = zip(*pairs[i : i + batch])
            yield padded(source, 0), padded(target, -100)


# ---------------------------------------------------------------- the model, training
def make_model(vocab, layers, decoder_layers):
    "A T5 v1.1 with its parameters scaled for a short run."
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=vocab,
        d_model=128,
        d_kv=32,
        num_heads=4,
        d_ff=256,
        num_layers=layers,
        num_decoder_layers=decoder_layers,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.03)
        for key, p in model.named_parameters():  # a token starts as itself, mostly
            if key.endswith((".o.weight", ".wo.weight")):
                p.mul_(0.2)
        for stack in (model.encoder, model.decoder):  # near, before, after, anywhere
            bias = stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight
            n = len(bias) // 2 if stack is model.encoder else len(bias)
            steps = torch.arange(n).clamp(max=8).float()
            bias[:n] += torch.stack([-steps, -0.5 * steps, -2 * steps, 0 * steps], 1)
            if stack is model.encoder:  # the second half looks ahead
                bias[n:] += torch.stack([-steps, -2 * steps, -0.5 * steps, 0 * steps], 1)
    return model


def orthogonalise(g, steps=4):
    "Newton-Schulz in float32 for a stack of matrices (n r c)."
    wide = g.shape[-1] >= g.shape[-2]
    x = g if wide else g.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x if wide else x.mT


class Optimizer:
    "Muon for matrices inside the layers, AdamW for the rest."

    def __init__(self, model, lr):
        self.lr, self.groups = lr, {}
        rest, query = [], model.config.d_kv**-0.5  # T5 does not scale its attention
        for key, p in model.named_parameters():
            if ".block." in key and p.ndim == 2 and min(p.shape) > 32:
                pair = p, query if key.endswith(".q.weight") else 1.0
                self.groups.setdefault(p.shape, []).append(pair)
            else:
                rest.append(p)
        self.momentum = {s: torch.zeros(len(ps), *s) for s, ps in self.groups.items()}
        self.adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)

    @torch.no_grad()
    def step(self, scale):
        for group in self.adam.param_groups:
            group["lr"] = self.lr * scale
        self.adam.step()
        for shape, params in self.groups.items():
            g = torch.stack([p.grad for p, _ in params])
            m = self.momentum[shape].lerp_(g, 0.05)
            update = orthogonalise(g.lerp(m, 0.95)) * (0.2 * math.sqrt(max(shape)))
            for (p, own), u in zip(params, update):
                p.add_(u, alpha=-self.lr * scale * own)


def train(model, data, seconds, lr, noise, generator):
    "Span corruption for so many seconds of this thread; learning rate by time used."
    opt, start, losses, step = Optimizer(model, lr), time.process_time(), [], 0
    model.train()
    while (used := (time.process_time() - start) / seconds) < 1:
        source, target = next(data)
        mask = (source != 0).long()
        tokens = model.encoder(input_ids=source, attention_mask=mask).last_hidden_state
        if noise:
            tokens = tokens + noise * tokens.detach().square().mean().sqrt() * torch.randn(
                tokens.shape, generator=generator
            )
        loss = model(encoder_outputs=(tokens,), attention_mask=mask, labels=target).loss
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step(min(1, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * used))))
        losses.append(loss.item())
        step += 1
        if step % 100 == 0:
            print(
                f"{used * seconds:5.0f} s  step {step}  loss {sum(losses[-100:]) / 100:.3f}",
                flush=True,
            )
    return losses


# ---------------------------------------------------------------- what was learned
@torch.no_grad()
def embed(model, tokenizer, texts, batch=256):
    "Encoder tokens (n l d), their mask, and the ids, length-sorted inside."
    ids = tokenizer(texts)["input_ids"]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    length = max(map(len, ids))
    tokens = torch.zeros(len(ids), length, model.config.d_model)
    everything = F.pad(padded(ids, 0), (0, 0))
    for k in range(0, len(order), batch):
        index = order[k : k + batch]
        x = everything[index]
        x = x[:, : int((x != 0).sum(1).max())]
        out = model(input_ids=x, attention_mask=(x != 0).long()).last_hidden_state
        tokens[index, : x.shape[1]] = out
    return tokens, everything != 0, everything


def ridge(x, y, share=0.8, penalty=1e-3):
    "Held-out accuracy of a linear read-out of labels y from rows x."
    n = int(len(x) * share)
    x = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    target = F.one_hot(y).double()[:n]
    a = x[:n].T @ x[:n] + penalty * n * torch.eye(x.shape[1]).double()
    w = torch.linalg.solve(a, x[:n].T @ target)
    return ((x[n:] @ w).argmax(1) == y[n:]).double().mean().item()


def explained(x, y):
    "Share of the rows' variance that lies between the classes of y."
    centred = x - x.mean(0)
    means = torch.stack([centred[y == k].mean(0) for k in y.unique()])
    counts = torch.stack([(y == k).sum() for k in y.unique()]).float()
    return ((counts[:, None] * means**2).sum() / centred.square().sum()).item()


def probe(model, tokenizer, statistics, n=4000, seed=7):
    "Linear read-outs from captions of two things with a relation, and shares of energy."
    rng = random.Random(seed)
    texts, facts = [], []
    while len(texts) < n:
        scene = draw(rng)
        a, b = scene.things if scene.relation else (None, None)
        if a and a.size and a.shape != b.shape:
            text = rng.choice(wordings(scene))
            texts.append(text)
            facts.append((scene, text.index(a.shape) < text.index(b.shape)))
    tokens, mask, ids = embed(model, tokenizer, texts)
    mean, std = statistics["mean"], statistics["std"]
    raw_mean = tokens[mask].mean(0)
    out = {
        "shared mean, share of raw energy": (
            raw_mean.square().sum() / tokens[mask].square().sum(1).mean()
        ).item()
    }
    tokens = (tokens - mean) / std * mask[..., None]
    noun = {s: tokenizer(s, add_special_tokens=False)["input_ids"] for s in SHAPES}
    spot = {s: v[0] if len(v) == 1 else None for s, v in noun.items()}

    def label(values, options):
        return torch.tensor([[*options].index(value) for value in values])

    scenes = [s for s, _ in facts]
    named = [s.things if order else s.things[::-1] for s, order in facts]  # as the text does
    for which, title in ((0, "first"), (1, "second")):
        mine, others = ([pair[k] for pair in named] for k in (which, 1 - which))
        word = torch.tensor([spot[o.shape] for o in mine])
        x = tokens[torch.arange(n), (ids == word[:, None]).int().argmax(1)]
        colour = label([o.colour for o in mine], COLOURS)
        side = label(
            [s.relation if o is s.things[0] else INVERSE[s.relation] for s, o in zip(scenes, mine)],
            INVERSE,
        )
        known = {
            "own shape": label([o.shape for o in mine], SHAPES),
            "its colour": colour,
            "its size": label([o.size for o in mine], ("small", "big")),
            "its fill": label([o.fill for o in mine], ("plain", "gradient", "striped")),
            "its side": side,
            "the other's colour": label([o.colour for o in others], COLOURS),
        }
        out |= {f"{title} shape word: {name}": ridge(x, y) for name, y in known.items()}
        out[f"{title} shape word: energy of its colour"] = explained(x, colour)
        out[f"{title} shape word: energy of its side"] = explained(x, side)
    pool = tokens.sum(1) / mask.sum(1, keepdim=True)
    before = [s.things[s.relation not in ("left", "above")] for s in scenes]
    known = {
        "colour of the thing on the left or top": label([o.colour for o in before], COLOURS),
        "axis and order": label([s.relation for s in scenes], INVERSE),
        "background": label([s.background for s in scenes], BACKGROUNDS),
    }
    out |= {f"mean pool: {name}": ridge(pool, y) for name, y in known.items()}
    colour = label([pair[0].colour for pair in named], COLOURS)
    out["mean pool: energy of first colour"] = explained(pool, colour)
    return {k: round(v, 4) for k, v in out.items()}


def measure_statistics(model, tokenizer, n=6000, seed=11):
    "Mean and std of every dimension over the tokens of captions."
    rng = random.Random(seed)
    tokens, mask, _ = embed(model, tokenizer, [caption(rng, draw(rng)) for _ in range(n)])
    rows = tokens[mask]
    return {"mean": rows.mean(0), "std": rows.std(0)}


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--minutes", type=float, default=2.5, help="CPU minutes of training")
    p.add_argument("--out", type=Path, default=ROOT / "data" / "t5-toy")
    p.add_argument("--card", type=Path, default=None, help="run card to write")
    p.add_argument("--keep", type=Path, default=None, help="file for all weights")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--lr", type=float, default=5e-3)
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--decoder-layers", type=int, default=1)
    p.add_argument("--noise", type=float, default=0.0, help="on the encoder's tokens, in rms")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=1)
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng, start = random.Random(args.seed), time.time()
    texts = [s for _ in range(20_000) for s in document(rng)]
    texts += [w for _ in range(2_000) for w in wordings(draw(rng))]
    tokenizer = fit_tokenizer(texts)
    model = make_model(len(tokenizer), args.layers, args.decoder_layers)
    sizes = {
        "encoder": sum(p.numel() for p in model.encoder.parameters()),
        "all": sum(p.numel() for p in model.parameters()),
    }
    print(f"{len(tokenizer)} pieces; parameters {sizes}", flush=True)
    generator = torch.Generator().manual_seed(args.seed)
    losses = train(
        model,
        batches(rng, tokenizer, args.batch),
        60 * args.minutes,
        args.lr,
        args.noise,
        generator,
    )
    encoder = model.encoder.eval()
    statistics = measure_statistics(encoder, tokenizer)
    probes = probe(encoder, tokenizer, statistics)
    for key, value in probes.items():
        print(f"  {value:6.3f}  {key}")
    save(args.out, model, tokenizer, statistics)
    if args.keep:
        torch.save(model.state_dict(), args.keep)
    every = max(1, len(losses) // 100)
    curve = [
        round(sum(losses[i : i + every]) / every, 4)
        for i in range(0, len(losses) - every + 1, every)
    ]
    card = {
        "what": "toy T5, span corruption on text",
        "arguments": {k: v for k, v in vars(args).items() if k not in ("out", "card", "keep")},
        "steps": len(losses),
        "documents": len(losses) * args.batch,
        "seconds": round(time.time() - start),
        "parameters": sizes,
        "pieces": len(tokenizer),
        "probes": probes,
        "loss": curve,
        "loss_every": every,
    }
    if args.card:
        args.card.write_text(json.dumps(card, indent=1) + "\n")


def save(out, model, tokenizer, statistics):
    "Encoder in float16, tokenizer, statistics: what `TextEncoder.from_pretrained` reads."
    from safetensors.torch import save_file
    from transformers import T5EncoderModel

    out.mkdir(parents=True, exist_ok=True)
    encoder = T5EncoderModel(model.config)
    encoder.load_state_dict(
        {k: v for k, v in model.state_dict().items() if k.startswith(("shared.", "encoder."))}
    )
    encoder.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    save_file({k: v.contiguous() for k, v in statistics.items()}, out / "statistics.safetensors")
    print(f"{out.name}: {sum(f.stat().st_size for f in out.iterdir()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

"""Measure the text half: encoding, the cache on disk, faults. Results go to run cards in data/runs.

    python tools/measure/bench_text.py speed [--rounds 3] [--lengths web|short] [--size tiny|small]
        [--device cuda --xxl]
    python tools/measure/bench_text.py cache --captions 1000000
    python tools/measure/bench_text.py wide
    python tools/measure/bench_text.py many_reads
    python tools/measure/bench_text.py kills --n 50
    python tools/measure/bench_text.py convert

Captions are drawn: words of ShapesWorld at random, their number from a log-normal law with mean and standard
deviation 20.2 ± 16.3 ("web") or 10.3 ± 4.5 ("short"), cut to 3 to 256 words. These are the figures of table 1 of
the Conceptual 12M paper (arXiv 2102.08981) for the captions of CC12M and CC3M, not checked here; the limits were.
Weights are random: speed and size do not depend on them.
"""

import argparse
import json
import multiprocessing
import os
import platform
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from imagen_nb.store.parts import hash_captions

ROOT = Path(__file__).resolve().parents[2]
CARDS = ROOT / "data" / "runs"
LAWS = {"web": (20.2, 16.3), "short": (10.3, 4.5)}  # words: mean, standard deviation
SIZES = {
    "tiny": dict(
        d_model=256, d_kv=64, d_ff=1024, num_layers=4, num_heads=4
    ),  # as google/t5-efficient-tiny
    "small": dict(d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8),
}  # as google-t5/t5-small
T5_XXL = dict(
    d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
)


def draw_captions(n: int, lengths: str, seed: int = 0) -> list[str]:
    "n different captions with realistic numbers of words."
    from imagen_nb.data import ShapesWorld

    world, g = ShapesWorld("train", level="full"), np.random.default_rng(seed)
    words = sorted({word for i in range(500) for word in world.caption(i).replace(",", "").split()})
    mean, std = LAWS[lengths]
    spread = np.log(1 + (std / mean) ** 2)
    captions = {}
    while len(captions) < n:
        counts = np.exp(g.normal(np.log(mean) - spread / 2, spread**0.5, n - len(captions)))
        for count in counts.round().clip(3, 256).astype(int):
            captions[" ".join(words[i] for i in g.integers(len(words), size=count))] = None
    return list(captions)


def machine() -> str:
    "This machine in words."
    flags = torch.backends.cpu.get_cpu_capability()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return (
        f"{os.cpu_count()} CPU cores ({flags}), torch {torch.__version__}, {platform.system()}{gpu}"
    )


def update_card(name: str, key: str, value: dict):
    "Put one measurement into a run card."
    path = CARDS / f"{name}.json"
    card = json.loads(path.read_text()) if path.exists() else {}
    command = " ".join(["python", "tools/measure/bench_text.py", *sys.argv[1:]])
    card[key] = value | {"command": command, "machine": machine()}
    path.write_text(json.dumps(card, indent=1, sort_keys=True) + "\n")
    print(json.dumps(card[key], indent=1))


def random_encoder(config: dict, dtype=torch.float32, device="cpu"):
    "A T5 encoder with random weights, and the tokenizer of our toy T5."
    from transformers import T5Config, T5EncoderModel

    from imagen_nb.text import TextEncoder

    torch.manual_seed(0)
    with torch.device(device):
        model = T5EncoderModel(T5Config(vocab_size=32128, **config)).to(dtype)
    return TextEncoder(model.eval().requires_grad_(False), TextEncoder.toy().tokenizer, "random")


# ---------------------------------------------------------------- speed


def theirs(encoder, captions: list[str], batch: int, **padding):
    "transformers used as its documentation says: batches in the order given."
    for i in range(0, len(captions), batch):
        inputs = encoder.tokenizer(
            captions[i : i + batch], truncation=True, return_tensors="pt", **padding
        )
        with torch.no_grad():
            yield encoder.model(**inputs.to(encoder.device)).last_hidden_state


def seconds(work) -> float:
    "How long an iterator takes."
    start = time.perf_counter()
    for _ in work:
        pass
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def speed(a):
    "Captions per second: as the cache encodes; padded to the longest of 128, of 256 (as imagen-pytorch), all to 256."
    from imagen_nb.engine.captions import encode_rows

    torch.set_num_threads(a.threads)
    encoder = random_encoder(
        T5_XXL if a.xxl else SIZES[a.size],
        torch.bfloat16 if a.device == "cuda" else torch.float32,
        a.device,
    )
    captions, few = draw_captions(2000, a.lengths), 2000 if a.device == "cuda" else 2 * a.batch
    sides = {
        "ours": lambda: seconds(encode_rows(encoder, captions, torch.bfloat16)),
        "longest": lambda: seconds(
            theirs(encoder, captions, a.batch, padding="longest", max_length=128)
        ),
        "longest up to 256": lambda: seconds(
            theirs(encoder, captions, a.batch, padding="longest", max_length=256)
        ),
        "padded to 256": lambda: (
            seconds(theirs(encoder, captions[:few], a.batch, padding="max_length", max_length=256))
            * 2000
            / few
        ),
    }
    encoder.batch_size = a.batch
    encoder(captions[:8])  # the first time is slow
    name = f"T5-{'XXL' if a.xxl else a.size}, {a.device}, {a.lengths}"
    path = CARDS / "text-bench.json"
    old = (
        json.loads(path.read_text()).get(name, {}).get("seconds", {})
        if path.exists() and a.append
        else {}
    )
    took = {side: old.get(side, []) for side in sides}
    for _ in range(a.rounds):
        for side, run in sides.items():
            took[side].append(run())
    rate = {k: 2000 / statistics.median(v) for k, v in took.items()}
    ratios = {k: [t / o for t, o in zip(took[k], took["ours"])] for k in sides if k != "ours"}
    lengths = [len(row) for row in encoder.tokenize(captions)]
    update_card(
        "text-bench",
        name,
        {
            "captions": 2000,
            "tokens, mean": statistics.mean(lengths),
            "tokens, median": statistics.median(lengths),
            "batch": a.batch,
            "threads": a.threads,
            "rounds": len(took["ours"]),
            "seconds": took,
            "captions/s": rate,
            "ours is faster by": {
                k: {"median": statistics.median(v), "min": min(v), "max": max(v)}
                for k, v in ratios.items()
            },
        },
    )


# ---------------------------------------------------------------- cache


def folder_bytes(path: Path) -> int:
    "Of all files below."
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def reads(cache, captions: list[str], batch: int = 64, n: int = 200) -> dict:
    "Random captions per second, and the slowest batch."
    g, took = random.Random(0), []
    for _ in range(n):
        asked = g.sample(captions, batch)
        start = time.perf_counter()
        cache[asked]
        took.append(time.perf_counter() - start)
    return {
        "captions/s": batch / statistics.median(took),
        "batch": batch,
        "ms per batch, median": 1e3 * statistics.median(took),
        "ms per batch, slowest": 1e3 * max(took),
    }


def peak_memory() -> float:
    "The most memory this process ever held, MB."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def measure_cache(encoder, captions: list[str], path: Path, progress=False) -> dict:
    "Build, then look at disk and memory, then read."
    from imagen_nb.engine.captions import TRIAL, EmbeddingCache, encode_rows, forecast

    start = time.perf_counter()
    rows = encode_rows(encoder, captions[:TRIAL], torch.bfloat16)
    plan = forecast(captions, rows, time.perf_counter() - start)
    start, before = time.perf_counter(), peak_memory()
    cache = EmbeddingCache.build(encoder, captions, path, progress=progress)
    took, peak, size = time.perf_counter() - start, peak_memory(), folder_bytes(path)
    start = time.perf_counter()
    cache = EmbeddingCache.open(path, encoder)
    opened = time.perf_counter() - start
    length = int(cache.index.length.sum()) / len(cache)
    padded = 128 * encoder.width * 4
    return {
        "captions": len(cache),
        "tokens, mean": length,
        "width": encoder.width,
        "parts": len(cache.index.parts),
        "bytes per caption": size / len(cache),
        "forecast, bytes per caption": plan.bytes / len(captions),
        "bytes per caption, padded to 128 in float32": padded,
        "padded float32 / ours": padded / (size / len(cache)),
        "build, s": took,
        "forecast, s": plan.seconds,
        "build, captions/s": len(captions) / took,
        "peak memory of the build, MB": peak,
        "before it, MB": before,
        "open, s": opened,
        "reads": reads(cache, captions[:200_000]),
    }


def cache(a):
    "Many captions through the toy T5."
    from imagen_nb.text import TextEncoder

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure_cache(
            TextEncoder.toy(), draw_captions(a.captions, "short"), Path(folder) / "c", progress=True
        )
    update_card(
        "text-cache", "toy T5" if a.captions == 1_000_000 else f"toy T5, {a.captions}", found
    )


def wide(a):
    "Ten thousand captions at the width of T5-XXL: one random layer stands in for its 24."
    torch.set_num_threads(1)
    encoder = random_encoder(T5_XXL | dict(num_layers=1, d_ff=64, num_heads=1))
    with tempfile.TemporaryDirectory() as folder:
        found = measure_cache(encoder, draw_captions(10_000, "web"), Path(folder) / "c")
    update_card("text-cache", "T5-XXL width", found | {"encoder": "one random layer of width 4096"})


class RandomStates:
    "Stands in for the toy T5 where only what is stored matters: its lengths and width, random numbers."

    width = 128

    def __init__(self, encoder):
        self.identity, self.tokenize = encoder.identity, encoder.tokenize

    def __call__(self, captions):
        from imagen_nb.text import pad_rows

        return pad_rows([torch.randn(len(row), self.width) for row in self.tokenize(captions)])


def many_reads(a):
    "Random reads out of many captions; random states, as reading does not depend on them."
    from imagen_nb.engine.captions import EmbeddingCache
    from imagen_nb.text import TextEncoder

    torch.set_num_threads(1)
    captions = draw_captions(a.captions, "short")
    with tempfile.TemporaryDirectory() as folder:
        cache = EmbeddingCache.build(RandomStates(TextEncoder.toy()), captions, Path(folder) / "c")
        start = time.perf_counter()
        cache = EmbeddingCache.open(cache.path)
        opened = time.perf_counter() - start
        cold, warm = reads(cache, captions), reads(cache, captions, n=2000)
        g, took = random.Random(1), []
        for _ in range(1000):
            start = time.perf_counter()
            cache.index.find(hash_captions(g.sample(captions, 64)))
            took.append(time.perf_counter() - start)
    update_card(
        "text-cache",
        "reads",
        {
            "captions": len(captions),
            "open, s": opened,
            "first 200 batches": cold,
            "2000 batches": warm,
            "lookups alone, captions/s": 64 / statistics.median(took),
            "width": 128,
            "encoder": "random states in place of the toy T5",
        },
    )


# ---------------------------------------------------------------- kills


def build_in_small_parts(encoder, captions: list[str], path: Path, share):
    "What a process that may be killed does: a part for every twenty captions or so."
    from imagen_nb.engine.captions import EmbeddingCache

    torch.set_num_threads(1)
    EmbeddingCache.part_bytes = 1 << 16
    EmbeddingCache.build(encoder, captions, path, share=share)


def start_build(encoder, captions: list[str], path: Path, share=(0, 1)):
    "A process of its own that begins at once."
    child = multiprocessing.get_context("fork").Process(
        target=build_in_small_parts, args=(encoder, captions, path, share)
    )
    child.start()
    return child


def count_faults(path: Path, captions: list[str], encoder, exact) -> dict:
    "Entries of a finished cache that are not what the encoder says."
    from imagen_nb.engine.captions import EmbeddingCache

    cache = EmbeddingCache.open(path, encoder, verify=True)
    lost = sum(caption not in cache for caption in captions)
    if lost:
        return {"lost": lost, "wrong": 0, "extra": 0}
    ours = cache[captions]
    right = torch.isclose(ours.tokens, exact.tokens, atol=1e-3, rtol=1 / 128).all(2).all(1) & (
        ours.mask == exact.mask
    ).all(1)
    return {"lost": 0, "wrong": int((~right).sum()), "extra": len(cache) - len(set(captions))}


def kill_builds(n: int, captions: list[str], path: Path, seed: int = 0) -> dict:
    "SIGKILL n builds at random moments; each goes on from the one before; every finished cache is compared."
    from imagen_nb.text import TextEncoder

    encoder, g = TextEncoder.toy(), random.Random(seed)
    exact = encoder(captions)
    found = {
        "kills": 0,
        "kills amid parts": 0,
        "builds finished": 0,
        "captions": len(captions),
        "lost": 0,
        "wrong": 0,
        "extra": 0,
    }
    start = time.perf_counter()
    child = start_build(encoder, captions, path)
    child.join()
    whole = time.perf_counter() - start
    while True:
        if child.exitcode == 0:
            found["builds finished"] += 1
            for key, value in count_faults(path, captions, encoder, exact).items():
                found[key] += value
            if found["kills"] >= n:
                return found
            shutil.rmtree(path)
        child = start_build(encoder, captions, path)
        if found["kills"] < n:
            child.join(g.uniform(0, whole))
            child.kill()
        child.join()
        if child.exitcode not in (0, -signal.SIGKILL):
            raise RuntimeError(f"a build ended with {child.exitcode}")
        found["kills"] += child.exitcode != 0
        found["kills amid parts"] += (
            child.exitcode != 0 and path.exists() and any(path.glob("part-*"))
        )


def kills(a):
    "Builds killed at random moments."
    with tempfile.TemporaryDirectory() as folder:
        found = kill_builds(a.n, draw_captions(2000, "short"), Path(folder) / "c")
    update_card("text-cache", "kills", found)


# ---------------------------------------------------------------- conversion


def convert(a):
    "A random T5 as Google publishes it, to its encoder alone in bfloat16; and the forecast for T5-XXL."
    from transformers import T5Config, T5ForConditionalGeneration

    from imagen_nb.engine.convert import encoder_bytes
    from imagen_nb.text import TextEncoder

    config = T5Config(
        vocab_size=32128,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        d_model=768,
        d_kv=64,
        d_ff=2048,
        num_layers=12,
        num_heads=12,
    )  # T5 v1.1 base
    xxl = T5Config(vocab_size=32128, tie_word_embeddings=False, **T5_XXL)
    with tempfile.TemporaryDirectory() as folder:
        old, new = Path(folder) / "old", Path(folder) / "new"
        config.save_pretrained(old)
        model = T5ForConditionalGeneration(config)
        torch.save(model.state_dict(), old / "pytorch_model.bin")
        del model
        TextEncoder.toy().tokenizer.save_pretrained(old)
        (old / "statistics.safetensors").unlink(missing_ok=True)
        command = [sys.executable, "-m", "imagen_nb.cli", "embed", "--convert", str(old), str(new)]
        subprocess.run(command, check=True, env=dict(os.environ, PYTHONPATH=str(ROOT)))
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
        encoders = [TextEncoder.from_pretrained(o, dtype=torch.bfloat16) for o in (old, new)]
        same = encoders[0].identity["revision"] == encoders[1].identity["revision"]
        sizes = folder_bytes(old), folder_bytes(new)
    update_card(
        "text-convert",
        "T5 v1.1 base, random weights",
        {
            "bytes before": sizes[0],
            "bytes after": sizes[1],
            "before / after": sizes[0] / sizes[1],
            "peak memory of the command, MB": peak,
            "same digest as the original in bfloat16": same,
        },
    )
    update_card("text-convert", "T5 v1.1 XXL, from its configuration", encoder_bytes(xxl))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = p.add_subparsers(required=True)
    for run in (speed, cache, wide, many_reads, kills, convert):
        kinds.add_parser(run.__name__, help=run.__doc__).set_defaults(run=run)
    s = kinds.choices["speed"]
    s.add_argument("--rounds", type=int, default=3)
    s.add_argument("--append", action="store_true", help="to the rounds in the card")
    s.add_argument("--lengths", choices=LAWS, default="web")
    s.add_argument("--device", default="cpu")
    s.add_argument("--batch", type=int, default=64)
    s.add_argument("--threads", type=int, default=2)
    s.add_argument("--size", choices=SIZES, default="small")
    s.add_argument("--xxl", action="store_true", help="the size of T5-XXL; for a GPU")
    for name in ("cache", "many_reads"):
        kinds.choices[name].add_argument("--captions", type=int, default=1_000_000)
    kinds.choices["kills"].add_argument("--n", type=int, default=50)
    a = p.parse_args()
    a.run(a)


if __name__ == "__main__":
    main()

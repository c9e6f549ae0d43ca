"""Compare our networks with others: `python -m bench` on a CPU, `python -m bench --device cuda` on a GPU.

Each pair is timed in one process, in turn: ours, theirs, ours, theirs. A row prints medians with the smallest and
largest, parameters, counted FLOPs, dtype and batch; ratios are the medians of the ratios of neighbours. FLOPs are
counted by `torch.utils.flop_counter` on the meta device: matrix products, convolutions and attention, forward and
backward. Ours are counted with `upsample_conv` folded, as a CPU runs it; a GPU runs it plain and does a few percent
more than is counted.
"""

import argparse
import json
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench import rivals
from bench.rivals import Inputs, Rival, matched, parameters
from imagen_nb.efficient_unet import EfficientUNet
from imagen_nb.engine.blocks import compile_blocks
from imagen_nb.unet import UNet
from tools.measure.cards import device_name, write_card

ROWS = ("base", "base-diffusers", "sr", "efficient", "guided", "guided-diffusers")


# ---------------------------------------------------------------- one side of a comparison


class Side:
    "A rival in one setting, ready to be timed."

    def __init__(self, rival: Rival, args, layout: str, compiled: bool, is_training: bool):
        self.rival, self.args, self.layout, self.compiled, self.is_training = (
            rival,
            args,
            layout,
            compiled,
            is_training,
        )
        self.parameters = parameters(rival)
        net = rival.network.to(args.device).train(is_training)
        if layout == "channels_last":
            net.to(memory_format=torch.channels_last)
        if compiled:
            compile_network(net)
        if is_training:
            self.optimizer = torch.optim.Adam(
                net.parameters(), lr=1e-4, **{"fused" if args.device == "cuda" else "foreach": True}
            )

    def step(self, inputs: Inputs):
        "One training step, or one guided evaluation."
        with torch.autocast(self.args.device, torch.bfloat16, enabled=self.args.dtype == "bf16"):
            if not self.is_training:
                with torch.no_grad():
                    return self.rival.guided(inputs)
            loss = F.mse_loss(self.rival.predict(inputs).float(), inputs.z_t)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def seconds(self, inputs: Inputs) -> float:
        synchronize(self.args.device)
        since = time.perf_counter()
        self.step(inputs)
        synchronize(self.args.device)
        return time.perf_counter() - since

    def peak_memory(self, inputs: Inputs) -> float | None:
        "GiB of one step, weights and optimizer state included; the other side must be elsewhere."
        if self.args.device != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.step(inputs)
        own = sum(p.numel() * p.element_size() for p in self.rival.network.parameters()) * (
            3 if self.is_training else 1
        )
        return (torch.cuda.max_memory_allocated() - before + own) / 2**30

    def setting(self) -> str:
        return " + ".join([self.layout] + ["compiled"] * self.compiled)


def compile_network(net: torch.nn.Module):
    "Ours by block, a peer as a whole."
    if isinstance(net, (UNet, EfficientUNet)):
        compile_blocks(net)
    else:
        net.forward = torch.compile(net.forward)  # imagen-pytorch's guidance calls `forward` itself


def synchronize(device: str):
    if device == "cuda":
        torch.cuda.synchronize()


def counted_gflop(build, batch_inputs, is_training: bool) -> float:
    "GFLOP for one picture of one step, counted without memory; attention is written out, so that it is counted."
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH):
        rival, inputs = build(), batch_inputs("meta")
        with FlopCounterMode(display=False) as counter:
            if is_training:
                F.mse_loss(rival.predict(inputs), inputs.z_t).backward()
            else:
                with torch.no_grad():
                    rival.guided(inputs)
    return counter.get_total_flops() / len(inputs.z_t) / 1e9


# ---------------------------------------------------------------- a row: ours against one other


def compare(row: str, args) -> list[dict]:
    "Time ours against a rival, as shipped and at its best; one dict for each."
    build_ours, build_theirs, spec = pairing(row, args)
    is_training = not row.startswith("guided")
    make = partial(
        Inputs.random, spec["batch"], spec["size"], args.text_dim, args.length, spec["has_lowres"]
    )
    inputs = make(args.device)
    found = []
    for kind in ("as shipped", "at its best"):
        if kind not in args.kinds or (kind == "at its best" and row == "efficient"):
            continue
        is_best = kind == "at its best" or row == "efficient"
        compiled = args.device == "cuda"
        us = Side(build_ours(), args, "channels_last", compiled, is_training)
        them = Side(
            build_theirs(),
            args,
            "channels_last" if is_best else "contiguous",
            compiled and is_best,
            is_training,
        )
        for side in (us, them):
            for _ in range(args.warmup):
                side.step(inputs)
        times = [(us.seconds(inputs), them.seconds(inputs)) for _ in range(args.repeats)]
        ours, theirs = (sorted(t) for t in zip(*times))
        gflop = [counted_gflop(b, make, is_training) for b in (build_ours, build_theirs)]
        ratios = sorted(b / a if is_training else a / b for a, b in times)

        def describe(side, t, g):
            return dict(
                name=side.rival.name,
                setting=side.setting(),
                parameters=side.parameters,
                gflop_per_image=round(g, 1),
                seconds=dict(median=statistics.median(t), low=t[0], high=t[-1]),
                images_per_s=spec["batch"] / statistics.median(t),
                gflop_per_s=round(g * spec["batch"] / statistics.median(t), 1),
                peak_gib=side.peak_memory(inputs),
            )

        found.append(
            dict(
                row=row,
                kind=kind,
                what="images/s, ours / theirs" if is_training else "seconds, ours / theirs",
                batch=spec["batch"],
                size=spec["size"],
                dtype=args.dtype,
                ours=describe(us, ours, gflop[0]),
                theirs=describe(them, theirs, gflop[1]),
                ratio=dict(median=statistics.median(ratios), low=ratios[0], high=ratios[-1]),
                repeats=args.repeats,
            )
        )
        show(found[-1])
        del us, them  # or the next pair would find a full GPU
        if args.device == "cuda":
            torch.cuda.empty_cache()
    return found


def pairing(row: str, args):
    "How to build both sides at equal parameters, and what they are given."
    w, t = args.width, args.text_dim
    base, sr = partial(rivals.our_base, w, t), partial(rivals.our_efficient, args.sr_width, t)

    def near(build, target):
        return partial(
            build, matched(build, target, range(w // 2 // 8 * 8, 2 * w + 1, 8 if w < 128 else 16))
        )

    if row in ("sr", "efficient"):
        spec = dict(batch=args.sr_batch, size=args.sr_size, has_lowres=True)
        theirs = (
            (lambda d: rivals.imagen_pytorch("sr", d, t))
            if row == "sr"
            else (lambda d: rivals.our_classic(d, t))
        )
        step = 2 if args.sr_width < 128 else 8
        widths = range(args.sr_width // 2 // step * step, args.sr_width * 3 // 2 + 1, step)
        return sr, partial(theirs, matched(theirs, parameters_of(sr), widths)), spec
    spec = dict(batch=1 if row.startswith("guided") else args.batch, size=64, has_lowres=False)
    if row.endswith("diffusers"):
        return base, partial(rivals.diffusers_if, w, t, 4 * w), spec
    return base, near(lambda d: rivals.imagen_pytorch("base", d, t), parameters_of(base)), spec


def parameters_of(build) -> int:
    with torch.device("meta"):
        return parameters(build())


def show(r: dict):
    a, b = r["ours"], r["theirs"]
    print(f"\n{r['row']}, {r['kind']}: {r['size']} px, batch {r['batch']}, {r['dtype']}")
    for s in (a, b):
        t = s["seconds"]
        memory = "" if s["peak_gib"] is None else f", peak {s['peak_gib']:.1f} GiB"
        print(
            f"  {s['name']:28s} {s['setting']:24s} {s['parameters'] / 1e6:8.1f} M"
            f"  {s['gflop_per_image']:8.1f} GFLOP/image  {t['median']:.3f} s"
            f" ({t['low']:.3f}-{t['high']:.3f})  {s['gflop_per_s']:.0f} GFLOP/s{memory}"
        )
    q = r["ratio"]
    print(f"  {r['what']}: {q['median']:.2f} ({q['low']:.2f}-{q['high']:.2f})", flush=True)


# ---------------------------------------------------------------- ours alone, on a GPU


def ceiling(device: str, n: int = 8192, seconds: float = 2.0) -> float:
    "TFLOP/s of a square bf16 matrix product on this device."
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    synchronize(device)
    count, since = 0, time.perf_counter()
    while time.perf_counter() - since < seconds:
        for _ in range(10):
            a @ b
        synchronize(device)
        count += 10
    return 2 * n**3 * count / (time.perf_counter() - since) / 1e12


def utilization(args) -> dict:
    "Share of the matmul ceiling that the base reaches in training, compiled and eager."
    build = partial(rivals.our_base, args.width, args.text_dim)
    make = partial(Inputs.random, args.batch, 64, args.text_dim, args.length, False)
    gflop, inputs, times = counted_gflop(build, make, True), make(args.device), {}
    for compiled in (True, False):
        side = Side(build(), args, "channels_last", compiled, True)
        for _ in range(args.warmup + 2):
            side.step(inputs)
        times[compiled] = sorted(side.seconds(inputs) for _ in range(args.repeats))
        del side
        if args.device == "cuda":
            torch.cuda.empty_cache()
    top, median = ceiling(args.device, args.matrix), statistics.median(times[True])
    out = dict(
        row="utilization",
        batch=args.batch,
        gflop_per_image=gflop,
        ceiling_tflops=top,
        share=gflop * args.batch / median / 1e3 / top,
        compiled_over_eager=median / statistics.median(times[False]),
        seconds={str(k): v for k, v in times.items()},
    )
    print(json.dumps(out, indent=1))
    return out


# ---------------------------------------------------------------- the command


def parse(argv: list[str]):
    p = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    p.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    p.add_argument("--rows", default=",".join(ROWS), help=f"among {', '.join(ROWS)}, utilization")
    p.add_argument("--kinds", default="as shipped,at its best")
    p.add_argument(
        "--dtype", choices=("fp32", "bf16"), help="fp32 on a CPU, bf16 autocast on a GPU"
    )
    p.add_argument("--width", type=int, help="of our base: 64 on a CPU, 512 on a GPU")
    p.add_argument("--sr-width", type=int, help="of our super-resolution network: 64 or 128")
    p.add_argument("--batch", type=int, help="8 on a CPU, 32 on a GPU")
    p.add_argument("--sr-batch", type=int, help="2 on a CPU, 16 on a GPU")
    p.add_argument("--sr-size", type=int, default=256)
    p.add_argument("--text-dim", type=int, help="512 or 4096")
    p.add_argument("--length", type=int, default=64, help="words of a caption")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument(
        "--matrix",
        type=int,
        default=8192,
        help="side of the matrices that give the ceiling of `utilization`",
    )
    p.add_argument("--warmup", type=int, help="1 on a CPU, 3 on a GPU")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--out", type=Path, help="run card to write, or to add rows to")
    args = p.parse_args(argv)
    usual = dict(
        dtype=("fp32", "bf16"),
        width=(64, 512),
        sr_width=(64, 128),
        batch=(8, 32),
        sr_batch=(2, 16),
        text_dim=(512, 4096),
        warmup=(1, 3),
    )
    for name, pair in usual.items():
        if getattr(args, name) is None:
            setattr(args, name, pair[args.device == "cuda"])
    args.rows, args.kinds = args.rows.split(","), args.kinds.split(",")
    if unknown := set(args.rows) - {*ROWS, "utilization"}:
        p.error(f"--rows: got {sorted(unknown)}, expected among {ROWS}")
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = []
    for row in args.rows:
        rows += [utilization(args)] if row == "utilization" else compare(row, args)
        if args.out:
            write_rows(args, rows)
    return 0


def write_rows(args, rows: list[dict]):
    "The run card; rows of an older one are kept unless they were measured anew."
    from importlib.metadata import version

    old = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    measured = {(r["row"], r.get("kind")) for r in rows}
    write_card(
        args.out,
        "networks: ours and others",
        "python -m bench" + " --device cuda" * (args.device == "cuda"),
        device=device_name(args.device),
        packages={name: version(name) for name in ("torch", "imagen-pytorch", "diffusers")},
        text=[args.length, args.text_dim],
        rows=[r for r in old if (r["row"], r.get("kind")) not in measured] + rows,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

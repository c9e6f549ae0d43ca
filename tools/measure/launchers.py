"""The same small run however it is launched: `python tools/measure/launchers.py`, into data/runs/launchers.json.

Every way to start 1, 2 and 4 processes (gloo, float32) trains the toy's base for a few steps on a folder of drawn
pictures. The figure is the norm of the difference from the weights of one process, divided by the norm of those.
A second figure is the single weight that differs most. `sharding.py` says where that comes from: it is as large where
one process sums a gradient in two parts.
"""

import argparse
import itertools
import os
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import load_file

from imagen_nb.data import ShapesWorld
from imagen_nb.plots import image_grid

ROOT = Path(__file__).resolve().parents[2]
PLAIN = "import torch\ntorch.cpu._is_avx512_bf16_supported = lambda: False\n"  # float32 on any CPU
RUN = ["train", "toy", "--stage=0", "--validate-every=0", "--sample-every=0"]
RUN += [
    f"--set={path}={value}"
    for path, value in {
        "training.0.steps": 3, "training.0.batch": 8, "training.0.warmup": 1,
        "stages.0.network.dim": 16, "stages.0.network.head_dim": 16,
    }.items()
]  # fmt: skip
MODULE = ["-m", "imagen_nb.cli"]


def pictures(folder: Path):
    "Six scenes and their captions."
    folder.mkdir()
    world = ShapesWorld("train", level="quick", size=64, length=6)
    for i in range(len(world)):
        image_grid(world.images([i]), padding=0).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(world.caption(i))


def processes(n: int) -> list:
    "The library's own launcher."
    return [[sys.executable, *MODULE, *RUN, f"--processes={n}"]]


def torchrun(n: int) -> list:
    "Torch's."
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
    return [[sys.executable, *start, *MODULE, *RUN]]


def accelerate(n: int) -> list:
    "Hugging Face's; without --multi_gpu it starts one process, whatever the number."
    start = ["-m", "accelerate.commands.launch", "--multi_gpu" if n > 1 else "--cpu"]
    start += [f"--num_processes={n}", "--num_machines=1", "--mixed_precision=no"]
    return [[sys.executable, *start, "--dynamo_backend=no", "--main_process_port=0", *MODULE, *RUN]]


def slurm(n: int) -> list:
    "Tasks that know each other by the variables of `srun` alone."
    return [[sys.executable, *MODULE, *RUN]] * n


WAYS = {way.__name__: way for way in (processes, torchrun, accelerate, slurm)}


def task(rank: int, n: int, job: int) -> dict[str, str]:
    "What `srun` tells a task."
    names = dict(PROCID=rank, LOCALID=rank, STEP_NUM_TASKS=n, NTASKS=n, JOB_ID=job)
    told = {f"SLURM_{name}": str(value) for name, value in names.items()}
    return told | dict(SLURM_STEP_NODELIST="localhost")


def free_port() -> int:
    "One that nobody listens at."
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def launch(way: str, n: int, data: Path, out: Path, *more: str) -> tuple[dict, str]:
    "Weights after the last step, and what was said; raises where a process failed."
    site = out.parent / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(PLAIN)
    path = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    port = dict(MASTER_PORT=str(free_port())) if way == "slurm" else {}
    children = [
        subprocess.Popen(
            [*command, f"--data={data}", f"--out={out}", *more],
            env=env | port | (task(rank, n, os.getpid()) if way == "slurm" else {}),
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank, command in enumerate(WAYS[way](n))
    ]  # fmt: skip
    said = "".join(child.communicate()[1] for child in children)
    if any(child.returncode for child in children):
        raise RuntimeError(f"launchers: {way} {n}\n{said[-3000:]}")
    return load_file(out / "32px" / "step_00000003" / "network.safetensors"), said


def difference(ours: dict, theirs: dict) -> float:
    "Norm of what differs, divided by the norm of the weights."
    assert ours.keys() == theirs.keys()
    a, b = (torch.cat([o[k].flatten() for k in sorted(o)]).double() for o in (ours, theirs))
    return ((a - b).norm() / b.norm()).item()


def largest(ours: dict, theirs: dict) -> dict:
    "The single weight that differs most: by how much, where, and the largest weight of its tensor."
    gaps = {k: (ours[k] - theirs[k]).abs().max().item() for k in ours}
    name = max(gaps, key=gaps.__getitem__)
    return dict(gap=gaps[name], name=name, weight=theirs[name].abs().max().item())


def main():
    from cards import write_card

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "runs" / "launchers.json")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS])
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--at-once", type=int, default=1, help="launches that run side by side")
    args, table, worst = parser.parse_args(), {}, {}
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "pictures"
        pictures(data)
        alone, _ = launch("processes", 1, data, Path(place) / "alone")

        def measured(case: tuple[str, int]) -> tuple[float, dict]:
            way, n = case
            weights, said = launch(way, n, data, Path(place) / f"{way}-{n}")
            row = difference(weights, alone), largest(weights, alone)
            print(f"{way:<12} {n}  {row}  others told: {'waits until' in said}", flush=True)
            return row

        cases = list(itertools.product(args.ways, args.counts))
        with ThreadPoolExecutor(args.at_once) as pool:
            for (way, n), row in zip(cases, pool.map(measured, cases)):
                table[f"{way}_{n}"], worst[f"{way}_{n}"] = row
    write_card(
        args.out,
        "norm of the difference from the weights of one process, by the norm of those",
        "python tools/measure/launchers.py",
        precision="float32",
        backend="gloo",
        steps=3,
        difference=table,
        largest=worst,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

"""The same small run however it is launched: `python tools/measure/launchers.py`, into data/runs/launchers.json.

Every way to start 1, 2 and 4 processes (gloo, float32) trains the toy's base for a few steps on a folder of drawn
pictures. The figure is the norm of the difference from the weights of one process, divided by the norm of those.
"""

import argparse
import itertools
import os
import socket
import subprocess
import sys
import tempfile
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


def launch(way: str, n: int, data: Path, out: Path) -> tuple[dict, str]:
    "Weights after the last step, and what was said; raises where a process failed."
    site = out.parent / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(PLAIN)
    path = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    port = dict(MASTER_PORT=str(free_port())) if way == "slurm" else {}
    children = [
        subprocess.Popen(
            [*command, f"--data={data}", f"--out={out}"],
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


def main():
    from cards import write_card

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "runs" / "launchers.json")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS])
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 2, 4])
    args, table = parser.parse_args(), {}
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "pictures"
        pictures(data)
        alone, _ = launch("processes", 1, data, Path(place) / "alone")
        for way, n in itertools.product(args.ways, args.counts):
            weights, said = launch(way, n, data, Path(place) / f"{way}-{n}")
            told = f"{'waits until' in said}"
            table[f"{way}_{n}"] = difference(weights, alone)
            print(f"{way:<12} {n}  {table[f'{way}_{n}']:.1e}  others told: {told}", flush=True)
    write_card(
        args.out,
        "norm of the difference from the weights of one process, by the norm of those",
        "python tools/measure/launchers.py",
        precision="float32",
        backend="gloo",
        steps=3,
        difference=table,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

"""Processes of one run: which launchers are understood, what is refused, who waits; the same weights in every way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launchers import WAYS, difference, launch, pictures

from imagen_nb.engine.distributed import own_gpu
from imagen_nb.runs import run, team
from imagen_nb.runs.team import adopt_slurm, check_team, first_node, how_many

HERE = Path(__file__).parent
TASK = dict(
    SLURM_PROCID="3", SLURM_LOCALID="1", SLURM_STEP_NUM_TASKS="4",
    SLURM_STEP_NODELIST="gpu[07-08]", SLURM_JOB_ID="31234",
)  # fmt: skip
MEMBER = dict(
    RANK="3", LOCAL_RANK="1", WORLD_SIZE="4", MASTER_ADDR="gpu07", MASTER_PORT="21234"
)  # fmt: skip


@pytest.mark.parametrize(
    "nodes, first",
    [
        ("gpu07", "gpu07"), ("gpu[07-08,11]", "gpu07"), ("a1,a2", "a1"), ("n[3,5]-ib,n9", "n3-ib"),
    ],
)  # fmt: skip
def test_the_first_node(nodes, first):
    assert first_node(nodes) == first


def test_tasks_of_srun_are_processes():
    env = dict(TASK)
    adopt_slurm(env)
    assert env == TASK | MEMBER


@pytest.mark.parametrize(
    "env", [dict(SLURM_PROCID="0", SLURM_NTASKS="8"), TASK | dict(RANK="0"), {}]
)
def test_others_are_left_alone(env):
    "A shell of an allocation, whoever torchrun has numbered, and everybody else."
    after = dict(env)
    adopt_slurm(after)
    assert after == env


@pytest.fixture
def gpus(monkeypatch):
    "A machine with so many."

    def have(n: int):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: n > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)

    return have


@pytest.mark.parametrize(
    "n, asked, given",
    [
        (8, (8, None), (8, "cuda")), (8, (None, None), (1, "cuda")), (8, (2, "cpu"), (2, "cpu")),
        (0, (4, None), (4, "cpu")), (1, (None, "cuda"), (1, "cuda")),
    ],
)  # fmt: skip
def test_processes_are_gpus_where_there_are_some(gpus, n, asked, given):
    gpus(n)
    assert how_many(*asked) == given


def test_no_fall_to_the_cpu(gpus, monkeypatch):
    gpus(2)
    with pytest.raises(ValueError, match="got 3, expected at most 2, the GPUs of this machine"):
        how_many(3, None)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="got 3 or more, expected at most 2"):
        own_gpu()
    gpus(0)
    with pytest.raises(ValueError, match="torch finds no GPU"):
        how_many(1, "cuda")


def test_unused_gpus_are_told(gpus, capsys):
    gpus(8)
    how_many(None, None)
    assert "one of 8 GPUs; --processes 8 takes all" in capsys.readouterr().err
    how_many(1, None)
    assert not capsys.readouterr().err


def test_a_launcher_is_not_contradicted(gpus, monkeypatch):
    gpus(0)
    monkeypatch.setenv("WORLD_SIZE", "4")
    check_team(4, "cpu")
    check_team(None, None)
    with pytest.raises(ValueError, match="processes, got 2, expected 4"):
        check_team(2, None)
    with pytest.raises(ValueError, match="device, got cuda, expected cpu"):
        check_team(None, "cuda")


@pytest.mark.parametrize("device", team.DEVICES)
def test_the_launcher_hides_gpus_on_a_cpu_alone(monkeypatch, device):
    found = {}

    def start(command, env):
        found.update(gpus=env.get("CUDA_VISIBLE_DEVICES"), ranks=env["WORLD_SIZE"])
        raise InterruptedError

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(run.subprocess, "Popen", start)
    job = run.Job(out="x", held_out=2, execution=run.Execution())
    with pytest.raises(InterruptedError):
        run.launch(job, 2, device)
    assert found["gpus"] == {"cuda": "0,1", "cpu": ""}[device]
    assert found["ranks"] == "2"


TOGETHER = """
import sys
from imagen_nb.engine.distributed import Process
from imagen_nb.runs.team import prepared_by_first
def prepare():
    print("prepared", flush=True)
    if sys.argv[1] == "fail":
        raise ValueError("no pictures")
    return sys.argv[1] == "go"
sys.stdout.write(f"result {prepared_by_first(prepare)}\\n")  # at once: two processes share a pipe
"""


@pytest.mark.slow
@pytest.mark.parametrize("how, result", [("go", "True"), ("done", "False"), ("fail", None)])
def test_one_prepares_and_all_know(tmp_path, how, result):
    script = tmp_path / "script.py"
    script.write_text(TOGETHER)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = dict(os.environ, PYTHONPATH=str(HERE.parent), OMP_NUM_THREADS="1")
    done = subprocess.run([*start, str(script), how], env=env, capture_output=True, text=True)
    assert done.stdout.count("prepared") == 1
    assert "process 1 waits until process 0" in done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("result")]
    assert said == ([f"result {result}"] * 2 if result else [])  # nobody goes on where it failed
    assert (done.returncode == 0) == bool(result)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "Six pictures, and the weights of one process."
    place = tmp_path_factory.mktemp("ways")
    pictures(place / "pictures")
    return place, launch("processes", 1, place / "pictures", place / "alone")[0]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_same_weights(alone, way):
    place, weights = alone
    ours, said = launch(way, 2, place / "pictures", place / way)
    assert difference(ours, weights) < 1e-5
    assert ("process 1 waits until process 0" in said) == (way != "processes")

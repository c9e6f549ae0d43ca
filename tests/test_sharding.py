"""A run in parts: what every process keeps, checkpoints of many writers, and the same weights as in one piece."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import distributed, nn

from imagen_nb.engine.distributed import is_finite
from imagen_nb.engine.sharding import Shards, is_spread, on_whole, own_part
from imagen_nb.engine.validation import Watcher
from imagen_nb.recipes import toy
from imagen_nb.runs.setup import bare_stage
from imagen_nb.store import saving
from imagen_nb.store.checkpoint import (
    CheckpointError,
    checkpoints,
    load_directory,
    load_meta,
    save_directory,
    verify,
)
from imagen_nb.store.saving import Saving
from imagen_nb.store.shards import read_parts, read_whole, shapes

SCRIPT = Path(__file__).parents[1] / "tools" / "measure" / "sharding.py"


@pytest.fixture
def group():
    "A group of one process."
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.group.WORLD
    distributed.destroy_process_group()


def parts() -> dict:
    "What a run keeps: names with points, numbers, whole numbers."
    return dict(
        network={"a.weight": torch.arange(12.0).reshape(4, 3), "a.bias": torch.ones(4)},
        average={"a.weight": torch.arange(12.0).reshape(4, 3) / 7},
        optimizer={"0.0.step": torch.tensor(3), "0.0.rows": torch.full((1, 3), 0.5)},
    )


def equal(one: dict, other: dict) -> bool:
    "The same names, the same bits."
    return one.keys() == other.keys() and all(
        one[g].keys() == other[g].keys()
        and all(
            torch.equal(t, other[g][k]) and t.dtype == other[g][k].dtype for k, t in one[g].items()
        )
        for g in one
    )


def test_what_is_saved_in_parts_is_a_checkpoint(tmp_path, group):
    path, seen = tmp_path / "step_00000003", []
    Saving(path, parts(), dict(step=3), group, lambda: seen.append(path.exists())).finish()
    assert seen == [True]  # older ones go once the new one is there
    tensors, meta = load_directory(path)
    assert equal(tensors, parts()) and meta == load_meta(path) == dict(step=3)
    verify(path)
    assert checkpoints(tmp_path) == [path]
    assert {p.suffix for p in path.iterdir()} == {".json", ".safetensors"}
    assert shapes(path)["optimizer"]["0.0.step"].dtype == torch.int64


def test_training_goes_on_while_it_is_saved(tmp_path, group):
    ours = parts()
    begun = Saving(tmp_path / "step_1", ours, {}, group, lambda: None)
    for tensors in ours.values():
        for t in tensors.values():
            t.fill_(7)
    begun.finish()
    assert equal(load_directory(tmp_path / "step_1")[0], parts())


def test_a_failed_save_leaves_what_was_there(tmp_path, group, monkeypatch):
    Saving(tmp_path / "step_1", parts(), {}, group, lambda: None).finish()

    def fail(*_, **__):
        raise OSError(28, "no room")

    monkeypatch.setattr(saving, "seal", fail)
    with pytest.raises(CheckpointError, match="process 0: .*no room"):
        Saving(tmp_path / "step_2", parts(), {}, group, lambda: None).finish()
    monkeypatch.setattr(saving, "new_directory", fail)
    with pytest.raises(OSError, match="no room"):
        Saving(tmp_path / "step_3", parts(), {}, group, lambda: None).finish()
    assert [p.name for p in tmp_path.iterdir()] == ["step_1"]


def test_rows_of_several_writers_become_one_tensor(tmp_path):
    whole = torch.arange(15.0).reshape(5, 3)
    for k, (start, end) in enumerate([(0, 3), (3, 5)], 1):
        told = {"network.w": dict(saved_offsets=[start, 0])}
        save_file(
            {"network.w": whole[start:end].contiguous()},
            tmp_path / f"shard-0000{k}-model-00001-of-00001.safetensors",
            metadata=dict(DCP_SHARDING_INFO=json.dumps(told)),
        )
    assert torch.equal(read_whole(tmp_path)["network"]["w"], whole)


def test_a_checkpoint_of_one_process_is_read_in_parts(tmp_path):
    save_directory(tmp_path / "step_1", parts(), {})
    room = {g: {k: torch.zeros_like(t) for k, t in ts.items()} for g, ts in parts().items()}
    read_parts(tmp_path / "step_1", room)
    assert equal(room, parts())
    room["network"]["b"] = torch.zeros(2)
    with pytest.raises(CheckpointError, match="step_1: process 0: .*b"):
        read_parts(tmp_path / "step_1", room)


def test_every_file_is_looked_at_by_one_process(tmp_path):
    save_directory(path := tmp_path / "step_1", parts(), {})
    team = [SimpleNamespace(process=SimpleNamespace(rank=k, ranks=2)) for k in range(2)]
    assert [Shards.damage(o, path) for o in team] == [None, None]
    for file in path.glob("[!m]*"):
        sound = file.read_bytes()
        file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
        assert sum(Shards.damage(o, path) is not None for o in team) == 1
        file.write_bytes(sound)
    with pytest.raises(CheckpointError, match="average.safetensors is damaged"):
        file = path / "average.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"!")
        load_directory(path)


def test_what_is_in_one_piece_stays_so():
    x = torch.randn(2, 3, 3)
    assert not is_spread(x) and not is_spread(nn.Linear(2, 2)) and not is_spread(nn.Identity())
    assert own_part(x) is x and on_whole(lambda m: m, x) is x


def test_a_process_without_rows_has_nothing_that_is_not_finite():
    layer = nn.Linear(2, 2)
    layer.weight.data.fill_(float("nan"))  # another process's business
    layer.weight.placements, layer.weight.to_local = (), lambda: torch.empty(0, 2)
    assert is_finite(layer)
    layer.bias.data[1] = float("inf")
    assert not is_finite(layer)


@pytest.mark.parametrize("in_parts, looks", [(True, 1), (False, 0)])
def test_all_processes_look_at_a_network_in_parts(in_parts, looks):
    network, seen = nn.Linear(2, 2), []
    if in_parts:
        network.weight.placements = ()
    watcher = Watcher.__new__(Watcher)
    watcher.every, watcher.on, watcher.dataset, watcher.text = (
        dict(validation=1),
        "train",
        None,
        None,
    )
    watcher.config = SimpleNamespace(batch=1, steps=9)
    watcher.validate = lambda *_: seen.append(1) or {}
    log = SimpleNamespace(  # of the second process, while the first has something to do
        is_main=False, steps=dict(validation={}), note=lambda *_: None,
        process=SimpleNamespace(any=lambda flag: True),
    )  # fmt: skip
    watcher(3, SimpleNamespace(network=network), log)
    assert len(seen) == looks


def test_a_bare_stage_takes_no_memory():
    recipe = toy()
    stage = bare_stage(recipe, 0)
    assert stage.config == recipe.stages[0] and all(p.is_meta for p in stage.network.parameters())


def measured(tmp_path, *options) -> dict:
    "The card of a small measurement."
    out = tmp_path / "card.json"
    command = [sys.executable, str(SCRIPT), f"--out={out}", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]
    return json.loads(out.read_text())


def test_a_run_in_parts_has_the_weights_of_a_run(tmp_path):
    "Two processes, one, two again: the optimizers that need whole matrices."
    more = ("--optimizers", "adafactor", "muon", "--counts", "2", "1", "2", "--steps", "1")
    card = measured(tmp_path, *more, "--parts", "reshard")
    gaps = [row["difference"] for rows in card["reshard"].values() for row in rows.values()]
    assert len(gaps) == 6 and 0 < max(gaps) < 1e-5


@pytest.mark.slow
def test_a_run_in_parts_whatever_happens(tmp_path):
    card = measured(tmp_path)
    rows = [row for rows in card["reshard"].values() for row in rows.values()]
    assert len(rows) == 20 and max(row["difference"] for row in rows) < 1e-5
    assert all(0 < row["held"] < 1.3 for row in card["memory"])
    assert card["kills"] and all(row["was_cut"] and row["same"] for row in card["kills"].values())

"Directories are complete or do not exist: damage is named, kills lose nothing."

import errno
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch

from imagen_nb.store import checkpoint
from imagen_nb.store.checkpoint import (
    CheckpointError,
    checkpoints,
    load_directory,
    load_meta,
    prune,
    save_directory,
    verify,
)
from imagen_nb.store.files import assets
from imagen_nb.store.manifest import canonical, file_entry

META = {"step": 7, "config": {"dim": 64, "mults": [1, 2]}, "name": "Größe", "none": None}


def groups(fill=0.0):
    "A few small tensors of every kind that a model or an optimizer holds."
    return {
        "network": {
            "weight": torch.arange(12.0).view(3, 4) + fill,
            "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
            "empty": torch.zeros(0, 3),
        },
        "optimizer": {"step": torch.tensor(5), "mask": torch.tensor([True, False])},
        "nothing": {},
    }


def assert_equal(got, expected):
    assert got.keys() == expected.keys()
    for name in expected:
        assert got[name].keys() == expected[name].keys()
        for key, value in expected[name].items():
            assert got[name][key].dtype == value.dtype
            assert got[name][key].device.type == "cpu"
            assert torch.equal(got[name][key], value.contiguous())


@pytest.fixture
def saved(tmp_path):
    return save_directory(tmp_path / "step-7", groups(), META)


def rewrite_manifest(path, change):
    "Alter a manifest as an attacker would: with a sound digest of itself."
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest.pop("sha256")
    change(manifest)
    digest = hashlib.sha256(canonical(manifest)).hexdigest()
    data = canonical({**manifest, "sha256": digest})
    (path / "manifest.json").write_bytes(data)


def restate(path, name):
    "Let the manifest say what a file holds now."
    entry = file_entry(path / name)
    rewrite_manifest(path, lambda m: m["files"].update({name: entry}))


# ---- round trip


def test_round_trip(saved):
    tensors, meta = load_directory(saved)
    assert_equal(tensors, groups())
    assert meta == META == load_meta(saved)
    verify(saved)
    names = {p.name for p in saved.iterdir()}
    assert names == {
        "network.safetensors",
        "optimizer.safetensors",
        "nothing.safetensors",
        "meta.json",
        "manifest.json",
    }
    assert [p.name for p in saved.parent.iterdir()] == ["step-7"]


def test_views_and_shared_memory(tmp_path):
    base = torch.arange(24.0).view(2, 3, 2, 2)
    tensors = {
        "view": base[:, 1],
        "same": base,
        "tied": base,
        "turned": base.transpose(0, 1),
        "last": base.to(memory_format=torch.channels_last),
        "corner": base[0, 0, 0, 0],
        "parameter": torch.nn.Parameter(base),
    }
    save_directory(tmp_path / "a", {"network": tensors}, {})
    assert_equal(load_directory(tmp_path / "a")[0], {"network": tensors})
    size = (tmp_path / "a" / "network.safetensors").stat().st_size
    assert size < 4 * 24 * len(tensors) + 1024  # no view drags its whole storage along


def test_replacing(saved):
    save_directory(saved, groups(1.0), {"step": 8})
    tensors, meta = load_directory(saved)
    assert_equal(tensors, groups(1.0))
    assert meta == {"step": 8}
    assert [p.name for p in saved.parent.iterdir()] == ["step-7"]


def test_an_empty_directory_and_a_link_can_be_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert save_directory(tmp_path / "link", groups(), META) == tmp_path / "real"
    assert (tmp_path / "link").is_symlink()
    assert load_meta(tmp_path / "link") == META


def test_what_it_refuses_to_replace(tmp_path, saved):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("")
    (saved / "notes.md").write_text("mine")
    load_directory(saved)  # a file beside ours does no harm
    for path, what in (
        (tmp_path / "home", "letter.txt"),
        (tmp_path / "file", "a file"),
        (saved, "notes.md"),
    ):
        with pytest.raises(CheckpointError, match=what):
            save_directory(path, groups(), META)
    assert (tmp_path / "home" / "letter.txt").exists()


@pytest.mark.parametrize(
    "tensors, meta, what",
    [
        ({"../x": {}}, {}, "'../x'"),
        ({".hidden": {}}, {}, "'.hidden'"),
        ({"a/b": {}}, {}, "'a/b'"),
        ({"a": {"w": 1.0}}, {}, "a float"),
        ({"a": {3: torch.zeros(1)}}, {}, "3"),
        ({"a": {"w": torch.zeros(1, device="meta")}}, {}, "meta"),
        ({"a": {"w": torch.eye(2).to_sparse()}}, {}, "sparse"),
        ({}, {1: 2}, "a key of meta"),
        ({}, {"a": [{"b": {None: 1}}]}, "a key of meta"),
        ({}, {"a": float("nan")}, "JSON"),
        ({}, {"a": torch.zeros(1)}, "JSON"),
        ({}, [1], "expected a dict"),
    ],
)
def test_arguments_it_refuses(tmp_path, tensors, meta, what):
    with pytest.raises(ValueError, match=what):
        save_directory(tmp_path / "a", tensors, meta)
    assert list(tmp_path.iterdir()) == []


# ---- damage


def files_of(path):
    return sorted(p for p in path.iterdir() if p.name != "nothing.safetensors")


def test_truncation_is_noticed(saved):
    r, tried = random.Random(0), 0
    for file in files_of(saved):
        whole = file.read_bytes()
        cuts = {0, 1, 7, 8, len(whole) - 1} | {r.randrange(len(whole)) for _ in range(50)}
        for cut in cuts:
            file.write_bytes(whole[:cut])
            with pytest.raises(CheckpointError, match=file.name):
                load_directory(saved)
            with pytest.raises(CheckpointError, match=file.name):
                verify(saved)
            tried += 1
        file.write_bytes(whole)
    assert tried > 150
    load_directory(saved)


def test_a_flipped_bit_is_noticed(saved):
    r, tried = random.Random(1), 0
    for file in files_of(saved):
        whole = file.read_bytes()
        for bit in r.sample(range(8 * len(whole)), 125):
            broken = bytearray(whole)
            broken[bit // 8] ^= 1 << bit % 8
            file.write_bytes(broken)
            with pytest.raises(CheckpointError, match=file.name):
                load_directory(saved)
            tried += 1
        file.write_bytes(whole)
    assert tried == 500
    load_directory(saved)


def test_a_longer_or_missing_file_is_named(saved):
    for file in files_of(saved):
        whole = file.read_bytes()
        file.write_bytes(whole + b"\n")
        with pytest.raises(CheckpointError, match=file.name):
            load_directory(saved)
        file.unlink()
        with pytest.raises(CheckpointError, match=file.name):
            load_directory(saved)
        file.write_bytes(whole)


def test_the_error_says_what_was_expected(saved):
    file = saved / "network.safetensors"
    size = file.stat().st_size
    os.truncate(file, 100)
    with pytest.raises(CheckpointError, match=f"got 100 bytes, expected {size}"):
        load_directory(saved)
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        load_directory(saved.parent / "elsewhere")
    with pytest.raises(ValueError):  # CheckpointError is one
        load_meta(saved.parent)


def test_swapped_files_are_noticed(saved):
    a, b = saved / "network.safetensors", saved / "optimizer.safetensors"
    x, y = a.read_bytes(), b.read_bytes()
    a.write_bytes(y)
    b.write_bytes(x)
    with pytest.raises(CheckpointError, match="network"):
        load_directory(saved)


def test_another_format_is_refused_by_name(saved):
    rewrite_manifest(saved, lambda m: m.update(format=2, library="9.9.9"))
    for read in (load_directory, load_meta, verify):
        with pytest.raises(CheckpointError, match="format 2 of imagen_nb 9.9.9"):
            read(saved)
    with pytest.raises(CheckpointError, match="format 2"):  # never mistaken for "none"
        checkpoints(saved.parent)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        "weights.pkl",
        "C:\\x.safetensors",
        ".hidden.safetensors",
        "x\n.safetensors",
    ],
)
def test_hostile_names_in_a_manifest(saved, name):
    entry = {"bytes": 1, "sha256": "0" * 64}
    rewrite_manifest(saved, lambda m: m["files"].update({name: entry}))
    with pytest.raises(CheckpointError, match="lists the file"):
        load_directory(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("files"),
        lambda m: m.update(files=[]),
        lambda m: m["files"].pop("meta.json"),
        lambda m: m["files"].update({"meta.json": None}),
        lambda m: m["files"]["meta.json"].update(bytes="9"),
        lambda m: m["files"]["meta.json"].update(more=1),
    ],
)
def test_malformed_manifests(saved, change):
    rewrite_manifest(saved, change)
    with pytest.raises(CheckpointError):
        load_directory(saved)


def test_hostile_contents_with_sound_digests(saved):
    attacks = {
        "network.safetensors": [b"\xff" * 7 + b"\x7f" + b"{}", b"", b"\x80\x04N."],
        "meta.json": [b"[" * 200_000, b"[1]", b"\xff\xfe", b'"x"'],
    }
    for name, contents in attacks.items():
        whole = (saved / name).read_bytes()
        for data in contents:
            (saved / name).write_bytes(data)
            restate(saved, name)
            with pytest.raises(CheckpointError, match=name):
                load_directory(saved)
        (saved / name).write_bytes(whole)
        restate(saved, name)
    load_directory(saved)


# ---- many


def test_checkpoints_newest_first(tmp_path):
    for name in ("step-9", "step-10", "step-2", "step_11", "8"):
        save_directory(tmp_path / name, groups(), {})
    (tmp_path / "samples").mkdir()
    (tmp_path / "stage-99").mkdir()
    (tmp_path / "100").write_text("a file")
    (tmp_path / ".step-50.new-00000000-1-00000000").mkdir()
    names = ["step_11", "step-10", "step-9", "8", "step-2"]
    assert [p.name for p in checkpoints(tmp_path)] == names
    os.truncate(tmp_path / "step_11" / "network.safetensors", 5)
    with pytest.warns(UserWarning, match="network.safetensors"):
        assert [p.name for p in checkpoints(tmp_path)] == names[1:]
    assert checkpoints(tmp_path / "nowhere") == []


def test_prune_keeps_the_newest_and_only_if_it_is_sound(tmp_path):
    for step in range(5):
        save_directory(tmp_path / f"step-{step}", groups(), {})
    newest = tmp_path / "step-4" / "network.safetensors"
    whole = newest.read_bytes()
    newest.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="sha256"):
        prune(tmp_path, keep=1)
    assert len(checkpoints(tmp_path)) == 5
    newest.write_bytes(whole)
    assert [p.name for p in prune(tmp_path, keep=2)] == ["step-2", "step-1", "step-0"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-3", "step-4"]
    assert prune(tmp_path, keep=2) == []
    with pytest.raises(ValueError, match="keep"):
        prune(tmp_path, keep=0)


# ---- failures while writing


def test_a_failed_write_changes_nothing(saved, monkeypatch):
    flush, calls = checkpoint.flush, []

    def full(path):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "no space", str(path))
        flush(path)

    monkeypatch.setattr(checkpoint, "flush", full)
    with pytest.raises(OSError, match="no space"):
        save_directory(saved, groups(1.0), {})
    assert_equal(load_directory(saved)[0], groups())
    assert [p.name for p in saved.parent.iterdir()] == ["step-7"]


def test_a_failed_rename_restores_the_old_one(saved, monkeypatch):
    rename = os.rename

    def fail(a, b):
        if ".new-" in str(a) and str(b).endswith("step-7") and not saved.exists():
            raise OSError(errno.EIO, "input/output error")
        rename(a, b)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="input/output"):
        save_directory(saved, groups(1.0), {})
    assert_equal(load_directory(saved)[0], groups())
    assert [p.name for p in saved.parent.iterdir()] == ["step-7"]


def test_too_little_room_is_said_before_writing(saved, monkeypatch):
    usage = shutil.disk_usage(saved)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="bytes needed, 1000 free"):
        save_directory(saved, groups(1.0), {})
    assert [p.name for p in saved.parent.iterdir()] == ["step-7"]


def test_a_reader_survives_a_replacement(saved, monkeypatch):
    check, calls = checkpoint.check_file, []

    def replaced(path, entry):
        calls.append(path)
        if len(calls) == 2:
            save_directory(saved, groups(2.0), {"step": 9})
        check(path, entry)

    monkeypatch.setattr(checkpoint, "check_file", replaced)
    tensors, meta = load_directory(saved)
    assert meta == {"step": 9}
    assert_equal(tensors, groups(2.0))


def test_live_writers_are_left_alone(tmp_path):
    host, token = checkpoint._host(), "0" * 8
    mine = tmp_path / f".step-1.new-{host}-{os.getpid()}-{token}"
    parent = tmp_path / f".step-1.new-{host}-{os.getppid()}-{token}"
    far = tmp_path / f".step-1.new-ffffffff-1-{token}"
    for p in (mine, parent, far):
        p.mkdir()
    save_directory(tmp_path / "step-2", groups(), {})
    assert {p.name for p in tmp_path.iterdir()} == {"step-2", parent.name, far.name}


def test_two_saves_of_one_process_leave_each_other_alone(tmp_path, monkeypatch):
    "A thread that saves beside another one does not sweep what that one is about to publish."
    publish = checkpoint._publish

    def beside(new, path, old):
        monkeypatch.setattr(checkpoint, "_publish", publish)
        save_directory(tmp_path / "step-2", groups(), {})
        publish(new, path, old)

    monkeypatch.setattr(checkpoint, "_publish", beside)
    save_directory(tmp_path / "step-1", groups(), {})
    assert [p.name for p in checkpoints(tmp_path)] == ["step-2", "step-1"]


# ---- kills

KILLS = """
    import json, os, random, signal, sys, time
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from imagen_nb.store import checkpoint
    from imagen_nb.store.checkpoint import *

    def tensors(n):
        return {k: {"w": torch.full((2000,), float(n))} for k in ("network", "ema")}

    def child(work):
        pid = os.fork()
        if not pid:
            try: work()
            finally: os._exit(0)
        return pid

    def save(folder, n):
        save_directory(folder / "model", tensors(n), {"n": n})
        save_directory(folder / f"step-{n}", tensors(n), {"n": n})

    def sound(folder, least):
        "Whatever was acknowledged can be read; every step directory is whole."
        stale = load_directory(folder / "model")
        assert stale[1]["n"] >= least, (stale[1], least)
        for p in [folder / "model", *checkpoints(folder)]:
            found, meta = load_directory(p)
            assert all((g["w"] == meta["n"]).all() for g in found.values())
        newest = load_meta(checkpoints(folder)[0])["n"]
        assert newest >= least, (newest, least)
        return max(newest, stale[1]["n"])

    def settle(folder, n):
        save(folder, n)
        left = [p.name for p in folder.iterdir() if p.name.startswith(".")]
        assert not left, left
        prune(folder, 2)
"""

RANDOM = (
    KILLS
    + """
    folder, r, n, died = Path(sys.argv[1]), random.Random(0), 1, 0
    save(folder, n)
    t = time.time(); settle(folder, n + 1); n += 2
    each = time.time() - t
    for trial in range(20):
        read, write = os.pipe()
        def work():
            k = n
            while True:
                save(folder, k)
                os.write(write, b"%d\\n" % k)
                k += 1
        pid = child(work)
        os.close(write)
        time.sleep(r.uniform(0, 4 * each))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        told = os.read(read, 1 << 16).split()
        os.close(read)
        n = sound(folder, int(told[-1]) if told else n - 1) + 1
        settle(folder, n); n += 1
        died += 1
    print(json.dumps({"kills": died}))
"""
)

SWEEP = (
    KILLS
    + """
    folder = Path(sys.argv[1])
    save(folder, 1)
    n, k, phases = 2, 0, []
    while True:
        k += 1
        def work():
            "Die at the k-th thing done to the disk."
            seen = [0]
            def armed(module, name):
                inner = getattr(module, name)
                def call(*args, **kw):
                    seen[0] += 1
                    if seen[0] == k:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return inner(*args, **kw)
                setattr(module, name, call)
            import safetensors.torch, shutil
            for module, name in ((os, "rename"), (os, "fsync"), (os, "mkdir"),
                                 (os, "unlink"), (os, "rmdir"), (os, "open"),
                                 (safetensors.torch, "save_file"),
                                 (checkpoint, "file_entry"), (Path, "write_bytes")):
                armed(module, name)
            save_directory(folder / "model", tensors(n), {"n": n})
        _, status = os.waitpid(child(work), 0)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        here = (folder / "model").exists()
        phases.append(here)
        found, meta = load_directory(folder / "model")
        assert meta["n"] in (n - 1, n), (meta, n)
        assert all((g["w"] == meta["n"]).all() for g in found.values())
        n += 1
        settle(folder, n)
        n += 1
    print(json.dumps({"kills": len(phases), "between renames": phases.count(False)}))
"""
)


def run(script, folder):
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(folder)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_sigkill_at_random_moments(tmp_path):
    assert run(RANDOM, tmp_path / "run") == {"kills": 20}


def test_sigkill_at_every_step_of_a_save(tmp_path):
    told = run(SWEEP, tmp_path / "run")
    assert told["kills"] >= 20
    assert told["between renames"] >= 1  # the gap was hit, and readers got across it


# ---- assets


def test_assets_are_found():
    assert assets().is_dir()
    assert assets().name in ("assets", "data")

"A few of every fault of `soak`, and the faults that need no repetition."

import errno
import fcntl
import json
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from test_checkpoint import groups, restate
from train_worker import make_trainer

from imagen_nb.engine.captions import EmbeddingCache
from imagen_nb.store import checkpoint
from imagen_nb.store.checkpoint import (
    CheckpointError,
    checkpoints,
    load_directory,
    load_into,
    save_directory,
)
from imagen_nb.store.files import locked
from imagen_nb.text import TextEncoder

HERE = Path(__file__).parent
ENV = dict(
    os.environ,
    PYTHONPATH=f"{HERE.parent}{os.pathsep}{HERE}",
    OMP_NUM_THREADS="1",
    CUDA_VISIBLE_DEVICES="",
)


def python(script: str, *args, **kw) -> str:
    "What a script prints, in a process of its own."
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, args)],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=300,
        **kw,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


# ---------------------------------------------------------------- a few of each


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    "What `python -m soak --quick` measures."
    out = tmp_path_factory.mktemp("cards")
    run = subprocess.run(
        [sys.executable, "-m", "soak", "--quick", "--out", str(out)],
        cwd=HERE,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr
    return {p.stem.removeprefix("soak-"): json.loads(p.read_text()) for p in out.iterdir()}


@pytest.mark.slow
def test_killed_runs_end_bit_equal(cards):
    many, once = cards["kills"]["many"], cards["kills"]["once"]
    assert many["differences"] == [] and many["directories_left"] == []
    assert many["kills"] == sum(many["kills_in"].values()) == 12
    assert many["steps_done_again"]["most_after_a_kill"] <= many["steps_done_again"]["save_every"]
    assert once["bit_equal"] == once["runs"] == 3


@pytest.mark.slow
def test_every_epoch_shows_every_picture_once_across_kills(cards):
    samples = cards["kills"]["many"]["samples"]
    assert samples == dict(epochs=6, missing_or_twice=0, steps_done_again_with_other_samples=0)


@pytest.mark.slow
def test_a_kill_during_a_save_loses_nothing(cards):
    ways = cards["saves"]["ways"]
    assert ways["ours"]["unusable"] == 0 and ways["ours"]["new"] + ways["ours"]["old"] == 5
    assert ways["torch_over"]["unusable"] > 0  # the test can fail


@pytest.mark.slow
def test_damage_is_noticed(cards):
    ways = cards["damage"]["ways"]
    for kind in ("bits", "cuts"):
        assert ways["ours"][kind]["detected"] == ways["ours"][kind]["trials"] == 25
    assert ways["torch_load"]["bits"]["altered"] > 0  # the test can fail
    assert set(cards["damage"]["each_file_removed"]["ours"].values()) == {"detected"}


@pytest.mark.slow
def test_signals_lose_no_step(cards):
    for case in cards["signals"]["cases"]:
        assert case["steps_lost"] == case["hangs"] == case["processes_apart"] == 0 and set(
            case["codes"]
        ) == {"130"}, case


@pytest.mark.slow
def test_processes_train_one_run(cards):
    card = cards["ranks"]
    for run in (*card["runs"].values(), card["elastic"]):
        assert run.pop("loss_gap") < 1e-5 and run.pop("steps") == 6 and set(run.values()) == {0}
    assert card["wrapper_bypassed"]["gradients_unequal"] == 3  # the test can fail


# ---------------------------------------------------------------- disk full


def test_a_file_that_may_not_grow_changes_nothing(tmp_path):
    told = python(
        """
        import resource, signal, sys
        from test_checkpoint import META, groups
        from imagen_nb.store.checkpoint import load_meta, save_directory
        folder = sys.argv[1]
        save_directory(folder + "/step-1", groups(), META)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for path in ("/step-1", "/step-2"):
            try: save_directory(folder + path, groups(1.), META)
            except OSError as e: print(type(e).__name__, e.filename is not None)
        print(load_meta(folder + "/step-1") == META)
        """,
        tmp_path,
    )
    assert told.split() == ["OSError", "True"] * 2 + ["True"]
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]


@pytest.fixture
def full_disk(tmp_path):
    "A file system of one megabyte."
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True
    ).returncode:
        pytest.skip("may not mount a file system")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_full_disk_is_said_with_bytes_and_changes_nothing(full_disk, monkeypatch):
    big = dict(network=dict(w=torch.zeros(150_000)))  # 600 kB
    save_directory(full_disk / "step-1", big, dict(n=1))
    since = time.perf_counter()
    with pytest.raises(OSError, match=r"\d+ bytes needed, \d+ free"):
        save_directory(full_disk / "step-2", big, {})
    assert time.perf_counter() - since < 5
    monkeypatch.setattr(checkpoint, "check_room", lambda *_: None)  # the disk fills while we write
    with pytest.raises(OSError):
        save_directory(full_disk / "step-2", big, {})
    assert [p.name for p in full_disk.iterdir()] == ["step-1"] and load_directory(
        full_disk / "step-1"
    )[1] == dict(n=1)


# ---------------------------------------------------------------- another network


def test_weights_of_another_network_are_refused_by_name_and_none_is_loaded():
    def make(width):
        return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, width))

    module, other = make(2), make(5)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    cases = {
        r"1.weight: got \(5, 4\), expected \(2, 4\)\n  1.bias: got \(5,\), expected \(2,\)$": other.state_dict(),
        r"1.bias: got nothing, expected \(2,\)$": {
            k: v + 1 for k, v in before.items() if k != "1.bias"
        },
        r"extra: got \(1,\), expected nothing$": {k: v + 1 for k, v in before.items()}
        | dict(extra=torch.zeros(1)),
        r"and 5 more$": {f"x{i}": torch.zeros(1) for i in range(6)},
    }
    for message, tensors in cases.items():
        with pytest.raises(
            CheckpointError, match="(?s)^here: weights of another network\n.*" + message
        ):
            load_into(module, tensors, "here")
        assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    load_into(module, {k: v + 1 for k, v in before.items()}, "here")
    assert all(torch.equal(v, before[k] + 1) for k, v in module.state_dict().items())


# ---------------------------------------------------------------- hostile files


class Bomb:
    "Runs a command when it is unpickled."

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def hostile_files(folder: Path) -> dict[str, bytes]:
    "What an attacker might put in place of weights."
    import io
    import zipfile

    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("data.pkl", bytes(200 << 20))
    torch.save(Bomb(folder / "executed"), folder / "bomb.pt")

    def header(text):
        return len(text).to_bytes(8, "little") + text

    return dict(
        pickle=pickle.dumps(Bomb(folder / "executed")),
        torch_pickle=(folder / "bomb.pt").read_bytes(),
        zip_bomb=archive.getvalue(),
        header_2_63=(2**63).to_bytes(8, "little") + b"{}",
        header_2_40=(2**40).to_bytes(8, "little") + b"{}",
        offsets_beyond_the_end=header(
            b'{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
        ),
        overlapping=header(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
        )
        + bytes(4),
        deep=header(b"[" * 100_000),
    )


def test_hostile_files_are_not_executed_and_take_no_memory(tmp_path):
    "With sound digests: whoever can alter a file can alter the manifest."
    path, before = save_directory(tmp_path / "step-1", groups(), {}), None
    for data in hostile_files(tmp_path).values():
        (path / "network.safetensors").write_bytes(data)
        restate(path, "network.safetensors")
        before = before or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(CheckpointError, match="network.safetensors"):
            load_directory(path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert not (tmp_path / "executed").exists() and grown < 64 << 10
    pickle.loads(pickle.dumps(Bomb(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()  # the bomb works


# ---------------------------------------------------------------- two runs in one directory

HOLD = """
import sys, time
from imagen_nb.store.files import locked
with locked(sys.argv[1]): print('held', flush=True); time.sleep(300)
"""


def test_a_second_run_is_refused_with_the_owner_and_a_dead_one_is_not_in_the_way(tmp_path):
    run = tmp_path / "run"
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], env=ENV, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout.readline() == "held\n"
    for _ in range(2):
        with pytest.raises(
            CheckpointError,
            match=rf"{run} is in use by process {owner.pid} on {socket.gethostname()};",
        ):
            with locked(run):
                pass
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with locked(run):
        with pytest.raises(CheckpointError, match=f"process {os.getpid()} "):
            with locked(run):
                pass
    with locked(run):
        assert (run / ".lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="no locks available"):
        with locked(tmp_path):
            pass


def stopped_after(trainer, step: int):
    "Let a run end like a crash, once a step is done."
    inner = trainer.train_step

    def stopping(*args):
        if trainer.step == step:
            raise RuntimeError("crash")
        return inner(*args)

    trainer.train_step = stopping
    with pytest.raises(RuntimeError, match="crash"):
        trainer.fit()


def test_the_log_goes_on_in_the_middle_of_a_row(tmp_path):
    "Stopped by a signal, by a crash, and not at all: the same rows but for times."
    from soak import TIMES

    make_trainer(tmp_path / "whole", 25).fit()
    stopped_after(make_trainer(tmp_path / "run", 25), 7)
    trainer = make_trainer(tmp_path / "run", 25)
    step = trainer.train_step
    trainer.train_step = lambda *args: (
        trainer.step == 12 and os.kill(os.getpid(), signal.SIGTERM),
        step(*args),
    )[1]
    with pytest.raises(KeyboardInterrupt, match="stopped at step 13, saved"):
        trainer.fit()
    make_trainer(tmp_path / "run", 25).fit()
    whole, parts = (
        [
            {k: v for k, v in json.loads(o).items() if k not in TIMES}
            for o in (tmp_path / name / "log.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "run")
    )
    assert whole == parts and [row["step"] for row in whole] == [20, 25]


@pytest.mark.slow
def test_the_trainer_holds_its_directory_while_it_runs_and_lets_go(tmp_path):
    trainer, seen = make_trainer(tmp_path / "run", steps=6), []
    inner = trainer.train_step

    def trying(*args):
        with pytest.raises(CheckpointError, match=f"run is in use by process {os.getpid()}"):
            make_trainer(tmp_path / "run", steps=6).fit()
        seen.append(1)
        return inner(*args)

    trainer.train_step = trying
    trainer.fit()
    make_trainer(tmp_path / "run", steps=6).fit()
    assert len(seen) == 6


def test_leftovers_of_a_dead_writer_are_removed_and_a_link_is_followed(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "run").symlink_to("far")
    dead = subprocess.Popen(["true"])
    dead.wait()
    for kind in ("new", "old", "gone"):
        (
            tmp_path / "far" / f".step_00000005.{kind}-{checkpoint._host()}-{dead.pid}-00000000"
        ).mkdir()
    stopped_after(make_trainer(tmp_path / "run"), 7)
    make_trainer(tmp_path / "run").fit()
    assert (tmp_path / "run").is_symlink() and [p.name for p in checkpoints(tmp_path / "far")] == [
        "step_00000020",
        "step_00000015",
    ]
    assert [p.name for p in (tmp_path / "far").iterdir() if p.name.startswith(".")] == [".lock"]


@pytest.fixture
def read_only(tmp_path):
    "A directory nobody can write to, root included."
    (tmp_path / "run").mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(tmp_path / "run")], capture_output=True
    ).returncode:
        pytest.skip("may not mount a file system")
    yield tmp_path / "run"
    subprocess.run(["umount", str(tmp_path / "run")], check=True)


def test_a_read_only_directory_is_named_before_training(read_only):
    trainer = make_trainer(read_only)
    with pytest.raises(OSError) as e:
        trainer.fit()
    assert str(read_only) in str(e.value.filename) and trainer.step == 0


# ---------------------------------------------------------------- what the trainer makes of a checkpoint


def altered(out: Path, change):
    "Save the newest checkpoint of a run again, changed, with sound digests."
    tensors, meta = load_directory(path := checkpoints(out)[0])
    tensors = {k: {j: t.clone() for j, t in v.items()} for k, v in tensors.items()}
    change(tensors)
    save_directory(path, tensors, meta)


@pytest.mark.parametrize(
    "what, change",
    [
        (
            "network.*conv_in.*got \\(7,\\)",
            lambda t: t["network"].update(
                {next(k for k in t["network"] if "conv_in" in k): torch.zeros(7)}
            ),
        ),
        (
            "average.*extra: got \\(1,\\), expected nothing",
            lambda t: t["average"].update(extra=torch.zeros(1)),
        ),
        ("no optimizer", lambda t: t.pop("optimizer")),
    ],
)
def test_a_checkpoint_of_another_network_or_without_its_parts_is_refused(tmp_path, what, change):
    stopped_after(make_trainer(tmp_path / "run"), 7)
    altered(tmp_path / "run", change)
    trainer = make_trainer(tmp_path / "run")
    before = {k: v.clone() for k, v in trainer.stage.network.state_dict().items()}
    with pytest.raises(CheckpointError, match="(?s)" + what):
        trainer.fit()
    assert (
        all(torch.equal(v, before[k]) for k, v in trainer.stage.network.state_dict().items())
        and trainer.step == 0
    )


# ---------------------------------------------------------------- not finite, on one of two processes

POISON = """
    import json, sys
    from pathlib import Path
    import soak
    from soak import ended, make_trainer, team
    from soak.ranks import digest
    out, kind, bad = Path(sys.argv[1]), sys.argv[2], range(3, 3 + int(sys.argv[3]))

    def work(rank):
        trainer = make_trainer(out, 20)
        step, told = trainer.train_step, []
        def poisoned(batch, draws):
            k = trainer.step
            if rank == 1 and k in bad:
                if kind == "loss": batch = batch._replace(images=batch.images*float("nan"))
                else: handle = next(trainer.learned.network.parameters()).register_hook(lambda g: g/0.)
            before = digest([*trainer.learned.network.parameters(), *trainer.learned.average.parameters()])
            result = step(batch, draws)
            if rank == 1 and k in bad and kind != "loss": handle.remove()
            after = digest([*trainer.learned.network.parameters(), *trainer.learned.average.parameters()])
            told.append([k, result is None, before == after, after])
            return result
        trainer.train_step = poisoned
        try: trainer.fit()
        finally: (out/f"told{rank}.json").write_text(json.dumps(told))
    print(json.dumps([ended(pid) for pid in team(2, work)]))
"""


@pytest.mark.parametrize("kind, bad", [("loss", 2), ("gradient", 1), ("loss", 12)])
def test_a_step_that_is_not_finite_on_one_process_is_skipped_on_both(tmp_path, kind, bad):
    codes = json.loads(python(POISON, tmp_path / "run", kind, bad))
    told = [json.loads((tmp_path / "run" / f"told{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0] == told[1]  # steps skipped, weights and averages
    skipped = [k for k, is_skipped, is_same, _ in told[0] if is_skipped]
    assert skipped == list(range(3, 3 + min(bad, 10))) and all(
        same == skip for _, skip, same, _ in told[0]
    )
    assert codes == ([0, 0] if bad < 10 else [1, 1]) and len(told[0]) == (20 if bad < 10 else 13)
    for path in checkpoints(tmp_path / "run"):
        assert all(t.isfinite().all() for g in load_directory(path)[0].values() for t in g.values())
    if bad < 10:
        assert (
            json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])["skipped"]
            == bad
        )


# ---------------------------------------------------------------- no network, no transformers

ALONE = """
    import socket, sys
    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("transformers", "tokenizers", "sentencepiece"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    sys.meta_path.insert(0, Missing())
    calls = []
    def refuse(*args, **kw): calls.append(args); raise OSError("no network")
    for name in ("connect", "connect_ex", "sendto", "bind"): setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo", "gethostbyname"): setattr(socket, name, refuse)
    import importlib, pkgutil, imagen_nb
    for m in pkgutil.walk_packages(imagen_nb.__path__, "imagen_nb."): importlib.import_module(m.name)
    from imagen_nb.cascade import Imagen
    from imagen_nb.engine.captions import EmbeddingCache
    from imagen_nb.text import TextEncoder
    from train_worker import make_trainer
    trainer = make_trainer(sys.argv[1], steps=2)
    cache = EmbeddingCache.open(sys.argv[2])
    class Short:  # six of the cache's numbers
        identity = "short"
        def __getitem__(self, captions):
            text = cache[captions]
            return type(text)(text.tokens[..., :6], text.mask)
    trainer.samples.text = trainer.keeper.samples.text = Short()
    stage = trainer.fit()
    captions = [trainer.samples.dataset.caption(i, 0) for i in (0, 1)]
    pictures = Imagen(None, [stage]).sample(Short()[captions], steps=2)
    try: TextEncoder.toy()
    except ImportError as e: print(e)
    print(tuple(pictures.shape), len(calls))
"""


def test_training_and_drawing_from_cached_text_need_no_network_and_no_transformers(tmp_path):
    world = make_trainer("unused").samples.dataset
    EmbeddingCache.build(
        TextEncoder.toy(),
        [c for i in range(len(world)) for c in world.captions(i)],
        tmp_path / "text",
    )
    env = {k: v for k, v in ENV.items() if not k.endswith("OFFLINE")}
    alone = (
        ["unshare", "-n"]
        if not subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode
        else []
    )
    run = subprocess.run(
        [
            *alone,
            sys.executable,
            "-c",
            textwrap.dedent(ALONE),
            str(tmp_path / "run"),
            str(tmp_path / "text"),
        ],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "TextEncoder: encoding text needs transformers, which is missing; install it with: pip install transformers",
        "(2, 3, 16, 16) 0",
    ]

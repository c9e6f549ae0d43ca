"Paths as users name them, pictures that are written, directories in which a model is found, and a system like Windows."

import errno
import io
import os
import re
import shutil
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from imagen_nb.engine.captions import EmbeddingCache
from imagen_nb.engine.convert import convert_encoder
from imagen_nb.evaluation import draw_and_score
from imagen_nb.pictures.captioned import load_captioned
from imagen_nb.pictures.streams import stream_captioned
from imagen_nb.plots import add_picture, plot_log, save_picture, show_images
from imagen_nb.runs import doctor, embed, pretrained
from imagen_nb.runs.errors import in_one_line
from imagen_nb.runs.options import parser
from imagen_nb.runs.results import draw_captions, file_name
from imagen_nb.store import checkpoint, files
from imagen_nb.store.checkpoint import load_directory, save_directory
from imagen_nb.store.files import CheckpointError, as_path, locked, picture_file, writable_folder
from imagen_nb.store.hub import find_model
from imagen_nb.text import TextEncoder

RED = torch.tensor([1.0, -1, -1])[:, None, None].expand(3, 8, 8)


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A home folder; the current one is another."
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


# ---- one door for paths


def test_a_tilde_is_the_home_folder_and_nothing_else_is_expanded(home, monkeypatch):
    monkeypatch.setenv("PLACE", "elsewhere")
    for name in ("~/a/b", Path("~/a/b"), "~/a/b/", Path("~") / "a" / "b"):
        assert as_path(name) == home / "a" / "b"
    assert as_path("~") == home
    for name in ("a/~/b", "$PLACE/x", "${PLACE}", "%PLACE%", "a*[b]?", " a ", "C:\\x"):
        assert as_path(name) == Path(name)
    plain = as_path("./~/x")  # a folder of this name here, as in a shell
    assert plain == Path.cwd() / "~" / "x" == as_path(plain)
    Path("~$open.csv").touch()
    assert as_path("~$open.csv") == Path.cwd() / "~$open.csv"


@pytest.mark.parametrize("name", ["", " ", "a\0b", None, 3, b"a", "~nobody-of-this-name/x"])
def test_what_is_no_path_is_refused(name, home):
    with pytest.raises(ValueError, match="path|nobody"):
        as_path(name)


def test_an_unknown_home_is_no_folder_named_tilde(home, monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(ValueError, match="nobody knows the home folder ~"):
        as_path("~/x")


class Zero:
    "An encoder that costs nothing."

    width, identity = 4, dict(encoder="zero", revision="1")

    def __call__(self, captions):
        from imagen_nb.text import TextEmbedding

        n = len(captions)
        return TextEmbedding(torch.zeros(n, 1, 4), torch.ones(n, 1, dtype=torch.bool))


def test_every_entry_takes_a_tilde(home, tmp_path):
    (home / "photos").mkdir()
    save_picture(RED.repeat(1, 4, 4), "~/photos/a.png")
    assert len(load_captioned("~/photos", 32)) == 1
    (home / "c.txt").write_text("a red circle\n")
    assert embed.read_captions("~/c.txt", None) == ["a red circle"]
    EmbeddingCache.build(Zero(), ["a"], "~/cache")
    assert "a" in EmbeddingCache.open(Path("~/cache"))
    save_directory("~/saved", {"w": {"w": torch.zeros(1)}}, dict(kind="other"))
    assert load_directory("~/saved")[1] == dict(kind="other")
    assert find_model("~/saved") == home / "saved" and len(doctor.doctor("~/saved"))
    words = str(home)
    for call in (
        lambda: convert_encoder("~/none", "~/made"),
        lambda: pretrained.export("~/none", "~/made"),
        lambda: doctor.doctor("~/none"),
        lambda: plot_log("~/none"),
        lambda: stream_captioned("~/c.txt", 32),
    ):
        with pytest.raises(ValueError, match=f"{words}|c.txt"):
            call()
    with pytest.raises(ValueError, match="no such folder"):
        TextEncoder.from_pretrained("~/none")
    (home / "t5").mkdir()
    with pytest.raises((ValueError, OSError), match=words):
        TextEncoder.from_pretrained("~/t5")
    nobody = SimpleNamespace(stages=[])
    assert draw_and_score(nobody, None, [], "~/scores", progress=False) == []
    show_images([RED], ["a"], path="~/figure.png")
    for argv, name in (
        (["sample", "a", "--out=~/x"], "out"),
        (["train", "toy", "--out=~/x"], "out"),
        (["embed", "a", "--out=~/x"], "out"),
        (["data", "a", "--out=~/x"], "out"),
        (["upscale", "~/x", "a"], "image"),
        (["export", "a", "~/x"], "out"),
        (["doctor", "~/x"], "run_dir"),
    ):
        assert getattr(parser().parse_args(argv), name) == home / "x"
    made = {p.name for p in home.iterdir() if p.name[0] != "."}
    assert made == {"photos", "c.txt", "cache", "saved", "t5", "scores", "figure.png"}
    assert not list(Path.cwd().iterdir())  # no folder called ~


def test_an_empty_path_on_the_command_line(capsys):
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(["sample", "a", "--out", ""])
    assert stop.value.code == 2 and "expected the name of a file" in capsys.readouterr().err


# ---- one door for pictures


def drawn(captions, seeds, out, value=0.0, overview="grid.png", **options):
    "Pictures of one colour by a model that draws nothing else."
    stage = SimpleNamespace(is_trained=True)
    pictures = torch.full((len(seeds), 3, 8, 8), value)
    model = SimpleNamespace(stages=[stage], sample=lambda *a, **k: [pictures])
    return draw_captions(model, captions, seeds, out, Path(out) / overview, **options)


ODD = [
    "a" * 300,
    "a" * 299 + "b",
    "x/../../../up",
    "a\\b",
    "a\0b",
    "CON",
    "nul.txt",
    "A Red Circle",
    "a red circle",
    "a-red-circle",
    "🙂🙃",
    "🙃🙂",
    "红色的圆" * 40,
    "é",
    "e\u0301",
    "\ud800",
    "half price: $\\bad$ and $x",
    "",
    " ",
    ".",
    "line\nbreak",
]


def test_every_caption_has_a_file_of_its_own(tmp_path):
    paths = drawn(ODD, [7] * len(ODD), tmp_path / "new" / "out")
    names = [p.name for p in (tmp_path / "new" / "out").iterdir()]
    assert len(paths) == len(names) == len({n.lower() for n in names}) == len(ODD) + 1
    assert {p.parent for p in paths} == {tmp_path / "new" / "out"} and paths[-1].name == "grid.png"
    for name in names:
        assert len(os.fsencode(name)) < 255 and not re.search(r'[\\/:*?"<>|\0]|[. ]$', name)
        assert not re.match(r"(?i)(con|prn|aux|nul|com\d|lpt\d)\.", name)
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_pictures_bear_the_names_of_their_captions(tmp_path):
    "Two of each caption: the first two pictures are the first caption's."
    pictures = torch.linspace(-1, 1, 4)[:, None, None, None].expand(4, 3, 8, 8)
    stage = SimpleNamespace(is_trained=True)
    model = SimpleNamespace(stages=[stage], sample=lambda *a, **k: [pictures])
    draw_captions(model, ["a", "b"], [0, 1, 0, 1], tmp_path, tmp_path / "grid.png")
    names = ("a-seed0", "a-seed1", "b-seed0", "b-seed1")
    found = [int(np.array(Image.open(tmp_path / f"{name}.png")).mean()) for name in names]
    assert found == [0, 85, 170, 255]


def test_a_file_system_of_few_letters(monkeypatch):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    assert file_name("a 红 circle", 0) == "a---circle-seed0.png"


def test_no_picture_is_replaced(tmp_path):
    first = drawn(["a", "a"], [1, 1], tmp_path)
    assert [p.name for p in first] == ["a-seed1.png", "grid.png"]  # one picture, asked for twice
    before = {p: p.read_bytes() for p in first}
    assert drawn(["a", "a"], [1, 1], tmp_path) == first  # the very same
    again = drawn(["a", "a"], [1, 1], tmp_path, 0.5)
    assert [p.name for p in again] == ["a-seed1-2.png", "grid-2.png"]
    assert {p: p.read_bytes() for p in first} == before and len(list(tmp_path.iterdir())) == 4


def test_a_picture_that_the_disk_does_not_take_leaves_no_part(tmp_path, monkeypatch):
    save_picture(RED, tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_picture(-RED, tmp_path / "a.png")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.png", before)]


def test_where_a_picture_cannot_go_is_told_before_it_is_drawn(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    for out, words in (
        ("noending", "noending.png"),
        ("a.txt", "at its end"),
        (".png", "at its end"),
        ("folder.png", "is a folder"),
        ("file/x.png", "file of this name"),
        ("file/deeper/x.png", "file of this name"),
    ):
        for call in (picture_file, lambda path: show_images([RED], path=path)):
            with pytest.raises(ValueError, match=words):
                call(tmp_path / out)
    with pytest.raises(OSError, match="too long"):
        picture_file(tmp_path / ("x" * 300 + ".png"))
    never = SimpleNamespace(stages=[SimpleNamespace(is_trained=True)])  # cannot draw
    with pytest.raises(ValueError, match="file of this name"):
        draw_captions(never, ["a"], [0], tmp_path / "file", tmp_path / "file" / "grid.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]
    monkeypatch.setattr(
        files.tempfile,
        "TemporaryFile",
        lambda dir: (_ for _ in ()).throw(
            PermissionError(errno.EACCES, "Permission denied", str(dir))
        ),
    )
    with pytest.raises(PermissionError):
        writable_folder(tmp_path)


@pytest.mark.parametrize("ending", ["png", "PNG", "jpg", "jpeg", "webp"])
def test_endings(tmp_path, ending):
    from PIL import Image

    long = tmp_path / ("x" * (254 - len(ending)) + "." + ending)
    save_picture(RED, long)
    show_images([RED], path=tmp_path / f"figure.{ending}")
    for path in (long, tmp_path / f"figure.{ending}"):
        with Image.open(path) as picture:
            assert picture.format == {"PNG": "PNG", "WEBP": "WEBP"}.get(ending.upper(), "JPEG")
    assert add_picture(RED, long.with_name(f"a.{ending}")).exists()


# ---- one door for words


def test_letters_that_a_terminal_lacks_are_replaced(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert in_one_line("data", lambda: print("红 circle \udc80")) == 0
    assert out.buffer.getvalue() == b"? circle ?\n"


def test_captions_are_read_as_they_were_typed_whatever_the_locale(monkeypatch):
    def typed(text):
        return parser().parse_args(["sample", text]).captions

    assert typed("红 \udcff") == ["红 \ufffd"]  # a byte that is no letter
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("ascii", "surrogateescape"))
    assert typed("红".encode().decode("ascii", "surrogateescape")) == ["红"]


def test_a_closed_pipe_ends_quietly(monkeypatch, capfd):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert in_one_line("data", lambda: print("a" * 10)) == 141  # told at the last flush
        monkeypatch.undo()
    assert capfd.readouterr().err == ""


def test_a_command_s_answer_is_its_exit_code():
    assert in_one_line("x", lambda: None) == in_one_line("x", lambda: 0) == 0
    assert in_one_line("x", lambda: 1) == 1


@pytest.mark.parametrize(
    "said, told", [((), "stopped"), (("stopped at step 3",), "stopped at step 3")]
)
def test_ctrl_c_is_told_in_words(said, told, capsys):
    def stop():
        raise KeyboardInterrupt(*said)

    assert in_one_line("x", stop) == 130
    assert capsys.readouterr().err == f"\nimagen-nb: {told}\n"


def test_no_output_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert in_one_line("data", lambda: print("a")) == 0


# ---- a run's directory is a model


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_a_model_is_found_in_its_run(tmp_path, monkeypatch):
    run = tmp_path / "mine"
    step = run / "32px" / "step_00000006"
    touch(run / "config.json", run / "32px" / "config.json", step / "meta.json")
    for place in (run, run / "32px", step):
        with pytest.raises(ValueError, match=f"imagen-nb export {run} OUT"):
            find_model(place)
    with pytest.raises(ValueError, match="a checkpoint of training"):
        find_model(step)
    touch(run / "model" / "meta.json")
    for place in (run, f"{run}/", run / "model", run / "32px", run / "32px" / ".."):
        assert find_model(place).resolve() == run / "model"
    with pytest.raises(ValueError, match=f"that of its run is {run / 'model'}"):
        find_model(step)
    monkeypatch.chdir(run)
    assert find_model(".").resolve() == run / "model"
    monkeypatch.chdir(run / "32px")
    assert find_model(".").resolve() == run / "model"


def test_what_a_trainer_alone_wrote_says_how_a_model_is_made(tmp_path):
    step = tmp_path / "16px" / "step_00000006"
    touch(tmp_path / "16px" / "config.json", step / "meta.json")
    for place in (tmp_path, tmp_path / "16px", step):
        with pytest.raises(ValueError, match=r"save_pretrained\(OUT\)` writes one"):
            find_model(place)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match="without meta.json, expected that of a model"):
        find_model(empty)
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        load_directory(empty)
    touch(tmp_path / "step_7" / "meta.json")  # a model may be called so
    assert find_model(tmp_path / "step_7") == tmp_path / "step_7"


# ---- Windows, as its documentation describes it


class Locks:
    "`msvcrt` of one machine: a byte of a file is locked by one handle at a time, until that is closed."

    LK_NBLCK = 2

    def __init__(self):
        self.held = {}

    def locking(self, handle, mode, n):
        assert (mode, n) == (self.LK_NBLCK, 1)
        place = (os.fstat(handle).st_ino, os.lseek(handle, 0, os.SEEK_CUR))
        holder = self.held.get(place, handle)  # the same handle: a file that was closed and opened
        if holder != handle and self.is_open(holder, place[0]):
            raise PermissionError(errno.EACCES, "Permission denied")
        self.held[place] = handle

    @staticmethod
    def is_open(handle, inode):
        try:
            return os.fstat(handle).st_ino == inode
        except OSError:
            return False


@pytest.fixture
def windows(monkeypatch):
    "No fcntl; directories cannot be opened; fsync wants a handle to write to; os.kill kills."
    system, real_open, real_sync = Locks(), os.open, os.fsync
    handles = {}

    def opened(path, flags, *args, **options):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        handle = real_open(path, flags, *args, **options)
        handles[handle] = flags
        return handle

    def synced(handle):
        if not handles.get(handle, os.O_RDWR) & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EBADF, "Bad file descriptor")
        real_sync(handle)

    def killed(pid, number):
        raise AssertionError("it would end the process")

    module = types.ModuleType("msvcrt")
    module.LK_NBLCK, module.locking = system.LK_NBLCK, system.locking
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", module)
    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "kill", killed)
    monkeypatch.setattr(shutil, "_use_fd_functions", False)  # as there


def test_windows_saves_replaces_and_sweeps(windows, tmp_path, monkeypatch):
    for k in range(2):
        save_directory(tmp_path / "a", {"w": {"w": torch.full((1,), float(k))}}, dict(k=k))
    assert load_directory(tmp_path / "a")[1] == dict(k=1)
    left = tmp_path / f".a.new-{checkpoint._host()}-123-00000000"
    touch(left / "meta.json")
    checkpoint.sweep(tmp_path)
    assert left.exists()  # its process may be alive
    monkeypatch.setattr(checkpoint, "STALE", -1)
    checkpoint.sweep(tmp_path)
    assert not left.exists()
    save_picture(RED, tmp_path / "a.png")


@pytest.mark.filterwarnings("error")
def test_windows_locks(windows, tmp_path):
    with locked(tmp_path):
        with pytest.raises(CheckpointError, match=f"in use by process {os.getpid()}"):
            with locked(tmp_path):
                pass
    with locked(tmp_path, wait=True):
        pass

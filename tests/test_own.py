"""Own pictures: what `imagen-nb data` says of a folder at the end, and the folder that tools/make/stamps.py makes."""

import hashlib
import io
import re
import shlex
import tarfile
from dataclasses import replace

import pytest
import torch
from PIL import Image

from imagen_nb.cli import main
from imagen_nb.data import ShapesWorld
from imagen_nb.recipes import find_recipe
from imagen_nb.runs import look, pace, verdict, words
from imagen_nb.runs.options import parser
from imagen_nb.runs.pretrained import start_from
from imagen_nb.runs.words import Reading, choose_encoder, count_words, spelled
from imagen_nb.store.text_models import load_tokenizer
from tools.make import stamps

SENTENCE = "a photo of the old dog in front of some flowers"
GERMAN = "ein Foto von dem alten Hund vor ein paar Blumen"
CHINESE = "花园里的一只红色的狗"


@pytest.fixture
def english(tmp_path, monkeypatch):
    "A folder with an English tokenizer of eleven words, which stands for the encoder that ships."
    folder, letters = tmp_path / "words", "abcdefghijklmnopqrstuvwxyz"
    folder.mkdir()
    vocab = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    vocab += dict.fromkeys(SENTENCE.split()[1:])
    (folder / "vocab.txt").write_text("\n".join(vocab))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    for module in (words, look):
        monkeypatch.setattr(module, "ENGLISH", str(folder))
    return str(folder)


def pictures(folder, captions):
    folder.mkdir(exist_ok=True)
    for i, caption in enumerate(captions):
        Image.new("RGB", (40, 40), (i % 256, 99, 99)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(caption, encoding="utf-8")
    return folder


# ---------------------------------------------------------------- words


def test_who_reads_is_chosen_by_the_words(english):
    world = ShapesWorld("train", level="full")
    for captions, encoder in (
        ([world.caption(i) for i in range(40)], "toy"),
        ([SENTENCE] * 9, english),
        ([SENTENCE, "an aardvark"] * 9, english),  # a rare word is no other language
        ([GERMAN] * 9, words.MULTILINGUAL),
        (["ein Hund"], english),  # too few words to say
        ([CHINESE], words.MULTILINGUAL),
        ([SENTENCE] * 4 + [CHINESE], words.MULTILINGUAL),  # two languages
        (["собака в саду"] * 9, words.MULTILINGUAL),
        (["", "12 345"], ""),
    ):
        assert choose_encoder(count_words(captions)).encoder == encoder, captions[0]


def test_words_in_pieces(english):
    tokenizer = load_tokenizer(english)
    asked = count_words(["The dog's flowers, 7 dogs -- a Hund!", CHINESE])
    assert asked["dog"] == 1 and "7" not in asked and asked[CHINESE] == 1
    assert spelled(tokenizer, asked) == ["dogs", "Hund", CHINESE]  # in pieces, or unknown


# ---------------------------------------------------------------- the verdict


def said(n, captions, recipe="emoji", reading=None, **options):
    ds = type("Pictures", (), dict(__len__=lambda _: n, caption=lambda _, i: captions[i]))()
    reading = reading or Reading("english", "English")
    lines = verdict.verdict(
        "a b/photos", ds, captions, find_recipe(recipe), reading, options, is_timed=False
    )
    return "\n".join(lines)


def test_the_next_command_is_one_that_is_understood(monkeypatch):
    monkeypatch.setattr(verdict, "stages_of", lambda model: ())
    told = said(800, [SENTENCE] * 3 + ["it's"] * 797, image_column="my path", held_out=0.1)
    line = re.search("next: imagen-nb (.*)", told)[1]
    args = parser().parse_args(shlex.split(line))
    assert (args.recipe, args.data, args.encoder) == ("emoji", "a b/photos", "english")
    assert (args.image_column, args.held_out, args.init) == ("my path", 0.1, None)
    assert args.set == ["training.0.steps=1000"] and args.out.name == "photos"  # 60 epochs of 48
    assert "stage 2" in told  # from scratch, enlargers are trained, too

    ours = dict(emoji=find_recipe("emoji").stages)
    monkeypatch.setattr(verdict, "stages_of", lambda model: ours.get(model, ()))
    told = said(10**6, [SENTENCE])
    assert "--encoder english --init emoji --stage 0" in told and "stage 1" not in told
    assert "training.0.steps=4500" in told  # never more than the recipe's
    other = said(10**6, [SENTENCE], reading=Reading(words.MULTILINGUAL, "a script"))
    assert f"--encoder {words.MULTILINGUAL} --set" in other and "stage 2" in other
    assert "(a script); training fetches it from the hub" in other and "fetches" not in told


def test_the_networks_that_are_timed_are_those_that_go_on():
    toy = find_recipe("toy")
    recipe, stages = verdict.plan(toy, 800, Reading("toy", "words of ShapesWorld"))
    assert stages == [0] and recipe.stages == start_from(toy, recipe.init).stages


def test_are_they_enough():
    assert "3 are fewer than were ever tried" in said(3, [SENTENCE])
    assert "500 are enough for networks of this size" in said(500, [SENTENCE])
    told = said(500, [SENTENCE], "paper")
    assert "500 are too few for the paper's networks; a rule of thumb" in told
    assert "--set" not in told and "2,500,000 steps" in told


def test_captions_that_repeat_are_counted():
    assert verdict.repeated(["a", "b"]) == "2 different of 2"
    assert "none; captions are read from 1.txt" in verdict.repeated([])
    told = verdict.repeated(["a dog", "a cat", "a dog", "a dog", "a cow", "a cow"])
    assert told == "3 different of 6; 5 belong to more than one picture, 'a dog' to 3"


def test_a_few_samples_are_timed_and_nothing_else_is_touched(tmp_path):
    toy = find_recipe("toy")
    small = replace(toy.stages[0].network, dim=16, head_dim=16, text_dim=0)
    recipe = replace(toy, stages=(replace(toy.stages[0], network=small), *toy.stages[1:]))
    folder = pictures(tmp_path / "photos", [SENTENCE] * 9)
    found = look.load_captioned(folder, 64)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    (line,) = pace.pace(found, recipe, [0])
    assert re.fullmatch(
        r"stage 0: 1,400 steps of 48 are 7,466.7 epochs, [\d.]+ (s|min|h) of one core,.*", line
    )
    assert torch.equal(before, torch.get_rng_state()) and torch.get_num_threads() == threads
    (line,) = pace.pace(found, find_recipe("paper"), [1])
    assert "not timed, with" in line and "million parameters" in line


@pytest.mark.parametrize("case", ["three", "chinese", "shapes", "english"])
def test_a_folder_is_looked_at(case, english, tmp_path, capsys):
    world = ShapesWorld("train", level="full")
    captions = dict(
        three=["a dog", "a cat", ""],
        chinese=[CHINESE] * 12,
        shapes=[world.caption(i) for i in range(12)],
        english=[f"{SENTENCE}, a zebra"] * 12,
    )[case]
    folder, out = pictures(tmp_path / case, captions), tmp_path / "grid.png"
    assert main(["data", str(folder), "--out", str(out), "--no-timing"]) == 0
    told = capsys.readouterr().out
    reader = dict(chinese=words.MULTILINGUAL, shapes="toy").get(case, english)
    assert (
        f"next: imagen-nb train {'toy' if case == 'shapes' else 'emoji'} --data {folder} " in told
    )
    assert f"--encoder {reader} " in told and told.rstrip().endswith(f"--model runs/{case}")
    assert ("--init toy" in told) == (case == "shapes")
    assert ("are read in pieces, as zebra" in told) == (case == "english")
    assert (f"{len(captions)} are fewer" in told) and out.exists()
    said = [caption for caption in captions if caption]
    assert f"captions: {len(set(said))} different of {len(said)}" in told


def test_captions_of_large_data_are_read_from_all_over(english, tmp_path, monkeypatch, capsys):
    folder = pictures(tmp_path / "two", [SENTENCE] * 5 + [CHINESE] * 4)
    monkeypatch.setattr(look, "COUNTED", 5)
    look.look(str(folder), None, tmp_path / "grid.png", is_timed=False)
    told = capsys.readouterr().out
    assert "captions are of 5 pictures from all over" in told and "2 different of 5" in told
    assert f"encoder: {words.MULTILINGUAL}" in told


# ---------------------------------------------------------------- stamps


def ar(*members: tuple[str, bytes]) -> bytes:
    "An archive as Debian's packages are."
    parts = [b"!<arch>\n"]
    for name, data in members:
        head = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
        parts += [head, data, b"\n" * (len(data) % 2)]
    return b"".join(parts)


def png(size, colour, mode="RGBA"):
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, "png")
    return file.getvalue()


@pytest.fixture
def deb(tmp_path):
    "A package with one stamp of each kind."
    hole = Image.new("RGBA", (200, 100))
    hole.paste((200, 0, 0, 255), (100, 20, 180, 80))  # the thing: 80 x 60 of it
    red = io.BytesIO()
    hole.save(red, "png")
    files = {
        "animals/dog.png": red.getvalue(),
        "animals/dog.txt": "\ufeffA red dog.\nde.utf8=Ein roter Hund.\n".encode(),
        "animals/cartoon/cat.png": png((90, 90), "blue"),
        "animals/cartoon/cat.txt": b"A cat.",
        "symbols/a.png": png((90, 90), "blue"),
        "symbols/a.txt": b"The letter a.",
        "food/crumb.png": png((20, 20), "blue"),
        "food/crumb.txt": b"A crumb.",
        "food/wordless.png": png((90, 90), "blue"),
        "food/gray.png": png((70, 100), (9, 255), "LA"),
        "food/gray.txt": "A gray thing…\nfr.utf8=Une chose".encode(),
        "food/broken.svg": b"<svg",
        "food/broken.txt": b"Nothing.",
        "food/sound.ogg": b"la",
    }
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:xz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"./{stamps.INSIDE}{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    path = tmp_path / "tuxpaint-stamps-default_1_all.deb"
    path.write_bytes(
        ar(("debian-binary", b"2.0\n"), ("control", b"odd"), ("data.tar.xz", inner.getvalue()))
    )
    return path


def test_stamps_become_captioned_pictures(deb, tmp_path):
    counts = stamps.make_stamps(deb, tmp_path / "stamps")
    assert dict(counts) == {
        "written": 2,
        "letters, coins and cartoons left out": 2,
        "left out, under 64 pixels": 1,
        "drawings left out, which resvg-py is missing for or cannot read": 1,
    }
    found = look.load_captioned(tmp_path / "stamps", 32)
    assert [found.caption(i) for i in range(2)] == ["A red dog", "A gray thing…"]
    dog = Image.open(tmp_path / "stamps" / "animals-dog.png")
    assert dog.size == (91, 91) and dog.getpixel((45, 45)) == (200, 0, 0)  # 80 and a margin
    assert dog.getpixel((1, 45)) == dog.getpixel((45, 8)) == (255, 255, 255)
    notice = (tmp_path / "stamps" / "LICENSES.txt").read_text()
    assert hashlib.sha256(deb.read_bytes()).hexdigest() in notice and "version 2" in notice
    assert stamps.make_stamps(deb, tmp_path / "all", everything=True)["written"] == 4


def test_what_is_no_package_is_told(tmp_path):
    (tmp_path / "x.deb").write_bytes(b"<html>")
    with pytest.raises(SystemExit, match="got no package of Debian"):
        list(stamps.files(tmp_path / "x.deb"))
    (tmp_path / "x.deb").write_bytes(ar(("debian-binary", b"2.0\n")))
    with pytest.raises(SystemExit, match="got no package of Debian"):
        list(stamps.files(tmp_path / "x.deb"))


def test_without_apt_the_way_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="name it with --source"):
        stamps.fetch(tmp_path)

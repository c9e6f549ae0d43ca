"""The cache of embeddings: what is stored, other encoders, damage, kills, several processes, many captions."""

import importlib.util
import json
import pickle
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from test_text import TOY, Letters, random_t5

from imagen_nb.cli import main
from imagen_nb.data import ShapesWorld
from imagen_nb.engine.captions import EmbeddingCache, encode_rows, forecast
from imagen_nb.store import parts as shards
from imagen_nb.store.checkpoint import CheckpointError, save_directory
from imagen_nb.store.files import assets
from imagen_nb.text import TextEncoder

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location(
    "bench_text", ROOT / "tools" / "measure" / "bench_text.py"
)
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)


@pytest.fixture(scope="module")
def cache(encoder, captions, tmp_path_factory):
    path = tmp_path_factory.mktemp("cache") / "c"
    return path, EmbeddingCache.build(
        encoder, captions + captions[:30] + [""], path, dtype=torch.float32
    )


@pytest.fixture
def small(monkeypatch):
    "Many parts of about four captions."
    monkeypatch.setattr(EmbeddingCache, "part_bytes", 1 << 14)


def parts(path):
    return sorted(p.name for p in path.iterdir() if p.name.startswith("part-"))


def damage(file, how):
    data = bytearray(file.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
    file.write_bytes(data if how == "flip" else data[:-9])


# ---------------------------------------------------------------- what is stored


def test_cache_gives_what_the_encoder_gives(encoder, captions, cache):
    _, built = cache
    asked = [captions[5], "", captions[0], captions[5]]
    ours, theirs = built[asked], encoder(asked)
    torch.testing.assert_close(ours.mask, theirs.mask)
    torch.testing.assert_close(ours.tokens, theirs.tokens, atol=1e-5, rtol=0)
    assert ours.tokens.dtype == torch.float32


def test_bfloat16_is_stored_unless_asked_otherwise(encoder, captions, tmp_path):
    built = EmbeddingCache.build(encoder, captions[:9], tmp_path / "c")
    assert built.part(0).dtype == torch.bfloat16
    ours, theirs = built[captions[:9]], encoder(captions[:9])
    torch.testing.assert_close(
        ours.tokens, theirs.tokens.bfloat16().float(), atol=1e-5, rtol=1 / 128
    )
    with pytest.raises(ValueError, match="dtype, got float32, expected bfloat16"):
        EmbeddingCache.build(encoder, captions[:9], tmp_path / "c", dtype=torch.float32)


def test_each_caption_once_and_no_padding(encoder, captions, cache):
    path, built = cache
    distinct = list(dict.fromkeys(captions + [""]))
    assert len(built) == len(distinct) and captions[3] in built and "no" not in built
    real = int(encoder(distinct).mask.sum())
    assert (
        sum(len(built.part(k)) for k in range(len(built.index.parts)))
        == real
        == built.index.length.sum()
    )
    size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    text = sum(len(c.encode()) for c in distinct)
    assert size < real * encoder.width * 4 + text + 56 * len(distinct) + 5000
    part = shards.read_part(path, built.index.parts[0])
    assert sorted(shards.from_bytes(part["text"], part["text_lengths"])) == sorted(distinct)


def test_rows_come_back_in_order_and_over_many_parts(encoder, captions, cache, tmp_path, small):
    many = EmbeddingCache.build(encoder, captions, tmp_path / "many", dtype=torch.float32)
    assert len(many.index.parts) > 10
    for asked in (captions[::-7] + captions[:9], captions[:1], captions):
        torch.testing.assert_close(many[asked].mask, cache[1][asked].mask)
        torch.testing.assert_close(many[asked].tokens, cache[1][asked].tokens, atol=1e-5, rtol=0)


def test_index_on_disk_equals_the_one_computed(encoder, captions, tmp_path, small):
    built = EmbeddingCache.build(encoder, captions, tmp_path / "c")
    computed = shards.merge_parts(built.path, parts(built.path))
    for a, b in zip(built.index[2:], computed[2:]):
        np.testing.assert_array_equal(a, b)
    assert not built.index.hashes.flags["OWNDATA"]  # mapped, not read
    [index], want = built.path.glob("index-*"), built[captions].tokens
    (index / "index.safetensors").unlink()
    torch.testing.assert_close(EmbeddingCache.open(built.path)[captions].tokens, want)


def test_hashes_that_end_in_zeros_are_told_apart():
    rows = np.zeros((6, 16), np.uint8)
    rows[1:, 0], rows[2, 15], rows[3, 14], rows[4, 1] = 1, 1, 1, 1
    hashes = rows.view("S16")[:, 0]
    ordered, first = np.unique(hashes, return_index=True)
    assert len(ordered) == 5  # rows 1 and 5 are the same
    index = shards.Index({}, [], ordered, *np.zeros((3, 5), int))
    np.testing.assert_array_equal(ordered[index.find(hashes)], hashes)
    assert index.find(np.frombuffer(bytes([1] * 16), "S16")).tolist() == [-1]
    assert len(set(shards.hash_captions([str(i) for i in range(9999)]))) == 9999
    assert shards.hash_captions(["a"]) != shards.hash_captions(["A"])


def test_odd_captions(encoder, tmp_path):
    odd = ["", "  ", "Ünïcode ✓ 日本", "a\nb", "a\x00b", "x" * 5000, "<b>a</b>"]
    built = EmbeddingCache.build(encoder, odd, tmp_path / "c", dtype=torch.float32)
    torch.testing.assert_close(built[odd].tokens, encoder(odd).tokens, atol=1e-5, rtol=0)
    assert "x" * 5001 not in built and len(built) == len(odd)


def test_it_goes_to_workers_without_its_data(captions, cache):
    sent = pickle.dumps(cache[1])
    assert len(sent) < 500
    torch.testing.assert_close(pickle.loads(sent)[captions].tokens, cache[1][captions].tokens)
    command = f"""if 1:
        import pickle, sys
        print(float(pickle.loads({sent!r})[[{captions[0]!r}]].tokens.double().sum()))"""
    out = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert float(out.stdout) == pytest.approx(float(cache[1][[captions[0]]].tokens.double().sum()))


def test_threads_read_the_same(captions, cache):
    fresh = EmbeddingCache.open(cache[0])
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda k: fresh[captions[k : k + 20]], range(0, 100, 10)))
    for k, text in zip(range(0, 100, 10), texts):
        torch.testing.assert_close(text.tokens, cache[1][captions[k : k + 20]].tokens)


def test_lookup_is_fast(captions, cache):
    asked, best = captions[:48], 1.0
    for _ in range(200):
        start = time.perf_counter()
        cache[1][asked]
        best = min(best, time.perf_counter() - start)
    assert best < 3e-3  # .5 ms on an idle core


# ---------------------------------------------------------------- who may use it


def test_another_encoder_is_refused_by_the_key_that_differs(cache, tmp_path):
    path, built = cache
    shorter = TextEncoder.from_pretrained(TOY, max_length=64, dtype=torch.float32)
    random_t5(tmp_path / "t5")
    other = TextEncoder.from_pretrained(tmp_path / "t5", dtype=torch.bfloat16)
    bare = TextEncoder(shorter.model, shorter.tokenizer, "t5-toy")
    for encoder, words in (
        (shorter, "another encoder.*differs in max_length, got 64, expected 128$"),
        (other, "'t5/' differs in revision.*tokenizer.*dtype, got 'bfloat16', expected 'float32'"),
        (bare, "differs in revision"),
    ):
        with pytest.raises(ValueError, match=words):
            EmbeddingCache.open(path, encoder)
        with pytest.raises(ValueError, match=words):
            EmbeddingCache.build(encoder, ["new"], path)
    assert "new" not in EmbeddingCache.open(path)


def test_the_same_weights_under_another_name_are_the_same(cache, tmp_path):
    shutil.copytree(TOY, tmp_path / "renamed")
    same = TextEncoder.from_pretrained(tmp_path / "renamed", dtype=torch.float32)
    assert same.identity["encoder"] == "renamed/" and len(
        EmbeddingCache.open(cache[0], same)
    ) == len(cache[1])


def test_cache_names_an_unknown_caption(captions, cache):
    with pytest.raises(KeyError, match="1 of 2.*a green whale"):
        cache[1][[captions[0], "a green whale"]]
    with pytest.raises(ValueError, match="EmbeddingCache: captions"):
        cache[1][captions[0]]


@pytest.mark.parametrize("bad", [[], "a red circle", [1], None, ["a", "\ud83d"]])
def test_captions_that_cannot_be(encoder, cache, bad, tmp_path):
    with pytest.raises(ValueError, match="EmbeddingCache.build: captions, got"):
        EmbeddingCache.build(encoder, bad, tmp_path / "c")
    with pytest.raises(ValueError, match="EmbeddingCache: captions, got"):
        cache[1][bad]
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("share", [(1, 1), (-1, 2), (0, 0)])
def test_shares_that_cannot_be(encoder, share, tmp_path):
    with pytest.raises(ValueError, match="share, got"):
        EmbeddingCache.build(encoder, ["a"], tmp_path / "c", share=share)


def test_foreign_folders_are_refused_and_left_alone(encoder, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/cat.png").touch()
    save_directory(
        tmp_path / "old", {"shard-00000": {"y": torch.zeros(1)}}, {"kind": "EmbeddingCache"}
    )
    (tmp_path / "file").touch()
    for name, words in (
        ("pictures", "is no embedding cache, got .'cat.png'"),
        ("old", "manifest.json"),
        ("file", "got a file"),
    ):
        with pytest.raises(ValueError, match=words):
            EmbeddingCache.build(encoder, ["a"], tmp_path / name)
        with pytest.raises(ValueError, match=words):
            EmbeddingCache.open(tmp_path / name)
    assert [p.name for p in (tmp_path / "pictures").iterdir()] == ["cat.png"]
    for name in ("nowhere", "empty"):
        if name == "empty":
            (tmp_path / name).mkdir()
        with pytest.raises(CheckpointError, match="holds no embeddings"):
            EmbeddingCache.open(tmp_path / name)


def test_parts_of_two_encoders_in_one_folder_are_noticed(encoder, captions, tmp_path):
    shorter = TextEncoder.from_pretrained(TOY, max_length=64, dtype=torch.float32)
    EmbeddingCache.build(encoder, captions[:3], tmp_path / "a")
    EmbeddingCache.build(shorter, captions[3:6], tmp_path / "b")
    [part] = (tmp_path / "b").glob("part-*")
    part.rename(tmp_path / "a" / part.name)
    with pytest.raises(ValueError, match="made differently.*64"):
        EmbeddingCache.open(tmp_path / "a")


# ---------------------------------------------------------------- adding, stopping, sharing


class Counting(TextEncoder):
    "Counts what it encodes, and may stop."

    seen, stop = 0, None

    def __call__(self, captions):
        if self.stop is not None and self.seen + len(captions) > self.stop:
            raise KeyboardInterrupt
        self.seen += len(captions)
        return super().__call__(captions)


def counting(encoder, stop=None):
    made = Counting(encoder.model, encoder.tokenizer, "t5-toy", statistics=encoder.statistics)
    made.stop = stop
    return made


def test_only_what_is_missing_is_encoded(encoder, captions, tmp_path):
    distinct = len(set(captions))
    for asked, new in (
        (captions[:50], 50),
        (captions[:50], 0),
        (captions, distinct - 50),
        (captions[::-1] * 2, 0),
    ):
        mine = counting(encoder)
        built = EmbeddingCache.build(mine, asked, tmp_path / "c")
        assert mine.seen == new
    assert len(built) == distinct and len(list((tmp_path / "c").glob("index-*"))) == 1


def test_a_stopped_build_goes_on(encoder, captions, tmp_path, small):
    mine = counting(encoder, stop=40)
    with pytest.raises(KeyboardInterrupt):
        EmbeddingCache.build(mine, captions, tmp_path / "c")
    kept = len(EmbeddingCache.open(tmp_path / "c", encoder))
    assert 30 < kept <= 40
    mine = counting(encoder)
    built = EmbeddingCache.build(mine, captions, tmp_path / "c")
    assert mine.seen == len(set(captions)) - kept and len(built) == len(set(captions))
    torch.testing.assert_close(
        built[captions].tokens, encoder(captions).tokens, atol=1e-4, rtol=1 / 128
    )


def test_shares_are_disjoint_complete_and_fair(encoder, captions, tmp_path, small):
    sizes = []
    for k in range(3):
        mine = counting(encoder)
        EmbeddingCache.build(mine, captions, tmp_path / "c", share=(k, 3))
        sizes.append(mine.seen)
    assert sum(sizes) == len(set(captions)) and min(sizes) > 20
    assert set(captions) <= {
        c for c in captions if c in EmbeddingCache.open(tmp_path / "c", encoder)
    }
    only = (
        EmbeddingCache.build(encoder, ["alone"], tmp_path / "d", share=(0, 2)),
        EmbeddingCache.build(encoder, ["alone"], tmp_path / "d", share=(1, 2)),
    )
    assert sorted(map(len, only)) in ([0, 1], [1, 1])  # a share may be empty


def test_what_two_parts_hold_is_read_once(encoder, captions, tmp_path, small):
    a = EmbeddingCache.build(encoder, captions[:60], tmp_path / "a")
    EmbeddingCache.build(encoder, captions[30:], tmp_path / "b")
    for part in (tmp_path / "b").glob("part-*"):
        part.rename(tmp_path / "a" / part.name)
    both = EmbeddingCache.open(tmp_path / "a", encoder)
    assert len(both) == len(set(captions)) and len(both.index.parts) > len(a.index.parts)
    torch.testing.assert_close(
        both[captions].tokens, encoder(captions).tokens, atol=1e-4, rtol=1 / 128
    )


@pytest.mark.parametrize("shares", [((0, 2), (1, 2)), ((0, 1), (0, 1))])
def test_two_processes_build_one_cache(encoder, captions, tmp_path, shares):
    "Half of the work each, or all of it twice."
    children = [bench.start_build(encoder, captions, tmp_path / "c", share) for share in shares]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert bench.count_faults(tmp_path / "c", captions, encoder, encoder(captions)) == {
        "lost": 0,
        "wrong": 0,
        "extra": 0,
    }


def test_killed_builds_lose_nothing(captions, tmp_path):
    found = bench.kill_builds(3, captions, tmp_path / "c")
    assert found["kills"] == 3 and found["builds finished"] >= 2
    assert (found["lost"], found["wrong"], found["extra"]) == (0, 0, 0)


@pytest.mark.slow
def test_fifty_killed_builds_lose_nothing(tmp_path):
    found = bench.kill_builds(50, bench.draw_captions(1000, "short"), tmp_path / "c", seed=1)
    assert found["kills"] == 50 and found["kills amid parts"] > 10
    assert (found["lost"], found["wrong"], found["extra"]) == (0, 0, 0)


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("how", ["flip", "cut", "missing"])
def test_a_damaged_part_is_named_and_built_again_alone(encoder, captions, tmp_path, small, how):
    path = tmp_path / "c"
    EmbeddingCache.build(encoder, captions, path)
    hit = parts(path)[3]
    file = path / hit / "part.safetensors"
    inside = len(shards.read_part(path, hit)["lengths"])
    if how == "missing":
        file.unlink()
    else:
        damage(file, how)
    if how != "flip":  # sizes are looked at whenever a cache is opened
        with pytest.raises(CheckpointError, match=hit + ".*build the cache again"):
            EmbeddingCache.open(path)
    with pytest.raises(CheckpointError, match=hit):
        EmbeddingCache.open(path, verify=True)
    assert list(shards.damaged_parts(path)) == [hit]
    mine = counting(encoder)
    with pytest.warns(UserWarning, match=hit):
        built = EmbeddingCache.build(mine, captions, path, verify=how == "flip")
    assert mine.seen == inside and hit not in parts(path)
    torch.testing.assert_close(
        built[captions].tokens, encoder(captions).tokens, atol=1e-4, rtol=1 / 128
    )
    EmbeddingCache.open(path, encoder, verify=True)


def test_every_flipped_bit_is_found(encoder, captions, tmp_path):
    EmbeddingCache.build(encoder, captions[:4], tmp_path / "c")
    files = [f for f in (tmp_path / "c").rglob("*") if f.is_file()]
    g = np.random.default_rng(0)
    for file in files:
        whole = file.read_bytes()
        for _ in range(40):
            data = bytearray(whole)
            data[g.integers(len(data))] ^= 1 << g.integers(8)
            file.write_bytes(data)
            assert shards.damaged_parts(tmp_path / "c"), file
        file.write_bytes(whole)
    assert not shards.damaged_parts(tmp_path / "c")


def test_every_cut_file_is_found_at_once(encoder, captions, tmp_path):
    EmbeddingCache.build(encoder, captions[:4], tmp_path / "c")
    [part] = (tmp_path / "c").glob("part-*/part.safetensors")
    whole = part.read_bytes()
    for size in (0, 1, 8, 100, len(whole) // 2, len(whole) - 1):
        part.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="expected"):
            EmbeddingCache.open(tmp_path / "c")


def test_embeddings_that_are_not_finite_are_never_stored(encoder, tmp_path):
    class Broken(TextEncoder):
        def __call__(self, captions):
            text = super().__call__(captions)
            return text._replace(tokens=text.tokens * float("nan"))

    with pytest.raises(ValueError, match="not finite, of 'a red circle'"):
        EmbeddingCache.build(
            Broken(encoder.model, encoder.tokenizer), ["a red circle"], tmp_path / "c"
        )
    assert not parts(tmp_path / "c")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.rows([0]),
        lambda text: text._replace(tokens=text.tokens[..., :5]),
        lambda text: text._replace(mask=text.mask[:, :2]),
        lambda text: text._replace(mask=text.mask & torch.tensor([[True], [False]])),
    ],
)
def test_embeddings_of_another_shape_are_never_stored(tmp_path, change):
    class Broken(Letters):
        def __call__(self, captions):
            return change(super().__call__(captions))

    with pytest.raises(ValueError, match="expected 2 rows of width 6, each with one real token"):
        EmbeddingCache.build(Broken(), ["a red circle", "two stars"], tmp_path / "c")
    assert not parts(tmp_path / "c")


# ---------------------------------------------------------------- imagen-nb embed


@pytest.mark.parametrize(
    "name, text, column",
    [
        ("c.txt", "a red circle\na blue square\na red circle\n", None),
        (
            "c.jsonl",
            '{"id": 1, "caption": "a red circle"}\n\n{"id": 2, "caption": "a blue square"}\n',
            None,
        ),
        ("c.csv", '\ufeffid,text\n1,a red circle\n2,"a blue square"\n', None),
        ("c.tsv", "id\twords\n1\ta red circle\n2\ta blue square\n", "words"),
    ],
)
def test_embed_reads_captions(name, text, column, tmp_path, capsys):
    (tmp_path / name).write_text(text, encoding="utf-8")
    out = tmp_path / "out"
    assert (
        main(
            [
                "embed",
                str(tmp_path / name),
                "--out",
                str(out),
                *(["--column", column] if column else []),
            ]
        )
        == 0
    )
    cache = EmbeddingCache.open(out, TextEncoder.toy())
    assert len(cache) == 2 and "a red circle" in cache and "a blue square" in cache
    said = capsys.readouterr()
    assert "2 different captions" in said.out and "2 captions to encode" in said.out + said.err


@pytest.mark.parametrize(
    "argv, words",
    [
        (["c.txt"], "expected SOURCE and --out DIR"),
        (["c.txt", "--out", "o", "--length", "0"], "got '0', expected a whole number, 1 or more"),
        (["c.txt", "--out", "o", "--share", "2/2"], "--share: got '2/2', expected K/N"),
        (["c.txt", "--out", "o", "--share", "a"], "expected K/N"),
        (["c.txt", "--out", "o", "--batch", "0"], "--batch/--batch-size: got '0'"),
        (["c.txt", "--out", "o", "--encoder", "./t5"], "no such folder"),
        (["c.jsonl", "--out", "o"], "a line is no JSON"),
        (["c.csv", "--out", "o"], "has columns id, words, expected caption or text"),
        (["d.csv", "--out", "o"], "has no rows"),
        (["l.txt", "--out", "o"], "is not UTF-8"),
        (["--convert", ".", "o"], "no config.json"),
        (["e.txt", "--out", "o"], "expected a list of at least one str"),
    ],
)
def test_mistakes_are_one_line(argv, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, data in (
        ("c.txt", b"a"),
        ("c.jsonl", b"{"),
        ("c.csv", b"id,words\n1,a\n"),
        ("d.csv", b"id\n"),
        ("e.txt", b""),
        ("l.txt", b"caf\xe9"),
    ):
        (tmp_path / name).write_bytes(data)
    before = {p.name for p in tmp_path.iterdir()}
    assert main(["embed", *argv]) == 2
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(("part-", "index-"))]
    assert {p.name for p in tmp_path.iterdir()} - before <= {"o"}


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch, capsys, small):
    from imagen_nb.runs import setup

    (tmp_path / "c.txt").write_text(
        "\n".join(ShapesWorld("train", level="full").caption(i) for i in range(60))
    )
    make = setup.make_encoder
    monkeypatch.setattr(setup, "make_encoder", lambda *args: counting(make(*args), stop=30))
    assert main(["embed", str(tmp_path / "c.txt"), "--out", str(tmp_path / "c")]) == 130
    assert "Run the same command to go on" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["embed", str(tmp_path / "c.txt"), "--out", str(tmp_path / "c"), "--verify"]) == 0
    assert len(EmbeddingCache.open(tmp_path / "c")) == 60


def test_embed_converts(tmp_path, capsys):
    random_t5(tmp_path / "old")
    assert main(["embed", "--convert", str(tmp_path / "old"), str(tmp_path / "new")]) == 0
    assert "MB before" in capsys.readouterr().out
    (tmp_path / "c.txt").write_text("a red circle")
    assert (
        main(
            [
                "embed",
                str(tmp_path / "c.txt"),
                "--encoder",
                str(tmp_path / "new"),
                "--dtype",
                "fp32",
                "--store",
                "fp32",
                "--length",
                "16",
                "--out",
                str(tmp_path / "c"),
            ]
        )
        == 0
    )
    identity = EmbeddingCache.open(tmp_path / "c").identity
    assert (identity["max_length"], identity["dtype"], identity["encoder"]) == (
        16,
        "float32",
        "new/",
    )


def test_a_run_encodes_once_and_mends_its_cache(encoder, captions, tmp_path, monkeypatch):
    from imagen_nb.runs import setup

    class World:
        asked = 0

        def __len__(self):
            return 40

        identity = "forty"

        def captions(self, i):
            self.asked += 1
            return [captions[i]]

    world, path = World(), tmp_path / "captions"
    setup.build_cache(encoder, path, world)
    assert (
        world.asked == 40
        and len(setup.build_cache(encoder, path, world)) == len(set(captions[:40]))
        and world.asked == 40
    )
    damage(next(path.glob("part-*/part.safetensors")), "cut")
    with pytest.warns(UserWarning, match="encoded anew"):
        setup.build_cache(encoder, path, world)
    assert world.asked == 80


# ---------------------------------------------------------------- forecast


def test_forecast_is_near_what_is_written(encoder, tmp_path):
    captions = bench.draw_captions(3000, "web")
    before = encoder.truncated
    built = EmbeddingCache.build(encoder, captions, tmp_path / "c")
    cut = encoder.truncated - before  # each counted once, the trial included
    encoder.tokenize(captions)
    assert encoder.truncated - before == 2 * cut > 0
    plan = forecast(captions, encode_rows(encoder, captions[:512], torch.bfloat16), 60)
    assert plan.bytes == pytest.approx(bench.folder_bytes(tmp_path / "c"), rel=0.1)
    assert plan.tokens == pytest.approx(built.index.length.mean(), rel=0.1)
    assert plan.captions == 3000 and plan.seconds == pytest.approx(60 * 3000 / 512)
    assert "3,000 captions" in str(plan) and "GB" not in str(plan) and "5.9 min" in str(plan)
    assert plan.per_part == pytest.approx(2**28 / (plan.tokens * 256), abs=1)


def test_a_part_holds_one_caption_at_least():
    rows = [torch.zeros(3, 8)] * 2
    assert forecast(["a", "b"], rows, part_bytes=1).per_part == 1
    assert forecast(["a", "b"], rows, part_bytes=5 * 3 * 8 * 4).per_part == 5


def test_a_disk_too_small_for_the_forecast_is_seen_after_the_first_part(
    encoder, captions, tmp_path, monkeypatch, small
):
    least = 120 * (2 * encoder.width + 56)  # bytes, were each caption one token long
    monkeypatch.setattr(shutil, "disk_usage", lambda p: type("Usage", (), {"free": least}))
    mine = counting(encoder)
    with pytest.raises(OSError, match=f"EmbeddingCache.build: .* bytes needed, {least} free"):
        EmbeddingCache.build(mine, captions, tmp_path / "c")
    assert 0 < mine.seen < 10 and not parts(tmp_path / "c")


def test_a_full_disk_is_seen_before_the_work(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda p: type("Usage", (), {"free": 100}))
    mine = counting(encoder)
    with pytest.raises(OSError, match="bytes needed, 100 free"):
        EmbeddingCache.build(mine, ["a red circle"], tmp_path / "c")
    assert mine.seen == 0


def test_lengths_are_as_the_benchmark_says():
    counts = np.array([len(c.split()) for c in bench.draw_captions(20_000, "web")])
    assert counts.mean() == pytest.approx(20.2, rel=0.05) and counts.std() == pytest.approx(
        16.3, rel=0.1
    )


@pytest.mark.parametrize("name", ["text-bench", "text-cache", "text-convert"])
def test_run_cards_say_how(name):
    card = json.loads((assets() / "runs" / f"{name}.json").read_text())
    assert card and all({"command", "machine"} <= entry.keys() for entry in card.values())

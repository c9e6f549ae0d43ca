"The judge: it loads, reads renders, tells a right caption from a wrong one, and refuses damage."

import importlib.util
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from imagen_nb.engine.captions import EmbeddingCache
from imagen_nb.lab.judge import Judge, JudgeConfig, Pieces, World, contrastive_loss
from imagen_nb.pictures.emoji import emoji_objects
from imagen_nb.pictures.pixels import resize, to_square
from imagen_nb.store.files import CheckpointError, assets

HERE = Path(__file__).parent
SMALL = JudgeConfig(size=16, width=8, channels=(4, 8), blocks=(1, 1), text_width=12, heads=2)
WORLD = World(
    objects=("cat", "waving hand"),
    styles=("3d", "flat"),
    tones=("", "light", "medium-light", "medium", "medium-dark", "dark"),
    toned=("waving hand",),
)
PIECES = ["[PAD]", *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]


@pytest.fixture(scope="module")
def judge():
    return Judge.shipped()


@pytest.fixture(scope="module")
def renders():
    "Forty of the small pictures that ship; object, style, tone of each."
    rows = []
    for split in ("train", "test"):
        folder = assets() / "emoji-set" / split
        lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        rows += [
            json.loads(line) | dict(file=folder / json.loads(line)["file_name"]) for line in lines
        ]
    rows = rows[:: len(rows) // 40]
    tiles = [to_square(Image.open(row["file"]).convert("RGB"), 32) for row in rows]
    return torch.stack(tiles), [(row["object"], row["style"], row["tone"]) for row in rows]


def small(seed=0):
    torch.manual_seed(seed)
    return Judge(SMALL, WORLD, PIECES).eval()


# ---------------------------------------------------------------- the shipped one


def test_the_shipped_judge_is_small_and_knows_every_object(judge):
    files = [p for p in (assets() / "judge").iterdir() if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 2e6
    assert judge.world.objects == emoji_objects()
    assert "Microsoft" in (assets() / "judge" / "README.md").read_text(encoding="utf-8")


def test_it_reads_real_renders(judge, renders):
    images, facts = renders
    found = judge.read(images)
    right = [f.object == thing for f, (thing, _, _) in zip(found, facts)]
    assert sum(right) >= 0.95 * len(right)
    assert sum(thing in f.top5 for f, (thing, _, _) in zip(found, facts)) >= 0.97 * len(right)
    assert sum(f.style == style for f, (_, style, _) in zip(found, facts)) >= 0.9 * len(right)
    assert all(f.top5[0] == f.object and len(set(f.top5)) == 5 and 0 < f.share <= 1 for f in found)


def test_large_pictures_go_through_the_one_resize(judge, renders):
    large = resize(renders[0][:4], 128)
    torch.testing.assert_close(judge.image_vectors(large), judge.image_vectors(resize(large, 32)))


def test_a_right_caption_scores_above_another(judge, renders):
    images, facts = renders
    captions = [judge.world.caption(*fact) for fact in facts]
    right, wrong = judge.score(images, captions), judge.score(images, captions[5:] + captions[:5])
    assert (right > wrong).float().mean() >= 0.9
    assert right.abs().max() <= 1


def test_probabilities_choose_among_captions(judge, renders):
    images, facts = renders
    captions = [f"an emoji of {thing}" for thing in dict.fromkeys(fact[0] for fact in facts)]
    p = judge.log_probability(images, captions).exp()
    torch.testing.assert_close(p.sum(1), torch.ones(len(p)))
    named = [captions[i].removeprefix("an emoji of ") for i in p.argmax(1).tolist()]
    assert sum(a == fact[0] for a, fact in zip(named, facts)) >= 0.85 * len(facts)


@pytest.mark.parametrize("file", ["weights.safetensors", "meta.json"])
def test_damage_is_refused(tmp_path, file):
    shutil.copytree(assets() / "judge", tmp_path / "judge")
    path = tmp_path / "judge" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=file):
        Judge.from_pretrained(tmp_path / "judge")


# ---------------------------------------------------------------- its text tower as an encoder


def test_the_encoder_keeps_the_protocol(judge, tmp_path):
    encoder = judge.encoder()
    captions = [
        "a 3d emoji of a strawberry",
        "",
        "!?",
        "a noto emoji of a waving hand with dark skin",
    ]
    text = encoder(captions)
    assert text.tokens.shape[2] == encoder.width and text.mask.any(1).all()
    assert not text.tokens[~text.mask].any()
    for row in (1, 2):
        assert text.mask[row].sum() == 1 and not text.tokens[row].any()
    alone = encoder(captions[:1])
    torch.testing.assert_close(
        text.tokens[:1, : alone.tokens.shape[1]], alone.tokens, atol=1e-5, rtol=0
    )
    assert json.loads(json.dumps(encoder.identity)) == encoder.identity
    cache = EmbeddingCache.build(encoder, captions, tmp_path / "cache")
    torch.testing.assert_close(
        cache[captions[:1]].tokens.float(), alone.tokens, atol=0.02, rtol=0.01
    )


def test_order_of_words_reaches_the_tokens(judge):
    "A real encoder: what a token is depends on the words around it."
    a, b = judge.encoder()(["red heart", "heart red"]).tokens
    assert (a[0] - b[1]).abs().max() > 0.01


# ---------------------------------------------------------------- parts, on small judges


def test_saved_and_loaded_it_says_the_same(tmp_path):
    one = small()
    one.save_pretrained(tmp_path / "judge", dtype=torch.float32)
    two, images = Judge.from_pretrained(tmp_path / "judge"), torch.rand(3, 3, 16, 16) * 2 - 1
    captions = ["a 3d emoji of a cat", "a cat", "a flat emoji"]
    torch.testing.assert_close(two.score(images, captions), one.score(images, captions))
    assert two.read(images) == one.read(images)
    assert two.world == WORLD and two.config == SMALL


def test_reading_sums_the_captions_of_an_object():
    judge, images = small(), torch.rand(2, 3, 16, 16) * 2 - 1
    facts = WORLD.facts()
    assert len(facts) == 2 + 2 * 6
    p = judge.log_probability(images, [WORLD.caption(*fact) for fact in facts]).exp()
    for row, found in zip(p, judge.read(images)):
        cat = row[[i for i, fact in enumerate(facts) if fact[0] == "cat"]].sum().item()
        assert found.object == ("cat" if cat > 0.5 else "waving hand")
        assert found.share == pytest.approx(max(cat, 1 - cat), abs=1e-5)


def test_a_judge_that_learns_on_reads_anew():
    judge, images = small(), torch.rand(4, 3, 16, 16) * 2 - 1
    before = judge.read(images)
    judge.train()
    with torch.no_grad():
        judge.text_tower.last.weight.neg_()
        judge.text_tower.last.bias.neg_()
    after = judge.eval().read(images)
    assert [f.share for f in before] != [f.share for f in after]


def test_the_loss_by_hand():
    torch.manual_seed(0)
    logits, true = torch.randn(3, 3), torch.eye(3, dtype=torch.bool)
    true[0, 2] = True  # the third caption also fits the first picture
    terms = []
    for i in range(3):
        row = [logits[i, j].exp() for j in range(3) if j == i or not true[i, j]]
        column = [logits[j, i].exp() for j in range(3) if j == i or not true[j, i]]
        terms += [-math.log(logits[i, i].exp() / sum(s)) for s in (row, column)]
    assert contrastive_loss(logits, true).item() == pytest.approx(sum(terms) / 6, abs=1e-5)


def test_a_caption_that_is_also_true_is_no_counterexample():
    logits = torch.zeros(3, 3, requires_grad=True)
    true = torch.eye(3, dtype=torch.bool)
    true[0, 2] = True
    contrastive_loss(logits, true).backward()
    assert logits.grad[0, 2] == 0 and (logits.grad[[0, 1, 1, 2], [1, 0, 2, 0]] > 0).all()


def test_pieces_take_the_longest_beginning():
    pieces = Pieces(["[PAD]", "straw", "s", "##berry", "##b", "pinata"], 4)
    ids, mask = pieces(["Strawberry!", "piñata s s s s s", "", "xyz"])
    assert ids.tolist() == [[1, 3, 0, 0], [5, 2, 2, 2], [0] * 4, [0] * 4]
    assert mask.sum(1).tolist() == [2, 4, 0, 0]


def test_what_is_refused():
    judge, images = small(), torch.zeros(2, 3, 16, 16)
    with pytest.raises(ValueError, match="Judge.score: images and captions, got 2 and 1"):
        judge.score(images, ["a cat"])
    with pytest.raises(ValueError, match=r"Judge: images, got \(3, 16, 16\)"):
        judge.read(images[0].expand(3, 16, 16))
    with pytest.raises(ValueError, match="captions"):
        judge.encoder()("a cat")
    with pytest.raises(ValueError, match="encoder, got one"):
        Judge.from_pretrained(assets() / "judge", encoder=judge.encoder())


# ---------------------------------------------------------------- its training


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location(
        "make_judge", HERE.parent / "tools" / "make" / "judge.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings(out, steps=4):
    return SimpleNamespace(
        steps=steps, batch=6, lr=1e-2, weight_decay=0.0, seed=0, init=None, out=out
    )


def drawn(maker):
    "Eight pictures of random pixels, each with captions of its own."
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, maker.SIDE, maker.SIDE), generator=g, dtype=torch.uint8)
    return maker.Renders(images, [dict(text=[f"{c} cat", f"cat {c}"]) for c in "abcdefgh"])


def test_a_training_that_was_stopped_ends_as_one_that_was_not(maker, tmp_path):
    whole = maker.Run(small(), drawn(maker), settings(tmp_path / "whole")).fit()
    stopped = maker.Run(small(), drawn(maker), settings(tmp_path / "parts"))
    stopped.judge.train()
    for _ in range(2):
        stopped.losses.append(stopped.one_step())
        stopped.step += 1
    stopped.save()
    again = maker.Run(small(1), drawn(maker), settings(tmp_path / "parts"))
    assert again.step == 2
    for name, value in again.fit().state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], msg=name)


def test_a_training_of_other_settings_is_refused(maker, tmp_path):
    run = maker.Run(small(), drawn(maker), settings(tmp_path))
    run.save()
    with pytest.raises(ValueError, match="'steps': 4.*'steps': 5"):
        maker.Run(small(), drawn(maker), settings(tmp_path, steps=5))


def test_a_caption_is_true_of_every_picture_that_has_it(maker):
    rows = [dict(text=["a cat", "a 3d cat"]), dict(text=["a cat"]), dict(text=["a dog"])]
    texts = maker.Texts(rows, Pieces(PIECES, 8))
    ids, mask, true = texts.draw(torch.tensor([1, 0, 2]), torch.Generator().manual_seed(0))
    assert true.diagonal().all() and true[1, 0] and not true[2].tolist()[:2].count(True)
    assert ids.shape == mask.shape == (3, int(mask.sum(1).max()))


def test_views_stay_pictures(maker):
    images = torch.full((5, 3, maker.SIDE, maker.SIDE), 255, dtype=torch.uint8)
    images[:, 0, 20:40, 20:40] = 0
    a = maker.vary(images, torch.Generator().manual_seed(3), 32)
    b = maker.vary(images, torch.Generator().manual_seed(3), 32)
    assert a.shape == (5, 3, 32, 32) and a.abs().max() <= 1 and torch.equal(a, b)
    assert F.mse_loss(a[0], a[1]) > 1e-3

"Text encoded while training runs: the numbers of a cache, whoever loads the pictures, and a run that can be stopped."

import contextlib
import copy
import json
import os
import pickle
import re
import signal
from unittest import mock

import pytest
import torch
from test_cli import TINY, folder  # noqa: F401  a fixture
from test_training import stop_after
from train_worker import CONFIG, STAGE, pin_fp32

from imagen_nb.cli import main
from imagen_nb.data import ShapesWorld
from imagen_nb.engine.captions import EmbeddingCache
from imagen_nb.engine.execution import Execution
from imagen_nb.engine.online import OnlineText
from imagen_nb.runs import setup
from imagen_nb.stage import Stage
from imagen_nb.store.checkpoint import newest_checkpoint
from imagen_nb.text import TextEmbedding, TextEncoder
from imagen_nb.training import Samples, TrainConfig, Trainer


class Words:
    "Numbers that bfloat16 cannot hold, six for each letter; it counts its calls."

    identity, width, calls = dict(encoder="words", revision="1"), 6, 0

    def __call__(self, captions):
        self.calls += 1
        rows = [torch.tensor([[1 / (ord(c) + k) for k in range(6)] for c in o]) for o in captions]
        return TextEmbedding.concat(
            [TextEmbedding(r[None], torch.ones(1, len(r), dtype=torch.bool)) for r in rows]
        )


@pytest.fixture(autouse=True)
def fp32():
    undo = pin_fp32()
    yield
    undo()


def world(length: int = 40) -> ShapesWorld:
    return ShapesWorld("train", level="quick", size=16, length=length)


def cached(encoder, path) -> EmbeddingCache:
    return EmbeddingCache.build(encoder, [world().caption(i) for i in range(40)], path)


@pytest.mark.parametrize("make", [Words, TextEncoder.toy])
def test_online_text_is_the_text_of_a_cache(make, tmp_path):
    encoder = make()
    cache, online = cached(encoder, tmp_path), OnlineText(encoder)
    captions = [world().caption(i) for i in range(40)]
    assert (online.identity, online.width) == (cache.identity, cache.width)
    for some in (captions, captions[:7], captions[3:4]):
        ours, theirs = online[some], cache[some]
        assert torch.equal(ours.mask, theirs.mask) and ours.tokens.dtype == torch.float32
        # another batch pads otherwise: a last bit of bfloat16 may flip
        torch.testing.assert_close(ours.tokens, theirs.tokens, rtol=2**-7, atol=1e-6)
    if make is Words:  # whose numbers do not depend on neighbours
        assert torch.equal(online[captions].tokens, cache[captions].tokens)
    with pytest.raises(ValueError, match="OnlineText: captions"):
        online["one caption"]


def test_a_worker_leaves_text_out_and_the_trainer_puts_it_in():
    online = OnlineText(Words())
    assert pickle.loads(pickle.dumps(online)).encoder is None
    samples = Samples(STAGE, world(), online, TrainConfig(**CONFIG, steps=3))
    here = [batch for batch, _ in samples.batches(0)]
    there = [batch for batch, _ in samples.batches(0, workers=1)]
    assert len(here) == len(there) == 3
    for a, b in zip(here, there):
        assert torch.equal(a.text.tokens, b.text.tokens) and a.captions == b.captions
        assert torch.equal(a.images, b.images)


def test_a_run_learns_the_same_online_and_goes_on_where_it_stopped(tmp_path):
    def trainer(text, place):
        torch.manual_seed(0)
        how = TrainConfig(**CONFIG, steps=12)
        execution = Execution(sample_every=0, validate_every=0, progress=False)
        return Trainer(Stage(STAGE), world(), text, how, tmp_path / place, execution=execution)

    encoder = Words()
    cache = cached(encoder, tmp_path / "captions")
    fresh = trainer(cache, "cache")
    first = copy.deepcopy(fresh.stage.network.state_dict())
    wanted = fresh.fit().network.state_dict()
    stop_after(trainer(OnlineText(encoder), "online"), 5)
    before = encoder.calls
    found = trainer(OnlineText(encoder), "online").fit().network.state_dict()
    assert encoder.calls - before == 1 + 7  # a look at the width, and the steps that were left
    assert any(not torch.equal(first[k], v) for k, v in wanted.items())
    for k, v in wanted.items():
        assert torch.equal(v, found[k]), k


# ---------------------------------------------------------------- the command


def base(out, *how: str) -> dict:
    "What the base of the toy has learned, if nothing stops it after six steps."
    words = ["train", "toy", f"--out={out}", "--stage=0", "--held-out=2", *TINY, *how]
    main([*words, "--set=training.0.steps=6", "--validate-every=2"])
    return newest_checkpoint(out / "32px")[0]["network"]


@contextlib.contextmanager
def stopped_after(n: int):
    "A signal comes in the n-th step."
    step = Trainer.train_step

    def last(self, *args):
        if self.step + 1 == n:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    with mock.patch.object(Trainer, "train_step", last):
        yield


def gap(a: dict, b: dict) -> float:
    "Norm of the difference, as a share."
    flat = [torch.cat([v.flatten() for v in o.values()]) for o in (a, b)]
    return float((flat[0] - flat[1]).norm() / flat[0].norm())


def test_the_command_reads_online_and_a_run_may_change_to_a_cache_and_back(tmp_path):
    wanted, begun = base(tmp_path / "cached"), []
    for n, how in ((2, ["--online"]), (4, [])):
        with stopped_after(n):
            begun.append(base(tmp_path / "mixed", *how))
    found = base(tmp_path / "mixed", "--online")
    assert gap(wanted, found) < 1e-4 < gap(wanted, begun[1]) < gap(wanted, begun[0])
    ours, theirs = (
        [json.loads(line) for line in (tmp_path / o / "32px" / "validation.jsonl").open()]
        for o in ("mixed", "cached")
    )
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] == [2, 4, 6]
    for a, b in zip(ours, theirs):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_a_run_online_keeps_captions_of_looks_alone(tmp_path):
    with stopped_after(1):
        base(tmp_path, "--online")
    recipe, cache = setup.load_recipe(tmp_path), EmbeddingCache.open(tmp_path / "captions")
    worlds = setup.open_data(recipe), setup.held_back(recipe)
    looks = {w.caption(i) for w, rows in zip(worlds, setup.looked_at(*worlds)) for i in rows}
    assert len(cache) == len(looks) and all(caption in cache for caption in looks)
    drawn = setup.asked_for(recipe, 0, *worlds)[0]
    assert not all(worlds[0].caption(i) in cache for i in drawn)


@pytest.mark.slow
def test_several_processes_read_online_and_draw(folder, tmp_path, capfd):  # noqa: F811
    def trained(name: str, *how: str) -> dict:
        words = ["train", "toy", "--data", str(folder), f"--out={tmp_path / name}", *TINY]
        assert main([*words, "--device=cpu", *how]) == 0
        return newest_checkpoint(tmp_path / name / "32px")[0]["network"]

    ours = trained("online", "--online", "--processes=2")
    assert gap(trained("cached", "--stage=0"), ours) < 1e-3  # other batches round other bits
    assert {"model", "samples.png"} <= {p.name for p in (tmp_path / "online").iterdir()}
    capfd.readouterr()
    main(["doctor", str(tmp_path / "online"), "--draw=2"])
    told = capfd.readouterr().out
    assert re.search(r"ok +text cache", told) and re.search(r"ok +drawing", told), told

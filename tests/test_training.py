"""Training: draws, schedules, optimizers, and runs that are interrupted."""

import copy
import errno
import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_validation import ENLARGER
from train_worker import STAGE, Letters, make_trainer, pin_fp32

from imagen_nb import stage as stages
from imagen_nb.data import ShapesWorld
from imagen_nb.engine import execution, keeping
from imagen_nb.engine.distributed import gradient, settings
from imagen_nb.engine.execution import Execution
from imagen_nb.engine.guards import check_pictures, has_learned
from imagen_nb.engine.keeping import claim_directory, release_directory
from imagen_nb.engine.optim import Muon, make_optimizers, orthogonalize
from imagen_nb.engine.samples import Arrivals, in_parts, loading_workers, one_ahead
from imagen_nb.engine.stopping import TrainingError
from imagen_nb.engine.validation import describe_samples, draw_samples, is_due
from imagen_nb.pictures.captioned import load_captioned
from imagen_nb.plots import save_picture
from imagen_nb.recipes import toy
from imagen_nb.runs.run import with_new_stages
from imagen_nb.runs.setup import load_recipe
from imagen_nb.stage import Stage
from imagen_nb.store.checkpoint import checkpoints
from imagen_nb.store.config import change, config_to_dict
from imagen_nb.store.files import replace_text
from imagen_nb.store.keyed import permute
from imagen_nb.training import (
    Samples,
    TrainConfig,
    Trainer,
    draw,
    draw_crop,
    ema_decay,
    keyed_times,
    learning_rate,
    update_ema,
)

HERE = Path(__file__).parent
ENV = dict(
    os.environ,
    PYTHONPATH=f"{HERE.parent}{os.pathsep}{HERE}",
    OMP_NUM_THREADS="1",
    CUDA_VISIBLE_DEVICES="",
)


@pytest.fixture(scope="module", autouse=True)
def fp32():
    "Processes and micro-batches agree within rounding of fp32."
    undo = pin_fp32()
    yield
    undo()


def final(out, steps=20):
    return load_file(out / f"step_{steps:08d}" / "network.safetensors"), load_file(
        out / f"step_{steps:08d}" / "average.safetensors"
    )


def equal(a, b):
    return all(torch.equal(x[k], y[k]) for x, y in zip(a, b) for k in x)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    "An uninterrupted run of 20 steps."
    out = tmp_path_factory.mktemp("reference")
    make_trainer(out).fit()
    return out


# ---------------------------------------------------------------- draws


def test_draws_depend_on_seed_and_number_alone():
    index = torch.arange(10)
    whole = draw(3, index, ENLARGER)
    assert whole.eps.shape == (10, 3, 8, 8) and whole.aug_eps.shape == (10, 3, 6, 6)
    for part in (index[:3], index[7:], index[[9, 2]]):
        for a, b in zip(draw(3, part, ENLARGER), whole):
            assert torch.equal(a, b[part])
    assert not torch.equal(draw(4, index, ENLARGER).eps, whole.eps)
    assert draw(3, index, STAGE)[3:] == (None, None)


def test_draws_have_the_right_distributions():
    small = replace(ENLARGER, size=4, lowres_size=2, crop=2, aug_max=0.4)
    d = draw(0, torch.arange(6000), small)
    assert (
        abs(d.eps.mean()) < 0.012
        and abs(d.eps.std() - 1) < 0.012
        and abs(d.aug_eps.std() - 1) < 0.012
    )
    assert abs((~d.keep_text).float().mean() - 0.1) < 0.012
    assert 0 <= d.aug_t.min() < 0.01 and 0.39 < d.aug_t.max() <= 0.4
    correlation = torch.corrcoef(
        torch.stack(
            [d.t, d.keep_text.float(), d.aug_t, d.eps.mean((1, 2, 3)), d.aug_eps.mean((1, 2, 3))]
        )
    )
    assert (correlation - torch.eye(5)).abs().max() < 0.06


def test_times_are_uniform_or_follow_their_law():
    t = keyed_times(0, torch.arange(20_000), None)
    grid = torch.linspace(0, 1, 101)[1:-1]
    assert max(abs((t < g).float().mean() - g) for g in grid) < 2e-3
    u = torch.logit(keyed_times(0, torch.arange(20_000), (0.4, 1.1)))
    assert abs(u.mean() - 0.4) < 0.01 and abs(u.std() - 1.1) < 0.01


def test_crops_stay_inside_and_reach_every_corner():
    crop = draw_crop(0, torch.arange(3000), replace(ENLARGER, size=32, lowres_size=8, crop=16))
    assert crop.height == crop.width == 32  # 16 and a margin of 8 on each side
    for v in (crop.top + 8, crop.left + 8):
        assert v.unique().tolist() == [0, 4, 8, 12, 16]
    assert draw_crop(0, torch.arange(3), STAGE) is None


def test_processes_share_the_samples_of_one():
    whole, halves = make_trainer("unused").samples, []
    for rank in (0, 1):
        halves.append(
            Samples(whole.stage_config, whole.dataset, whole.text, whole.config, rank, ranks=2)
        )
    for (batch, draws), *parts in zip(*(o.batches(17) for o in (whole, *halves))):
        assert torch.equal(batch.index, torch.cat([b.index for b, _ in parts]))
        assert torch.equal(batch.images, torch.cat([b.images for b, _ in parts]))
        assert torch.equal(draws.eps, torch.cat([d.eps for _, d in parts]))
    with pytest.raises(ValueError, match="batch, got 8, expected a multiple of the 3"):
        Samples(whole.stage_config, whole.dataset, whole.text, whole.config, ranks=3)


@pytest.fixture
def three_captions(tmp_path):
    "Six pictures, each with three captions that name it."
    for i, image in enumerate(ShapesWorld("train", level="quick", size=16).images(range(6))):
        save_picture(image, tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("\n".join(f"{i}{k}" for k in "abc"))
    return load_captioned(tmp_path, 16)


def test_every_epoch_draws_a_caption_by_key(three_captions):
    "The same for one process, for two, and from the middle."

    class Echo:
        def __getitem__(self, captions):
            return captions

    trainer = make_trainer("unused", world=three_captions)

    def heard(start=0, **share):
        return [
            b.text
            for b, _ in Samples(STAGE, three_captions, Echo(), trainer.config, **share).batches(
                start
            )
        ]

    whole = heard()
    assert whole == [a + b for a, b in zip(heard(rank=0, ranks=2), heard(rank=1, ranks=2))]
    assert heard(start=7) == whole[7:]
    said = sum(whole, [])
    epochs = [said[n : n + 6] for n in range(0, len(said) - 5, 6)]
    assert all({caption[0] for caption in epoch} == set("012345") for epoch in epochs)
    assert len({frozenset(epoch) for epoch in epochs}) > 20 and set(said) == {
        f"{i}{k}" for i in range(6) for k in "abc"
    }
    assert said == [
        three_captions.caption(permute(n, 6, trainer.config.seed), n // 6) for n in range(160)
    ]


def test_a_run_with_several_captions_resumes_bit_equal(three_captions, tmp_path):
    make_trainer(tmp_path / "whole", 12, three_captions).fit()
    stop_after(make_trainer(tmp_path / "parts", 12, three_captions), 8)
    make_trainer(tmp_path / "parts", 12, three_captions).fit()
    assert equal(final(tmp_path / "parts", 12), final(tmp_path / "whole", 12))


def test_the_next_batch_is_made_ahead_and_none_beyond_the_last():
    made, used = [], []
    for n in one_ahead(lambda n: made.append(n) or n, range(4)):
        used.append(n)
        while len(made) < min(len(used) + 1, 4):
            pass  # comes while this one is in use
    assert made == used == [0, 1, 2, 3]
    assert list(one_ahead(abs, [])) == []
    results = one_ahead(lambda n: 1 / n, [2, 1, 0])
    assert [next(results), next(results)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(results)


class Signed:
    "A cache that notes in every text which process read it."

    def __init__(self, text):
        self.text = text

    def __getitem__(self, captions):
        text = self.text[captions]
        return text._replace(tokens=torch.full_like(text.tokens, os.getpid()))


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_that_work_ahead_give_the_same_batches(workers):
    samples, plain = (make_trainer("unused").samples for _ in range(2))
    samples.text = Signed(samples.text)
    readers = set()
    for (batch, draws), (expected, same) in zip(
        samples.batches(15, workers=workers), plain.batches(15), strict=True
    ):
        assert (
            torch.equal(batch.index, expected.index)
            and torch.equal(batch.images, expected.images)
            and batch.captions == expected.captions
        )
        assert all(torch.equal(a, b) for a, b in zip(draws, same) if a is not None)
        readers.add(int(batch.text.tokens[0, 0, 0]))
    assert len(readers) == workers and os.getpid() not in readers


def test_elsewhere_than_on_a_cpu_batches_are_made_ahead_and_moved():
    samples, e = make_trainer("unused").samples, Execution(compile=True)
    assert e.loading(torch.device("cpu")) == dict(
        device=torch.device("cpu"), workers=0, multiple=32
    )
    moved = [
        (b.images.device.type, b.text.tokens.device.type, d.eps.device.type)
        for b, d in samples.batches(17, device="meta", workers=1)
    ]
    assert moved == [("meta",) * 3] * 3


def test_cores_that_nobody_needs_prepare_batches(monkeypatch):
    gpu = torch.device("cuda")
    for cores, gpus, workers in ((16, 1, 8), (16, 4, 3), (4, 1, 3), (2, 4, 1), (None, 0, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda n=cores: n)
        monkeypatch.setattr(torch.cuda, "device_count", lambda n=gpus: n)
        assert loading_workers(gpu) == workers and loading_workers(torch.device("cpu")) == 0


# ---------------------------------------------------------------- schedules and optimizers


def test_learning_rate_and_average():
    c = TrainConfig(steps=100, warmup=10, lr=2.0, final=0.1, ema=0.9, ema_power=5.0)
    rates = [learning_rate(k, c) for k in range(100)]
    assert (
        rates[0] == 0.2
        and rates[9] == 2.0
        and rates[10] == 2.0
        and rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    )
    assert (
        abs(learning_rate(55, c) - 2 * (0.1 + 0.9 * 0.5)) < 1e-6
        and abs(learning_rate(100, c) - 0.2) < 1e-6
    )
    late, longer = (replace(c, decay="late", steps=n) for n in (100, 200))
    assert {learning_rate(k, late) for k in range(10, 82)} == {2.0} and abs(
        learning_rate(91, late) - 2 * (0.1 + 0.9 * 0.5)
    ) < 1e-6
    assert abs(learning_rate(100, late) - 0.2) < 1e-6 and all(
        learning_rate(k, late) == learning_rate(k, longer) for k in range(82)
    )
    assert (
        ema_decay(1, c) == 0
        and ema_decay(10_000, c) == 0.9
        and abs(ema_decay(10, c) - 0.9**5) < 1e-12
    )


def test_ema_follows_the_weights():
    a, b = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    expected = {k: 0.75 * v + 0.25 * dict(b.named_parameters())[k] for k, v in a.named_parameters()}
    update_ema(a, b, 0.75)
    for k, v in a.named_parameters():
        torch.testing.assert_close(v, expected[k])


@pytest.mark.parametrize("shape", [(2, 24, 40), (2, 40, 24), (1, 32, 32)])
def test_orthogonalize_against_svd(shape):
    m = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(m, full_matrices=False)
    for _ in range(4):  # the same iteration, on the singular values
        s = s / s.norm(dim=-1, keepdim=True) if _ == 0 else s
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(orthogonalize(m), u @ torch.diag_embed(s) @ v, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["adafactor", "adam", "adamw", "muon"])
def test_every_optimizer_reaches_every_parameter_and_lowers_a_loss(name):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 3),
        torch.nn.SiLU(),
        torch.nn.Conv2d(32, 32, 3),
        torch.nn.SiLU(),
        torch.nn.Conv2d(32, 3, 1),
    )
    x, y, losses, before = (
        torch.randn(8, 3, 8, 8),
        torch.randn(8, 3, 4, 4),
        [],
        [p.detach().clone() for p in net.parameters()],
    )
    optimizers = make_optimizers(
        net, TrainConfig(optimizer=name, lr=1e-2 if name != "adafactor" else 0.1)
    )
    for _ in range(15):
        loss = (net(x) - y).square().mean()
        loss.backward()
        losses.append(loss.item())
        for o in optimizers:
            o.step()
            o.zero_grad()
    assert losses[-1] < losses[0] * 0.97
    assert all((p != q).any() for p, q in zip(net.parameters(), before))


def test_muon_takes_the_inner_matrices_only():
    trainer = make_trainer("unused")
    muon, adam = make_optimizers(trainer.stage.network, TrainConfig(optimizer="muon"))
    edge = {
        id(p)
        for n, p in trainer.stage.network.named_parameters()
        if n.startswith(("conv_in", "out."))
    }
    inner = [p for g in muon.param_groups for p in g["params"]]
    assert inner and all(p.ndim > 1 and id(p) not in edge for p in inner)
    assert len(inner) + sum(len(g["params"]) for g in adam.param_groups) == len(
        list(trainer.stage.network.parameters())
    )


# ---------------------------------------------------------------- runs


def test_loss_falls_and_the_log_says_so(reference):
    rows = [json.loads(o) for o in (reference / "log.jsonl").read_text().splitlines()]
    assert (
        [r["step"] for r in rows] == [20]
        and rows[0]["samples"] == 160
        and len(rows[0]["by_level"]) == 4
    )
    first = make_trainer(reference.parent / "first", steps=1)
    first.fit()
    before = json.loads((reference.parent / "first" / "log.jsonl").read_text())["loss"]
    assert rows[0]["loss"] < 0.7 * before


def test_checkpoints_are_few_and_the_average_is_not_the_network(reference):
    assert [p.name for p in checkpoints(reference)] == ["step_00000020", "step_00000015"]
    network, average = final(reference)
    assert any((network[k] - average[k]).abs().max() > 1e-6 for k in network)


def test_the_average_follows_the_network_at_every_step(tmp_path):
    for steps in (1, 2):
        make_trainer(tmp_path / str(steps), steps=steps).fit()
    (first, average), (second, later) = final(tmp_path / "1", 1), final(tmp_path / "2", 2)
    decay = ema_decay(2, make_trainer("unused").config)
    assert 0 < decay < 0.9 and equal([first], [average])
    for k in first:
        torch.testing.assert_close(later[k], decay * first[k] + (1 - decay) * second[k])


@pytest.mark.parametrize("is_bf16", [False, True])
def test_steps_are_loss_gradient_clip_update_and_average_written_out(
    tmp_path, is_bf16, monkeypatch
):
    "Against the same written out with torch alone, and nothing left over from step to step."
    monkeypatch.setattr(stages, "has_fast_bf16", lambda device: is_bf16)
    changes = dict(optimizer="adam", clip=0.05, lr=1e-2)
    make_trainer(tmp_path / "run", 3, **changes).fit()
    trainer = make_trainer("unused", 3, **changes)
    stage, network = trainer.stage, trainer.stage.network.train()
    adam, average, norms = (
        torch.optim.Adam(network.parameters(), betas=trainer.config.betas),
        {},
        [],
    )
    for k, (batch, draws) in enumerate(trainer.samples.batches(0)):
        gradients = torch.autograd.grad(stage.loss(batch, draws).mean(), list(network.parameters()))
        norms.append(torch.cat([g.flatten() for g in gradients]).norm())
        for p, g in zip(network.parameters(), gradients):
            p.grad = g * min(1, 0.05 / norms[-1])
        adam.param_groups[0]["lr"] = 1e-2 * (k + 1) / 4  # four steps of warm-up
        adam.step()
        decay = (1 - 1 / (k + 1)) ** trainer.config.ema_power
        average = {
            n: decay * average.get(n, 0) + (1 - decay) * p.detach()
            for n, p in network.named_parameters()
        }
    assert min(norms) > 0.05  # all were clipped
    for found, expected in zip(
        final(tmp_path / "run", 3), (dict(network.named_parameters()), average)
    ):
        for name, v in expected.items():
            torch.testing.assert_close(found[name], v.detach(), atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("moment", ["step 3", "step 13", "saving 15"])
def test_killed_and_resumed_is_bit_equal(reference, tmp_path, moment):
    "SIGKILL before the first checkpoint, between two, and while one is being written."
    command = [sys.executable, str(HERE / "train_worker.py"), str(tmp_path / "run")]
    child = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, text=True)
    for line in child.stdout:
        if line.strip() == moment:
            child.send_signal(signal.SIGKILL)
            break
    assert child.wait() == -signal.SIGKILL
    make_trainer(tmp_path / "run").fit()
    assert equal(final(tmp_path / "run"), final(reference))
    rows = [json.loads(o) for o in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [20]


def test_sigterm_finishes_the_step_and_saves(reference, tmp_path):
    command = [
        sys.executable,
        str(HERE / "train_worker.py"),
        str(tmp_path / "run"),
        "20",
        "7",
    ]  # waits in step 7
    child = subprocess.Popen(
        command,
        env=ENV,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in child.stdout:
        if line.strip() == "step 7":
            break
    child.terminate()
    _, err = child.communicate("go on\n")
    assert "stopped at step 7, saved; run the same command to go on" in err
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["step_00000007", "step_00000005"]
    make_trainer(tmp_path / "run").fit()
    assert equal(final(tmp_path / "run"), final(reference))


@pytest.mark.slow
def test_two_processes_train_the_same_run(reference, tmp_path):
    "Equal draws, averaged gradients: fails if the loss is computed around the wrapper."
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(HERE / "train_worker.py"),
        str(tmp_path / "two"),
        "3",
    ]
    subprocess.run(command, env=ENV, check=True, capture_output=True)
    make_trainer(tmp_path / "one", steps=3).fit()
    start = make_trainer(tmp_path / "one", steps=3).stage.network.state_dict()
    one, two = (
        torch.cat([(v - start[k]).flatten() for k, v in final(tmp_path / o, 3)[0].items()])
        for o in ("one", "two")
    )
    assert (one - two).norm() < 0.01 * one.norm()  # what three steps changed
    loss = [json.loads((tmp_path / o / "log.jsonl").read_text())["loss"] for o in ("one", "two")]
    assert json.loads((tmp_path / "two" / "step_00000003" / "meta.json").read_text())["ranks"] == 2
    assert loss[0] == pytest.approx(loss[1], rel=1e-3)


def test_damaged_checkpoint_is_passed_over(reference, tmp_path):
    make_trainer(tmp_path / "run").fit()
    file = tmp_path / "run" / "step_00000020" / "network.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 4
    file.write_bytes(data)
    with pytest.warns(UserWarning, match="going back"):
        make_trainer(tmp_path / "run").fit()
    assert equal(final(tmp_path / "run"), final(reference))


def test_another_config_is_refused_with_the_difference(reference):
    with pytest.raises(ValueError, match=r"train.lr: 0.003 on disk, 0.001 now"):
        make_trainer(reference, lr=1e-3).fit()


def test_a_directory_is_claimed_once(tmp_path):
    how = dict(lr=1e-3, betas=(0.9, 0.99))
    out, config = tmp_path / "a" / "run", dict(stage={}, train=how, data="x")
    claim_directory(out, config)
    claim_directory(out, config)
    assert [p.name for p in out.iterdir()] == ["config.json"]
    with pytest.raises(ValueError, match=r"data: 'x' on disk, 'y' now"):
        claim_directory(out, dict(config, data="y"))
    (out / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is damaged"):
        claim_directory(out, config)


@pytest.mark.parametrize("text", ['{"model_type": "t5"}', '{"train": {}, "data": {}}', "[1]"])
def test_the_config_of_something_else_is_left(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    release_directory(tmp_path)
    with pytest.raises(ValueError, match="got a file of something else"):
        claim_directory(tmp_path, config_to_dict(toy()))
    assert (tmp_path / "config.json").read_text() == text


def test_text_files_are_replaced_whole(tmp_path, monkeypatch):
    replace_text(tmp_path / "a.json", "one")

    def fail(*_):
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError):
        replace_text(tmp_path / "a.json", "two")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.json", "one")]


def test_bad_steps_change_nothing_and_many_of_them_end_the_run(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path / "run", steps=30)
    real, seen = Samples.__call__, []

    def poisoned(self, index):
        batch, draws = real(self, index)
        if index[0] >= 5 * 8:
            batch = batch._replace(images=batch.images * float("nan"))
        return batch, draws

    monkeypatch.setattr(Samples, "__call__", poisoned)
    keep = trainer.train_step

    def watched(batch, draws):
        result = keep(batch, draws)
        seen.append([p.detach().clone() for net in trainer.learned[:2] for p in net.parameters()])
        return result

    trainer.train_step = watched
    with pytest.raises(TrainingError, match="10 steps in a row"):
        trainer.fit()
    assert len(seen) == 15 and all(torch.equal(a, b) for a, b in zip(seen[4], seen[-1]))
    assert all(v.isfinite().all() for v in final(tmp_path / "run", 5)[0].values())


POISONED = """
import sys, torch
from pathlib import Path
from train_worker import make_trainer, pin_fp32
pin_fp32()
trainer = make_trainer(Path(sys.argv[1]), steps=4, accumulate=int(sys.argv[2]))
step, sums = trainer.train_step, []
def poisoned(batch, draws):
    if trainer.step == 1 and trainer.process.rank == trainer.process.ranks - 1:
        images = batch.images.clone(); images[-1] = float("nan")
        batch = batch._replace(images=images)
    result = step(batch, draws)
    sums.append([float(sum(p.double().sum() for p in net.parameters())) for net in trainer.learned[:2]])
    return result
trainer.train_step = poisoned
trainer.fit()
(trainer.out/f"sums{trainer.process.rank}.txt").write_text(repr(sums))
"""


@pytest.mark.slow
def test_a_step_that_is_bad_on_one_process_is_skipped_on_all(tmp_path):
    "With micro-batches, of which one is bad; the rest of the run is that of one process, within rounding."
    (tmp_path / "poisoned.py").write_text(POISONED)
    for ranks, accumulate in ((1, 1), (2, 2)):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={ranks}",
            str(tmp_path / "poisoned.py"),
        ]
        subprocess.run(
            [*command, str(tmp_path / str(ranks)), str(accumulate)],
            env=ENV,
            check=True,
            capture_output=True,
        )
    sums = [eval((tmp_path / "2" / f"sums{k}.txt").read_text()) for k in (0, 1)]
    assert (
        sums[0] == sums[1] and sums[0][1] == sums[0][0] != sums[0][2]
    )  # all agree, and the second step changed nothing
    start = make_trainer("unused").stage.network.state_dict()
    one, two = (
        torch.cat([(v - start[k]).flatten() for k, v in final(tmp_path / o, 4)[0].items()])
        for o in "12"
    )
    assert (one - two).norm() < 0.01 * one.norm()
    logs = [json.loads((tmp_path / o / "log.jsonl").read_text()) for o in "12"]
    assert [r["skipped"] for r in logs] == [1, 1]
    for a, b in zip(
        [logs[0]["loss"], *logs[0]["by_level"]], [logs[1]["loss"], *logs[1]["by_level"]]
    ):
        assert abs(a - b) < 1e-3 * a  # over both processes


# ---------------------------------------------------------------- how it is done changes nothing


def gradients(**execution):
    "Losses and gradients of the first step."
    trainer = make_trainer("unused", **execution)
    e, network = trainer.execution, trainer.stage.network
    trainer.stage.network = e.wrap(network, trainer.process)
    for p in network.parameters():  # fresh blocks are the identity: wake them
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.05, generator=torch.Generator().manual_seed(p.numel()))
    batch, draws = next(trainer.samples.batches(0))
    losses = gradient(trainer.stage, batch, draws, e.accumulate)
    return losses, torch.cat([p.grad.flatten() for p in network.parameters()])


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_micro_batches_have_the_gradient_of_the_whole(parts):
    (losses, whole), (pieces, sum_of_parts) = gradients(), gradients(accumulate=parts)
    torch.testing.assert_close(pieces, losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sum_of_parts, whole, rtol=1e-4, atol=1e-6 * whole.abs().max().item())


def test_recomputed_activations_give_the_same_gradient():
    assert all(torch.equal(a, b) for a, b in zip(gradients(), gradients(recompute=True)))


def test_a_batch_is_cut_into_all_of_its_rows():
    batch, draws = next(make_trainer("unused").samples.batches(0))
    parts = list(in_parts(batch, draws, 3))
    assert [len(b.index) for b, _ in parts] == [3, 3, 2] and sum(
        (b.captions for b, _ in parts), []
    ) == batch.captions
    assert torch.equal(torch.cat([b.text.tokens for b, _ in parts]), batch.text.tokens)
    assert all(
        torch.equal(torch.cat([getattr(d, k) for _, d in parts]), getattr(draws, k))
        for k in ("t", "eps", "keep_text")
    )
    assert parts[0][1].aug_t is None


def test_compiled_blocks_train_the_same_run(tmp_path, monkeypatch):
    "With a compiler that changes nothing: captions get fixed lengths, the average stays as it was written."
    real, compiled = execution.compile_blocks, []
    monkeypatch.setattr(
        execution, "compile_blocks", lambda network: compiled.append(real(network, backend="eager"))
    )
    trainer, plain = (
        make_trainer(tmp_path / "compiled", steps=3, compile=True),
        make_trainer(tmp_path / "plain", steps=3),
    )
    lengths, step = [], trainer.train_step
    trainer.train_step = lambda batch, draws: (
        lengths.append(batch.text.mask.shape[1]) or step(batch, draws)
    )
    trainer.fit(), plain.fit()
    assert len(compiled) == 1 and lengths == [32] * 3 and not plain.execution.compile
    for a, b in zip(final(tmp_path / "compiled", 3), final(tmp_path / "plain", 3)):
        for k in a:
            torch.testing.assert_close(a[k], b[k], atol=2e-3, rtol=1e-2)


def test_watching_changes_no_bit(reference, tmp_path):
    def run(**execution):
        trainer = make_trainer(tmp_path / "run", **execution)
        trainer.stage.config = replace(STAGE, steps=2, sampler="ddim")  # the run is the same
        trainer.fit()

    run(validate_every=7, sample_every=9)
    assert equal(final(tmp_path / "run"), final(reference))
    checks, samples = (
        [json.loads(o) for o in (tmp_path / "run" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("validation", "samples")
    )
    assert (
        [r["step"] for r in checks] == [7, 14, 20]
        and [r["step"] for r in samples] == [9, 18, 20]
        and checks[0]["on"] == "train"
    )
    (tmp_path / "run" / "validation.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in checks[:2])
    )  # stopped before the last
    run(validate_every=7)
    assert [
        json.loads(o) for o in (tmp_path / "run" / "validation.jsonl").read_text().splitlines()
    ] == checks


def test_watching_costs_a_hundredth_each():
    def settle(batch, steps, ranks=1, stage=STAGE, **given):
        config, network = TrainConfig(batch=batch, steps=steps), torch.nn.Identity()
        e = Execution(**given).settle(Stage(stage, network), config, ranks)
        return e.validate_every, e.sample_every, e.compile

    quick = replace(STAGE, steps=16, w=2.0)
    assert settle(48, 1400, stage=quick) == (280, 280, False)  # a fifth of the run
    assert settle(2048, 2_500_000, stage=quick) == (5000, 25_000, False)
    assert settle(8, 100, ranks=2, stage=quick)[:2] == (
        1067,
        1067,
    )  # 128 passes, 12 in a step: at the end alone
    assert settle(8, 100, stage=replace(quick, crop=8))[1] == 2134  # whole pictures cost four crops
    assert settle(8, 100, validate_every=0, sample_every=3, compile=True) == (0, 3, True)
    assert [k for k in range(8) if is_due(k, 3, 7)] == [3, 6, 7] and not is_due(7, 0, 7)
    for wrong in (dict(accumulate=0), dict(validate_every=-1)):
        with pytest.raises(ValueError, match="Execution: "):
            Execution(**wrong)
    with pytest.raises(ValueError, match="accumulate, got 9, expected at most 8"):
        make_trainer("unused", accumulate=9)


def test_samples_enlarge_true_pictures(tmp_path):
    from test_validation import fresh

    stage = fresh(replace(ENLARGER, steps=2, sampler="ddim", w=1.0))
    stage.is_trained = True
    world = ShapesWorld("valid", level="quick", size=16)
    images, lowres = draw_samples(stage, world, Letters(), n=3)
    assert images.shape == (3, 3, 16, 16) and lowres.shape == (3, 3, 8, 8)
    assert torch.equal(draw_samples(stage, world, Letters(), n=2)[1], lowres[:2])
    row = describe_samples(images, lowres)
    assert row["lowres_gap"] > 0 and -1 <= row["min"] < row["max"] <= 1
    flat = torch.full((2, 3, 8, 8), 0.5)
    assert describe_samples(flat) == dict(
        min=0.5, max=0.5, mean=[0.5] * 3, std=0.0, saturated=0.0, lowres_gap=None
    )
    assert (
        describe_samples(flat * 2, flat[..., ::2, ::2])["saturated"] == 1.0
        and abs(describe_samples(flat * 2, flat[..., ::2, ::2])["lowres_gap"] - 0.5) < 1e-6
    )


# ---------------------------------------------------------------- a run owns its start


def weights(network):
    return [p.detach().clone() for p in network.parameters()]


def alike(*networks):
    first, *others = map(weights, networks)
    return all(torch.equal(a, b) for other in others for a, b in zip(first, other))


def test_the_given_stage_stays_as_it_was_and_serves_two_runs(tmp_path):
    given = make_trainer("unused").stage
    before = weights(given.network)
    one, two = (make_trainer(tmp_path / k, 2, stage=given).fit() for k in "ab")
    assert all(torch.equal(p, b) for p, b in zip(given.network.parameters(), before))
    assert alike(one.network, two.network) and not alike(one.network, given.network)
    with pytest.raises(ValueError, match=r"use the stage that fit\(\) returned"):
        given.sample(Letters()[["red"]], seeds=[0], steps=1)
    assert one.sample(Letters()[["red"]], seeds=[0], steps=1).isfinite().all()


def test_the_stage_that_fit_returns_trains_further_from_step_0(tmp_path):
    first = make_trainer(tmp_path / "a", 2).fit()
    before, trainer = weights(first.network), make_trainer(tmp_path / "b", 1, stage=first, lr=1e-3)
    second = trainer.fit()
    assert trainer.step == 1 and not alike(first.network, second.network)
    assert all(torch.equal(p, b) for p, b in zip(first.network.parameters(), before))
    network, average = final(tmp_path / "b", 1)
    assert equal([network], [average])  # the average begins anew, too


def test_a_second_try_begins_where_the_first_one_did(tmp_path):
    trainer = make_trainer(tmp_path / "a", 4)
    stop_after(trainer, 2)
    del trainer.train_step
    assert alike(trainer.fit().network, make_trainer(tmp_path / "b", 4).fit().network)


def test_frozen_weights_stay_frozen_and_any_precision_learns_in_float32(tmp_path):
    given = make_trainer("unused").stage
    given.network.cond.requires_grad_(False)
    given.network.bfloat16()
    done = make_trainer(tmp_path / "a", 2, stage=given).fit().network
    assert alike(done.cond, copy.deepcopy(given.network.cond).float())
    assert not alike(done, given.network) and given.network.conv_in.weight.dtype == torch.bfloat16
    given.network.requires_grad_(False)
    with pytest.raises(ValueError, match="stage, got only frozen weights"):
        make_trainer("unused", stage=given)


def test_a_directory_is_claimed_by_a_checkpoint_or_a_row(tmp_path):
    out = tmp_path / "run"
    stop_after(make_trainer(out, 4), 1)  # out of memory, say
    make_trainer(out, 4, batch=4, save_every=2).fit()
    with pytest.raises(ValueError, match="train.batch: 4 on disk, 8 now"):
        make_trainer(out, 4).fit()
    watched = dict(validate_every=1, valid=ShapesWorld("valid", level="quick", size=16))
    stop_after(make_trainer(tmp_path / "row", 4, **watched), 1)
    with pytest.raises(ValueError, match="train.batch: 8 on disk, 4 now"):
        make_trainer(tmp_path / "row", 4, batch=4).fit()


def test_a_stage_that_has_not_begun_may_be_trained_in_another_way(tmp_path):
    "Of a whole run, whose base is done when the next stage does not fit into memory."
    first = change(toy(), "training.1.batch", "64")
    claim_directory(tmp_path, config_to_dict(first))
    (tmp_path / "32px").mkdir()
    (tmp_path / "32px" / "log.jsonl").write_text('{"step": 20}\n')
    release_directory(tmp_path)
    for path, word in (("training.1.batch", "taken"), ("training.0.batch", "refused")):
        now = change(first, path, "6")
        read_as = partial(with_new_stages, now, tmp_path)
        with nullcontext() if word == "taken" else pytest.raises(ValueError, match=path):
            claim_directory(tmp_path, config_to_dict(now), read_as)
    assert load_recipe(tmp_path).training[1].batch == 6


def test_what_changes_nothing_that_is_learned_may_change(reference, tmp_path):
    make_trainer(tmp_path / "run", keep=1)
    stop_after(make_trainer(tmp_path / "run"), 11)
    drawn = replace(STAGE, steps=3, sampler="ddim", w=1.0, threshold=None, t_start=0.9)
    make_trainer(tmp_path / "run", stage=drawn, keep=5, save_every=4).fit()
    assert equal(final(tmp_path / "run"), final(reference))
    assert [int(p.name[5:]) for p in checkpoints(tmp_path / "run")] == [20, 16, 12, 10, 5]
    now = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (now["train"]["keep"], now["stage"]["w"]) == (5, 1.0)


@pytest.mark.parametrize("decay", ["constant", "late"])
def test_a_run_becomes_longer_where_its_steps_stay_the_same(tmp_path, decay):
    make_trainer(tmp_path / "whole", 12, decay=decay).fit()
    stop_after(make_trainer(tmp_path / "parts", 9, decay=decay), 6)  # saved after step 5
    make_trainer(tmp_path / "parts", 12, decay=decay).fit()
    assert equal(final(tmp_path / "parts", 12), final(tmp_path / "whole", 12))
    with pytest.raises(ValueError, match="train.steps: 12 on disk, 9 now"):
        make_trainer(tmp_path / "parts", 9, decay=decay).fit()


def test_a_longer_cosine_is_refused_with_the_way_on(tmp_path):
    make_trainer(tmp_path / "run", 6).fit()
    with pytest.raises(ValueError, match="steps: 6 on disk, 8 now(.|\n)*--init RUN"):
        make_trainer(tmp_path / "run", 8).fit()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["steps"] == 6


# ---------------------------------------------------------------- nothing ambient enters


def torch_is():
    "What other code finds."
    return (
        *(get() for get, *_ in settings()),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_rng_state().sum().item(),
        signal.getsignal(signal.SIGINT),
    )


@pytest.fixture
def crowded(monkeypatch):
    "A notebook in which others were at work."
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    states = AcceleratorState, PartialState, GradientState
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    Accelerator(mixed_precision="bf16", gradient_accumulation_steps=3)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_float32_matmul_precision("medium")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        yield
    torch.set_float32_matmul_precision("highest")
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)
    for state in states:
        state._shared_state.clear()


@pytest.mark.parametrize("is_bf16", [False, True])
def test_nothing_ambient_enters_a_run_or_is_left_by_it(tmp_path, request, is_bf16, monkeypatch):
    monkeypatch.setattr(stages, "has_fast_bf16", lambda device: is_bf16)
    make_trainer(tmp_path / "plain", 3, accumulate=2).fit()
    trainer = make_trainer(tmp_path / "crowded", 3, accumulate=2)
    request.getfixturevalue("crowded")
    before = torch_is()
    trainer.fit()
    assert torch_is() == before
    assert equal(final(tmp_path / "plain", 3), final(tmp_path / "crowded", 3))


def test_a_run_that_fails_leaves_torch_as_it_was(tmp_path):
    before, trainer = torch_is(), make_trainer(tmp_path / "run", 3)
    stop_after(trainer, 1)
    assert torch_is() == before and (torch.tensor([1e-40]) * 1).item() > 0


# ---------------------------------------------------------------- slips


def test_what_a_trainer_is_given_is_looked_at(tmp_path):
    good = make_trainer("unused")
    given = dict(stage=good.stage, dataset=good.samples.dataset, text=Letters(), config=good.config)
    given |= dict(out_dir=tmp_path / "run", valid=None, execution=None)
    none = ShapesWorld("train", level="quick", size=16, length=0)
    wide = Letters()[["a"]]._replace(tokens=torch.zeros(1, 8, 9))
    slips = dict(
        stage=(STAGE, [good.stage], None),
        dataset=(none, [(torch.zeros(3, 16, 16), "a")], None, good.samples.dataset.images([0])),
        text=(["a"] * 40, "a", None, dict(a=1), lambda captions: None, EchoWide(wide)),
        config=(dict(batch=4), STAGE, None),
        out_dir=(None, 3),
        valid=(none, 0.1, [1]),
        execution=(dict(progress=False), True),
    )
    for name, wrong in slips.items():
        for value in wrong:
            with pytest.raises(ValueError, match=f"Trainer: {name}, got .*expected "):
                Trainer(**given | {name: value})
    assert not (tmp_path / "run").exists()


class EchoWide:
    "Embeddings of another encoder."

    def __init__(self, text):
        self.text = text

    def __getitem__(self, captions):
        return self.text


def test_a_warm_up_longer_than_the_run_is_told(recwarn):
    make_trainer("unused", 4)
    assert not recwarn
    make_trainer("unused", 3)
    (told,) = recwarn
    assert "warmup=4 is longer than steps=3" in str(told.message)


# ---------------------------------------------------------------- what others bring


class Plain(torch.nn.Module):
    "A network of one's own: a function of the five inputs, and nothing else that ours have."

    def __init__(self):
        super().__init__()
        self.first, self.last = (torch.nn.Conv2d(*c, 3, padding=1) for c in ((3, 32), (32, 3)))
        self.inner = torch.nn.Linear(32, 32)
        self.words = torch.nn.Linear(6, 32)

    def forward(self, z_t, log_snr, text, lowres=None, aug_log_snr=None):
        words = self.words(text.tokens.mean(1))[:, :, None, None]
        h = torch.nn.functional.silu(self.first(z_t) + words).movedim(1, -1)
        return self.last(self.inner(h).movedim(-1, 1))


@pytest.mark.parametrize("optimizer", ["adafactor", "muon"])
def test_a_network_of_ones_own_trains_and_resumes(tmp_path, optimizer):
    "It has no `conv_in`, no `out`, no blocks to compile or to compute again."

    def own(out, **changes):
        torch.manual_seed(0)
        options = dict(network=Plain(), optimizer=optimizer, compile=True, validate_every=12)
        return make_trainer(out, 12, **options | changes)

    own(tmp_path / "whole").fit()
    stop_after(own(tmp_path / "parts"), 7)
    own(tmp_path / "parts").fit()
    assert equal(final(tmp_path / "whole", 12), final(tmp_path / "parts", 12))
    found = has_learned(final(tmp_path / "whole", 12)[1])
    assert found.level == "ok" and "not known" in found.why
    runs = ("kept", False), ("again", True)
    for name, recompute in runs:
        own(tmp_path / name, compile=False, recompute=recompute).fit()
    assert equal(*(final(tmp_path / name, 12) for name, _ in runs))


def test_muon_leaves_both_ends_of_any_network_to_adamw():
    for net, ends in ((Plain(), ("first", "last")), (torch.nn.Sequential(*LINEAR), ("0", "2"))):
        muon, adam = make_optimizers(net, TrainConfig(optimizer="muon"))
        inner = {id(p) for p in muon.param_groups[0]["params"]}
        names = {n for n, p in net.named_parameters() if p.ndim > 1 and id(p) not in inner}
        assert {f"{end}.weight" for end in ends} <= names and inner
    (only,) = make_optimizers(torch.nn.Linear(2, 2), TrainConfig(optimizer="muon"))
    assert not isinstance(only, Muon)


LINEAR = [torch.nn.Linear(32, 32) for _ in range(3)]


def test_a_step_of_muon_has_the_size_of_one_of_adamw():
    layer = torch.nn.Linear(32, 32, bias=False)
    muon, old = Muon(layer.parameters(), lr=0.01), layer.weight.detach().clone()
    layer(torch.randn(64, 32)).square().mean().backward()
    muon.step()
    step = (old - layer.weight).detach()
    assert 0.1 < step.square().mean().sqrt() / (0.01 * 0.2) < 1.6


class Stream:
    "Pictures one after the other, as `pictures.streams` gives them: no length, no access by number."

    size, identity = 16, "a stream"

    def __init__(self, n=11):
        self.world, self.n, self.at, self.told = (
            ShapesWorld("train", level="quick", size=16),
            n,
            0,
            [],
        )

    def __iter__(self):
        while self.at < self.n:
            self.at += 1
            self.told.append(self.at - 1)
            yield self.world.images([self.at - 1], 16)[0], self.world.caption(self.at - 1)
        self.at = 0

    def state(self):
        return dict(at=self.at)

    def resume(self, state):
        self.at = state["at"]
        return self


def stop_after(trainer, step):
    "Let a run end like a crash, once so many steps are done."
    inner = trainer.train_step

    def stopping(*args):
        if trainer.step == step:
            raise RuntimeError("crash")
        return inner(*args)

    trainer.train_step = stopping
    with pytest.raises(RuntimeError, match="crash"):
        trainer.fit()


def test_a_run_over_a_stream_goes_on_with_the_next_picture(tmp_path):
    whole, first, second = Stream(), Stream(), Stream()
    make_trainer(tmp_path / "whole", 12, whole).fit()
    stop_after(make_trainer(tmp_path / "parts", 12, first), 7)
    make_trainer(tmp_path / "parts", 12, second).fit()
    assert whole.told == [n % 11 for n in range(12 * 8)]
    assert second.told == whole.told[5 * 8 :]  # after the checkpoint of step 5
    assert equal(final(tmp_path / "whole", 12), final(tmp_path / "parts", 12))


def test_a_stream_that_is_made_ahead_is_kept_where_the_step_is(tmp_path):
    samples = make_trainer("unused", 4, Stream()).samples
    for n, _ in enumerate(samples.batches(0, device="meta", workers=3), 1):
        assert samples.state == dict(at=(8 * n - 1) % 11 + 1)


def test_a_stream_is_kept_where_the_step_is_however_much_was_made_ahead(monkeypatch):
    import imagen_nb.engine.samples as engine

    monkeypatch.setattr(engine, "ahead", lambda make, indices, **_: [make(i) for i in indices])
    samples = make_trainer("unused", 4, Stream()).samples
    for n, _ in enumerate(samples.batches(0), 1):
        assert samples.state == dict(at=(8 * n - 1) % 11 + 1)


def test_streamed_files_train_and_go_on(tmp_path):
    "The same with a real one: a table of pictures read by `datasets`."
    datasets = pytest.importorskip("datasets")
    from imagen_nb.pictures.streams import stream_captioned

    world, rows = ShapesWorld("train", level="quick", size=16), []
    for i, image in enumerate(world.images(range(20))):
        save_picture(image, tmp_path / f"{i}.png")
        rows.append(
            dict(image=dict(bytes=(tmp_path / f"{i}.png").read_bytes()), text=world.caption(i))
        )
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "pictures.parquet")

    def trainer(name):
        stream = stream_captioned(tmp_path / "pictures.parquet", 16, block=6)
        return make_trainer(tmp_path / name, 12, stream)

    trainer("whole").fit()
    stop_after(trainer("parts"), 8)
    trainer("parts").fit()
    assert equal(final(tmp_path / "whole", 12), final(tmp_path / "parts", 12))


def test_what_a_stream_cannot_do_is_said(tmp_path):
    with pytest.raises(ValueError, match="a stream cannot be looked at twice"):
        make_trainer("unused", world=Stream(), validate_every=5)
    make_trainer("unused", world=Stream(), validate_every=5, valid=ShapesWorld("valid", size=16))
    large = replace(STAGE, size=32)
    with pytest.raises(ValueError, match="got a stream of 16 pixels, expected 32"):
        make_trainer("unused", world=Stream(), stage=large)
    whole = make_trainer("unused").samples
    shared = Samples(STAGE, Stream(), whole.text, whole.config, 0, 2)
    with pytest.raises(ValueError, match="got a stream and 2 processes, expected one"):
        Arrivals(shared, draw, draw_crop)
    with pytest.raises(ValueError, match="a stream without a picture"):
        make_trainer(tmp_path / "empty", world=Stream(0)).fit()


# ---------------------------------------------------------------- a disk that is full


def fail_at(monkeypatch, steps):
    "Saving these steps meets a full disk."
    real = keeping.save_directory

    def save(path, *args):
        if int(path.name.split("_")[1]) in steps:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, *args)

    monkeypatch.setattr(keeping, "save_directory", save)


def test_a_full_disk_is_survived(reference, tmp_path, monkeypatch):
    fail_at(monkeypatch, {10, 15})
    with pytest.warns(UserWarning, match="step 1[05] could not be saved .*No space left") as told:
        make_trainer(tmp_path / "run").fit()
    assert len(told) == 2 and [p.name for p in checkpoints(tmp_path / "run")] == [
        "step_00000020",
        "step_00000005",
    ]
    assert equal(final(tmp_path / "run"), final(reference))


@pytest.mark.filterwarnings("ignore:Trainer")
@pytest.mark.parametrize("steps, last", [({10, 15, 20}, 20), ({5, 10, 15}, 15), ({20}, 20)])
def test_three_misses_or_a_last_one_end_the_run(tmp_path, monkeypatch, steps, last):
    fail_at(monkeypatch, steps)
    with pytest.raises(
        TrainingError, match=f"step {last} could not be saved .*what was saved before stays"
    ):
        make_trainer(tmp_path / "run").fit()
    assert {int(p.name[5:]) for p in checkpoints(tmp_path / "run")} <= {5, 10, 15} - steps


def test_a_stop_that_cannot_be_saved_says_so(tmp_path, monkeypatch):
    fail_at(monkeypatch, {7})
    trainer = make_trainer(tmp_path / "run")
    step = trainer.train_step

    def told(*args):
        if trainer.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)

    trainer.train_step = told
    with (
        pytest.warns(UserWarning),
        pytest.raises(TrainingError, match="stopped at step 7, which is not saved"),
    ):
        trainer.fit()


@pytest.mark.parametrize("which", ["network", "average"])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, which):
    trainer = make_trainer(tmp_path / "run")
    step = trainer.train_step

    def broken(*args):
        result = step(*args)
        if trainer.step == 10:
            with torch.no_grad():
                next(getattr(trainer.learned, which).parameters()).view(-1)[0] = float("inf")
        return result

    trainer.train_step = broken
    with pytest.raises(TrainingError, match="a weight of step 10 is not finite"):
        trainer.fit()
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["step_00000005"]


# ---------------------------------------------------------------- directories and data


def test_an_older_directory_goes_on(reference, tmp_path):
    "A field that its config lacks has its default; another value than the default is another run."
    import shutil

    shutil.copytree(reference, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    old = json.loads(path.read_text())
    for part, name in (("train", "ema_power"), ("train", "keep"), ("stage", "threshold")):
        del old[part][name]
    path.write_text(json.dumps(old))
    make_trainer(tmp_path / "run").fit()
    assert json.loads(path.read_text()) == old
    with pytest.raises(ValueError, match="train.ema_power: 13.0 on disk, 5.0 now"):
        make_trainer(tmp_path / "run", ema_power=5.0).fit()


def test_the_command_line_says_how_to_train(monkeypatch):
    from imagen_nb import cli
    from imagen_nb.runs import run as runs

    asked = []
    monkeypatch.setattr(runs, "train", lambda *args, **execution: asked.append(execution))
    assert cli.main(["train", "toy"]) == 0
    assert (
        cli.main(
            [
                "train",
                "toy",
                "--accumulate=2",
                "--no-compile",
                "--recompute",
                "--track=tensorboard",
                "--validate-every=0",
                "--sample-every=50",
            ]
        )
        == 0
    )
    assert asked == [
        {},
        dict(
            accumulate=2,
            compile=False,
            recompute=True,
            track=["tensorboard"],
            validate_every=0,
            sample_every=50,
        ),
    ]
    monkeypatch.undo()
    assert (
        cli.main(["train", "toy", "--accumulate=0"]) == 2
        and cli.main(["train", "toy", "--track=paper"]) == 2
    )


def test_pictures_of_the_wrong_kind_are_refused(tmp_path):
    good = torch.rand(4, 3, 8, 8) * 2 - 1
    check_pictures(good, 8)
    for bad, word in (
        (good * 2, "within"),
        (good.abs(), r"\[0, 1\]"),
        (good[:, :1], "shape"),
        (good * float("nan"), "NaN"),
    ):
        with pytest.raises(ValueError, match=word):
            check_pictures(bad, 8)
    trainer = make_trainer(tmp_path / "run")
    trainer.samples.dataset.images = lambda rows, size, crop=None: torch.rand(
        len(rows), 3, size, size
    )
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        trainer.fit()
    assert not (tmp_path / "run" / "config.json").exists()  # the directory is still free


def test_fit_returns_the_average(reference):
    stage = make_trainer(reference).fit()
    average = final(reference)[1]
    assert stage.is_trained and all(
        torch.equal(v, average[k]) for k, v in stage.network.state_dict().items()
    )


def test_settings_are_checked():
    for wrong in (dict(optimizer="sgd"), dict(batch=0), dict(lr=0.0), dict(decay="step")):
        with pytest.raises(ValueError):
            TrainConfig(**wrong)
    assert Letters()[["abc"]].tokens.shape == (1, 8, 6)

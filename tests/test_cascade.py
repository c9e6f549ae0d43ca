"""Stages and the cascade: one path for training and sampling, seeds, saving, refusal."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_networks import BASE, SR

from imagen_nb import layers
from imagen_nb.cascade import PIXELS, Imagen
from imagen_nb.data import ShapesWorld
from imagen_nb.diffusion import alpha_sigma, cosine_log_snr
from imagen_nb.layers import Attention, AttentionPool, TextProjection
from imagen_nb.pictures.pixels import Batch, Crop, resize
from imagen_nb.pictures.request import size_step
from imagen_nb.recipes import paper, toy
from imagen_nb.sampling import SAMPLERS
from imagen_nb.stage import (
    Draws,
    Stage,
    StageConfig,
    denoiser,
    has_fast_bf16,
    lowres_pair,
    noisy_lowres,
    sampling_config,
    sampling_lowres,
)
from imagen_nb.store.checkpoint import CheckpointError, load_directory, save_directory, verify
from imagen_nb.store.config import config_from_dict, config_to_dict
from imagen_nb.store.keyed import keyed_noise
from imagen_nb.text import TextEmbedding

WORLD = ShapesWorld("valid", level="quick", size=64)
BASE_STAGE = StageConfig(size=16, network=BASE, steps=4, w=2.0, sampler="ddim")
SR_STAGE = StageConfig(
    size=64,
    lowres_size=16,
    crop=32,
    network=SR,
    target="x0",
    loss_weight="x0",
    steps=3,
    w=2.0,
    sampler="ddim",
)


def text(b, seed=0):
    return TextEmbedding(
        torch.randn(b, 5, 12, generator=torch.Generator().manual_seed(seed)),
        torch.ones(b, 5, dtype=torch.bool),
    )


def awake(config):
    torch.manual_seed(0)
    stage = Stage(config)
    for p in stage.network.parameters():
        p.data.add_(0.05 * torch.randn(p.shape))
    stage.is_trained = True
    return stage


class Recorder(torch.nn.Module):
    "A network that returns zeros and remembers what it was given."

    def __init__(self):
        super().__init__()
        self.p, self.calls = torch.nn.Parameter(torch.zeros(1)), []

    def forward(self, *args):
        self.calls.append(args)
        return torch.zeros_like(args[0]) + self.p


def sr_inputs(top, left):
    crop = Crop(torch.tensor([top - 8]), torch.tensor([left - 8]), 32 + 16, 32 + 16)
    return WORLD.images([5], crop=crop)


def both_paths(whole, top, left, aug_t, seed=3):
    "Conditioning picture and level as the network sees them: training on a crop, sampling the whole."
    recorder = Recorder()
    stage, m = Stage(replace(SR_STAGE, size=64), recorder), 8
    stage.sample(text(1), resize(whole, 16), seeds=[seed], aug_t=aug_t, w=1.0, steps=1)
    _, _, _, sampled, told = recorder.calls[0]
    eps = keyed_noise([seed], (3, 18, 18), "aug 64")[
        ..., top // 4 : top // 4 + 10, left // 4 : left // 4 + 10
    ]
    draws = Draws(
        torch.tensor([0.5]),
        torch.zeros(1, 3, 32, 32),
        torch.tensor([True]),
        torch.tensor([aug_t]),
        eps,
    )
    padded = F.pad(whole, (m, m, m, m), mode="replicate")
    stage.loss(
        Batch(
            padded[..., top : top + 32 + 2 * m, left : left + 32 + 2 * m],
            text(1),
            torch.tensor([0]),
        ),
        draws,
    )
    _, _, _, trained, taught = recorder.calls[-1]
    return trained, taught, sampled[..., top : top + 32, left : left + 32], told


@pytest.mark.parametrize("top, left", [(4, 4), (16, 12), (28, 8), (20, 28)])
@pytest.mark.parametrize("aug_t", [0.0, 0.1, 0.7])
def test_training_path_equals_sampling_path_bit_for_bit(top, left, aug_t):
    "Inside the frame; pictures are noise, which hides nothing."
    whole = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    trained, taught, sampled, told = both_paths(whole, top, left, aug_t)
    assert torch.equal(trained, sampled) and torch.equal(taught, told)


def test_at_the_frame_both_paths_differ_in_two_pixels_alone():
    "Training repeats the edge of the large picture, sampling that of the small one: it has no other."
    whole = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    trained, _, sampled, _ = both_paths(whole, 0, 0, 0.1)
    assert (
        torch.equal(trained[..., 2:, 2:], sampled[..., 2:, 2:])
        and (trained - sampled).abs().max() > 0.01
    )
    trained, _, sampled, _ = both_paths(resize(WORLD.images([5]), 64), 0, 0, 0.1)
    torch.testing.assert_close(trained, sampled, atol=1e-3, rtol=0)  # a plain background hides it


def test_crop_then_resize_is_resize_then_crop():
    x0, low = lowres_pair(sr_inputs(16, 12), 4)
    whole = WORLD.images([5])
    torch.testing.assert_close(x0, whole[..., 16:48, 12:44])
    torch.testing.assert_close(low, resize(whole, 16)[..., 3:13, 2:12], atol=1e-5, rtol=0)


def test_augmentation_is_the_forward_process_before_enlargement():
    low, eps = torch.randn(2, 3, 10, 10), torch.randn(2, 3, 10, 10)
    log_snr = cosine_log_snr(torch.tensor([0.2, 0.7]))
    alpha, sigma = (o[:, None, None, None] for o in alpha_sigma(log_snr))
    expected = F.interpolate(
        alpha * low + sigma * eps, scale_factor=4, mode="bilinear", align_corners=False
    )[..., 4:-4, 4:-4]
    torch.testing.assert_close(noisy_lowres(low, log_snr, eps, 4), expected, atol=1e-5, rtol=1e-5)


def test_sampling_corrupts_its_input_with_the_function_of_training():
    low, config = torch.randn(2, 3, 16, 16), replace(SR_STAGE, aug_t=0.4)
    shown, level = sampling_lowres(low, config, seeds=[3, 5])
    torch.testing.assert_close(level, cosine_log_snr(torch.tensor([0.4, 0.4])))
    eps = keyed_noise([3, 5], (3, 18, 18), f"aug {config.size}")
    by_hand = noisy_lowres(F.pad(low, (1, 1, 1, 1), mode="replicate"), level, eps, 4)
    assert torch.equal(shown, by_hand)
    other, _ = sampling_lowres(low[1:], config, seeds=[5])
    torch.testing.assert_close(other, shown[1:])


def test_levels_are_per_example_in_training_and_one_in_sampling():
    recorder, levels = Recorder(), torch.tensor([0.05, 0.3, 0.9])
    stage = Stage(SR_STAGE, recorder)
    images = torch.zeros(3, 3, 48, 48)
    draws = Draws(
        torch.rand(3),
        torch.zeros(3, 3, 32, 32),
        torch.ones(3, dtype=torch.bool),
        levels,
        torch.randn(3, 3, 10, 10),
    )
    stage.loss(Batch(images, text(3), torch.arange(3)), draws)
    torch.testing.assert_close(recorder.calls[-1][4], cosine_log_snr(levels))
    spread, sigma = recorder.calls[-1][3].std((1, 2, 3)), alpha_sigma(cosine_log_snr(levels))[1]
    assert (
        (spread / sigma - spread[0] / sigma[0]).abs() < 0.2
    ).all()  # each picture has the noise of its own level
    stage.sample(text(3), torch.zeros(3, 3, 16, 16), seeds=[0, 1, 2], aug_t=0.3, w=1.0, steps=3)
    for call in recorder.calls[-3:]:
        torch.testing.assert_close(call[4], cosine_log_snr(torch.full((3,), 0.3)))


def test_network_is_told_the_augmentation_level_it_gets():
    recorder = Recorder()
    stage = Stage(SR_STAGE, recorder)
    stage.sample(text(1), torch.zeros(1, 3, 16, 16), seeds=[0], aug_t=0.6, w=1.0, steps=2)
    torch.testing.assert_close(recorder.calls[0][4], cosine_log_snr(torch.tensor([0.6])))
    sigma = alpha_sigma(cosine_log_snr(torch.tensor(0.6)))[1]
    assert recorder.calls[0][3].std() > 0.4 * sigma  # the noise is there
    torch.testing.assert_close(recorder.calls[0][3], recorder.calls[1][3])  # drawn once
    draws = Draws(
        torch.tensor([0.5]),
        torch.zeros(1, 3, 32, 32),
        torch.tensor([True]),
        torch.tensor([0.3]),
        torch.zeros(1, 3, 10, 10),
    )
    stage.loss(Batch(sr_inputs(16, 12), text(1), torch.tensor([0])), draws)
    torch.testing.assert_close(recorder.calls[-1][4], cosine_log_snr(torch.tensor([0.3])))


def test_loss_sees_what_it_should():
    recorder = Recorder()
    stage = Stage(BASE_STAGE, recorder)
    x0, b = WORLD.images(range(6), 16), 6
    eps = torch.randn(b, 3, 16, 16)
    keep = torch.tensor([True, False] * 3)
    draws = Draws(torch.linspace(0.1, 0.9, b), eps, keep)
    loss = stage.loss(Batch(x0, text(b), torch.arange(b)), draws)
    z_t, log_snr, words = recorder.calls[0][:3]
    torch.testing.assert_close(log_snr, cosine_log_snr(draws.t))
    alpha, sigma = (torch.cos(draws.t * torch.pi / 2), torch.sin(draws.t * torch.pi / 2))
    torch.testing.assert_close(
        z_t,
        alpha[:, None, None, None] * x0 + sigma[:, None, None, None] * eps,
        atol=1e-4,
        rtol=1e-4,
    )
    torch.testing.assert_close(loss, eps.square().mean((1, 2, 3)))
    assert (
        words.tokens[~keep].abs().max() == 0 and (words.tokens[keep] == text(b).tokens[keep]).all()
    )


def test_guidance_and_threshold_are_inside_the_denoiser():
    class Words(torch.nn.Module):
        "Predicts a constant picture: the mean of the words."

        def __init__(self):
            super().__init__()
            self.p = torch.nn.Parameter(torch.zeros(1))

        def forward(self, z, log_snr, text, *_):
            value = (text.tokens * text.mask[..., None]).mean((1, 2))
            return value[:, None, None, None].expand_as(z)

    stage = Stage(replace(BASE_STAGE, target="x0"), Words())
    words = TextEmbedding(torch.full((1, 5, 12), 0.2), torch.ones(1, 5, dtype=torch.bool))
    z, log_snr = torch.randn(1, 3, 16, 16), torch.tensor(0.0)
    assert abs(denoiser(stage, words, 1.0, None)(z, log_snr).mean() - 0.2) < 1e-5
    assert abs(denoiser(stage, words, 3.0, None)(z, log_snr).mean() - 0.6) < 1e-5  # 3*.2 - 2*0
    assert abs(denoiser(stage, words, 9.0, "static")(z, log_snr).max() - 1) < 1e-5


def test_each_guess_is_watched_before_its_threshold():
    class Loud(Recorder):
        def forward(self, z, *_):
            return torch.full_like(z, 3.0) + self.p

    stage, seen = Stage(replace(BASE_STAGE, target="x0"), Loud()), []
    out = stage.sample(text(2), seeds=[0, 1], steps=3, threshold="static", watch=seen.append)
    assert len(seen) == 3 and all((o == 3).all() and o.shape == (2, 3, 16, 16) for o in seen)
    assert (out == 1).all()


def test_no_threshold_can_be_asked_for():
    "None is a threshold; of every other option it leaves what the config says."
    asked = sampling_config(SR_STAGE, steps=None, w=None, sampler=None, aug_t=None, threshold=None)
    assert SR_STAGE.threshold == "dynamic" and asked == replace(SR_STAGE, threshold=None)


def test_a_misspelt_option_is_refused():
    with pytest.raises(ValueError, match=r"got unknown options \['stepz'\], expected among"):
        Stage(BASE_STAGE, Recorder()).sample(text(1), seeds=[0], stepz=3)


def test_a_drawing_leaves_the_network_as_it_was():
    stage = Stage(BASE_STAGE, Recorder())
    for mode in (True, False):
        stage.network.train(mode)
        stage.sample(text(1), seeds=[0], steps=1)
        assert stage.network.training is mode


class Forgetful(torch.nn.Module):
    "Half of its values are dropped while it is trained."

    def __init__(self):
        super().__init__()
        self.drop, self.p = torch.nn.Dropout(0.5), torch.nn.Parameter(torch.ones(()))

    def forward(self, z_t, log_snr, text, lowres=None, aug_log_snr=None):
        return self.drop(self.p * z_t)


def test_nothing_is_dropped_while_drawing():
    stage = Stage(BASE_STAGE, Forgetful().train())
    found = stage.sample(text(1), seeds=[0])
    stage.network.eval()
    assert torch.equal(found, stage.sample(text(1), seeds=[0])) and (found != 0).all()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_drawing_that_is_interrupted_leaves_each_part_as_it_was(error):
    stage = awake(BASE_STAGE)
    stage.network.train().middle.eval()  # a part that someone has frozen
    modes = [m.training for m in stage.network.modules()]

    def stop(x0_hat):
        assert not any(m.training for m in stage.network.modules())
        raise error

    with pytest.raises(error):
        stage.sample(text(1), seeds=[0], watch=stop)
    assert [m.training for m in stage.network.modules()] == modes
    stage.sample(text(1), seeds=[0])
    assert [m.training for m in stage.network.modules()] == modes


def test_residual_prediction_is_used_in_both_paths():
    recorder = Recorder()
    stage = Stage(replace(SR_STAGE, is_residual=True), recorder)
    low = resize(WORLD.images([5]), 16)
    out = stage.sample(text(1), low, seeds=[0], aug_t=0.0, w=1.0, steps=2, threshold=None)
    torch.testing.assert_close(out, recorder.calls[0][3].clamp(-1, 1), atol=2e-3, rtol=0)
    draws = Draws(
        torch.tensor([0.5]),
        torch.zeros(1, 3, 32, 32),
        torch.tensor([True]),
        torch.tensor([0.0]),
        torch.zeros(1, 3, 10, 10),
    )
    loss = stage.loss(Batch(sr_inputs(16, 12), text(1), torch.tensor([0])), draws)
    expected = (recorder.calls[-1][3] - WORLD.images([5])[..., 16:48, 12:44]).square().mean()
    torch.testing.assert_close(loss[0], expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
def test_a_picture_depends_on_its_own_seed_and_caption_only(sampler):
    stage = awake(replace(BASE_STAGE, sampler=sampler))
    images = stage.sample(text(3), seeds=[5, 6, 5])
    alone = stage.sample(text(3).rows([2]), seeds=[5])
    torch.testing.assert_close(alone, images[2:], atol=1e-3, rtol=0)
    assert (images[0] - images[1]).abs().max() > 0.05 and images.abs().max() <= 1
    assert (images[0] - images[2]).abs().max() > 1e-4, "the caption must matter"


def test_each_step_has_noise_of_its_own(monkeypatch):
    "In every stage: a sampler is given noise that it has not had before."
    found = []

    def told(denoise, z, log_snrs, *, noise):
        found.extend([z, noise(0, z), noise(1, z)])
        yield 0, z, z

    monkeypatch.setitem(SAMPLERS, "told", told)
    for k in (1, 2):
        stage = Stage(replace(BASE_STAGE, size=16 * k, sampler="told"), Recorder())
        stage.sample(text(1), seeds=[0])
    first = torch.stack([z.flatten()[: 3 * 16**2] for z in found])
    assert (torch.corrcoef(first) - torch.eye(6)).abs().max() < 0.2


def test_guidance_enlarges_each_picture_beside_its_neighbors():
    "Both branches of a batch see the low-res picture of their own row."
    stage, low = awake(SR_STAGE), WORLD.images([1, 2, 3], 16)
    images = stage.sample(text(3), low, seeds=[5, 6, 7], w=3.0)
    for k in range(3):
        alone = stage.sample(text(3).rows([k]), low[[k]], seeds=[5 + k], w=3.0)
        torch.testing.assert_close(alone, images[[k]], atol=1e-3, rtol=0)


def test_what_was_never_trained_is_still_untrained_when_loaded(tmp_path):
    imagen = Imagen(None, [awake(BASE_STAGE), Stage(SR_STAGE)])
    imagen.save_pretrained(tmp_path / "m")
    assert [o.is_trained for o in Imagen.from_pretrained(tmp_path / "m").stages] == [True, False]


def test_cascade_runs_saves_and_loads(tmp_path):
    imagen = Imagen(None, [awake(BASE_STAGE), awake(SR_STAGE)])
    first, second = imagen.sample(text(2), return_all=True, batch_size=1, w=[2.0, 1.0])
    assert first.shape == (2, 3, 16, 16) and second.shape == (2, 3, 64, 64)
    torch.testing.assert_close(imagen.sample(text(2), w=[2.0, 1.0]), second, atol=2e-3, rtol=0)
    imagen.save_pretrained(tmp_path / "m", dtype=torch.float32)
    again = Imagen.from_pretrained(tmp_path / "m")
    torch.testing.assert_close(again.sample(text(2), w=[2.0, 1.0]), second, atol=2e-3, rtol=0)
    assert [s.config for s in again.stages] == [BASE_STAGE, SR_STAGE]


def cascade():
    return Imagen(None, [awake(BASE_STAGE), awake(SR_STAGE)])


def test_pictures_per_caption_and_a_seed_for_each():
    imagen, words = cascade(), text(2)
    images = imagen.sample(words, n=3, stages=1)
    assert images.shape == (6, 3, 16, 16)
    by_hand = torch.cat(
        [imagen.sample(words.rows([k // 3]), seeds=[k], stages=1) for k in range(6)]
    )
    torch.testing.assert_close(
        images, by_hand, atol=1e-3, rtol=0
    )  # captions in order, each with its pictures; seeds 0, 1, 2, ...
    assert min((images[i] - images[j]).abs().max() for i in range(6) for j in range(i)) > 0.05
    same = imagen.sample(words, n=2, seeds=[7, 7, 8, 7], stages=1)
    torch.testing.assert_close(same[0], same[1])
    assert (same[2] - same[3]).abs().max() > 0.05


def test_start_and_stop_at_any_stage():
    imagen, words = cascade(), text(2)
    first, second = imagen.sample(words, return_all=True)
    torch.testing.assert_close(imagen.sample(words, stages=1), first, atol=1e-3, rtol=0)
    torch.testing.assert_close(imagen.sample(words, lowres=first), second, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        imagen.stages[1].sample(words, first, seeds=[0, 1]), second, atol=1e-3, rtol=0
    )


def test_options_per_stage_reach_their_stage():
    stages = [Stage(BASE_STAGE, Recorder()), Stage(SR_STAGE, Recorder())]
    Imagen(None, stages).sample(
        text(3),
        steps=[2, 5],
        w=[1.0, 3.0],
        aug_t=[0.0, 0.7],
        batch_size=[3, 2],
        sampler=["ddpm", "ddim"],
        threshold=[None, "static"],
    )
    base, sr = (o.network.calls for o in stages)
    assert [len(c[0]) for c in base] == [3] * 2 and [len(c[0]) for c in sr] == [4] * 5 + [
        2
    ] * 5  # w != 1: two branches
    torch.testing.assert_close(sr[0][4], cosine_log_snr(torch.full((4,), 0.7)))


@pytest.mark.parametrize("size", [(12, 20), (16, 40), (8, 8)])
def test_other_sizes_end_to_end(size):
    h, w = size
    first, second = cascade().sample(text(1), size=size, return_all=True)
    assert first.shape == (1, 3, h, w) and second.shape == (1, 3, 4 * h, 4 * w)
    low = torch.rand(1, 3, h, w)
    assert awake(SR_STAGE).sample(text(1), low, seeds=[0]).shape == (1, 3, 4 * h, 4 * w)


def test_a_picture_that_is_not_square_is_enlarged_by_the_stage_made_for_one_of_its_sides():
    imagen = cascade()
    assert imagen.sample(text(1), lowres=torch.zeros(1, 3, 16, 24)).shape == (1, 3, 64, 96)
    with pytest.raises(ValueError, match=r"got 20 x 24 pixels, expected a side among \[16\]"):
        imagen.sample(text(1), lowres=torch.zeros(1, 3, 20, 24))


def test_a_classic_network_can_enlarge():
    config = StageConfig(
        size=32,
        lowres_size=16,
        network=replace(BASE, has_lowres=True),
        target="x0",
        loss_weight="x0",
        steps=2,
        w=2.0,
        sampler="ddim",
    )
    low = torch.rand(2, 3, 16, 16) * 2 - 1
    one, other = (awake(config).sample(text(2), o, seeds=[0, 1]) for o in (low, -low))
    assert one.shape == (2, 3, 32, 32) and (one - other).abs().max() > 0.05
    for network, lowres_size in (
        (BASE, 16),
        (replace(BASE, has_lowres=True), None),
        (SR, None),
        (replace(SR, has_lowres=False), 16),
    ):
        with pytest.raises(ValueError, match="has_lowres"):
            StageConfig(size=32, network=network, lowres_size=lowres_size)
    assert StageConfig(size=32, network=replace(SR, has_lowres=False)).margin == 0


def test_pixels_at_a_time_are_bounded():
    class Counter(Recorder):
        "Remembers shapes alone."

        def forward(self, *args):
            self.calls.append(tuple(args[0].shape))
            return torch.zeros_like(args[0])

    stages = [
        Stage(replace(BASE_STAGE, size=256, steps=1), Counter()),
        Stage(replace(SR_STAGE, size=1024, lowres_size=256, steps=1, crop=None), Counter()),
    ]
    Imagen(None, stages).sample(text(1), n=20, w=1.0)
    assert [c[0] for c in stages[0].network.calls] == [16, 4]
    assert [c[0] for c in stages[1].network.calls] == [1] * 20 and 1024**2 == PIXELS


def test_progress_counts_every_step(capsys):
    cascade().sample(text(3), batch_size=2, progress=True)
    err = capsys.readouterr().err
    assert "16 px: 100%" in err and "8/8" in err and "6/6" in err


@pytest.mark.parametrize(
    "request_, words",
    [
        (dict(seeds=[0]), "got 1, expected one for each of 2"),
        (dict(n=2, seeds=[0, 1]), "got 2, expected one for each of 4"),
        (dict(n=0), "n, got 0, expected 1 or more"),
        (dict(n=1.0), "n, got 1.0, expected 1 or more"),
        (dict(seeds=1), "sample: seeds, got 1, expected a list of whole numbers"),
        (dict(seeds="12"), "seeds, got '12'"),
        (dict(seeds=[0.0, 1]), "seeds, got \\[0.0, 1\\], expected a list of whole numbers"),
        (dict(seeds=torch.rand(2)), "seeds, got tensor"),
        (dict(seeds={0, 1}), "seeds, got {0, 1}"),
        (dict(seeds=range(3)), "seeds, got 3, expected one for each of 2"),
        (dict(size=16.0), "size, got 16.0, expected a whole number of pixels or"),
        (dict(size="16x16"), "size, got '16x16'"),
        (dict(size=(16,)), "size, got \\(16,\\)"),
        (dict(size=(16.0, 16.0)), "size, got \\(16.0, 16.0\\)"),
        (dict(w="2"), "w, got '2', expected a number"),
        (dict(w=torch.tensor([1.0, 2.0])), "w, got tensor"),
        (dict(w=float("inf")), "w, got inf"),
        (dict(steps=1.5), "steps, got 1.5"),
        (dict(sampler="ddmp"), "did you mean ddpm"),
        (dict(sampler="DDIM"), "did you mean ddim"),
        (dict(treshold=None), "did you mean threshold"),
        (dict(batch_size=0), "Imagen.sample: batch_size, got 0, expected 1 or more"),
        (dict(batch_size=[1, 2.0]), "batch_size, got 2.0"),
        (dict(stages=[0]), "stages, got \\[0\\], expected 1 to 2"),
        (dict(stages=1.0), "stages, got 1.0"),
        (dict(lowres=Image.new("RGB", (16, 16))), "lowres, got a PIL.Image.Image, .*to_square"),
        (
            dict(lowres=np.zeros((2, 3, 16, 16), "f")),
            "lowres, got a numpy.ndarray, expected a tensor",
        ),
        (dict(lowres=[torch.zeros(3, 16, 16)] * 2), "lowres, got a list"),
        (
            dict(lowres=torch.zeros(3, 16, 16)),
            "lowres, got \\(3, 16, 16\\), expected \\(2, 3, h, w\\)",
        ),
        (dict(lowres=torch.zeros(2, 3, 16, 16, device="meta")), "on meta"),
        (
            dict(size=(17, 30)),
            "got 17 x 30 pixels, expected multiples of 2; the nearest is 16 x 30",
        ),
        (dict(size=15), "nearest is 16 x 16"),
        (dict(size=(16, 16, 16)), "size"),
        (dict(size=0), "nearest is 2 x 2"),
        (dict(sampler="euler"), "sampler, got 'euler'"),
        (dict(sampler=["ddim", "euler"]), "euler"),
        (dict(threshold="much"), "threshold"),
        (dict(aug_t=1.5), "aug_t, got 1.5, expected a number, 0 to 1"),
        (dict(aug_t=[0.1, -0.1]), "aug_t, got -0.1"),
        (dict(steps=0), "steps, got 0"),
        (dict(steps=[4]), "steps, got 1 values"),
        (dict(steps=[4, 4, 4]), "steps, got 3 values"),
        (dict(w=float("nan")), "w, got nan"),
        (dict(stepz=4), "unknown options"),
        (dict(stages=0), "expected 1 to 2"),
        (dict(stages=3), "expected 1 to 2"),
        (dict(lowres=torch.zeros(2, 3, 10, 10)), "a side among"),
        (dict(lowres=torch.zeros(1, 3, 16, 16)), "lowres, got \\(1, 3"),
        (dict(lowres=torch.full((2, 3, 16, 16), 2.0)), "outside"),
        (dict(lowres=torch.full((2, 3, 16, 16), float("nan"))), "outside"),
        (dict(lowres=torch.zeros(2, 3, 16, 16, dtype=torch.uint8)), "expected floats"),
        (dict(lowres=torch.zeros(2, 3, 16, 16), size=16), "expected one of them"),
        (dict(lowres=torch.zeros(2, 3, 16, 16), stages=1), "lowres"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_computed(request_, words):
    stages = [Stage(BASE_STAGE, Recorder()), Stage(SR_STAGE, Recorder())]
    with pytest.raises(ValueError, match=words):
        Imagen(None, stages).sample(text(2), **request_)
    assert not any(o.network.calls for o in stages)


@pytest.mark.parametrize(
    "captions, words",
    [
        (None, "got None"),
        (3, "got 3"),
        (b"red", "got b'red'"),
        (["a", ["b"]], "1 that are no str"),
        ((c for c in "ab"), "got <generator"),
        ([], "at least one str"),
        ("red", "a string"),
        (torch.zeros(1, 5, 12), "got tensor"),
    ],
)
def test_what_is_no_list_of_captions_is_refused(captions, words):
    imagen = Imagen(Letters(), [Stage(BASE_STAGE, Recorder())])
    with pytest.raises(ValueError, match="^Imagen.sample: captions, got.*expected") as e:
        imagen.sample(captions)
    assert words in str(e.value) and not imagen.stages[0].network.calls
    assert imagen.sample(("a", "b"), steps=1).shape == (2, 3, 16, 16)
    for other in (captions, ["a"], None):
        with pytest.raises(ValueError, match="Stage.sample: text, got a .*a TextEmbedding"):
            imagen.stages[0].sample(other, seeds=[0])


def test_numbers_out_of_arrays_draw_what_plain_ones_do():
    imagen, words = cascade(), text(2)
    plainly = dict(n=1, size=12, w=1.5, steps=2, aug_t=0.25, batch_size=1, seeds=[3, 2**70])
    made = imagen.sample(words, **plainly)
    arrays = {k: np.asarray(v)[()] for k, v in plainly.items() if k != "seeds"}
    tensors = {k: torch.tensor(v) for k, v in plainly.items() if k != "seeds"}
    for numbers in (arrays, tensors, dict(plainly, size=np.array([12, 12]), n=np.uint8(1))):
        assert torch.equal(imagen.sample(words, **dict(plainly) | numbers), made)
    first = imagen.sample(words, seeds=[3, 4], stages=np.int64(1))
    for seeds in (
        range(3, 5),
        np.array([3, 4]),
        torch.tensor([3, 4]),
        iter([3, 4]),
        (np.int8(3), 4),
    ):
        assert torch.equal(imagen.sample(words, seeds=seeds, stages=1), first)


def test_an_untrained_stage_anywhere_is_refused_before_anything_is_computed():
    class Encoder:
        def __call__(self, captions):
            raise AssertionError("captions were encoded")

    base = Stage(BASE_STAGE, Recorder())
    imagen = Imagen(Encoder(), [base, Stage(SR_STAGE)])
    with pytest.raises(ValueError, match="the 64 px stage was never trained"):
        imagen.sample(["a", "b"])
    assert not base.network.calls and imagen.sample(text(1), stages=1).shape == (1, 3, 16, 16)


def test_a_level_above_those_of_training_is_said():
    stage = Stage(replace(SR_STAGE, aug_max=0.2), Recorder())
    with pytest.warns(UserWarning, match="never saw that level"):
        stage.sample(text(1), torch.zeros(1, 3, 16, 16), seeds=[0], aug_t=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stage.sample(text(1), torch.zeros(1, 3, 16, 16), seeds=[0], aug_t=0.2)


def test_sides_suit_every_network():
    assert (
        size_step(toy().stages) == 4
        and size_step(toy().stages[2:]) == 4
        and size_step(paper().stages) == 8
    )
    for stages in (toy().stages, paper().stages):  # by trying
        fits = [
            s
            for s in range(1, 65)
            if all(s * c.size // stages[0].size % c.network.stride == 0 for c in stages)
        ]
        assert fits[0] == size_step(stages)


# ---------------------------------------------------------------- files

DATA = Path(__file__).parent / "data"


def test_the_oldest_cascade_still_draws_its_picture(monkeypatch):
    monkeypatch.setattr(
        "imagen_nb.stage.has_fast_bf16", lambda device: False
    )  # it was drawn in fp32
    verify(DATA / "oldest_cascade")
    imagen = Imagen.from_pretrained(DATA / "oldest_cascade")
    words = TextEmbedding(
        torch.linspace(-1, 1, 12).reshape(1, 3, 4), torch.ones(1, 3, dtype=torch.bool)
    )
    then = (
        torch.from_numpy(np.array(Image.open(DATA / "oldest_cascade.png"))).permute(2, 0, 1) / 127.5
        - 1
    )

    def gap(words, seed):
        return (imagen.sample(words, seeds=[seed])[0] - then).abs().max()

    assert gap(words, 5) < 0.02  # a step of a PNG file is 0.008
    assert gap(words, 6) > 0.2 and gap(words.null(), 5) > 0.05


def test_a_newer_format_is_refused_and_both_are_named(tmp_path, monkeypatch):
    from imagen_nb.store import manifest

    with monkeypatch.context() as m:
        m.setattr(manifest, "FORMAT", 7)
        cascade().save_pretrained(tmp_path / "new")
    with pytest.raises(
        CheckpointError, match=f"got format 7 of imagen_nb .*, expected format {manifest.FORMAT}"
    ):
        Imagen.from_pretrained(tmp_path / "new")
    tensors, meta = load_directory(DATA / "oldest_cascade")
    meta["stages"][0]["invented_later"] = 1
    save_directory(tmp_path / "key", tensors, meta)
    with pytest.raises(ValueError, match="invented_later"):
        Imagen.from_pretrained(tmp_path / "key")


def test_the_model_card_is_valid_and_tells_what_is_known(tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    from imagen_nb.store.files import assets

    card = json.loads((assets() / "runs" / "toy-full.json").read_text())
    imagen = cascade()
    imagen.stages[1].is_trained = False
    imagen.save_pretrained(tmp_path / "m", card=card)
    told = hub.ModelCard.load(tmp_path / "m" / "README.md")
    assert (
        told.data.license == "apache-2.0"
        and told.data.library_name == "imagen_nb"
        and told.data.pipeline_tag == "text-to-image"
    )
    for o in imagen.stages:
        assert f"{sum(p.numel() for p in o.network.parameters()):,}" in told.text
    share = card["seeds"][0]["scores"]["512"]["all"]["all"]["share"]
    for words in (
        "16 → 64 px",
        'from_pretrained("m")',
        f"{100 * share:.1f}",
        card["note"],
        "## Limits",
        "The 64 px model was never trained",
        "## Licence",
    ):
        assert words in told.text
    (tmp_path / "m" / "README.md").write_text(
        "edited on the hub"
    )  # no digest covers what people write
    assert Imagen.from_pretrained(tmp_path / "m").stages[0].config == BASE_STAGE
    cascade().save_pretrained(tmp_path / "m")
    assert "never trained" not in (tmp_path / "m" / "README.md").read_text()


def test_to_the_hub_and_back(tmp_path, monkeypatch):
    hub, calls = pytest.importorskip("huggingface_hub"), []

    class Hub:
        "Keeps repositories in a folder."

        def create_repo(self, name, exist_ok):
            calls.append((name, exist_ok))

        def upload_folder(self, repo_id, folder_path):
            shutil.copytree(folder_path, tmp_path / repo_id)

    def download(name, allow_patterns):
        if not (tmp_path / name).exists():
            raise OSError("404\nand more")
        shutil.copytree(
            tmp_path / name,
            tmp_path / "cache",
            ignore=lambda _, names: [
                o for o in names if not any(Path(o).match(p) for p in allow_patterns)
            ],
        )
        return str(tmp_path / "cache")

    monkeypatch.setattr(hub, "HfApi", Hub)
    monkeypatch.setattr(hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path / "..")
    imagen = cascade()
    imagen.push_to_hub("someone/shapes", dtype=torch.float32)
    assert (
        calls == [("someone/shapes", True)]
        and 'from_pretrained("someone/shapes")'
        in (tmp_path / "someone" / "shapes" / "README.md").read_text()
    )
    again = Imagen.from_pretrained("someone/shapes")
    assert not (tmp_path / "cache" / "README.md").exists() and [o.config for o in again.stages] == [
        BASE_STAGE,
        SR_STAGE,
    ]
    torch.testing.assert_close(again.sample(text(1)), imagen.sample(text(1)), atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="not to be had from the hub .OSError: 404"):
        Imagen.from_pretrained("someone/else")


def test_the_directory_of_a_run_is_a_model_once_it_has_one(tmp_path):
    run, imagen = tmp_path / "run", cascade()
    run.mkdir()
    (run / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=f"a run without a model.*imagen-nb export {run} OUT"):
        Imagen.from_pretrained(run)
    imagen.save_pretrained(run / "model")
    for name in (run, str(run), run / "model"):
        assert [o.config for o in Imagen.from_pretrained(name).stages] == [BASE_STAGE, SR_STAGE]
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty"):
        Imagen.from_pretrained(tmp_path / "empty")


def test_a_model_of_another_kind_is_refused(tmp_path):
    save_directory(tmp_path / "m", {"a": {"x": torch.zeros(1)}}, dict(kind="judge"))
    with pytest.raises(
        ValueError, match="Imagen.from_pretrained: .*got 'judge', expected 'imagen'"
    ):
        Imagen.from_pretrained(tmp_path / "m")


class Letters:
    "A text encoder of one's own: a vector for each letter."

    width, identity = 12, dict(encoder="letters", dtype="float32", max_length=5, revision="1")

    def __call__(self, captions):
        codes = torch.tensor([[ord(c) % 12 for c in caption[:5].ljust(5)] for caption in captions])
        tokens = F.one_hot(codes, 12).float()
        return TextEmbedding(tokens, torch.ones(codes.shape, dtype=torch.bool))


def test_an_encoder_of_ones_own_draws_and_is_asked_for_when_loading(tmp_path):
    imagen = Imagen(Letters(), [awake(BASE_STAGE)])
    drawn = imagen.sample(["a red", "b red"])
    assert (drawn[0] - drawn[1]).abs().max() > 1e-3
    imagen.save_pretrained(tmp_path / "m", dtype=torch.float32)
    assert "encoder `letters`" in (tmp_path / "m" / "README.md").read_text()
    again = Imagen.from_pretrained(tmp_path / "m", Letters())
    torch.testing.assert_close(again.sample(["a red", "b red"]), drawn, atol=1e-3, rtol=0)
    other = Letters()
    other.identity = dict(Letters.identity, revision="2")
    with pytest.raises(ValueError, match="load_encoder: got .*expected the encoder of training"):
        Imagen.from_pretrained(tmp_path / "m", other)


def test_a_wrapped_network_is_saved_as_itself(tmp_path):
    stage = awake(BASE_STAGE)
    own = {k: v.clone() for k, v in stage.network.state_dict().items()}
    inside = awake(BASE_STAGE).network
    inside.middle = torch.compile(torch.nn.DataParallel(inside.middle), backend="eager")
    network = stage.network
    for k, wrapped in enumerate(
        (
            torch.compile(network, backend="eager"),
            torch.nn.DataParallel(network),
            torch.compile(torch.nn.DataParallel(network), backend="eager"),
            inside,
        )
    ):
        stage.network = wrapped
        Imagen(None, [stage]).save_pretrained(tmp_path / str(k), dtype=torch.float32)
        again = Imagen.from_pretrained(tmp_path / str(k)).stages[0].network.state_dict()
        assert again.keys() == own.keys() and all(torch.equal(again[k], own[k]) for k in own)
        assert "UNet" in (tmp_path / str(k) / "README.md").read_text()


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    stages = [awake(BASE_STAGE) for _ in range(3)]
    stages[0].network = torch.optim.swa_utils.AveragedModel(stages[0].network)
    stages[1].network.middle = torch.nn.Identity()
    torch.nn.utils.parametrizations.weight_norm(stages[2].network.conv_in)
    for stage in stages:
        with pytest.raises(ValueError, match="save_pretrained: 16 px: weights of another network"):
            Imagen(None, [stage]).save_pretrained(tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_weights_are_saved_so_that_they_come_back(tmp_path):
    imagen = Imagen(None, [awake(BASE_STAGE)])
    bias = imagen.stages[0].network.conv_in.bias.data
    for value in (float("nan"), float("-inf")):
        bias[0] = value
        for dtype in (torch.float16, torch.float32):
            with pytest.raises(ValueError, match="save_pretrained: stage0, conv_in.bias, got NaN"):
                imagen.save_pretrained(tmp_path / "m", dtype=dtype)
    bias[0] = 1e5
    for dtype in (torch.int8, torch.float64, torch.float8_e4m3fn, "float16", np.float16, None):
        with pytest.raises(
            ValueError, match="save_pretrained: dtype, got .*expected torch.float16"
        ):
            imagen.save_pretrained(tmp_path / "m", dtype=dtype)
    assert not list(tmp_path.iterdir())
    with pytest.warns(UserWarning, match="conv_in.bias, got 100000, more than 65504 of float16"):
        imagen.save_pretrained(tmp_path / "m")
    again = Imagen.from_pretrained(tmp_path / "m").stages[0].network
    assert torch.equal(again.conv_in.bias, bias) and again.conv_in.weight.dtype == torch.float32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        imagen.save_pretrained(tmp_path / "m", dtype=torch.bfloat16)


def test_no_picture_goes_to_a_device_that_is_not_there():
    for where in ("gpu", torch.float16, "float16"):
        with pytest.raises(ValueError, match="Stage.to: device, got"):
            cascade().to(where)
    assert cascade().to("cpu").stages[0].device.type == "cpu"


def test_damage_is_noticed(tmp_path):
    Imagen(None, [awake(BASE_STAGE)]).save_pretrained(tmp_path / "m")
    file = tmp_path / "m" / "stage0.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="stage0"):
        Imagen.from_pretrained(tmp_path / "m")


def test_refusals():
    with pytest.raises(ValueError, match="never trained"):
        Stage(BASE_STAGE).sample(text(1), seeds=[0])
    stage = awake(BASE_STAGE)
    with pytest.raises(ValueError, match="seeds"):
        stage.sample(text(2), seeds=[0])
    with pytest.raises(ValueError, match="lowres"):
        stage.sample(text(1), torch.zeros(1, 3, 4, 4), seeds=[0])
    with pytest.raises(ValueError, match="sampler"):
        stage.sample(text(1), seeds=[0], sampler="euler")
    with pytest.raises(ValueError, match="string"):
        Imagen(None, [stage]).sample("a red circle")
    with pytest.raises(ValueError, match="no text encoder"):
        Imagen(None, [stage]).sample(["a red circle"])
    with pytest.raises(ValueError, match="enlarge"):
        Imagen(None, [awake(SR_STAGE)])
    with pytest.raises(ValueError, match="enlarge"):
        Imagen(None, [])
    with pytest.raises(ValueError, match="lowres, got None"):
        awake(SR_STAGE).sample(text(1), seeds=[0])
    with pytest.raises(ValueError, match="got .1, 3"):
        awake(SR_STAGE).sample(text(2), torch.zeros(1, 3, 4, 4), seeds=[0, 1])
    with pytest.raises(ValueError, match="expected one of them"):
        awake(SR_STAGE).sample(text(1), torch.zeros(1, 3, 16, 16), seeds=[0], size=64)
    with pytest.raises(ValueError, match="target"):
        replace(BASE_STAGE, target="noise")
    for name, value in dict(
        size=65,
        crop=18,
        aug_max=1.1,
        aug_t=-0.1,
        steps=0,
        w=float("inf"),
        caption_drop=2.0,
        t_start=1.5,
    ).items():
        with pytest.raises(ValueError, match=f"StageConfig: {name}, got"):
            replace(SR_STAGE, **{name: value})
    with pytest.raises(ValueError, match="crop, got 128"):
        replace(SR_STAGE, crop=128)


@pytest.mark.parametrize("recipe", [toy, paper])
def test_configs_survive_json(recipe):
    for stage in recipe().stages:
        assert config_from_dict(json.loads(json.dumps(config_to_dict(stage)))) == stage
    with pytest.raises(ValueError, match="unknown"):
        config_from_dict(dict(config_to_dict(stage), extra=1))


def test_toy_is_a_cascade_of_factor_four():
    sizes = [(s.lowres_size, s.size) for s in toy().stages]
    assert sizes == [(None, 32), (32, 128), (128, 512)]
    assert [(s.lowres_size, s.size) for s in paper().stages] == [(None, 64), (64, 256), (256, 1024)]


@pytest.mark.parametrize("config", [BASE_STAGE, SR_STAGE])
@pytest.mark.parametrize("w", [1.0, 2.0])
def test_text_is_read_once_for_all_steps_and_pictures_stay_what_they_were(config, w, monkeypatch):
    stage, words = awake(config), text(2)
    words.mask[1, 3:] = False
    low = torch.rand(2, 3, 16, 16) * 2 - 1 if config.lowres_size else None
    readers = [m for m in stage.network.modules() if isinstance(m, (TextProjection, AttentionPool))]
    readers += [
        m.text_kv for m in stage.network.modules() if isinstance(m, Attention) and m.has_text
    ]
    calls = []
    for m in readers:
        m.register_forward_hook(lambda m, *_: calls.append(m))
    once = stage.sample(words, low, seeds=[0, 1], w=w)
    assert len(readers) > 2 and sorted(map(id, calls)) == sorted(map(id, readers))
    monkeypatch.setattr("imagen_nb.stage.RepeatedText", TextEmbedding)
    again = stage.sample(words, low, seeds=[0, 1], w=w)
    assert len(calls) == (1 + config.steps) * len(readers)
    # a CPU with fast bf16 computes networks in it
    torch.testing.assert_close(once, again, atol=1e-2 if has_fast_bf16("cpu") else 1e-5, rtol=0)


def test_attention_has_no_mask_where_repeated_text_has_no_padding(monkeypatch):
    asked, words = [], text(2)
    layer = Attention(32, 12, head_dim=16)
    torch.nn.init.normal_(layer.out.weight)
    real = layers.attend

    def noted(q, k, v, mask=None):
        asked.append(mask is not None)
        return real(q, k, v, mask)

    monkeypatch.setattr(layers, "attend", noted)
    x = torch.randn(2, 32, 4, 4)
    padded = TextEmbedding(words.tokens, words.mask.clone())
    padded.mask[1, 3:] = False
    plain = layer(x, words)
    torch.testing.assert_close(layer(x, layers.RepeatedText(*words)), plain)
    plain = layer(x, padded)
    torch.testing.assert_close(layer(x, layers.RepeatedText(*padded)), plain)
    assert asked == [True, False, True, True]  # training never looks: a GPU would be waited for

"""Stages and the cascade: one path for training and sampling, seeds, saving, refusal."""
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from imagen_nb.cascade import (CONFIGS, Draws, Imagen, Stage, StageConfig, config_from_dict, config_to_dict, denoiser,
                               lowres_pair, noisy_lowres, sampling_lowres)
from imagen_nb.checkpoint import CheckpointError
from imagen_nb.data import Batch, Crop, ShapesWorld, resize
from imagen_nb.diffusion import alpha_sigma, cosine_log_snr
from imagen_nb.recipes import paper, toy
from imagen_nb.sampling import keyed_noise
from imagen_nb.text import TextEmbedding
from test_networks import BASE, SR

WORLD = ShapesWorld("valid", level="quick", size=64)
BASE_STAGE = StageConfig(size=16, network=BASE, steps=4, w=2., sampler="ddim")
SR_STAGE = StageConfig(size=64, lowres_size=16, crop=32, network=SR, target="x0", loss_weight="x0", steps=3, w=2., sampler="ddim")


def text(b, seed=0):
    return TextEmbedding(torch.randn(b, 5, 12, generator=torch.Generator().manual_seed(seed)), torch.ones(b, 5, dtype=torch.bool))


def awake(config):
    torch.manual_seed(0)
    stage = Stage(config)
    for p in stage.network.parameters(): p.data.add_(.05*torch.randn(p.shape))
    stage.is_trained = True
    return stage


class Recorder(torch.nn.Module):
    "A network that returns zeros and remembers what it was given."
    def __init__(self): super().__init__(); self.p, self.calls = torch.nn.Parameter(torch.zeros(1)), []
    def forward(self, *args): self.calls.append(args); return torch.zeros_like(args[0]) + self.p


def sr_inputs(top, left):
    crop = Crop(torch.tensor([top - 8]), torch.tensor([left - 8]), 32 + 16, 32 + 16)
    return WORLD.images([5], crop=crop)


@pytest.mark.parametrize("top, left", [(16, 12), (0, 0), (32, 32)])
def test_training_path_equals_sampling_path(top, left):
    "The conditioning picture of a training crop is the crop of the conditioning picture that sampling makes."
    recorder = Recorder()
    stage, whole = Stage(SR_STAGE, recorder), WORLD.images([5])
    low = resize(whole, 16)
    stage.sample(text(1), low, seeds=[0], aug_t=0., w=1., steps=1)
    sampled = recorder.calls[0][3]
    draws = Draws(torch.tensor([.5]), torch.zeros(1, 3, 32, 32), torch.tensor([True]), torch.tensor([0.]), torch.zeros(1, 3, 10, 10))
    stage.loss(Batch(sr_inputs(top, left), text(1), torch.tensor([0])), draws)
    trained = recorder.calls[-1][3]
    torch.testing.assert_close(trained, sampled[..., top:top + 32, left:left + 32], atol=1e-3, rtol=0)


def test_crop_then_resize_is_resize_then_crop():
    x0, low = lowres_pair(sr_inputs(16, 12), 4)
    whole = WORLD.images([5])
    torch.testing.assert_close(x0, whole[..., 16:48, 12:44])
    torch.testing.assert_close(low, resize(whole, 16)[..., 3:13, 2:12], atol=1e-5, rtol=0)


def test_augmentation_is_the_forward_process_before_enlargement():
    low, eps = torch.randn(2, 3, 10, 10), torch.randn(2, 3, 10, 10)
    log_snr = cosine_log_snr(torch.tensor([.2, .7]))
    alpha, sigma = (o[:, None, None, None] for o in alpha_sigma(log_snr))
    expected = F.interpolate(alpha*low + sigma*eps, scale_factor=4, mode="bilinear", align_corners=False)[..., 4:-4, 4:-4]
    torch.testing.assert_close(noisy_lowres(low, log_snr, eps, 4), expected, atol=1e-5, rtol=1e-5)


def test_sampling_corrupts_its_input_with_the_function_of_training():
    low, config = torch.randn(2, 3, 16, 16), replace(SR_STAGE, aug_t=.4)
    shown, level = sampling_lowres(low, config, seeds=[3, 5])
    torch.testing.assert_close(level, cosine_log_snr(torch.tensor([.4, .4])))
    eps = keyed_noise([3, 5], (3, 18, 18), f"aug {config.size}")
    by_hand = noisy_lowres(F.pad(low, (1, 1, 1, 1), mode="replicate"), level, eps, 4)
    assert torch.equal(shown, by_hand)
    other, _ = sampling_lowres(low[1:], config, seeds=[5])
    torch.testing.assert_close(other, shown[1:])


def test_network_is_told_the_augmentation_level_it_gets():
    recorder = Recorder()
    stage = Stage(SR_STAGE, recorder)
    stage.sample(text(1), torch.zeros(1, 3, 16, 16), seeds=[0], aug_t=.6, w=1., steps=2)
    torch.testing.assert_close(recorder.calls[0][4], cosine_log_snr(torch.tensor([.6])))
    sigma = alpha_sigma(cosine_log_snr(torch.tensor(.6)))[1]
    assert recorder.calls[0][3].std() > .4*sigma                    # the noise is there
    torch.testing.assert_close(recorder.calls[0][3], recorder.calls[1][3])  # drawn once
    draws = Draws(torch.tensor([.5]), torch.zeros(1, 3, 32, 32), torch.tensor([True]), torch.tensor([.3]), torch.zeros(1, 3, 10, 10))
    stage.loss(Batch(sr_inputs(16, 12), text(1), torch.tensor([0])), draws)
    torch.testing.assert_close(recorder.calls[-1][4], cosine_log_snr(torch.tensor([.3])))


def test_loss_sees_what_it_should():
    recorder = Recorder()
    stage = Stage(BASE_STAGE, recorder)
    x0, b = WORLD.images(range(6), 16), 6
    eps = torch.randn(b, 3, 16, 16)
    keep = torch.tensor([True, False]*3)
    draws = Draws(torch.linspace(.1, .9, b), eps, keep)
    loss = stage.loss(Batch(x0, text(b), torch.arange(b)), draws)
    z_t, log_snr, words = recorder.calls[0][:3]
    torch.testing.assert_close(log_snr, cosine_log_snr(draws.t))
    alpha, sigma = (torch.cos(draws.t*torch.pi/2), torch.sin(draws.t*torch.pi/2))
    torch.testing.assert_close(z_t, alpha[:, None, None, None]*x0 + sigma[:, None, None, None]*eps, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(loss, eps.square().mean((1, 2, 3)))
    assert words.tokens[~keep].abs().max() == 0 and (words.tokens[keep] == text(b).tokens[keep]).all()


def test_guidance_and_threshold_are_inside_the_denoiser():
    class Words(torch.nn.Module):
        "Predicts a constant picture: the mean of the words."
        def __init__(self): super().__init__(); self.p = torch.nn.Parameter(torch.zeros(1))
        def forward(self, z, log_snr, text, *_):
            value = (text.tokens*text.mask[..., None]).mean((1, 2))
            return value[:, None, None, None].expand_as(z)
    stage = Stage(replace(BASE_STAGE, target="x0"), Words())
    words = TextEmbedding(torch.full((1, 5, 12), .2), torch.ones(1, 5, dtype=torch.bool))
    z, log_snr = torch.randn(1, 3, 16, 16), torch.tensor(0.)
    assert abs(denoiser(stage, words, 1., None)(z, log_snr).mean() - .2) < 1e-5
    assert abs(denoiser(stage, words, 3., None)(z, log_snr).mean() - .6) < 1e-5   # 3*.2 - 2*0
    assert abs(denoiser(stage, words, 9., "static")(z, log_snr).max() - 1) < 1e-5


def test_residual_prediction_is_used_in_both_paths():
    recorder = Recorder()
    stage = Stage(replace(SR_STAGE, is_residual=True), recorder)
    low = resize(WORLD.images([5]), 16)
    out = stage.sample(text(1), low, seeds=[0], aug_t=0., w=1., steps=2, threshold=None)
    torch.testing.assert_close(out, recorder.calls[0][3].clamp(-1, 1), atol=2e-3, rtol=0)
    draws = Draws(torch.tensor([.5]), torch.zeros(1, 3, 32, 32), torch.tensor([True]), torch.tensor([0.]), torch.zeros(1, 3, 10, 10))
    loss = stage.loss(Batch(sr_inputs(16, 12), text(1), torch.tensor([0])), draws)
    expected = (recorder.calls[-1][3] - WORLD.images([5])[..., 16:48, 12:44]).square().mean()
    torch.testing.assert_close(loss[0], expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
def test_a_picture_depends_on_its_own_seed_and_caption_only(sampler):
    stage = awake(replace(BASE_STAGE, sampler=sampler))
    images = stage.sample(text(3), seeds=[5, 6, 5])
    alone = stage.sample(text(3).rows([2]), seeds=[5])
    torch.testing.assert_close(alone, images[2:], atol=1e-3, rtol=0)
    assert (images[0] - images[1]).abs().max() > .05 and images.abs().max() <= 1
    assert (images[0] - images[2]).abs().max() > 1e-4, "the caption must matter"


def test_cascade_runs_saves_and_loads(tmp_path):
    imagen = Imagen(None, [awake(BASE_STAGE), awake(SR_STAGE)])
    first, second = imagen.sample(text(2), return_all=True, batch_size=1, w=[2., 1.])
    assert first.shape == (2, 3, 16, 16) and second.shape == (2, 3, 64, 64)
    torch.testing.assert_close(imagen.sample(text(2), w=[2., 1.]), second, atol=2e-3, rtol=0)
    imagen.save_pretrained(tmp_path/"m", dtype=torch.float32)
    again = Imagen.from_pretrained(tmp_path/"m")
    torch.testing.assert_close(again.sample(text(2), w=[2., 1.]), second, atol=2e-3, rtol=0)
    assert [s.config for s in again.stages] == [BASE_STAGE, SR_STAGE]


def test_damage_is_noticed(tmp_path):
    Imagen(None, [awake(BASE_STAGE)]).save_pretrained(tmp_path/"m")
    file = tmp_path/"m"/"stage0.safetensors"
    data = bytearray(file.read_bytes()); data[len(data)//2] ^= 1; file.write_bytes(data)
    with pytest.raises(CheckpointError, match="stage0"): Imagen.from_pretrained(tmp_path/"m")


def test_refusals():
    with pytest.raises(ValueError, match="never trained"): Stage(BASE_STAGE).sample(text(1), seeds=[0])
    stage = awake(BASE_STAGE)
    with pytest.raises(ValueError, match="seeds"): stage.sample(text(2), seeds=[0])
    with pytest.raises(ValueError, match="lowres"): stage.sample(text(1), torch.zeros(1, 3, 4, 4), seeds=[0])
    with pytest.raises(ValueError, match="sampler"): stage.sample(text(1), seeds=[0], sampler="euler")
    with pytest.raises(ValueError, match="string"): Imagen(None, [stage]).sample("a red circle")
    with pytest.raises(ValueError, match="enlarge"): Imagen(None, [awake(SR_STAGE)])
    with pytest.raises(ValueError, match="lowres, got None"): awake(SR_STAGE).sample(text(1), seeds=[0])
    with pytest.raises(ValueError, match="got 1 pictures"): awake(SR_STAGE).sample(text(2), torch.zeros(1, 3, 4, 4), seeds=[0, 1])
    with pytest.raises(ValueError, match="w, got 1 values"): Imagen(None, [stage, awake(SR_STAGE)]).sample(text(1), w=[2.])
    with pytest.raises(ValueError, match="target"): replace(BASE_STAGE, target="noise")
    with pytest.raises(ValueError, match="expected a multiple"): replace(SR_STAGE, size=65)


@pytest.mark.parametrize("recipe", [toy, paper])
def test_configs_survive_json(recipe):
    for stage in recipe().stages:
        assert config_from_dict(json.loads(json.dumps(config_to_dict(stage))), *CONFIGS) == stage
    with pytest.raises(ValueError, match="unknown"): config_from_dict(dict(config_to_dict(stage), extra=1), *CONFIGS)


def test_toy_is_a_cascade_of_factor_four():
    sizes = [(s.lowres_size, s.size) for s in toy().stages]
    assert sizes == [(None, 32), (32, 128), (128, 512)]
    assert [(s.lowres_size, s.size) for s in paper().stages] == [(None, 64), (64, 256), (256, 1024)]

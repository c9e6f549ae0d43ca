"""The networks: silent at the start, every input used, padding without influence, counts of the paper."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from imagen_nb.cascade import Imagen
from imagen_nb.data import ShapesWorld
from imagen_nb.diffusion import cosine_log_snr
from imagen_nb.efficient_unet import EfficientUNetConfig
from imagen_nb.engine.blocks import compile_blocks, recompute_blocks
from imagen_nb.engine.execution import Execution
from imagen_nb.layers import (
    Attention,
    AttentionPool,
    Downsample,
    FeedForward,
    ResBlock,
    Upsample,
    attend,
    cosine_time,
    normalize,
    resample,
    sinusoid,
    upsample_conv,
)
from imagen_nb.recipes import base_network, paper, toy
from imagen_nb.stage import Stage, StageConfig
from imagen_nb.store.config import config, config_from_dict, config_to_dict, option, with_defaults
from imagen_nb.text import TextEmbedding, TextEncoder
from imagen_nb.training import TrainConfig, Trainer
from imagen_nb.unet import Conditioner, UNetConfig

BASE = UNetConfig(
    dim=24,
    mults=(1, 2),
    blocks=1,
    attention=(False, True),
    head_dim=24,
    text_dim=12,
    text_width=16,
    emb_dim=32,
)
TOY = replace(
    BASE,
    text_depth=1,
    skips="add",
    resample="conv",
    separate_attention=True,
    feed_forward=2,
    patch=2,
)
SR = EfficientUNetConfig(
    channels=(16, 32),
    blocks=(1, 2),
    strides=(2, 2),
    self_attention=(False, True),
    text_attention=(False, True),
    heads=2,
    stem=16,
    text_dim=12,
    text_width=16,
    emb_dim=32,
)
NETWORKS = {
    "base": BASE,
    "toy base": TOY,
    "classic sr": replace(BASE, has_lowres=True),
    "sr": SR,
    "sr patch": replace(SR, patch=2),
}


def build(config, seed=0):
    torch.manual_seed(seed)
    return config.build()


def inputs(config, b=2, size=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    text = TextEmbedding(
        torch.randn(b, 5, 12, generator=g), torch.tensor([[True] * 3 + [False] * 2] * b)
    )
    extra = (
        (torch.randn(b, 3, size, size, generator=g), torch.randn(b, generator=g))
        if config.has_lowres
        else ()
    )
    return [torch.randn(b, 3, size, size, generator=g), torch.randn(b, generator=g), text, *extra]


def awake(config):
    "A network whose silent layers speak."
    net, g = build(config), torch.Generator().manual_seed(1)
    for p in net.parameters():
        p.data.add_(0.1 * torch.randn(p.shape, generator=g))
    return net


@pytest.mark.parametrize("name", NETWORKS)
def test_silent_at_the_start_and_any_size(name):
    net = build(NETWORKS[name])
    for size in (16, 32):
        assert net(*inputs(NETWORKS[name], size=size)).abs().max() == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_every_input_changes_the_output_and_every_parameter_has_a_gradient(name):
    net, args = awake(NETWORKS[name]), inputs(NETWORKS[name])
    y = net(*args)
    for k in range(len(args)):
        other = list(args)
        other[k] = TextEmbedding(-args[k].tokens, args[k].mask) if k == 2 else args[k] + 1
        assert (net(*other) - y).abs().max() > 1e-4, k
    y.square().sum().backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert not silent


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_has_no_influence_and_no_gradient(name):
    net, args = awake(NETWORKS[name]), inputs(NETWORKS[name])
    y, text = net(*args), args[2]
    changed = TextEmbedding(torch.where(text.mask[..., None], text.tokens, 7.0), text.mask)
    assert torch.equal(net(args[0], args[1], changed, *args[3:]), y), "not within rounding: exactly"
    torch.testing.assert_close(
        net(args[0], args[1], text.pad(9), *args[3:]), y, atol=1e-5, rtol=1e-5
    )
    tokens = text.tokens.clone().requires_grad_()
    net(args[0], args[1], TextEmbedding(tokens, text.mask), *args[3:]).square().sum().backward()
    assert tokens.grad[~text.mask].abs().max() == 0 and tokens.grad[text.mask].abs().max() > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_of_a_batch_do_not_mix(name):
    net, args = awake(NETWORKS[name]), inputs(NETWORKS[name])
    one = [a.rows([1]) if isinstance(a, TextEmbedding) else a[1:] for a in args]
    torch.testing.assert_close(net(*args)[1:], net(*one), atol=1e-4, rtol=1e-4)


def test_both_ways_to_read_the_caption_are_open():
    "With attention silenced the pooled caption still matters, and the other way round."
    net, args = awake(BASE), inputs(BASE)
    flipped = [*args[:2], TextEmbedding(-args[2].tokens, args[2].mask)]
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, Attention):
                module.out.weight.zero_()
                module.out.bias.zero_()
        assert (net(*args) - net(*flipped)).abs().max() > 1e-5
        net = awake(BASE)
        for p in net.cond.pool.mlp[-1].parameters():
            p.zero_()
        assert (net(*args) - net(*flipped)).abs().max() > 1e-5


def test_residual_sum_is_scaled_in_the_efficient_unet():
    blocks = [m for m in build(SR).modules() if isinstance(m, ResBlock)]
    x, emb = torch.randn(1, 16, 4, 4), torch.randn(1, 32)
    assert len(blocks) == 6
    torch.testing.assert_close(blocks[0](x, emb), x * 0.5**0.5)


def test_downsampling_comes_before_the_convolutions():
    net, seen = build(SR), []
    for m in net.modules():
        if isinstance(m, ResBlock):
            m.register_forward_hook(lambda m, i, o: seen.append(i[0].shape[-1]))
    net(*inputs(SR, size=16))
    assert seen == [8, 4, 4, 4, 4, 8], "no residual block may see the full 16 pixels"


def test_self_attention_matches_torch():
    layer = torch.nn.MultiheadAttention(32, 2, batch_first=True)
    ours = Attention(32, 0, head_dim=16)
    ours.norm = torch.nn.Identity()
    ours.qkv.weight.data, ours.qkv.bias.data = layer.in_proj_weight.data, torch.randn(96)
    layer.in_proj_bias.data = ours.qkv.bias.data
    ours.out.weight.data, ours.out.bias.data = layer.out_proj.weight.data, layer.out_proj.bias.data
    x = torch.randn(2, 32, 4, 4)
    flat = x.flatten(2).transpose(1, 2)
    expected = x + layer(flat, flat, flat)[0].transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_training_in_bf16_on_a_cpu_attends_in_float32(masked):
    parts = [torch.randn(2, 3, n, 8).bfloat16().requires_grad_() for n in (6, 5, 5)]
    mask = torch.tensor([[True, True, True, False, False], [True] * 5]) if masked else None
    with torch.autocast("cpu", torch.bfloat16):  # as training runs
        y = attend(*parts, mask)
    wide = [x.detach().float().requires_grad_() for x in parts]
    exact = attend(*wide, mask)
    assert y.dtype == torch.bfloat16 and torch.equal(y, exact.bfloat16()), (
        "rounded once, at the end"
    )
    up = torch.randn_like(exact).bfloat16()
    for of, right in zip(
        torch.autograd.grad(y, parts, up), torch.autograd.grad(exact, wide, up.float())
    ):
        assert torch.equal(of, right.bfloat16())
    with torch.no_grad():  # drawing keeps the fast kernel
        torch.testing.assert_close(attend(*parts, mask).float(), exact, atol=0.03, rtol=0.02)


def test_pool_is_an_average_over_real_words():
    pool = AttentionPool(8, 4, queries=1)
    torch.nn.init.zeros_(pool.score.weight)
    words = torch.randn(1, 4, 8)
    text = TextEmbedding(words, torch.tensor([[True, True, False, False]]))
    torch.testing.assert_close(pool(text), pool.mlp(pool.norm(words)[:, :2].mean(1)))


def test_noise_embedding_tells_levels_apart():
    t = torch.linspace(0.01, 0.99, 50)
    torch.testing.assert_close(cosine_time(cosine_log_snr(t)), t, atol=1e-5, rtol=0)
    assert sinusoid(t, 32).unique(dim=0).shape[0] == 50


def test_published_sizes_on_the_meta_device():
    with torch.device("meta"):
        counts = [sum(p.numel() for p in build(s.network).parameters()) for s in paper().stages]
    assert 1.96e9 < counts[0] < 2.44e9
    assert counts[1] > counts[2] > 4e8
    assert not any(
        isinstance(m, Attention) and m.has_self
        for m in build_meta(paper().stages[2].network).modules()
    )


def build_meta(config):
    with torch.device("meta"):
        return build(config)


def test_toy_networks_are_small():
    for stage in toy().stages:
        assert sum(p.numel() for p in build_meta(stage.network).parameters()) < 3e6


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(z=torch.zeros(2, 1, 16, 16)), "z_t"),
        (dict(z=torch.zeros(2, 3, 17, 16)), "nearest"),
        (dict(l=torch.zeros(3)), "log_snr"),
        (dict(t=TextEmbedding(torch.zeros(2, 5, 13), torch.ones(2, 5, dtype=torch.bool))), "text"),
        (dict(t=TextEmbedding(torch.zeros(2, 5, 12), torch.ones(2, 5))), "mask"),
    ],
)
def test_bad_inputs_are_named(change, message):
    z, log_snr, text = inputs(BASE)
    with pytest.raises(ValueError, match=message):
        build(BASE)(change.get("z", z), change.get("l", log_snr), change.get("t", text))


def test_bad_configs_are_named():
    with pytest.raises(ValueError, match="attention"):
        UNetConfig(attention=(True,))
    with pytest.raises(ValueError, match="skips"):
        UNetConfig(skips="none")
    with pytest.raises(ValueError, match="strides"):
        EfficientUNetConfig(strides=(3, 2, 2, 2))
    with pytest.raises(ValueError, match="heads"):
        EfficientUNetConfig(heads=3)
    with pytest.raises(TypeError):
        UNetConfig(dims=3)


@pytest.mark.parametrize("skips", ["concat", "add"])
@pytest.mark.parametrize("resampling", ["block", "conv"])
def test_every_way_to_hand_across_and_to_resize_fits_levels_that_narrow(skips, resampling):
    shape = dict(mults=(1, 2, 1), attention=(False, False, True))
    config = replace(BASE, skips=skips, resample=resampling, **shape)
    assert awake(config)(*inputs(config)).shape == (2, 3, 16, 16)


def test_a_low_resolution_picture_comes_exactly_where_one_is_taken():
    z_t, log_snr, text, low, aug = inputs(SR)
    for shape, given, message in (
        (BASE, (low, aug), "UNet: lowres, got a picture, expected None"),
        (SR, (), "EfficientUNet: lowres and aug_log_snr, got None, expected both"),
        (SR, (low, None), "expected both"),
        (SR, (low[..., :8], aug), "EfficientUNet: lowres, got"),
        (SR, (low, aug[:1]), "aug_log_snr, got"),
    ):
        with pytest.raises(ValueError, match=message):
            build(shape)(z_t, log_snr, text, *given)


@pytest.mark.parametrize("config", [BASE, SR])
def test_fields_of_older_files_load_with_the_one_value_that_means_nothing(config):
    values, retired = config_to_dict(config), dict(type(config).retired)
    assert retired and not retired.keys() & values.keys()
    assert config_from_dict(values | retired) == config
    assert with_defaults(values | retired) == values
    for name in retired:
        with pytest.raises(ValueError, match=name):
            config_from_dict(values | retired | {name: 0.5})


# ---------------------------------------------------------------- a network of one's own


@config
class MineConfig:
    "What the contract asks, and one number more."

    text_dim: int = 128
    has_lowres: bool = False
    width: int = option(16, least=1)
    stride = 1

    def build(self):
        return Mine(self)


class Mine(torch.nn.Module):
    "Convolutions of one pixel; it shares no class, no name and no attribute with ours."

    def __init__(self, config):
        super().__init__()
        w, pictures = config.width, 2 if config.has_lowres else 1
        self.facts = torch.nn.Linear(config.text_dim + 1 + config.has_lowres, w)
        self.enter = torch.nn.Conv2d(3 * pictures, w, 1)
        self.steps = torch.nn.ModuleList([torch.nn.Conv2d(w, w, 1) for _ in range(2)])
        self.leave = torch.nn.Conv2d(w, 3, 1)

    def forward(self, z_t, log_snr, text, lowres=None, aug_log_snr=None):
        words = (text.tokens * text.mask[..., None]).sum(1) / text.mask.sum(1, keepdim=True)
        levels = [o[:, None] for o in (log_snr, aug_log_snr) if o is not None]
        h = self.enter(z_t if lowres is None else torch.cat([z_t, lowres], dim=1))
        h = h + self.facts(torch.cat([words, *levels], dim=1))[..., None, None]
        for step in self.steps:
            h = h + step(h.relu())
        return self.leave(h)


class Words:
    "Captions as a trainer asks for them."

    identity, encoder = "toy", TextEncoder.toy()

    def __getitem__(self, captions):
        return self.encoder(captions)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_network_of_ones_own_trains_saves_and_loads(optimizer, tmp_path):
    world = ShapesWorld("train", level="quick", length=20)
    execution = Execution(recompute=True, progress=False, validate_every=0, sample_every=0)
    configs = (
        StageConfig(size=8, network=MineConfig(), steps=3, target="x0"),
        StageConfig(size=16, lowres_size=8, network=MineConfig(has_lowres=True), steps=2),
    )
    train = TrainConfig(batch=4, steps=2, warmup=1, save_every=2, optimizer=optimizer)
    stages = []
    for k, c in enumerate(configs):
        torch.manual_seed(k)
        out = tmp_path / str(k)
        stages.append(Trainer(Stage(c), world, Words(), train, out, execution=execution).fit())
    Imagen(Words.encoder, stages).save_pretrained(tmp_path / "mine", dtype=torch.float32)
    again = Imagen.from_pretrained(tmp_path / "mine")
    assert [s.config for s in again.stages] == list(configs)
    pictures = [
        o.sample(["a red circle"], seeds=[1]) for o in (again, Imagen(Words.encoder, stages))
    ]
    assert pictures[0].shape == (1, 3, 16, 16)
    torch.testing.assert_close(*pictures, atol=1e-5, rtol=0)  # kernels may round otherwise


# ---------------------------------------------------------------- what training makes of it


class Fixed(torch.nn.Module):
    "A conditioner that has made up its mind."

    def __init__(self, emb, words):
        super().__init__()
        self.answer = emb, words

    def forward(self, *_):
        return self.answer


@pytest.mark.parametrize("name", ["base", "sr"])
def test_after_twenty_steps_every_way_in_is_used(name):
    "The words by attention alone, the pooled caption alone, the time, the low-res picture and its level."
    net, config = build(NETWORKS[name]), NETWORKS[name]
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for step in range(20):
        args = inputs(config, b=4, seed=step)
        target = (
            args[0]
            + args[2].tokens[:, :3, :1, None].mean(1, keepdim=True)
            + args[1][:, None, None, None]
        )
        if config.has_lowres:
            target = target + args[3] + args[4][:, None, None, None]
        (net(*args) - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    args, other = inputs(config, seed=99), inputs(config, seed=98)
    with torch.no_grad():
        y, cond = net(*args), net.cond
        moved = {
            "noisy picture": net(other[0], *args[1:]),
            "time": net(args[0], args[1] + 3, *args[2:]),
        }
        if config.has_lowres:
            moved |= {
                "lowres": net(*args[:3], other[3], args[4]),
                "aug level": net(*args[:4], args[4] + 3),
            }
        emb, words = cond(args[1], args[2], *args[4:])
        other_emb, other_words = cond(args[1], other[2], *args[4:])
        for way, answer in {
            "words": (emb, other_words),
            "pooled caption": (other_emb, words),
        }.items():
            net.cond = Fixed(*answer)
            moved[way] = net(*args)
    far = {way: (y - o).abs().max().item() for way, o in moved.items()}
    assert min(far.values()) > 1e-4, far


@pytest.mark.parametrize("name", ["base", "sr"])
def test_bf16_stays_near_fp32(name):
    net, args = awake(NETWORKS[name]), inputs(NETWORKS[name])
    with torch.no_grad():
        y = net(*args)
        with torch.autocast("cpu", torch.bfloat16):
            half = net(*args)
    drift = ((half - y).norm() / y.norm()).item()
    assert half.dtype == torch.float32 and 1e-5 < drift < 0.05, drift


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    "name, size",
    [
        ("base", (16, 2)),
        ("base", (6, 10)),
        ("toy base", (20, 8)),
        ("sr", (12, 40)),
        ("sr patch", (24, 8)),
    ],
)
def test_any_size_that_the_stride_divides(name, size):
    config = NETWORKS[name]
    args = inputs(config, size=64)
    cut = [
        a[..., : size[0], : size[1]] if isinstance(a, torch.Tensor) and a.ndim == 4 else a
        for a in args
    ]
    assert awake(config)(*cut).shape == (2, 3, *size)


@pytest.mark.parametrize(
    "name, size, near",
    [
        ("base", (17, 30), "(16, 30)"),
        ("toy base", (19, 32), "(20, 32)"),
        ("sr", (3, 14), "(4, 16)"),
        ("sr patch", (29, 8), "(32, 8)"),
    ],
)
def test_other_sizes_are_refused_with_the_nearest_good_one(name, size, near):
    args = inputs(NETWORKS[name], size=64)
    cut = [
        a[..., : size[0], : size[1]] if isinstance(a, torch.Tensor) and a.ndim == 4 else a
        for a in args
    ]
    with pytest.raises(ValueError, match="the nearest is") as error:
        build(NETWORKS[name])(*cut)
    assert near in str(error.value)


# ---------------------------------------------------------------- counts


def count(config) -> int:
    return sum(p.numel() for p in build_meta(config).parameters())


@pytest.mark.parametrize(
    "size, published", [("300M", 300e6), ("500M", 500e6), ("1B", 1e9), ("2B", 2e9)]
)
def test_ablation_sizes(size, published):
    assert (
        abs(count(base_network(size)) / published - 1) < 0.10
        if size != "2B"
        else 1.96e9 < count(base_network(size)) < 2.44e9
    )


def test_the_same_code_is_adm_at_imagenet_64():
    "Published: 296 M. ADM reads a class where we read a caption, and predicts a variance beside the mean."
    net = count(UNetConfig(dim=192, emb_dim=768, text_dim=0))
    classes, variance = 1000 * 768, 3 * (192 * 9 + 1)
    assert abs((net + classes + variance) / 296e6 - 1) < 0.001


def test_text_can_be_off():
    net = awake(replace(BASE, text_dim=0))
    z_t, log_snr, text = inputs(BASE)
    assert net(z_t, log_snr, None).shape == z_t.shape
    with pytest.raises(ValueError, match="expected None"):
        net(z_t, log_snr, text)
    with pytest.raises(ValueError, match="text, got None"):
        build(BASE)(z_t, log_snr, None)
    apart = awake(replace(BASE, text_dim=0, separate_attention=True))  # nothing to be apart from
    assert apart(z_t, log_snr, None).shape == z_t.shape
    large = awake(replace(SR, text_dim=0))
    z_t, log_snr, _, *low = inputs(SR)
    assert large(z_t, log_snr, None, *low).shape == z_t.shape


def test_a_stage_without_text_passes_captions_over():
    config = StageConfig(size=16, network=replace(BASE, text_dim=0), steps=2)
    stage = Stage(config, awake(config.network))
    text = inputs(BASE)[2].rows([0, 1])
    torch.testing.assert_close(
        stage.sample(text, seeds=[1, 2]), stage.sample(text.null(), seeds=[1, 2])
    )


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size, has_bias", [((4, 6), True), ((1, 5), False)])
def test_convolving_before_enlarging_is_the_same(layout, size, has_bias):
    conv = torch.nn.Conv2d(6, 5, 3, padding=1, bias=has_bias, dtype=torch.float64).to(
        memory_format=layout
    )
    x = torch.randn(2, 6, *size, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    grads = []
    for f in (lambda: upsample_conv(conv, x), lambda: conv(resample(x, "up"))):
        y = f()
        grads.append((y, *torch.autograd.grad(y.square().sum(), [x, *conv.parameters()])))
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_norm_that_a_compiler_sees_is_group_norm(layout, monkeypatch):
    norm = torch.nn.GroupNorm(3, 12)
    norm.weight.data.normal_(), norm.bias.data.normal_()
    x = torch.randn(2, 12, 4, 6).to(memory_format=layout) * 3 + 1
    plain = normalize(norm, x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    written = normalize(norm, x)
    torch.testing.assert_close(written, norm(x))
    for y in (plain, written):
        assert y.is_contiguous(memory_format=layout)


def test_scale_of_a_signal_does_not_matter_behind_a_norm():
    "GroupNorm in block and attention, LayerNorm on words and in the pool: each makes its branch blind to scale."
    torch.manual_seed(0)
    x, emb, words = torch.randn(2, 32, 4, 4) * 5, torch.randn(2, 16), torch.randn(2, 5, 24) * 5
    mask = torch.ones(2, 5, dtype=torch.bool)
    text, louder = TextEmbedding(words, mask), TextEmbedding(words * 10, mask)
    close = dict(atol=1e-4, rtol=1e-3)
    block, attention, pool = ResBlock(32, 32, 16), Attention(32, 24, 16), AttentionPool(24, 16)
    for layer in (block.conv2, attention.out):
        torch.nn.init.normal_(layer.weight, std=0.1)
    torch.testing.assert_close(block(x, emb) - x, block(10 * x, emb) - 10 * x, **close)
    torch.testing.assert_close(attention(x, text) - x, attention(10 * x, text) - 10 * x, **close)
    torch.testing.assert_close(attention(x, text), attention(x, louder), **close)
    torch.testing.assert_close(pool(text), pool(louder), **close)
    cond = Conditioner(8, 16, 24, 24)
    torch.testing.assert_close(
        cond(torch.zeros(2), text)[1].tokens, cond(torch.zeros(2), louder)[1].tokens, **close
    )


def test_resampling_is_inside_the_block_and_on_its_shortcut():
    x, emb = torch.randn(1, 6, 4, 4), torch.zeros(1, 8)
    for direction, size in (("up", 8), ("down", 2)):
        torch.testing.assert_close(ResBlock(6, 6, 8, direction)(x, emb), resample(x, direction))
        assert ResBlock(6, 9, 8, direction)(x, emb).shape == (1, 9, size, size)
    assert Downsample(6, 3)(x).shape[-1] == 2 and Upsample(6, 3)(x).shape[-1] == 8
    assert Downsample(6, 3, 1)(x).shape == Upsample(6, 3, 1)(x).shape == (1, 3, 4, 4)
    torch.testing.assert_close(resample(resample(x, "up"), "down"), x)
    with pytest.raises(ValueError, match="direction"):
        resample(x, "sideways")


def test_attention_needs_something_to_read_and_whole_heads():
    with pytest.raises(ValueError, match="multiple of head_dim"):
        Attention(30, 0, 16)
    with pytest.raises(ValueError, match="nothing to attend to"):
        Attention(32, 0, 16, has_self=False)
    assert FeedForward(32, 3).up.out_channels == 96


def test_fresh_blocks_are_the_identity():
    x, text = (
        torch.randn(2, 32, 4, 4),
        TextEmbedding(torch.randn(2, 5, 24), torch.ones(2, 5, dtype=torch.bool)),
    )
    for block, args in (
        (ResBlock(32, 32, 8), (torch.randn(2, 8),)),
        (Attention(32, 24, 16), (text,)),
        (Attention(32, 24, 16, has_self=False), (text,)),
        (Attention(32, 0, 16), ()),
        (FeedForward(32), ()),
    ):
        torch.testing.assert_close(block(x, *args), x, atol=0, rtol=0)


@pytest.mark.parametrize("direction", [None, "up", "down"])
def test_a_residual_block_written_out(direction):
    "Norm and activation, then resampling, then the convolution; scale and shift by the embedding."
    silu, move = (
        torch.nn.functional.silu,
        lambda x: x if direction is None else resample(x, direction),
    )
    block, x, emb = ResBlock(12, 12, 16, direction), torch.randn(2, 12, 4, 4), torch.randn(2, 16)
    torch.nn.init.normal_(block.conv2.weight, std=0.1)
    scale, shift = block.film(silu(emb))[..., None, None].chunk(2, dim=1)
    h = block.norm2(block.conv1(move(silu(block.norm1(x)))))
    torch.testing.assert_close(
        block(x, emb), move(x) + block.conv2(silu(h * (1 + scale) + shift)), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("name", ["base", "sr"])
def test_attention_follows_the_residual_block(name):
    net, calls = build(NETWORKS[name]), []
    for m in net.modules():
        if isinstance(m, (ResBlock, Attention)):
            m.register_forward_hook(lambda m, i, o: calls.append(type(m)))
    net(*inputs(NETWORKS[name]))
    places = [i for i, kind in enumerate(calls) if kind is Attention]
    assert calls[0] is ResBlock and places and all(calls[i - 1] is ResBlock for i in places)


@pytest.mark.parametrize("has_attention", [False, True])
def test_the_middle_has_attention_where_the_deepest_level_has(has_attention):
    first, second = build(replace(BASE, attention=(True, has_attention))).middle
    assert (first.attention is not None) == has_attention and second.attention is None


def test_skips_are_last_in_first_out():
    "Each layer on the way up gets what a layer of the same resolution made, and every one is used."
    net, made, used = awake(BASE), [], []
    for layer in net.down:
        layer.register_forward_hook(lambda m, i, o: made.append(o) if m.gives_skip else None)
    join = net.join
    net.join = lambda h, skip: (used.append(skip), join(h, skip))[1]
    args = inputs(BASE)
    y = net(*args)
    assert len(used) == len(made) + 1 and all(a is b for a, b in zip(used, reversed(made)))
    for k in range(len(used)):
        calls = []
        net.join = partial(join_without, join, calls, k)
        assert (net(*args) - y).abs().max() > 1e-4, f"skip {k} is not read"


def test_an_enlarger_reads_what_was_made_at_the_same_level():
    "Also where all levels are alike, and no shape would tell."
    config = replace(SR, channels=(16, 16), strides=(1, 1))
    net, made, used = build(config), [], []
    for block in net.down:
        block.register_forward_hook(lambda m, i, o: made.append(o))
    for block in net.up:
        block.register_forward_pre_hook(lambda m, i: used.append(i[1]))
    net(*inputs(config))
    assert len(used) == len(made) == 2 and all(a is b for a, b in zip(used, reversed(made)))


def join_without(join, calls, k, h, skip):
    "Hand every skip across but the one of number k."
    calls.append(skip)
    return join(h, 0 * skip if len(calls) == k + 1 else skip)


# ---------------------------------------------------------------- speed by design


def kept_and_gradients(net, args):
    "Bytes that are kept between forward and backward; every gradient."
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = net(*args).square().sum()
    return sum(kept.values()), torch.autograd.grad(loss, list(net.parameters()))


@pytest.mark.parametrize("name", ["base", "sr"])
def test_recomputing_blocks_gives_the_same_gradients_and_keeps_less(name):
    net, args = awake(NETWORKS[name]), inputs(NETWORKS[name])
    names, (kept, plain) = list(net.state_dict()), kept_and_gradients(net, args)
    kept_again, again = kept_and_gradients(recompute_blocks(net), args)
    for a, b in zip(plain, again):
        torch.testing.assert_close(a, b)
    assert kept_again < 0.7 * kept and list(net.state_dict()) == names


def test_blocks_are_compiled_whole_and_for_the_shapes_they_see(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: asked.append(how))
    compile_blocks(build(BASE))
    assert (
        asked == [dict(fullgraph=True, dynamic=False)] * 14
    )  # ten residual blocks, four attentions


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "toy base", "sr"])
def test_blocks_compile_to_one_graph_each_and_never_again(name):
    from torch._dynamo.utils import counters

    net, args = awake(NETWORKS[name]), inputs(NETWORKS[name])
    names, y = list(net.state_dict()), net(*args)
    torch._dynamo.reset()
    counters.clear()
    compile_blocks(net, backend="eager")
    graphs = []
    for step in range(6):
        out = net(*inputs(NETWORKS[name], seed=step))
        out.square().sum().backward()
        graphs.append(counters["stats"]["unique_graphs"])
    assert not counters["graph_break"] and graphs[0] > 0 and graphs[2] == graphs[-1], graphs
    torch.testing.assert_close(net(*args), y, atol=1e-4, rtol=1e-4)
    assert list(net.state_dict()) == names
    torch._dynamo.reset()


@pytest.mark.slow
def test_a_network_without_our_blocks_is_compiled_as_a_whole():
    net, args = Mine(MineConfig(text_dim=12)), inputs(BASE)
    y = net(*args)
    torch._dynamo.reset()
    torch.testing.assert_close(compile_blocks(net, backend="eager")(*args), y)
    torch._dynamo.reset()


class NoSync(TorchDispatchMode):
    "Refuse what makes the host wait for a GPU."

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        assert not any(
            o in name
            for o in (
                "_local_scalar_dense",
                "nonzero",
                "is_nonzero",
                "aten.equal",
                "masked_select",
                "unique",
            )
        ), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_host_never_waits(name):
    net, args = awake(NETWORKS[name]), inputs(NETWORKS[name])
    with NoSync():
        net(*args).square().sum().backward()
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoSync():
        args[0].sum().item()


@pytest.mark.parametrize("name", ["base", "sr"])
def test_channels_last_is_kept_through_every_block(name):
    net, args, lost = (
        awake(NETWORKS[name]).to(memory_format=torch.channels_last),
        inputs(NETWORKS[name]),
        [],
    )

    def note(m, i, o):
        if not o.is_contiguous(memory_format=torch.channels_last):
            lost.append(type(m).__name__)

    for m in net.modules():
        if isinstance(m, (ResBlock, Attention, Downsample, Upsample)):
            m.register_forward_hook(note)
    net(*args)
    assert not lost


def test_the_benchmark_asks_both_branches_in_one_batch():
    from bench.rivals import Inputs, W, matched, our_base, our_efficient, parameters

    for rival, has_lowres in ((our_base(64, 12), False), (our_efficient(32, 12), True)):
        for p in rival.network.parameters():
            p.data.add_(0.02 * torch.randn_like(p))
        i = Inputs.random(1, 16, 12, 3, has_lowres)
        null = TextEmbedding(torch.zeros(1, 1, 12), torch.ones(1, 1, dtype=torch.bool))
        with torch.no_grad():
            expected = W * rival.predict(i) + (1 - W) * rival.predict(i._replace(text=null))
            torch.testing.assert_close(rival.guided(i), expected, atol=1e-4, rtol=1e-3)
    target = parameters(our_efficient(32, 12))
    assert matched(lambda d: our_efficient(d, 12), target + 1000, (16, 24, 32, 40)) == 32


def test_the_run_card_is_of_todays_networks():
    import bench.__main__ as bench

    card = json.loads((Path(__file__).parents[1] / "data" / "runs" / "bench-cpu.json").read_text())
    args = bench.parse(card["command"].removeprefix("python -m bench").split())
    ours = dict(
        base=partial(bench.rivals.our_base, args.width, args.text_dim),
        efficient=partial(bench.rivals.our_efficient, args.sr_width, args.text_dim),
    )
    for row in card["rows"]:
        kind = "efficient" if row["row"] in ("sr", "efficient") else "base"
        assert row["ours"]["parameters"] == bench.parameters_of(ours[kind]), row["row"]

"""The networks: silent at the start, every input used, padding without influence, counts of the paper."""
from dataclasses import replace

import pytest
import torch

from imagen_nb.efficient_unet import EfficientUNet, EfficientUNetConfig
from imagen_nb.layers import Attention, AttentionPool, ResBlock, cosine_time, sinusoid
from imagen_nb.diffusion import cosine_log_snr
from imagen_nb.recipes import paper, toy
from imagen_nb.text import TextEmbedding
from imagen_nb.unet import UNet, UNetConfig

BASE = UNetConfig(dim=24, mults=(1, 2), blocks=1, attention=(False, True), head_dim=24, text_dim=12, text_width=16, emb_dim=32)
TOY = replace(BASE, text_depth=1, skips="add", resample="conv", separate_attention=True, feed_forward=2, patch=2)
SR = EfficientUNetConfig(channels=(16, 32), blocks=(1, 2), strides=(2, 2), self_attention=(False, True), text_attention=(False, True),
                         heads=2, stem=16, text_dim=12, text_width=16, emb_dim=32)
NETWORKS = {"base": BASE, "toy base": TOY, "sr": SR, "sr patch": replace(SR, patch=2)}


def build(config, seed=0):
    torch.manual_seed(seed)
    return (UNet if isinstance(config, UNetConfig) else EfficientUNet)(config)


def inputs(config, b=2, size=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    text = TextEmbedding(torch.randn(b, 5, 12, generator=g), torch.tensor([[True]*3 + [False]*2]*b))
    extra = () if isinstance(config, UNetConfig) else (torch.randn(b, 3, size, size, generator=g), torch.randn(b, generator=g))
    return [torch.randn(b, 3, size, size, generator=g), torch.randn(b, generator=g), text, *extra]


def awake(config):
    "A network whose silent layers speak."
    net, g = build(config), torch.Generator().manual_seed(1)
    for p in net.parameters(): p.data.add_(.1*torch.randn(p.shape, generator=g))
    return net


@pytest.mark.parametrize("name", NETWORKS)
def test_silent_at_the_start_and_any_size(name):
    net = build(NETWORKS[name])
    for size in (16, 32): assert net(*inputs(NETWORKS[name], size=size)).abs().max() == 0


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
    changed = TextEmbedding(torch.where(text.mask[..., None], text.tokens, 7.), text.mask)
    torch.testing.assert_close(net(args[0], args[1], changed, *args[3:]), y, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(net(args[0], args[1], text.pad(9), *args[3:]), y, atol=1e-5, rtol=1e-5)
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
            if isinstance(module, Attention): module.out.weight.zero_(); module.out.bias.zero_()
        assert (net(*args) - net(*flipped)).abs().max() > 1e-5
        net = awake(BASE)
        for p in net.cond.pool.mlp[-1].parameters(): p.zero_()
        assert (net(*args) - net(*flipped)).abs().max() > 1e-5


def test_residual_sum_is_scaled_in_the_efficient_unet():
    blocks = [m for m in build(SR).modules() if isinstance(m, ResBlock)]
    x, emb = torch.randn(1, 16, 4, 4), torch.randn(1, 32)
    assert len(blocks) == 6
    torch.testing.assert_close(blocks[0](x, emb), x*0.5**0.5)


def test_downsampling_comes_before_the_convolutions():
    net, seen = build(SR), []
    for m in net.modules():
        if isinstance(m, ResBlock): m.register_forward_hook(lambda m, i, o: seen.append(i[0].shape[-1]))
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


def test_pool_is_an_average_over_real_words():
    pool = AttentionPool(8, 4, queries=1)
    torch.nn.init.zeros_(pool.score.weight)
    words = torch.randn(1, 4, 8)
    text = TextEmbedding(words, torch.tensor([[True, True, False, False]]))
    torch.testing.assert_close(pool(text), pool.mlp(pool.norm(words)[:, :2].mean(1)))


def test_noise_embedding_tells_levels_apart():
    t = torch.linspace(.01, .99, 50)
    torch.testing.assert_close(cosine_time(cosine_log_snr(t)), t, atol=1e-5, rtol=0)
    assert sinusoid(t, 32).unique(dim=0).shape[0] == 50


def test_published_sizes_on_the_meta_device():
    with torch.device("meta"):
        counts = [sum(p.numel() for p in build(s.network).parameters()) for s in paper().stages]
    assert 1.96e9 < counts[0] < 2.44e9
    assert counts[1] > counts[2] > 4e8
    assert not any(isinstance(m, Attention) and m.has_self for m in build_meta(paper().stages[2].network).modules())


def build_meta(config):
    with torch.device("meta"): return build(config)


def test_toy_networks_are_small():
    for stage in toy().stages:
        assert sum(p.numel() for p in build_meta(stage.network).parameters()) < 3e6


@pytest.mark.parametrize("change, message", [
    (dict(z=torch.zeros(2, 1, 16, 16)), "z_t"), (dict(z=torch.zeros(2, 3, 17, 16)), "nearest"), (dict(l=torch.zeros(3)), "log_snr"),
    (dict(t=TextEmbedding(torch.zeros(2, 5, 13), torch.ones(2, 5, dtype=torch.bool))), "text"),
    (dict(t=TextEmbedding(torch.zeros(2, 5, 12), torch.ones(2, 5))), "mask")])
def test_bad_inputs_are_named(change, message):
    z, log_snr, text = inputs(BASE)
    with pytest.raises(ValueError, match=message): build(BASE)(change.get("z", z), change.get("l", log_snr), change.get("t", text))


def test_bad_configs_are_named():
    with pytest.raises(ValueError, match="attention"): UNetConfig(attention=(True,))
    with pytest.raises(ValueError, match="strides"): EfficientUNetConfig(strides=(3, 2, 2, 2))
    with pytest.raises(TypeError): UNetConfig(dims=3)

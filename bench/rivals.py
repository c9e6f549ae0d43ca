"""The networks that are compared: ours, imagen-pytorch's and diffusers', each behind the same two calls.

A rival is built at a width; `matched` finds the width at which its parameters are nearest to ours.
Peers come from PyPI (`pip install -c constraints.txt -e ".[bench]"`); nothing of theirs is changed but what a row says.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from imagen_nb.efficient_unet import EfficientUNet, EfficientUNetConfig
from imagen_nb.text import TextEmbedding
from imagen_nb.unet import UNet, UNetConfig

W = 3.0  # guidance weight of a guided evaluation


class Inputs(NamedTuple):
    "What every network is given."

    z_t: Tensor  # (b 3 h w)
    log_snr: Tensor  # (b,)
    text: TextEmbedding  # (b l d)
    lowres: Tensor | None = None  # (b 3 h w)
    aug_log_snr: Tensor | None = None

    @classmethod
    def random(
        cls, batch: int, size: int, text_dim: int, length: int, has_lowres: bool, device="cpu"
    ):
        g = torch.Generator().manual_seed(0)

        def draw(*shape):
            return torch.randn(shape, generator=g).to(device)

        text = TextEmbedding(
            draw(batch, length, text_dim),
            torch.ones(batch, length, dtype=torch.bool, device=device),
        )
        lowres = (draw(batch, 3, size, size), draw(batch)) if has_lowres else ()
        return cls(draw(batch, 3, size, size), draw(batch), text, *lowres)


@dataclass(frozen=True)
class Rival:
    "A network and how to ask it."

    name: str
    network: nn.Module
    predict: Callable[[Inputs], Tensor]  # one evaluation, with gradients
    guided: Callable[[Inputs], Tensor]  # both branches of classifier-free guidance, combined


def ours(name: str, network: nn.Module) -> Rival:
    "Both branches in one batch, as `imagen_nb.guidance` does."

    def guided(i: Inputs) -> Tensor:
        null = TextEmbedding(torch.zeros_like(i.text.tokens), torch.zeros_like(i.text.mask))
        null.mask[:, 0] = True
        both = Inputs(
            *(
                None
                if a is None
                else TextEmbedding(*map(torch.cat, zip(a, null)))
                if isinstance(a, TextEmbedding)
                else torch.cat([a, a])
                for a in i
            )
        )
        cond, uncond = network(*both).chunk(2)
        return W * cond + (1 - W) * uncond

    return Rival(name, network, lambda i: network(*i), guided)


def our_base(dim: int, text_dim: int) -> Rival:
    return ours(
        "imagen_nb UNet",
        UNet(UNetConfig(dim=dim, emb_dim=4 * dim, text_dim=text_dim, text_width=4 * dim)),
    )


def our_efficient(dim: int, text_dim: int) -> Rival:
    config = EfficientUNetConfig(
        channels=(dim, 2 * dim, 4 * dim, 8 * dim),
        stem=dim,
        emb_dim=4 * dim,
        text_dim=text_dim,
        text_width=8 * dim,
    )
    return ours("imagen_nb EfficientUNet", EfficientUNet(config))


def our_classic(dim: int, text_dim: int) -> Rival:
    "The network that the Efficient U-Net replaces: the base's shape, with the low-resolution picture in its entry."
    config = UNetConfig(
        dim=dim,
        mults=(1, 2, 4, 8),
        attention=(False, False, False, True),
        emb_dim=4 * dim,
        head_dim=dim,
        text_dim=text_dim,
        text_width=8 * dim,
        has_lowres=True,
    )
    return ours("imagen_nb classic U-Net", UNet(config))


def imagen_pytorch(stage: str, dim: int, text_dim: int) -> Rival:
    "lucidrains' presets at another width. Its import asks the network for a T5 configuration, unless it finds one."
    import transformers

    find, T5Config = transformers.T5Config.from_pretrained, transformers.T5Config
    T5Config.from_pretrained = classmethod(lambda cls, name, *a, **k: cls(d_model=768))
    try:
        from imagen_pytorch import BaseUnet64, SRUnet256
    finally:
        T5Config.from_pretrained = find
    if stage == "base":
        net = BaseUnet64(dim=dim, text_embed_dim=text_dim)
    else:
        net = SRUnet256(dim=dim, text_embed_dim=text_dim, lowres_cond=True)

    def keywords(i: Inputs) -> dict:
        low = (
            {}
            if i.lowres is None
            else dict(lowres_cond_img=i.lowres, lowres_noise_times=i.aug_log_snr)
        )
        return dict(text_embeds=i.text.tokens, text_mask=i.text.mask, **low)

    def guided(i):
        return net.forward_with_cond_scale(
            i.z_t, i.log_snr, cond_scale=W, remove_parallel_component=False, **keywords(i)
        )

    return Rival(
        f"imagen-pytorch {type(net).__name__}",
        net,
        lambda i: net(i.z_t, i.log_snr, **keywords(i)),
        guided,
    )


def diffusers_if(dim: int, text_dim: int, text_width: int) -> Rival:
    "diffusers' U-Net in the configuration of DeepFloyd IF's first stage, at another width."
    from diffusers import UNet2DConditionModel

    net = UNet2DConditionModel(
        sample_size=64,
        in_channels=3,
        out_channels=3,
        block_out_channels=(dim, 2 * dim, 3 * dim, 4 * dim),
        layers_per_block=3,
        down_block_types=("ResnetDownsampleBlock2D",) + ("SimpleCrossAttnDownBlock2D",) * 3,
        act_fn="gelu",
        up_block_types=("SimpleCrossAttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        attention_head_dim=64,
        cross_attention_dim=text_width,
        encoder_hid_dim=text_dim,
        cross_attention_norm="group_norm",
        addition_embed_type="text",
        time_embedding_act_fn="gelu",
        resnet_time_scale_shift="scale_shift",
        only_cross_attention=False,
    )

    def ask(z, t, text):
        return net(
            z, t, encoder_hidden_states=text.tokens
        ).sample  # no mask: its pipelines give none

    def guided(i: Inputs) -> Tensor:  # in one batch, as its pipelines do
        text = TextEmbedding(
            torch.cat([i.text.tokens, torch.zeros_like(i.text.tokens)]), i.text.mask.repeat(2, 1)
        )
        cond, uncond = ask(i.z_t.repeat(2, 1, 1, 1), i.log_snr.repeat(2), text).chunk(2)
        return W * cond + (1 - W) * uncond

    return Rival("diffusers IF U-Net", net, lambda i: ask(i.z_t, i.log_snr, i.text), guided)


def parameters(rival: Rival) -> int:
    return sum(p.numel() for p in rival.network.parameters())


def matched(build: Callable[[int], Rival], target: int, widths) -> int:
    "The width at which `build` is nearest to the wished number of parameters, counted without memory."

    def distance(width: int) -> int:
        with torch.device("meta"):
            return abs(parameters(build(width)) - target)

    return min(widths, key=distance)

"""`paper()` to the letter: each of its values beside the place in arXiv 2205.11487 that states it.

The tables are typed from the paper's appendix F and its text, not from `recipes.py`. OURS marks what the paper leaves
open.
"""

import dataclasses
from collections import Counter

import pytest
import torch
from torch import nn

from imagen_nb.diffusion import linear_log_snr
from imagen_nb.engine.optim import make_optimizers
from imagen_nb.layers import Attention, AttentionPool, ResBlock
from imagen_nb.recipes import base_network, paper
from imagen_nb.thresholding import dynamic_threshold, threshold

OURS = "not stated, our choice"

DIFFUSION = {  # the same in all three models
    "schedule": ("cosine", "F.1, F.2"),
    "target": ("eps", "2.2, App. A"),
    "loss_weight": ("eps", "2.2, App. A"),
    "time_law": (None, "F.1, F.2: continuous time, uniform"),
    "caption_drop": (0.1, "4.1"),
    "is_residual": (False, "App. A: the network predicts noise"),
    "threshold": ("dynamic", "2.3"),
    "sampler": ("ddpm", "App. A, ancestral; DDIM for some models"),
    "aug_schedule": ("cosine", OURS),
    "aug_max": (1.0, "Fig. A.32: aug_level from all of [0, 1]"),
    "aug_t": (0.2, "D.2: 0.1 to 0.3 looks best; the value in between is ours"),
    "t_start": (0.999, OURS),
}
STAGES = (
    DIFFUSION
    | {
        "size": (64, "2.1"),
        "lowres_size": (None, "2.1"),
        "crop": (None, "2.1"),
        "w": (5.0, "Fig. A.10"),
        "steps": (256, OURS),
    },
    DIFFUSION
    | {
        "size": (256, "2.1"),
        "lowres_size": (64, "2.1"),
        "crop": (None, "2.5 crops in 256 -> 1024 alone"),
        "w": (8.0, "Table 1, caption"),
        "steps": (128, OURS),
    },
    DIFFUSION
    | {
        "size": (1024, "2.1"),
        "lowres_size": (256, "2.1"),
        "crop": (256, "2.5: crops of 64 -> 256"),
        "schedule": ("linear", "F.3"),
        "w": (8.0, OURS),
        "steps": (32, OURS),
    },
)
BASE = {
    "dim": (512, "F.1 embed_dim"),
    "mults": ((1, 2, 3, 4), "F.1 channel_mult"),
    "blocks": (3, "F.1 num_res_blocks"),
    "attention": ((False, True, True, True), "F.1 attn_resolutions 32, 16, 8"),
    "head_dim": (64, "F.1 per_head_channels"),
    "resample": ("block", "F.1 res_block_type biggan"),
    "text_dim": (4096, "4.1: T5-XXL"),
    "separate_attention": (False, "D.3.1: words among the keys of self-attention"),
    "skips": ("concat", "F.1: ADM's"),
    "emb_dim": (2048, "ADM: 4 x embed_dim"),
    "text_width": (2048, OURS),
    "pool_queries": (4, OURS),
    "text_depth": (0, "no such thing in the paper"),
    "feed_forward": (0, "no such thing in the paper"),
    "patch": (1, "no such thing in the paper"),
    "has_lowres": (False, "2.1"),
}
SR256 = {
    "channels": ((128, 256, 512, 1024), "F.2 blocks"),
    "blocks": ((2, 4, 8, 8), "F.2 num_resnet_blocks"),
    "strides": ((2, 2, 2, 2), "F.2 strides"),
    "self_attention": ((False, False, False, True), "F.2 self_attention"),
    "text_attention": ((False, False, False, True), "F.2 text_cross_attention"),
    "heads": (8, "F.2 num_attention_heads"),
    "text_dim": (4096, "4.1: T5-XXL"),
    "stem": (128, OURS),
    "text_width": (1024, OURS),
    "emb_dim": (512, OURS),
    "pool_queries": (4, OURS),
    "patch": (1, "no such thing in the paper"),
    "has_lowres": (True, "2.1"),
}
NETWORKS = (
    BASE,
    SR256,
    SR256 | {"self_attention": ((False, False, False, False), "F.3, 2.5")},
)
TRAINING = {
    "batch": (2048, "4.1"),
    "steps": (2_500_000, "4.1"),
    "optimizer": ("adam", "4.1, F.2"),
    "lr": (1e-4, "F.1, F.2, F.3"),
    "betas": ((0.9, 0.999), "F.2: beta1, beta2"),
    "weight_decay": (0.0, "F.1, F.2"),
    "warmup": (10_000, "F.1, F.2, F.3"),
    "decay": ("cosine", "F.1, F.2"),
    "final": (0.0, "F.1 prints 2500000, the number of steps: an error"),
    "clip": (1.0, OURS),
    "ema": (0.9999, OURS),
    "ema_power": (13.0, OURS),
    "seed": (0, OURS),
    "save_every": (5000, OURS),
    "keep": (2, OURS),
}
TRAININGS = (TRAINING | {"optimizer": ("adafactor", "4.1, F.1")}, TRAINING, TRAINING)
COUNTS = (2_267_627_527, 463_959_047, 459_760_647)  # ours; 4.1 prints 2 B, 600 M and 400 M
WHERE = ("64 px", "256 px", "1024 px")
RECIPE = paper()


def compare(config, table):
    "Each field of a config has a row of the table, and its value."
    found = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    found.pop("network", None)  # it has a table of its own
    assert found.keys() == table.keys()
    assert found == {name: value for name, (value, _) in table.items()}
    assert all(place for _, place in table.values())


@pytest.mark.parametrize("k", range(3), ids=WHERE)
def test_stages_are_the_papers(k):
    compare(RECIPE.stages[k], STAGES[k])


@pytest.mark.parametrize("k", range(3), ids=WHERE)
def test_networks_are_the_papers(k):
    compare(RECIPE.stages[k].network, NETWORKS[k])


@pytest.mark.parametrize("k", range(3), ids=WHERE)
def test_training_is_the_papers(k):
    compare(RECIPE.training[k], TRAININGS[k])


def test_the_rest_of_the_recipe():
    assert RECIPE.encoder == "google/t5-v1_1-xxl" and len(RECIPE.stages) == len(RECIPE.training)
    assert (RECIPE.name, RECIPE.level, RECIPE.data, RECIPE.init) == ("paper", None, None, None)
    assert [t.seed for t in paper(7).training] == [7, 7, 7]


@pytest.fixture(scope="module")
def networks():
    with torch.device("meta"):
        return [stage.network.build() for stage in RECIPE.stages]


def test_parameters_are_counted_exactly(networks):
    assert tuple(sum(p.numel() for p in n.parameters()) for n in networks) == COUNTS


def test_a_convolution_on_every_shortcut_would_add(networks):
    "What Fig. A.27 shows and ours has only where widths change; chapter 09 tells of 20.2 M."
    plain = [
        m.conv1.in_channels
        for m in networks[1].modules()
        if isinstance(m, ResBlock) and isinstance(m.shortcut, nn.Identity)
    ]
    assert sum(ch * ch + ch for ch in plain) == 20_193_920


@pytest.mark.parametrize(
    "size, count", [("300M", 312_625_415), ("500M", 547_441_159), ("1B", 1_034_810_631)]
)
def test_smaller_bases_are_counted_exactly(size, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in base_network(size).build().parameters()) == count


def test_the_networks_are_built_as_the_tables_say(networks):
    "What no field says: scale-shift norm, no dropout, attentive pooling, heads, 3 x 3 kernels, scaled sums."
    for k, network in enumerate(networks):
        parts = list(network.modules())
        assert not [m for m in parts if isinstance(m, nn.Dropout) and m.p]  # dropout 0.0
        assert isinstance(network.cond.pool, AttentionPool)  # feature_pooling_type attention
        blocks = [m for m in parts if isinstance(m, ResBlock)]
        assert all(m.film.out_features == 2 * m.conv1.out_channels for m in blocks)
        assert {m.sum_scale for m in blocks} == {1.0 if k == 0 else 0.5**0.5}  # B.1
        assert {m.conv1.kernel_size for m in blocks} == {(3, 3)}
    attention = [[m for m in n.modules() if isinstance(m, Attention)] for n in networks]
    assert Counter(m.out.in_features for m in attention[0]) == {1024: 7, 1536: 7, 2048: 8}
    assert all(m.head_dim == 64 and m.has_self and m.has_text for m in attention[0])
    assert [(m.out.in_features, m.head_dim, m.has_self, m.has_text) for m in attention[1]] == [
        (1024, 128, True, True)
    ] * 2
    assert [(m.out.in_features, m.head_dim, m.has_self, m.has_text) for m in attention[2]] == [
        (1024, 128, False, True)
    ] * 2
    counted = [[len(part.blocks) for part in n.down] for n in networks[1:]]
    assert counted == [[2, 4, 8, 8]] * 2 and [len(p.blocks) for p in networks[1].up] == [8, 8, 4, 2]


def test_what_other_modules_hold_of_the_paper():
    "Adam's epsilon (F.2), the percentile (Fig. A.10), the linear schedule's ends (F.3)."
    (adam,) = make_optimizers(nn.Linear(2, 2), RECIPE.training[1])
    group = adam.param_groups[0]
    assert type(adam) is torch.optim.Adam
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.999), 1e-8, 0)
    x = torch.linspace(-1, 3, 1001).expand(1, 3, 1, 1001)
    s = torch.quantile(x.abs().flatten(), 0.995)
    for found in (dynamic_threshold(x), threshold(x, RECIPE.stages[0].threshold)):
        torch.testing.assert_close(found, x.clamp(-s, s) / s)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    t = torch.linspace(0.2, 1, 5, dtype=torch.float64)
    kept = torch.log1p(-betas).cumsum(0)[(t * 1000).long() - 1]
    torch.testing.assert_close(
        linear_log_snr(t), kept - torch.log(-torch.expm1(kept)), atol=0.08, rtol=0
    )

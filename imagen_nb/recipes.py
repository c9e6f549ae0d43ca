"""Recipes: everything a run needs, as functions that return full, typed configurations."""
from dataclasses import dataclass

from imagen_nb.cascade import StageConfig
from imagen_nb.efficient_unet import EfficientUNetConfig
from imagen_nb.training import TrainConfig
from imagen_nb.unet import UNetConfig

__all__ = ["Recipe", "toy", "paper", "RECIPES"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    "A cascade and how to train it."
    name: str                             # of the recipe
    encoder: str                          # text encoder: a name, a folder or "toy"
    level: str | None                     # level of ShapesWorld; None: the user brings pictures
    stages: tuple[StageConfig, ...]       # the base first
    training: tuple[TrainConfig, ...]     # one for each stage

    def __post_init__(self):
        if len(self.stages) != len(self.training):
            raise ValueError(f"Recipe: training, got {len(self.training)} configs,"
                             f" expected one for each of {len(self.stages)} stages")


def toy(seed: int = 0) -> Recipe:
    "32 -> 128 -> 512 on ShapesWorld `quick`: what two CPU cores learn in minutes."
    base = StageConfig(
        size=32, target="x0", loss_weight="capped", time_law=(.6, 1.25),
        network=UNetConfig(
            dim=48, mults=(1, 2), blocks=1, attention=(False, True), head_dim=32, text_dim=128,
            text_width=128, emb_dim=128, text_depth=1, skips="add", resample="conv",
            separate_attention=True, feed_forward=2, patch=2),
        t_start=.995, steps=16, sampler="dpmpp_2m", w=2., threshold="dynamic")
    sr = dict(text_dim=128, text_width=64, heads=2, emb_dim=128, pool_queries=2)
    middle = StageConfig(
        size=128, lowres_size=32, crop=64, target="x0", loss_weight="capped", time_law=(0., 1.1),
        is_residual=True, aug_max=.15,
        network=EfficientUNetConfig(
            channels=(48, 64), blocks=(1, 2), strides=(1, 2), self_attention=(False, False),
            text_attention=(False, True), stem=48, patch=4, **sr),
        t_start=.995, steps=6, sampler="dpmpp_2m", w=1., threshold="static", aug_t=.05)
    last = StageConfig(
        size=512, lowres_size=128, crop=128, target="x0", loss_weight="capped",
        time_law=(0., 1.1), is_residual=True, aug_max=.1,
        network=EfficientUNetConfig(
            channels=(32, 48), blocks=(1, 2), strides=(1, 2), self_attention=(False, False),
            text_attention=(False, True), stem=32, patch=8, **sr),
        t_start=.995, steps=4, sampler="dpmpp_2m", w=1., threshold="static", aug_t=.02)
    common = dict(optimizer="muon", lr=4e-3, betas=(.9, .98), weight_decay=.01, warmup=60,
                  final=.02, ema=1., seed=seed, save_every=100)
    return Recipe(name="toy", encoder="toy", level="quick", stages=(base, middle, last),
                  training=(TrainConfig(batch=48, steps=1400, **common),
                            TrainConfig(batch=32, steps=260, **common),
                            TrainConfig(batch=32, steps=300, **common)))


def paper() -> Recipe:
    "The three published models (F.1, F.2, F.3)."
    adam = dict(optimizer="adam", ema=.9999)
    return Recipe(
        name="paper", encoder="google/t5-v1_1-xxl", level=None,
        stages=(StageConfig(size=64, network=UNetConfig()),
                StageConfig(size=256, lowres_size=64, network=EfficientUNetConfig(), steps=128, w=8.),
                StageConfig(size=1024, lowres_size=256, crop=256, schedule="linear", steps=32, w=8.,
                            network=EfficientUNetConfig(self_attention=(False,)*4))),
        training=(TrainConfig(), TrainConfig(**adam), TrainConfig(**adam)))


RECIPES = dict(toy=toy, paper=paper)

"""Recipes: everything a run needs, as functions that return full, typed configurations."""

from dataclasses import replace

from imagen_nb.efficient_unet import EfficientUNetConfig
from imagen_nb.stage import StageConfig
from imagen_nb.store.config import config, counted, did_you_mean, option
from imagen_nb.training import TrainConfig
from imagen_nb.unet import UNetConfig

__all__ = [
    "DataConfig",
    "Recipe",
    "toy",
    "toy_full",
    "emoji",
    "base_network",
    "paper",
    "RECIPES",
    "find_recipe",
]


@config
class DataConfig:
    "The user's own pictures, in the words of `load_captioned`."

    source: str  # folder, file or hub name
    image_column: str | None = None  # of a table; None: guessed
    caption_column: str | None = None  # of a table or .json; None: a usual name
    min_size: int = option(0, least=0)  # leave out pictures whose shorter side has fewer pixels
    held_out: float = option(0.0, least=0)  # share kept back as "valid", and as much as "test"


@config
class Recipe:
    "A cascade, what it learns from and how it is trained: all that a run depends on."

    name: str  # of the recipe
    encoder: str  # text encoder: a name, a folder, "toy" or "english"
    level: str | None = None  # level of ShapesWorld; None: the user brings pictures
    data: DataConfig | None = None  # the user's pictures; None: ShapesWorld
    init: str | None = None  # model whose weights are the start; None: random ones
    stages: tuple[StageConfig, ...]  # the base first
    training: tuple[TrainConfig, ...]  # one for each stage

    def __post_init__(self):
        if len(self.stages) != len(self.training):
            raise ValueError(
                f"Recipe: training, got {len(self.training)} configs,"
                f" expected one for each of {counted(len(self.stages), 'stage')}"
            )


def toy_stages(
    dim: int,  # of the base
    channels: tuple[tuple[int, int], tuple[int, int]],  # of both enlargers
    time_law: tuple[float, float],  # of the base
    text_dim: int = 128,  # d of the text encoder
) -> tuple[StageConfig, StageConfig, StageConfig]:
    "32 -> 128 -> 512, narrow networks that two CPU cores can train."
    network = UNetConfig(
        dim=dim,
        mults=(1, 2),
        blocks=1,
        attention=(False, True),
        head_dim=32,
        text_dim=text_dim,
        text_width=128,
        emb_dim=128,
        text_depth=1,
        skips="add",
        resample="conv",
        separate_attention=True,
        feed_forward=2,
        patch=2,
    )
    enlarger = EfficientUNetConfig(
        channels=channels[0],
        blocks=(1, 2),
        strides=(1, 2),
        self_attention=(False, False),
        text_attention=(False, True),
        stem=channels[0][0],
        patch=4,
        text_dim=text_dim,
        text_width=64,
        heads=2,
        emb_dim=128,
        pool_queries=2,
    )
    base = StageConfig(
        size=32,
        target="x0",
        loss_weight="capped",
        time_law=time_law,
        network=network,
        t_start=0.995,
        steps=16,
        sampler="dpmpp_2m",
        w=2.0,
        threshold="static",
    )
    middle = replace(
        base,
        size=128,
        lowres_size=32,
        crop=64,
        time_law=(0.0, 1.1),
        is_residual=True,
        aug_max=0.15,
        network=enlarger,
        steps=6,
        w=1.0,
        aug_t=0.05,
    )
    last = replace(
        middle,
        size=512,
        lowres_size=128,
        crop=128,
        aug_max=0.1,
        network=replace(enlarger, channels=channels[1], stem=channels[1][0], patch=8),
        steps=4,
        aug_t=0.02,
    )
    return base, middle, last


def toy(seed: int = 0) -> Recipe:
    "32 -> 128 -> 512 on ShapesWorld `quick`: what two CPU cores learn in minutes."
    base = TrainConfig(
        batch=48,
        steps=1400,
        optimizer="muon",
        lr=4e-3,
        betas=(0.9, 0.98),
        weight_decay=0.01,
        warmup=60,
        final=0.02,
        ema=1.0,
        seed=seed,
        save_every=100,
    )
    return Recipe(
        name="toy",
        encoder="toy",
        level="quick",
        stages=toy_stages(48, ((48, 64), (32, 48)), (0.6, 1.25)),
        training=(base, replace(base, batch=32, steps=260), replace(base, batch=32, steps=300)),
    )


def toy_full(seed: int = 0) -> Recipe:
    "The toy, wider, on `full`: the weights that ship, but for a last part (`tools/make/train_crowded.py`)."
    small = toy(seed)
    steps = zip(small.training, (5500, 1400, 1000))
    return replace(
        small,
        name="toy-full",
        level="full",
        stages=toy_stages(64, ((64, 96), (64, 96)), (0.5, 1.15)),
        training=tuple(replace(config, steps=n, decay="late") for config, n in steps),
    )


def emoji(seed: int = 0) -> Recipe:
    """32 -> 128 -> 256 on the emoji that `imagen-nb emoji FOLDER` draws, in words that an English model reads.

    Not the paper's: the encoder (BERT family), target, sampler, optimizer and sizes of `toy_full`."""
    base, middle, last = toy_stages(64, ((64, 96), (48, 64)), (0.5, 1.15), text_dim=384)
    stages = (base, replace(middle, aug_max=0.2), replace(last, size=256, crop=64))
    training = [
        replace(config, steps=n, decay="late")
        for config, n in zip(toy(seed).training, (4500, 1500, 900))
    ]
    return Recipe(name="emoji", encoder="english", stages=stages, training=tuple(training))


# dim, text_width
BASE_SIZES = {"300M": (192, 512), "500M": (256, 512), "1B": (320, 4096), "2B": (512, 2048)}


def base_network(
    size: str = "2B",  # "300M", "500M", "1B" or "2B"
) -> UNetConfig:
    "The base at a size of the paper's ablations (4.4, D.1, D.3); they print the size alone, the widths are ours."
    if size not in BASE_SIZES:
        raise ValueError(
            f"base_network: size, got {size!r}, expected one of {', '.join(BASE_SIZES)}"
        )
    dim, text_width = BASE_SIZES[size]
    return UNetConfig(dim=dim, emb_dim=4 * dim, text_width=text_width)


def paper(seed: int = 0) -> Recipe:
    "The three published models (F.1, F.2, F.3); the pictures are yours to bring."
    adam = TrainConfig(optimizer="adam", ema=0.9999, seed=seed)
    return Recipe(
        name="paper",
        encoder="google/t5-v1_1-xxl",
        stages=(
            StageConfig(size=64, network=base_network()),
            StageConfig(size=256, lowres_size=64, network=EfficientUNetConfig(), steps=128, w=8.0),
            StageConfig(
                size=1024,
                lowres_size=256,
                crop=256,
                schedule="linear",
                steps=32,
                w=8.0,
                network=EfficientUNetConfig(self_attention=(False,) * 4),
            ),
        ),
        # Adafactor with the defaults of optax (F.1), so steps are scaled by the size of each weight:
        # layers that start at zero wait for about the first hundredth of the run, see chapter 12.
        training=(TrainConfig(optimizer="adafactor", seed=seed), adam, adam),
    )


RECIPES = {"emoji": emoji, "toy": toy, "toy-full": toy_full, "paper": paper}


def find_recipe(
    name: str,  # a key of `RECIPES`
    seed: int = 0,  # of weights and draws
) -> Recipe:
    "A recipe by name."
    if name not in RECIPES:
        raise ValueError(
            f"train: recipe, got {name!r}, expected one of {', '.join(RECIPES)}"
            + did_you_mean(name, RECIPES)
        )
    return RECIPES[name](seed)

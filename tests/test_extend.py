"""Six extensions from a user's own script: nothing of the package is touched, only public names are imported.

CONTRIBUTING.md shows what stands here, block by block.
"""

import ast
import importlib
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagen_nb.cascade import Imagen
from imagen_nb.diffusion import q_sample, to_eps
from imagen_nb.engine.captions import EmbeddingCache
from imagen_nb.evaluation import bootstrap_mean, tally
from imagen_nb.sampling import SAMPLERS
from imagen_nb.stage import Stage, StageConfig
from imagen_nb.store.config import config, option
from imagen_nb.text import TextEmbedding
from imagen_nb.training import TrainConfig, Trainer

ROOT = Path(__file__).resolve().parents[1]


# ---------------------------------------------------------------- a sampler


def sample_mine(denoise, z, log_snrs, *, noise=None):
    "Believe x0_hat and the noise it leaves, and go to the next noise level."
    for i, (now, then) in enumerate(zip(log_snrs[:-1], log_snrs[1:])):
        now, then = now.expand(len(z)), then.expand(len(z))
        x0_hat = denoise(z, now)
        z = q_sample(x0_hat, to_eps(x0_hat, z, now, "x0"), then)
        yield i, z, x0_hat


SAMPLERS["mine"] = sample_mine


# ---------------------------------------------------------------- a network and its config


@config
class PlainConfig:
    "Two convolutions; caption and noise level are a colour that is added."

    width: int = option(16, least=1)  # channels between them
    text_dim: int = option(26, least=1)  # width of the text encoder
    has_lowres: bool = False  # a base
    stride: int = 1  # sides of a picture are multiples of it

    def build(self) -> nn.Module:
        return Plain(self)


class Plain(nn.Module):
    def __init__(self, config: PlainConfig):
        super().__init__()
        self.inner = nn.Conv2d(3, config.width, 3, padding=1)
        self.outer = nn.Conv2d(config.width, 3, 3, padding=1)
        self.colour = nn.Linear(config.text_dim + 1, 3)

    def forward(self, z_t, log_snr, text, lowres=None, aug_log_snr=None):
        mean = text.tokens.sum(1) / text.mask.sum(1, keepdim=True)  # (b d)
        colour = self.colour(torch.cat([mean, log_snr[:, None] / 20], 1))  # (b 3)
        return self.outer(F.silu(self.inner(z_t))) + colour[:, :, None, None]


# ---------------------------------------------------------------- a text encoder


class Letters:
    "A vector for each letter."

    width = 26
    identity = dict(  # caches and models remember it, and refuse an encoder with another one
        encoder="letters", revision="1", tokenizer="letters", max_length=128, dtype="float32"
    )

    def __call__(self, captions: list[str]) -> TextEmbedding:
        return TextEmbedding.concat([self.embed(caption) for caption in captions])

    def embed(self, caption: str) -> TextEmbedding:
        numbers = torch.tensor([ord(c) % 26 for c in caption[:128]] or [0])
        tokens = F.one_hot(numbers, 26).float() * bool(caption)  # no text is zero
        return TextEmbedding(tokens[None], torch.ones(1, len(numbers), dtype=torch.bool))


# ---------------------------------------------------------------- a source of pictures


class Colours:
    "Pictures of one colour, and its name."

    names = dict(red=(0.9, -0.9, -0.9), green=(-0.9, 0.9, -0.9), blue=(-0.9, -0.9, 0.9))
    identity = "three colours"  # a run remembers it

    def __len__(self) -> int:
        return len(self.names)

    def captions(self, i: int) -> list[str]:
        return [list(self.names)[i]]

    def caption(self, i: int, epoch: int | None = None) -> str:
        return self.captions(i)[0]

    def images(self, indices, size: int, crop=None) -> Tensor:  # (b 3 h w) in [-1, 1]
        sides = (crop.height, crop.width) if crop else (size, size)
        values = [list(self.names.values())[int(i)] for i in indices]
        return torch.tensor(values)[:, :, None, None].repeat(1, 1, *sides)


# ---------------------------------------------------------------- a metric


def redness(images: Tensor) -> Tensor:  # (b 3 h w) in [-1, 1] -> (b,)
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


def judge(images: Tensor) -> dict:
    values = redness(images)
    right = tally([dict(red=bool(value > 0)) for value in values])
    return dict(redness=bootstrap_mean(values), right=right["red"])


# ---------------------------------------------------------------- a saved model


def train_and_save(run: Path, model: Path) -> Imagen:
    encoder, pictures = Letters(), Colours()
    captions = [c for i in range(len(pictures)) for c in pictures.captions(i)]
    text = EmbeddingCache.build(encoder, captions, run / "captions")
    stage = Stage(StageConfig(size=8, network=PlainConfig(), steps=2, sampler="mine"))
    how = TrainConfig(batch=4, steps=2, optimizer="adam", warmup=1)
    trained = Trainer(stage, pictures, text, how, run / "8px").fit()
    Imagen(encoder, [trained]).save_pretrained(model)
    return Imagen.from_pretrained(model, encoder)


# ---------------------------------------------------------------- what must hold of them


class Ready:
    "The least that a Trainer asks of text."

    identity = "letters"

    def __getitem__(self, captions):
        return Letters()(captions)


@pytest.fixture
def stage():
    torch.manual_seed(0)
    built = Stage(StageConfig(size=8, network=PlainConfig(width=4), target="x0", steps=5))
    built.is_trained = True
    return built


def test_a_sampler_of_ones_own_draws(stage):
    "This one is DDIM in other words, so that it draws the same."
    text, seeds = Letters()(["red", "blue"]), [1, 2]
    ours, theirs = (stage.sample(text, seeds=seeds, sampler=name) for name in ("mine", "ddim"))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert StageConfig(sampler="mine").sampler == "mine"
    with pytest.raises(ValueError, match="mine"):  # what is not known names what is
        StageConfig(sampler="yours")


def test_a_network_of_ones_own_learns_and_is_found_again(tmp_path):
    torch.manual_seed(0)
    first = Stage(StageConfig(size=8, network=PlainConfig(width=5), target="x0"))
    before = {name: v.clone() for name, v in first.network.state_dict().items()}
    how = TrainConfig(batch=6, steps=2, optimizer="adam", lr=0.01, warmup=0)

    def fit():
        return Trainer(first, Colours(), Ready(), how, tmp_path / "run").fit()

    trained = fit()
    after = trained.network.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    again = fit().network.state_dict()  # from its checkpoint
    assert all(torch.equal(after[name], again[name]) for name in after)
    Imagen(None, [trained]).save_pretrained(tmp_path / "model", dtype=torch.float32)
    loaded = Imagen.from_pretrained(tmp_path / "model").stages[0]
    assert loaded.config == first.config and isinstance(loaded.network, Plain)
    assert all(torch.equal(after[k], v) for k, v in loaded.network.state_dict().items())
    with pytest.raises(ValueError, match="PlainConfig: width, got 0"):
        PlainConfig(width=0)


def test_an_encoder_of_ones_own_is_cached_and_drawn_with(stage, tmp_path):
    encoder, captions = Letters(), ["red", "a long caption", ""]
    cache = EmbeddingCache.build(encoder, captions, tmp_path / "c", dtype=torch.float32)
    assert len(cache) == 3 and cache.identity["encoder"] == "letters"
    for mine, kept in zip(encoder(captions), cache[captions]):
        assert torch.equal(mine, kept)
    reopened = EmbeddingCache.open(tmp_path / "c", encoder)
    assert torch.equal(reopened[["red"]].tokens, encoder(["red"]).tokens)
    other = Letters()
    other.identity = Letters.identity | dict(revision="2")
    with pytest.raises(ValueError, match="revision"):
        EmbeddingCache.open(tmp_path / "c", other)
    assert Imagen(encoder, [stage]).sample(captions).shape == (3, 3, 8, 8)


def test_a_source_of_ones_own_is_trained_on_and_validated(stage, tmp_path):
    how = TrainConfig(batch=4, steps=2, optimizer="adam", warmup=1)
    Trainer(stage, Colours(), Ready(), how, tmp_path / "run").fit()
    for name in ("validation", "samples", "log"):
        assert (tmp_path / "run" / f"{name}.jsonl").read_text().count("\n") == 1
    assert '"three colours"' in (tmp_path / "run" / "config.json").read_text()


def test_a_metric_of_ones_own_has_intervals():
    found = judge(Colours().images([0, 0, 0, 1], 8))
    assert found["right"]["share"] == 0.75 and found["right"]["low"] < 0.75
    assert found["redness"]["low"] < found["redness"]["mean"] < found["redness"]["high"]


def test_a_model_of_ones_own_parts_is_saved_and_loaded(tmp_path):
    loaded = train_and_save(tmp_path / "run", tmp_path / "model")
    assert loaded.stages[0].config.sampler == "mine" and loaded.encoder.width == 26
    images = loaded.sample(["red", "blue"], seeds=[3, 4])
    again = Imagen.from_pretrained(tmp_path / "model", Letters())
    assert torch.equal(images, again.sample(["red", "blue"], seeds=[3, 4]))
    other = Letters()
    other.identity = Letters.identity | dict(revision="2")
    with pytest.raises(ValueError, match="expected the encoder of training"):
        Imagen.from_pretrained(tmp_path / "model", other)
    assert judge(images)["right"]["n"] == 2


# ---------------------------------------------------------------- what must hold of this file


def test_this_file_imports_public_names_only():
    for node in ast.walk(ast.parse(Path(__file__).read_text())):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("imagen_nb"):
            continue
        module = importlib.import_module(str(node.module))
        for name in node.names:
            public = getattr(module, "__all__", None)
            assert not name.name.startswith("_") and (public is None or name.name in public), name


def test_the_page_shows_this_file():
    page, own = (ROOT / "CONTRIBUTING.md").read_text(), Path(__file__).read_text()
    section = page.partition("## Extend it from your own script")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.S)
    assert len(blocks) == 6
    for block in blocks:
        for part in block.strip().split("\n\n\n"):
            assert part in own, part

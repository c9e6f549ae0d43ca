"""Configurations: limits, files, differences, changes; those of the package and one's own."""

import json
import math
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from imagen_nb.cascade import Imagen
from imagen_nb.efficient_unet import EfficientUNetConfig
from imagen_nb.pictures.pixels import Batch
from imagen_nb.recipes import DataConfig, Recipe, paper, toy, toy_full
from imagen_nb.sampling import SAMPLERS, sample_ddim
from imagen_nb.stage import Draws, Stage, StageConfig
from imagen_nb.store.config import (
    KINDS,
    change,
    config,
    config_diff,
    config_from_dict,
    config_to_dict,
    did_you_mean,
    option,
    with_defaults,
)
from imagen_nb.text import TextEmbedding
from imagen_nb.training import Execution, TrainConfig
from imagen_nb.unet import NetworkConfig, UNetConfig

INF, NAN = math.inf, math.nan


@config
class Inner:
    "A part."

    width: int = option(8, least=1)


@config(retired=dict(old=False))
class Outer:
    "A whole."

    name: str
    share: float = option(0.5, least=0, most=1)
    rate: float = option(1e-3, above=0)
    sides: tuple[int, ...] = option((1, 2), least=1)
    pair: tuple[float, float] | None = None
    is_on: bool = False
    mode: str | None = option("a", among=(None, "a", "b"))
    inner: Inner = Inner()
    inners: tuple[Inner, ...] = ()

    def __post_init__(self):
        if self.share > 0.9 and self.is_on:
            raise ValueError("Outer: is_on, got True, expected False above a share of 0.9")


@config
class Bigram:
    "The config of a network of one's own: one convolution, and the mean of the words."

    text_dim: int = option(12, least=0)
    has_lowres: bool = False
    width: int = option(4, least=1)

    @property
    def stride(self) -> int:
        return 1

    def build(self) -> nn.Module:
        return BigramNetwork(self)


class BigramNetwork(nn.Module):
    def __init__(self, config):
        super().__init__()
        channels = 6 if config.has_lowres else 3
        self.conv = nn.Conv2d(channels, 3, 3, padding=1)
        self.words = nn.Linear(config.text_dim, 3)

    def forward(self, z_t, log_snr, text, lowres=None, aug_log_snr=None):
        x = z_t if lowres is None else torch.cat([z_t, lowres], 1)
        return (self.conv(x) + self.words(text.tokens.mean(1))[:, :, None, None]).float()


# ---------------------------------------------------------------- limits

WRONG = [
    (StageConfig, dict(loss_weight="bogus"), "loss_weight, got 'bogus', expected one of"),
    (StageConfig, dict(time_law=(1.0,)), "time_law, got (1.0,), expected a tuple of 2 entries"),
    (StageConfig, dict(steps=1.5), "steps, got 1.5, expected a whole number, 1 or more"),
    (StageConfig, dict(size=-16), "size, got -16"),
    (StageConfig, dict(size=True), "size, got True"),
    (StageConfig, dict(size="64"), "size, got '64'"),
    (StageConfig, dict(sampler="euler"), "sampler, got 'euler', expected one of"),
    (StageConfig, dict(sampler="ddmp"), "; did you mean ddpm?"),
    (StageConfig, dict(threshold="dynamik"), "; did you mean dynamic?"),
    (StageConfig, dict(threshold="default"), "threshold, got 'default'"),
    (StageConfig, dict(t_start=0), "t_start, got 0, expected a number above 0, at most 1"),
    (StageConfig, dict(is_residual=1), "is_residual, got 1, expected True or False"),
    (StageConfig, dict(network=None), "network, got None, expected a NetworkConfig"),
    (StageConfig, dict(network=UNetConfig), "expected a NetworkConfig made by `@config`"),
    (UNetConfig, dict(mults=()), "UNetConfig: "),
    (UNetConfig, dict(mults=(1, 2.5, 3, 4)), "mults, got (1, 2.5, 3, 4)"),
    (UNetConfig, dict(attention="yes"), "attention, got 'yes', expected a tuple of any number"),
    (UNetConfig, dict(skips="sum"), "skips, got 'sum', expected one of ('concat', 'add')"),
    (EfficientUNetConfig, dict(heads=0), "heads, got 0"),
    (EfficientUNetConfig, dict(channels=(0, 1, 2, 3)), "channels, got (0, 1, 2, 3)"),
    (TrainConfig, dict(ema=7.0), "ema, got 7.0, expected a number, 0 to 1"),
    (TrainConfig, dict(betas=()), "betas, got (), expected a tuple of 2 entries, each a number"),
    (TrainConfig, dict(betas=(0.9, 1.1)), "betas, got (0.9, 1.1)"),
    (TrainConfig, dict(batch=8.0), "batch, got 8.0, expected a whole number, 1 or more"),
    (TrainConfig, dict(lr=0), "lr, got 0, expected a number above 0"),
    (TrainConfig, dict(optimizer="sgd"), "optimizer, got 'sgd', expected one of"),
    (DataConfig, dict(source=3), "source, got 3, expected a text"),
    (Recipe, dict(name="x", encoder="toy", stages=[1], training=[]), "stages, got [1]"),
]


@pytest.mark.parametrize("kind, values, words", WRONG)
def test_what_is_wrong_is_refused_when_a_config_is_made(kind, values, words):
    with pytest.raises(ValueError) as e:
        kind(**values)
    assert str(e.value).startswith(f"{kind.__name__}: ") and words in str(e.value)


KINDS_OF_OURS = [StageConfig, UNetConfig, EfficientUNetConfig, TrainConfig, DataConfig, Execution]


@pytest.mark.parametrize("kind", KINDS_OF_OURS)
@pytest.mark.parametrize("value", [NAN, INF, -INF, np.float32("nan"), 10**400])
def test_no_number_of_any_config_is_nan_or_infinite(kind, value):
    given = dict(source="x") if kind is DataConfig else {}
    numbers = [f.name for f in fields(kind) if type(f.default) in (int, float)]
    for name in numbers:
        with pytest.raises(ValueError, match=f"{kind.__name__}: {name}, got"):
            kind(**given, **{name: value})
    assert numbers or kind is Execution


def test_every_config_of_the_package_is_made_by_the_one_decorator():
    ours = {name for name, kind in KINDS.items() if kind.__module__.startswith("imagen_nb.")}
    assert {"StageConfig", "UNetConfig", "EfficientUNetConfig", "TrainConfig"} <= ours
    assert {"Recipe", "DataConfig", "Execution"} <= ours


def test_values_become_the_type_of_their_field():
    made = Outer(
        name=Path("a/b"),
        share=np.float32(0.25),
        sides=[np.int64(3), np.uint8(4)],
        pair=[0, np.float64(1)],
        is_on=np.bool_(True),
    )
    assert made == Outer(name="a/b", share=0.25, sides=(3, 4), pair=(0.0, 1.0), is_on=True)
    kinds = [type(o) for o in (made.name, made.share, *made.sides, *made.pair, made.is_on)]
    assert kinds == [str, float, int, int, float, float, bool]
    assert json.loads(json.dumps(config_to_dict(made)))["sides"] == [3, 4] and hash(made)
    assert Outer(name="x", pair=None, mode=None).mode is None


@pytest.mark.parametrize(
    "values",
    [
        dict(share=-0.1),
        dict(share=None),
        dict(share="0.5"),
        dict(rate=0),
        dict(sides=3),
        dict(sides=[1, 0]),
        dict(sides=[1, None]),
        dict(sides=[1, 2.0]),
        dict(sides=[1, np.float64(2)]),
        dict(pair=(1,)),
        dict(pair=(1, 2, 3)),
        dict(pair="ab"),
        dict(is_on=0),
        dict(is_on=None),
        dict(mode="c"),
        dict(name=None),
        dict(name=b"x"),
        dict(inner=None),
        dict(inner=dict(width=8)),
        dict(inner=Inner),
        dict(inners=Inner()),
        dict(inners=[Inner(), Outer(name="x")]),
        dict(share=torch.tensor(0.5)),
        dict(share=np.ones(2)),
    ],
)
def test_nothing_else_passes(values):
    (name,) = values
    with pytest.raises(ValueError, match=f"Outer: {name}, got"):
        Outer(**dict(name="x") | values)


def test_a_config_is_frozen_and_given_by_keyword():
    with pytest.raises(FrozenInstanceError):
        Inner().width = 3
    with pytest.raises(TypeError):
        Inner(3)
    with pytest.raises(ValueError, match="width, got 0, expected a whole number, 1 or more"):
        replace(Inner(), width=0)


def test_a_config_that_refines_another_keeps_its_rules():
    @config
    class Finer(Outer):
        depth: int = option(1, least=1)

    for wrong in (dict(depth=0), dict(share=2), dict(share=0.95, is_on=True)):
        with pytest.raises(ValueError, match="Finer: |Outer: is_on"):
            Finer(name="x", **wrong)
    old = dict(config_to_dict(Finer(name="x", depth=3)), old=False)
    assert config_from_dict(old).depth == 3


def test_a_dictionary_that_grows_allows_more(monkeypatch):
    name = "known_to_this_test_alone"  # the dictionary is the whole session's
    with pytest.raises(ValueError, match=f"sampler, got '{name}', expected one of"):
        StageConfig(sampler=name)
    monkeypatch.setitem(SAMPLERS, name, sample_ddim)
    assert StageConfig(sampler=name).sampler == name


def test_one_name_in_two_modules_is_refused():
    def define(module):
        return config(type("Twice", (), dict(__annotations__=dict(a=int), a=1, __module__=module)))

    for module in ("one", "one", "__main__", "one"):  # a cell may be run again
        define(module)
    with pytest.raises(ValueError, match=r"Twice, got it from two modules, \['one', 'two'\]"):
        define("two")
    assert KINDS.pop("Twice").__module__ == "one"


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("recipe", [toy, toy_full, paper])
def test_recipes_survive_json(recipe):
    values = json.loads(json.dumps(config_to_dict(recipe())))
    assert config_from_dict(values) == recipe() and with_defaults(values) == values
    assert config_diff(values, config_to_dict(recipe())) == []


def test_unknown_keys_classes_and_missing_values_are_named():
    values = config_to_dict(Outer(name="x", inner=Inner(width=3)))
    with pytest.raises(ValueError, match=r"Outer, got unknown \['shade'\], expected among"):
        config_from_dict(dict(values, shade=3))
    with pytest.raises(ValueError, match=r"Inner, got unknown \['depth'\]"):
        config_from_dict(dict(values, inner=dict(values["inner"], depth=1)))
    with pytest.raises(ValueError, match="type, got 'Elsewhere'.*once the module that defines"):
        config_from_dict(dict(values, inner=dict(type="Elsewhere")))
    with pytest.raises(ValueError, match=r"Outer, got no \['name'\]"):
        config_from_dict({k: v for k, v in values.items() if k != "name"})
    with pytest.raises(ValueError, match="Outer: share, got 7"):
        config_from_dict(dict(values, share=7))


def test_old_files_are_read_and_compared_as_they_would_be_written_today():
    today = Outer(name="x", inners=(Inner(), Inner(width=2)))
    values = json.loads(json.dumps(config_to_dict(today)))
    old = dict(values, old=False, inners=[dict(type="Inner"), dict(type="Inner", width=2)])
    del old["rate"], old["inner"]
    assert config_from_dict(old) == today
    assert with_defaults(old) == values and config_diff(with_defaults(old), values) == []
    meant = dict(old, old=True)  # it meant something then
    with pytest.raises(ValueError, match=r"unknown \['old'\]"):
        config_from_dict(meant)
    assert config_diff(with_defaults(meant), values) == ["old: True on disk, nothing now"]


# ---------------------------------------------------------------- differences


def test_a_difference_walks_lists_and_tuples():
    now = toy()
    first, *rest = now.training
    then = replace(now, training=(replace(first, steps=1500), *rest))
    old, new = config_to_dict(now), config_to_dict(then)
    line = "training.0.steps: 1400 on disk, 1500 now"
    assert config_diff(old, new) == [line]
    assert config_diff(json.loads(json.dumps(old)), new) == [line]
    assert config_diff(dict(a=((1, dict(b=2)),)), dict(a=[[1, dict(b=3)]])) == [
        "a.0.1.b: 2 on disk, 3 now"
    ]
    wider = replace(then, stages=tuple(replace(o, caption_drop=0.5) for o in then.stages))
    assert len(config_diff(old, config_to_dict(wider))) == 4


@pytest.mark.parametrize("more", [0, 1])
def test_a_list_that_is_longer_differs(more):
    "A cascade with one stage more is another cascade, whichever side has it."
    stages = [config_to_dict(Inner(width=k)) for k in (1, 2, 3)]
    old, new = (dict(stages=stages[: 2 + n]) for n in (more, 1 - more))
    (line,) = config_diff(old, new)
    assert line.startswith("stages: ") and config_diff(old, old) == []


def test_a_difference_is_of_what_is_learned():
    old, new = (config_to_dict(change(toy(), "stages.0.w", w)) for w in ("2.0", "3.0"))
    assert old != new and config_diff(old, new) == []
    new["stages"][0]["size"] = 64
    assert config_diff(old, new) == ["stages.0.size: 32 on disk, 64 now"]


def test_a_difference_is_short():
    base = config_to_dict(StageConfig())
    other = dict(base, network=config_to_dict(EfficientUNetConfig()))
    assert config_diff(base, other) == [
        "network: UNetConfig(...) on disk, EfficientUNetConfig(...) now"
    ]
    assert config_diff(dict(a=1), dict(b=2)) == [
        "a: 1 on disk, nothing now",
        "b: nothing on disk, 2 now",
    ]
    assert config_diff([1, 2], [1, 2, 3]) == [": [1, 2] on disk, [1, 2, 3] now"]
    assert config_diff(dict(data=None), dict(data=config_to_dict(DataConfig(source="x")))) == [
        "data: None on disk, DataConfig(...) now"
    ]
    (line,) = config_diff(dict(a="x" * 500), dict(a="y"))
    assert len(line) < 200 and "(502 characters)" in line


# ---------------------------------------------------------------- changes


def test_change_replaces_one_value_and_checks_it():
    recipe = toy()
    changed = change(recipe, "stages.1.network.blocks", "(1, 3)")
    assert changed.stages[1].network.blocks == (1, 3) and recipe == toy()
    assert change(recipe, "stages.0.threshold", "none").stages[0].threshold is None
    for words in ("1e3", "1000.0"):  # as one writes it
        assert change(recipe, "training.0.steps", words).training[0].steps == 1000
    assert change(Outer(name="x"), "name", "1400").name == "1400"
    assert change(Outer(name="x"), "inner.width", "3").inner == Inner(width=3)


@pytest.mark.parametrize(
    "path, text, words",
    [
        ("stagez.0.w", "1", "got 'stagez', expected one of .*did you mean stages"),
        ("stages.7.w", "1", "got '7', expected a number from 0 to 2"),
        ("stages.0", "1", "expected a name after the number"),
        ("stages", "1", "expected a name after it"),
        ("stages.0.network", "UNetConfig()", "expected a name after it"),
        ("name.x", "1", "name is a value and has no parts"),
        ("stages.0.steps", "many", "got 'many', expected a whole number"),
        ("stages.0.steps", "0", "steps, got 0"),
        ("stages.0.w", "nan", "got 'nan', expected a number"),
        ("stages.0.w", "1e999", "got '1e999', expected a number"),
        ("stages.0.is_residual", "1", "expected True or False"),
        ("stages.0.time_law", "(1,)", "expected a tuple of 2 entries"),
        ("stages.0.steps", "{[]: 1}", "expected a whole number"),
    ],
)
def test_a_change_that_does_not_fit_is_refused(path, text, words):
    with pytest.raises(ValueError, match=words):
        change(toy(), path, text)


def test_a_suggestion_is_made_only_where_one_is_near():
    assert did_you_mean("sampelr", ["sampler", "steps"]) == "; did you mean sampler?"
    assert did_you_mean("zzz", ["sampler"]) == did_you_mean(3, ["sampler"]) == ""


# ---------------------------------------------------------------- a network of one's own


def own_batch(b=4, size=8):
    g = torch.Generator().manual_seed(0)
    text = TextEmbedding(torch.randn(b, 5, 12, generator=g), torch.ones(b, 5, dtype=torch.bool))
    images = torch.rand(b, 3, size, size, generator=g) * 2 - 1
    draws = Draws(torch.rand(b, generator=g), images.flip(0), torch.ones(b, dtype=torch.bool))
    return Batch(images, text, torch.arange(b)), draws


def test_a_network_of_ones_own_trains_saves_and_loads(tmp_path):
    assert isinstance(Bigram(), NetworkConfig)
    torch.manual_seed(0)
    stage = Stage(StageConfig(size=8, network=Bigram(), steps=3, sampler="ddim", w=2.0))
    optimizer, losses = torch.optim.Adam(stage.network.parameters(), 1e-2), []
    for _ in range(20):
        loss = stage.loss(*own_batch()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    stage.is_trained = True
    text = own_batch()[0].text
    drawn = Imagen(None, [stage]).sample(text)
    Imagen(None, [stage]).save_pretrained(tmp_path / "m", dtype=torch.float32)
    loaded = Imagen.from_pretrained(tmp_path / "m")
    assert loaded.stages[0].config == stage.config
    assert type(loaded.stages[0].network) is BigramNetwork
    assert "BigramNetwork" in (tmp_path / "m" / "README.md").read_text()
    torch.testing.assert_close(loaded.sample(text), drawn)


def test_a_file_that_names_an_unknown_class_says_what_to_do(tmp_path, monkeypatch):
    stage = Stage(StageConfig(size=8, network=Bigram()))
    Imagen(None, [stage]).save_pretrained(tmp_path / "m")
    monkeypatch.delitem(KINDS, "Bigram")
    with pytest.raises(ValueError, match="type, got 'Bigram', expected one of .*is imported"):
        Imagen.from_pretrained(tmp_path / "m")


def test_what_is_not_made_by_config_is_no_networks_config():
    class Plain:
        text_dim, has_lowres, stride = 12, False, 1

        def build(self):
            return nn.Identity()

    with pytest.raises(ValueError, match="expected a NetworkConfig made by `@config`"):
        StageConfig(size=8, network=Plain())

"""Whatever torch was told before, the same pictures: default dtype, default device, modes."""

import ast
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from test_cascade import BASE_STAGE, SR_STAGE, Letters, awake
from torch.overrides import has_torch_function

from imagen_nb.cascade import Imagen
from imagen_nb.data import ShapesWorld
from imagen_nb.pictures.pixels import Crop, resize
from imagen_nb.stage import Stage
from imagen_nb.store.keyed import keyed_noise
from imagen_nb.store.modes import plain_torch

LIB = Path(__file__).parents[1] / "imagen_nb"
HALF, DOUBLE = torch.float16, torch.float64


@contextmanager
def told(dtype=torch.float32, device=None):
    "As after `torch.set_default_...` higher up in a notebook."
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
        assert torch.get_default_dtype() == dtype
        assert torch.get_default_device() == torch.device(device or "cpu")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


DEFAULTS = [dict(dtype=HALF), dict(dtype=DOUBLE), dict(device="meta"), dict(device="cpu")]


@pytest.mark.parametrize("defaults", DEFAULTS)
@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
def test_defaults_do_not_enter_a_picture(defaults, sampler):
    imagen = Imagen(Letters(), [awake(BASE_STAGE), awake(SR_STAGE)])
    how = dict(sampler=sampler, steps=3, return_all=True, batch_size=1, w=3.0)
    before = imagen.sample(["red", "blue"], **how)
    with told(**defaults):
        after = imagen.sample(["red", "blue"], **how)
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(before, after))


@pytest.mark.parametrize("defaults", DEFAULTS)
def test_defaults_do_not_enter_the_shipped_model(defaults):
    how = dict(stages=1, steps=2, seeds=[5])
    before = Imagen.from_pretrained("toy").sample(["a red circle"], **how)
    with told(**defaults):
        after = Imagen.from_pretrained("toy").sample(["a red circle"], **how)
    assert torch.equal(before, after)


@pytest.mark.parametrize("defaults", DEFAULTS)
def test_defaults_do_not_enter_what_is_made(defaults):
    def made():
        torch.manual_seed(0)
        world, zero = (
            ShapesWorld("train", level="quick", size=16),
            torch.zeros(1, dtype=torch.int64, device="cpu"),
        )
        parts = [keyed_noise([1], (2, 2)), world.images([3, 4])]
        parts += [world.images([3], crop=Crop(zero, zero, 8, 8)), resize(parts[1], 11)]
        return parts + list(Stage(BASE_STAGE).network.parameters())

    before = made()
    with told(**defaults):
        after = made()
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b) and b.dtype == torch.float32


def test_a_block_with_a_device_ends_where_it_did():
    with torch.device("meta"):
        with plain_torch():
            assert torch.zeros(1).device.type == "cpu"
        assert torch.zeros(1).is_meta
    with told(DOUBLE, "meta"):
        with pytest.raises(KeyError), plain_torch():
            assert torch.zeros(1).dtype == torch.float32
            raise KeyError
    assert torch.zeros(1).dtype == torch.float32 and torch.get_default_device().type == "cpu"


def test_a_block_without_a_device_asks_nobody():
    "A default device, even the CPU, makes torch choose slower kernels."
    with plain_torch():
        assert not has_torch_function((torch.empty(0),))


NUMBERS = {"zeros", "ones", "full", "empty", "eye", "linspace", "rand", "randn"}  # of default dtype
PLACED = NUMBERS | {"arange", "tensor", "randint", "randperm", "as_tensor"}
COVERED = ("engine", "training.py")  # a run puts torch's defaults aside as a whole


@pytest.mark.parametrize("path", sorted(LIB.rglob("*.py")), ids=lambda p: str(p.relative_to(LIB)))
def test_every_tensor_made_says_where_and_of_what(path):
    if path.relative_to(LIB).parts[0] in COVERED:
        return
    for call in ast.walk(ast.parse(path.read_text())):
        if isinstance(call, ast.Call) and isinstance(f := call.func, ast.Attribute):
            if isinstance(f.value, ast.Name) and f.value.id == "torch" and f.attr in PLACED:
                said = {k.arg for k in call.keywords}
                wanted = {"device"} | ({"dtype"} if f.attr in NUMBERS else set())
                assert None in said or wanted <= said, f"{path.name}:{call.lineno}"

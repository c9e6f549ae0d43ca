"The checkpoint that chapter 08 goes on from is small, whole and the one of its card."

import json

import torch

from imagen_nb.data import ShapesWorld
from imagen_nb.diffusion import cosine_log_snr, q_sample
from imagen_nb.store.checkpoint import load_directory
from imagen_nb.store.config import config_from_dict
from imagen_nb.store.files import assets
from imagen_nb.text import TextEncoder
from imagen_nb.unet import UNetConfig


def network():
    files, meta = load_directory(assets() / "half-trained")
    config = config_from_dict(meta["network"])
    assert isinstance(config, UNetConfig)
    made = config.build().eval()
    made.load_state_dict({name: w.float() for name, w in files["network"].items()})
    return made, meta


def test_it_is_the_one_of_its_card():
    made, meta = network()
    card = json.loads((assets() / "runs" / "half-trained.json").read_text(encoding="utf-8"))
    assert sum(p.numel() for p in made.parameters()) == card["parameters"]
    assert meta["steps"] == card["steps"] and meta["batch"] == card["batch"]
    whole = sum(p.stat().st_size for p in (assets() / "half-trained").iterdir())
    assert whole <= 500_000


@torch.no_grad()
def test_it_reads_captions():
    made, _ = network()
    world = ShapesWorld("valid", level="quick", size=32, length=16)
    x0, text = world.images(range(16)), TextEncoder.toy()([world.caption(i) for i in range(16)])
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    level = cosine_log_snr(torch.full((16,), 0.8))
    z_t = q_sample(x0, eps, level)
    right = (made(z_t, level, text) - x0).square().mean()
    moved = (made(z_t, level, text.rows(torch.arange(16).roll(1))) - x0).square().mean()
    assert right < 0.15 * x0.var() and moved > 3 * right

"""The benchmark: its sides, counts and card. A network of ours stands for the peers: nothing must be installed."""

import json

import pytest
import torch

import bench.__main__ as bench
from bench import memory
from bench.rivals import Inputs, matched, our_base, ours, parameters
from imagen_nb.efficient_unet import EfficientUNet, EfficientUNetConfig
from imagen_nb.unet import UNet, UNetConfig

TINY = (
    "--width 16 --sr-width 8 --batch 2 --sr-batch 1 --sr-size 32 --text-dim 16 --length 4"
    " --repeats 2 --warmup 1 --threads 1"
).split()


def small_base(dim: int, text_dim: int):
    return ours(
        "small",
        UNet(
            UNetConfig(
                dim=16,
                mults=(1, 2),
                attention=(False, True),
                blocks=1,
                head_dim=16,
                emb_dim=16,
                patch=4,
                text_dim=text_dim,
                text_width=16,
            )
        ),
    )


def small_efficient(dim: int, text_dim: int):
    return ours(
        "small",
        EfficientUNet(
            EfficientUNetConfig(
                channels=(dim, dim),
                blocks=(1, 1),
                strides=(1, 2),
                self_attention=(False, False),
                heads=2,
                emb_dim=16,
                text_attention=(False, True),
                stem=dim,
                text_dim=text_dim,
                text_width=16,
            )
        ),
    )


@pytest.fixture
def tiny(monkeypatch):
    "Small networks, also for the peers; nothing is compiled."
    monkeypatch.setattr(bench.rivals, "our_base", small_base)
    monkeypatch.setattr(bench.rivals, "our_efficient", small_efficient)
    monkeypatch.setattr(bench.rivals, "our_classic", small_efficient)
    monkeypatch.setattr(
        bench.rivals,
        "imagen_pytorch",
        lambda stage, dim, text_dim: (small_efficient if stage == "sr" else small_base)(
            dim, text_dim
        ),
    )
    monkeypatch.setattr(
        bench.rivals, "diffusers_if", lambda dim, text_dim, width: small_base(dim, text_dim)
    )
    monkeypatch.setattr(bench, "compile_network", lambda net: net)
    return bench.parse(TINY)


@pytest.mark.parametrize(
    "build, size, has_lowres", [(small_base, 64, False), (small_efficient, 32, True)]
)
def test_sides_get_what_they_need_and_guide_in_one_batch(build, size, has_lowres):
    torch.manual_seed(0)
    rival = build(16, 16)
    for p in rival.network.parameters():
        p.data.add_(0.02 * torch.randn_like(p))
    inputs = Inputs.random(2, size, 16, 4, has_lowres)
    with torch.no_grad():
        cond, guided = rival.predict(inputs), rival.guided(inputs)
    null = inputs._replace(
        text=type(inputs.text)(
            torch.zeros_like(inputs.text.tokens), torch.arange(4).expand(2, 4) < 1
        )
    )
    with torch.no_grad():
        uncond = rival.predict(null)
    torch.testing.assert_close(guided, 3 * cond - 2 * uncond, atol=1e-4, rtol=1e-3)


def test_widths_are_matched_without_memory():
    def build(width):
        return our_base(width, 16)

    with torch.device("meta"):
        target = parameters(our_base(128, 16))
    assert matched(build, target + 1000, (64, 128, 192)) == 128


def test_counted_operations_are_those_of_a_convolution(monkeypatch):
    conv = torch.nn.Conv2d(3, 3, 3, padding=1)

    def build():
        return bench.Rival(
            "one convolution",
            torch.nn.Conv2d(3, 3, 3, padding=1),
            None,
            lambda i: conv.to("meta")(i.z_t),
        )

    def make(device):
        return Inputs.random(2, 16, 16, 4, False, device)

    assert bench.counted_gflop(build, make, is_training=False) == pytest.approx(
        2 * 9 * 3 * 3 * 16 * 16 / 1e9
    )


@pytest.mark.parametrize("row", bench.ROWS)
def test_every_row_runs(tiny, row, capsys):
    found = bench.compare(row, tiny)
    assert [o["kind"] for o in found] == (
        ["as shipped"] if row == "efficient" else ["as shipped", "at its best"]
    )
    for o in found:
        assert (
            o["ours"]["seconds"]["low"]
            <= o["ours"]["seconds"]["median"]
            <= o["ours"]["seconds"]["high"]
            and o["ratio"]["median"] > 0
        )
        assert o["dtype"] == "fp32" and o["ours"]["parameters"] > 0
    assert f"{row}, as shipped" in capsys.readouterr().out


def test_share_of_the_ceiling(tiny):
    tiny.matrix = 256
    out = bench.utilization(tiny)
    median = sorted(out["seconds"]["True"])
    assert (
        out["share"]
        == pytest.approx(
            out["gflop_per_image"] * 2 / (sum(median) / 2) / 1e3 / out["ceiling_tflops"]
        )
        and out["compiled_over_eager"] > 0
    )


def test_a_card_keeps_rows_that_were_not_measured_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.0")
    args = bench.parse([*TINY, "--out", str(tmp_path / "card.json")])
    bench.write_rows(
        args, [dict(row="base", kind="as shipped", n=1), dict(row="sr", kind="as shipped", n=1)]
    )
    bench.write_rows(args, [dict(row="base", kind="as shipped", n=2)])
    card = json.loads((tmp_path / "card.json").read_text())
    assert {(o["row"], o["n"]) for o in card["rows"]} == {("base", 2), ("sr", 1)} and card[
        "threads"
    ] == 1


def test_unknown_rows_and_usual_settings():
    with pytest.raises(SystemExit):
        bench.parse(["--rows", "nonsense"])
    here, there = bench.parse([]), bench.parse(["--device", "cuda"])
    assert (here.dtype, here.batch, there.dtype, there.batch, there.width) == (
        "fp32",
        8,
        "bf16",
        32,
        512,
    )


def test_memory_is_compared_in_turn(monkeypatch, tmp_path, capsys):
    held = iter([1.0, 2.0, 1.2, 2.0, 1.1, 2.0] * len(memory.ROWS))
    monkeypatch.setattr(memory, "child", lambda row, side: dict(name=side, gib=next(held)))
    memory.main(["--out", str(tmp_path / "card.json")])
    rows = json.loads((tmp_path / "card.json").read_text())["rows"]
    assert [*rows] == [*memory.ROWS]
    assert rows["base"]["ratio"] == dict(median=0.55, low=0.5, high=0.6)
    assert rows["base"]["ours"] == dict(name="ours", gib=1.1)
    assert "base: ours / theirs 0.55 (0.50-0.60)" in capsys.readouterr().out

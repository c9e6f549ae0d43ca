"Thresholds against numpy's quantile and diffusers."

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from imagen_nb.thresholding import dynamic_threshold, row_quantile, static_threshold, threshold


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- quantile


@pytest.mark.parametrize("n", [1, 2, 3, 10, 200, 201, 3 * 32 * 32])
@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.995, 0.9999, 1.0])
def test_quantile_equals_numpy(n, p):
    x = draws(4, n)
    expected = np.quantile(x.double().numpy(), p, axis=1)
    assert_close(row_quantile(x, p), torch.tensor(expected).float(), atol=1e-6, rtol=1e-6)
    assert_close(row_quantile(x.double(), p), torch.tensor(expected), atol=1e-12, rtol=1e-12)


def test_quantile_with_ties_and_one_constant_row():
    x = torch.tensor([[1.0, 1, 1, 1, 5], [2, 2, 2, 2, 2]])
    assert_close(row_quantile(x, 0.9), torch.tensor([3.4, 2.0]))


def test_quantile_of_more_values_than_torch_s_own_takes():
    x = torch.zeros(1, 2**24 + 2)  # torch.quantile refuses above 2**24
    x[0, ::1000] = torch.arange(len(x[0, ::1000])).float()
    assert row_quantile(x, 0.9995).item() == pytest.approx(
        np.quantile(x[0].numpy(), 0.9995), rel=1e-5
    )


@pytest.mark.parametrize("p", [99.5, 0, -0.1, 1.01, float("nan")])
def test_quantile_refuses_percentages(p):
    with pytest.raises(ValueError, match=r"expected in \(0, 1\]"):
        row_quantile(draws(2, 5), p)


@pytest.mark.parametrize("n", [9_999, 10_000, 65_537])
@pytest.mark.parametrize(
    "where", ["one block", "rest", "ties", "half ties", "constant", "rising", "falling"]
)
def test_quantile_of_rows_made_to_break_the_search_by_blocks(n, where):
    x = draws(2, n).abs()
    if where == "one block":
        x[:, ::10] = 0
        x[0, 500:600] += 100  # neighbours
    if where == "rest":
        x[:, -40:] += 100  # left over when cut into blocks
    if where == "ties":
        x = x.round()
    if where == "half ties":
        x = x.half().float()
    if where == "constant":
        x = torch.full((2, n), 3.0)
    if where == "rising":
        x = x.sort(dim=1).values
    if where == "falling":
        x = x.sort(dim=1, descending=True).values
    for p in (0.3, 0.9, 0.995, 0.9999, 1.0):
        expected = torch.tensor(np.quantile(x.double().numpy(), p, axis=1))
        assert_close(row_quantile(x.double(), p), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "x", [torch.zeros(5), torch.zeros(2, 3, 4), torch.zeros(2, 0), torch.zeros(0, 3)]
)
def test_quantile_refuses_shapes(x):
    with pytest.raises(ValueError, match=r"row_quantile: x, got .* expected \(b, n\)"):
        row_quantile(x, 0.5)


# ---- thresholds


def test_static():
    assert static_threshold(torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0])).tolist() == [
        -1,
        -1,
        -0.5,
        0,
        0.5,
        1,
        1,
    ]


def test_dynamic_known_vectors():
    x = torch.tensor([[0.5, -2.0, 4.0]])
    assert_close(dynamic_threshold(x, p=1.0), torch.tensor([[0.125, -0.5, 1.0]]))
    # median of (.5, 2, 4) is 2: 4 is clipped to 2, then all is halved
    assert_close(dynamic_threshold(x, p=0.5), torch.tensor([[0.25, -1.0, 1.0]]))


@pytest.mark.parametrize("p", [0.5, 0.9, 0.995, 1.0])
def test_dynamic_is_in_range_and_leaves_good_images_alone(p):
    x = draws(4, 3, 16, 16)
    assert dynamic_threshold(x * 3, p).abs().max() <= 1
    good = x.clamp(-1, 1)
    assert_close(dynamic_threshold(good, p), good, atol=0, rtol=0)
    few = good.clone()
    few[:, 0, 0, 0] = 7.0  # too few to set the scale
    if p < 1:
        assert_close(dynamic_threshold(few, p), static_threshold(few), atol=0, rtol=0)


def test_dynamic_keeps_proportions():
    x = draws(2, 3, 8, 8) * 2
    s = row_quantile(x.abs().reshape(2, -1), 1.0)
    assert_close(dynamic_threshold(x, 1.0), x / s[:, None, None, None])


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_each_image_is_thresholded_on_its_own(kind):
    x = draws(5, 3, 8, 8) * torch.tensor([0.1, 1.0, 3.0, 10.0, 100.0])[:, None, None, None]
    for options in (dict(), dict(p=0.8)):
        together = threshold(x, kind, **options)
        for k in range(5):
            assert_close(
                together[k : k + 1], threshold(x[k : k + 1], kind, **options), atol=0, rtol=0
            )


def test_channels_of_one_image_share_a_scale():
    x = torch.zeros(1, 3, 4, 4)
    x[:, 0] = 4.0
    x[:, 1] = 0.4
    assert_close(dynamic_threshold(x, 0.9)[0, :, 0, 0], torch.tensor([1.0, 0.1, 0.0]))


def test_cap():
    x = torch.tensor([[0.5, -2.0, 4.0]])
    assert_close(dynamic_threshold(x, 1.0, cap=1.0), static_threshold(x))
    assert_close(dynamic_threshold(x, 1.0, cap=2.0), torch.tensor([[0.25, -1.0, 1.0]]))
    assert_close(dynamic_threshold(x, 1.0, cap=9.0), dynamic_threshold(x, 1.0))
    with pytest.raises(ValueError, match="cap"):
        dynamic_threshold(x, 1.0, cap=0.5)


def test_threshold_picks():
    x = draws(2, 3, 4, 4) * 3
    assert threshold(x, None) is x
    assert_close(threshold(x, "static"), static_threshold(x))
    assert_close(threshold(x, "dynamic"), dynamic_threshold(x, 0.995))
    assert_close(threshold(x), dynamic_threshold(x))
    assert_close(threshold(x, "dynamic", p=0.7, cap=1.5), dynamic_threshold(x, 0.7, 1.5))
    with pytest.raises(ValueError, match="kind, got 'clip'"):
        threshold(x, "clip")


def test_dtype_layout_and_nan():
    x = draws(2, 3, 8, 8) * 3
    assert dynamic_threshold(x.bfloat16()).dtype == torch.bfloat16
    assert_close(
        dynamic_threshold(x.to(memory_format=torch.channels_last)),
        dynamic_threshold(x),
        atol=0,
        rtol=0,
    )
    x[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        dynamic_threshold(x)


@pytest.mark.parametrize(
    "x", [torch.tensor(1.0), torch.zeros(3), torch.zeros(0, 3), torch.zeros(2, 3).long()]
)
def test_dynamic_refuses_what_is_no_batch(x):
    with pytest.raises(ValueError, match="dynamic_threshold: x0_hat, got .* expected floats"):
        dynamic_threshold(x)


def test_infinity_is_refused_and_half_precision_is_safe():
    x = 6e4 * torch.ones(1, 4).half()  # near the end of float16, beyond it when squared
    assert_close(dynamic_threshold(x), torch.ones(1, 4).half())
    with pytest.raises(ValueError, match="infinity"):
        dynamic_threshold(2 * x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("p, cap", [(0.995, 100.0), (0.95, 1.5), (0.995, 1.0), (0.8, 3.0)])
def test_parity_with_diffusers(p, cap, dtype):
    "Inside a sampler's loop: `test_sampling.test_parity_with_diffusers`. Theirs has a cap always, 1 by default."
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(
        thresholding=True, dynamic_thresholding_ratio=p, sample_max_value=cap
    )
    x = (draws(4, 3, 32, 32) * torch.tensor([0.2, 1.0, 2.0, 5.0])[:, None, None, None]).to(dtype)
    ours, other = dynamic_threshold(x, p, cap), theirs._threshold_sample(x)
    assert ours.dtype == other.dtype == dtype
    close = {torch.float64: 1e-12, torch.float32: 1e-6}.get(
        dtype, 1e-2 if dtype == torch.bfloat16 else 1e-3
    )
    assert_close(ours, other, atol=close, rtol=close)


# ---- exact for any row, at any size


@pytest.mark.parametrize("n", [1, 2, 7, 64, 199, 1000, 4097, 50_001])
@pytest.mark.parametrize(
    "kind", ["normal", "rounded", "constant", "half infinite", "rising", "all in one place"]
)
def test_quantile_is_exact(n, kind):
    x = draws(3, n)
    if kind == "rounded":
        x = x.round()
    if kind == "constant":
        x = x * 0 + 2
    if kind == "half infinite":
        x[x > 0] = float("inf")
    if kind == "rising":
        x = x.sort(1).values
    if kind == "all in one place":
        x[:, n // 3 : n // 3 + n // 100 + 1] += 50
    ordered = x.sort(1).values
    for p in (0.01, 0.5, 0.9, 0.99, 0.995, 0.9999, 1.0):
        place = p * (n - 1)
        low, high = ordered[:, int(place)], ordered[:, min(int(place) + 1, n - 1)]
        expected = low if place == int(place) else torch.lerp(low, high, place - int(place))
        assert_close(row_quantile(x, p), expected, atol=0, rtol=0, equal_nan=True)


def test_quantile_reads_views():
    x = draws(4, 6, 5000).transpose(1, 2)[:, ::2]  # strides of every kind
    rows = x.reshape(4, -1)
    assert_close(
        row_quantile(x[..., 0], 0.99), row_quantile(x[..., 0].contiguous(), 0.99), atol=0, rtol=0
    )
    assert_close(
        row_quantile(rows, 0.99),
        torch.tensor(np.quantile(rows.numpy(), 0.99, axis=1)),
        atol=1e-6,
        rtol=1e-6,
    )

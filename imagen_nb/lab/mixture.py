"Gaussian mixtures whose best denoiser is known exactly: a laboratory without training."

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from imagen_nb.diffusion import alpha_sigma
from imagen_nb.store.checks import check, floats, told

__all__ = ["GaussianMixture"]


@dataclass(frozen=True)
class GaussianMixture:
    "Mixture of k round Gaussians in d dimensions, each with an optional class label."

    means: Tensor  # centres, (k d)
    stds: Tensor  # standard deviation of each, 0 is a point, (k,)
    weights: Tensor  # share of each, positive, scaled to sum to 1, (k,)
    labels: Tensor | None = None  # class of each, whole numbers >= 0, (k,)

    def __post_init__(self):
        means, stds, weights, labels = self.means, self.stds, self.weights, self.labels
        fine = means.ndim == 2 and means.numel() and means.is_floating_point()
        check(fine, "GaussianMixture: means", told(means), "floating point (k d)")
        for name in ("stds", "weights", "labels"):
            x, like = getattr(self, name), means[:, 0]
            fine = x is None or x.shape == like.shape and x.device == like.device
            expected = f"{tuple(like.shape)} on {like.device}"
            check(fine, f"GaussianMixture: {name}", told(x), expected)
        fine = means.isfinite().all(1) & stds.isfinite() & weights.isfinite()
        check(
            fine & (stds >= 0) & (weights > 0),
            "GaussianMixture: means, stds and weights",
            (means.tolist(), stds.tolist(), weights.tolist()),
            "numbers, stds >= 0 and weights > 0",
        )
        fine = labels is None or not labels.is_floating_point() and labels >= 0
        check(fine, "GaussianMixture: labels", labels, "whole numbers >= 0")
        object.__setattr__(self, "weights", self.weights / self.weights.sum())

    def sample(
        self,
        n: int,  # how many points
        generator: torch.Generator | None = None,  # source of randomness
        label: int | None = None,  # draw from this class only
    ) -> Tensor:  # (n d)
        "Draw clean data."
        check(n > 0, "GaussianMixture: n", n, "1 or more")
        share = self.weights
        if label is not None:
            share = share * self._mine(torch.tensor([label], device=share.device))[0]
        k = torch.multinomial(share, n, replacement=True, generator=generator)
        means = self.means[k]
        eps = torch.randn(means.shape, generator=generator, dtype=means.dtype, device=means.device)
        return means + self.stds[k, None] * eps

    def denoise(
        self,
        z: Tensor,  # noisy data, (b d)
        log_snr: Tensor,  # noise level, (b,) or ()
        labels: Tensor | None = None,  # class per row, -1 for no class, (b,)
    ) -> Tensor:  # (b d)
        "Exact E[x0 | z], or E[x0 | z, label]: what a perfect network would answer."
        share = self._log_joint(z, log_snr, labels).softmax(1)  # (b k)
        z, means, stds, _ = self._like(z)
        alpha, sigma = self._scales(log_snr, z)  # (b 1)
        pull = alpha * stds**2 / ((alpha * stds) ** 2 + sigma**2)  # (b k)
        off = z[:, None] - alpha[..., None] * means  # (b k d)
        return (share[..., None] * (means + pull[..., None] * off)).sum(1)

    def log_prob(
        self,
        z: Tensor,  # points, (b d)
        log_snr: Tensor | None = None,  # noise level; None: density of clean data
        labels: Tensor | None = None,  # class per row, -1 for no class, (b,)
    ) -> Tensor:  # (b,)
        "Log-density of (noisy) data, given the label where there is one."
        return self._log_joint(z, log_snr, labels).logsumexp(1)

    def component(
        self,
        x: Tensor,  # points, (b d)
    ) -> Tensor:  # index of the likeliest component, (b,)
        "Which Gaussian a clean point most probably came from."
        return self._log_joint(x, None, None).argmax(1)

    def along(
        self,
        direction: Tensor,  # (d,)
    ) -> "GaussianMixture":  # in one dimension
        "What the data look like when projected on a direction of length 1."
        direction = direction.to(self.means) / direction.norm()
        return GaussianMixture(
            (self.means @ direction)[:, None], self.stds, self.weights, self.labels
        )

    def cdf(
        self,
        x: Tensor,  # points, (b 1)
        log_snr: Tensor | None = None,  # noise level; None: of clean data
    ) -> Tensor:  # (b,)
        "Share of (noisy) one-dimensional data at or below x."
        d = self.means.shape[1]
        check(d == 1, "GaussianMixture: cdf", f"{d} dimensions", "1, see `along`")
        x, means, stds, weights = self._like(x)
        alpha, sigma = self._scales(log_snr, x)
        spread = ((alpha * stds) ** 2 + sigma**2).sqrt()  # (b k)
        return (weights * torch.special.ndtr((x - alpha * means[:, 0]) / spread)).sum(1)

    def _like(self, z):
        "z and the mixture in one dtype, that of z but at least float32."
        m = self.means
        fine = z.ndim == 2 and z.shape[1] == m.shape[1] and z.device == m.device
        check(fine, "GaussianMixture: points", told(z), f"(b, {m.shape[1]}) on {m.device}")
        z = floats(z, "GaussianMixture: points")
        return z, *(x.to(z.dtype) for x in (self.means, self.stds, self.weights))

    def _mine(self, labels):
        "Which components each label allows; -1 allows all, (b k)"
        known = self.labels
        asked = "GaussianMixture: a label was asked for"
        check(known is not None, asked, "a mixture without labels", "one with labels")
        mine = (known == labels[:, None]) | (labels[:, None] < 0)
        if labels.is_floating_point() or not mine.any(1).all():
            raise ValueError(
                f"GaussianMixture: labels, got {labels.unique().tolist()}, expected"
                f" whole numbers among {known.unique().tolist()}, or -1 for no class"
            )
        return mine

    def _scales(self, log_snr, z):
        if log_snr is None:
            return z.new_ones(1, 1), z.new_zeros(1, 1)
        fine = log_snr.shape in ((), (1,), (len(z),))
        check(fine, "GaussianMixture: log_snr", told(log_snr), f"() or ({len(z)},)")
        alpha, sigma = alpha_sigma(log_snr)
        return alpha.reshape(-1, 1).to(z), sigma.reshape(-1, 1).to(z)

    def _log_joint(self, z, log_snr, labels):
        "log p(component | label) + log p(z | component), (b k)"
        z, means, stds, weights = self._like(z)
        alpha, sigma = self._scales(log_snr, z)
        share = weights.log()[None]  # (1 k)
        if labels is not None:
            fine = labels.shape == z.shape[:1]
            check(fine, "GaussianMixture: labels", told(labels), f"({len(z)},)")
            share = share.masked_fill(~self._mine(labels), -math.inf).log_softmax(1)  # (b k)
        variance = (alpha * stds) ** 2 + sigma**2  # (b k)
        far = ((z[:, None] - alpha[..., None] * means) ** 2).sum(2)  # (b k)
        d = z.shape[1]
        return share - far / (2 * variance) - d / 2 * torch.log(2 * math.pi * variance)

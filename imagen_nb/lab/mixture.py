"Gaussian mixtures whose best denoiser is known exactly: a laboratory without training."

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from imagen_nb.diffusion import alpha_sigma

__all__ = ["GaussianMixture"]


@dataclass(frozen=True)
class GaussianMixture:
    "Mixture of k round Gaussians in d dimensions, each with an optional class label."

    means: Tensor  # centres, (k d)
    stds: Tensor  # standard deviation of each, 0 is a point, (k,)
    weights: Tensor  # share of each, positive, scaled to sum to 1, (k,)
    labels: Tensor | None = None  # class of each, whole numbers >= 0, (k,)

    def __post_init__(self):
        m, k = self.means, len(self.means) if self.means.ndim else 0
        if m.ndim != 2 or not m.numel() or not m.is_floating_point():
            raise ValueError(
                f"GaussianMixture: means, got {m.dtype} {tuple(m.shape)},"
                " expected floating point (k d)"
            )
        for name in ("stds", "weights", "labels"):
            value = getattr(self, name)
            if value is None:
                continue
            if value.shape != (k,) or value.device != m.device:
                raise ValueError(
                    f"GaussianMixture: {name}, got {tuple(value.shape)} on"
                    f" {value.device}, expected ({k},) on {m.device}"
                )
        if not (
            (self.stds >= 0)
            & (self.weights > 0)
            & m.isfinite().all(1)
            & self.stds.isfinite()
            & self.weights.isfinite()
        ).all():
            raise ValueError(
                "GaussianMixture: means, stds and weights, got"
                f" {m.tolist()}, {self.stds.tolist()} and {self.weights.tolist()},"
                " expected numbers, stds >= 0 and weights > 0"
            )
        if self.labels is not None and (self.labels.is_floating_point() or (self.labels < 0).any()):
            raise ValueError(
                f"GaussianMixture: labels, got {self.labels}, expected whole numbers >= 0"
            )
        object.__setattr__(self, "weights", self.weights / self.weights.sum())

    def sample(
        self,
        n: int,  # how many points
        generator: torch.Generator | None = None,  # source of randomness
        label: int | None = None,  # draw from this class only
    ) -> Tensor:  # (n d)
        "Draw clean data."
        if n < 1:
            raise ValueError(f"GaussianMixture: n, got {n}, expected 1 or more")
        share = self.weights
        if label is not None:
            mine = self._labels() == label
            if not mine.any():
                self._refuse(torch.tensor([label]))
            share = share * mine
        k = torch.multinomial(share, n, replacement=True, generator=generator)
        eps = torch.randn(
            n,
            self.means.shape[1],
            generator=generator,
            dtype=self.means.dtype,
            device=self.means.device,
        )
        return self.means[k] + self.stds[k, None] * eps

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
        if self.means.shape[1] != 1:
            raise ValueError(
                f"GaussianMixture: cdf of {self.means.shape[1]} dimensions, expected 1, see `along`"
            )
        x, means, stds, weights = self._like(x)
        alpha, sigma = self._scales(log_snr, x)
        spread = ((alpha * stds) ** 2 + sigma**2).sqrt()  # (b k)
        return (weights * torch.special.ndtr((x - alpha * means[:, 0]) / spread)).sum(1)

    def _like(self, z):
        "z and the mixture in one dtype, that of z but at least float32."
        if z.ndim != 2 or z.shape[1] != self.means.shape[1] or z.device != self.means.device:
            raise ValueError(
                f"GaussianMixture: points, got {tuple(z.shape)} on {z.device},"
                f" expected (b, {self.means.shape[1]}) on {self.means.device}"
            )
        if z.dtype != torch.float64:
            z = z.float()
        return z, *(x.to(z.dtype) for x in (self.means, self.stds, self.weights))

    def _labels(self):
        if self.labels is None:
            raise ValueError("GaussianMixture: a label was asked for, got a mixture without labels")
        return self.labels

    def _refuse(self, labels):
        raise ValueError(
            f"GaussianMixture: labels, got {labels.unique().tolist()}, expected"
            f" whole numbers among {self.labels.unique().tolist()}, or -1 for no class"
        )

    def _scales(self, log_snr, z):
        if log_snr is None:
            return z.new_ones(1, 1), z.new_zeros(1, 1)
        if log_snr.shape not in ((), (1,), (len(z),)):
            raise ValueError(
                f"GaussianMixture: log_snr, got {tuple(log_snr.shape)}, expected () or ({len(z)},)"
            )
        alpha, sigma = alpha_sigma(log_snr)
        return alpha.reshape(-1, 1).to(z), sigma.reshape(-1, 1).to(z)

    def _log_joint(self, z, log_snr, labels):
        "log p(component | label) + log p(z | component), (b k)"
        z, means, stds, weights = self._like(z)
        alpha, sigma = self._scales(log_snr, z)
        share = weights.log()[None]  # (1 k)
        if labels is not None:
            if labels.shape != (len(z),):
                raise ValueError(
                    f"GaussianMixture: labels, got {tuple(labels.shape)}, expected ({len(z)},)"
                )
            mine = (self._labels()[None] == labels[:, None]) | (labels[:, None] < 0)
            if labels.is_floating_point() or not mine.any(1).all():
                self._refuse(labels)
            share = share.masked_fill(~mine, -math.inf).log_softmax(1)  # (b k)
        variance = (alpha * stds) ** 2 + sigma**2  # (b k)
        far = ((z[:, None] - alpha[..., None] * means) ** 2).sum(2)  # (b k)
        d = z.shape[1]
        return share - far / (2 * variance) - d / 2 * torch.log(2 * math.pi * variance)

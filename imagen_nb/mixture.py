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
    means:Tensor             # centres, (k d)
    stds:Tensor              # standard deviation of each, 0 is a point, (k,)
    weights:Tensor           # share of each, positive, scaled to sum to 1, (k,)
    labels:Tensor|None=None  # class of each, whole numbers >= 0, (k,)

    def __post_init__(self):
        k = len(self.means)
        if self.means.ndim != 2:
            raise ValueError(f"GaussianMixture: means, got {tuple(self.means.shape)},"
                             " expected (k d)")
        for name in ("stds", "weights", "labels"):
            value = getattr(self, name)
            if value is not None and value.shape != (k,):
                raise ValueError(f"GaussianMixture: {name}, got {tuple(value.shape)},"
                                 f" expected ({k},)")
        if (self.stds < 0).any() or (self.weights <= 0).any():
            raise ValueError("GaussianMixture: stds and weights, got"
                             f" {self.stds.tolist()} and {self.weights.tolist()},"
                             " expected stds >= 0 and weights > 0")
        object.__setattr__(self, "weights", self.weights/self.weights.sum())

    def sample(
        self,
        n:int,                               # how many points
        generator:torch.Generator|None=None, # source of randomness
        label:int|None=None,                 # draw from this class only
    ) -> Tensor:                             # (n d)
        "Draw clean data."
        share = self.weights
        if label is not None: share = share*(self._labels() == label)
        k = torch.multinomial(share, n, replacement=True, generator=generator)
        eps = torch.randn(n, self.means.shape[1], generator=generator,
                          dtype=self.means.dtype, device=self.means.device)
        return self.means[k] + self.stds[k, None]*eps

    def denoise(
        self,
        z:Tensor,                 # noisy data, (b d)
        log_snr:Tensor,           # noise level, (b,) or ()
        labels:Tensor|None=None,  # class per row, -1 for no class, (b,)
    ) -> Tensor:                  # (b d)
        "Exact E[x0 | z], or E[x0 | z, label]: what a perfect network would answer."
        alpha, sigma = self._scales(log_snr, z)                          # (b 1)
        share = self._log_joint(z, log_snr, labels).softmax(1)           # (b k)
        variance = (alpha*self.stds)**2 + sigma**2                       # (b k)
        pull = (alpha*self.stds**2/variance)[..., None]                  # (b k 1)
        off = z[:, None] - alpha[..., None]*self.means                   # (b k d)
        return (share[..., None]*(self.means + pull*off)).sum(1)

    def log_prob(
        self,
        z:Tensor,                  # points, (b d)
        log_snr:Tensor|None=None,  # noise level; None: density of clean data
        labels:Tensor|None=None,   # class per row, -1 for no class, (b,)
    ) -> Tensor:                   # (b,)
        "Log-density of (noisy) data, given the label where there is one."
        return self._log_joint(z, log_snr, labels).logsumexp(1)

    def component(
        self,
        x:Tensor,   # points, (b d)
    ) -> Tensor:    # index of the likeliest component, (b,)
        "Which Gaussian a clean point most probably came from."
        return self._log_joint(x, None, None).argmax(1)

    def _labels(self):
        if self.labels is None:
            raise ValueError("GaussianMixture: a label was asked for, got a mixture"
                             " without labels")
        return self.labels

    def _scales(self, log_snr, z):
        if log_snr is None: return z.new_ones(1, 1), z.new_zeros(1, 1)
        alpha, sigma = alpha_sigma(log_snr)
        return alpha.reshape(-1, 1).to(z), sigma.reshape(-1, 1).to(z)

    def _log_joint(self, z, log_snr, labels):
        "log p(component | label) + log p(z | component), (b k)"
        alpha, sigma = self._scales(log_snr, z)
        share = self.weights.to(z).log()[None]                           # (1 k)
        if labels is not None:
            mine = (self._labels()[None] == labels[:, None]) | (labels[:, None] < 0)
            share = share.masked_fill(~mine, -math.inf).log_softmax(1)   # (b k)
        variance = (alpha*self.stds)**2 + sigma**2                       # (b k)
        far = ((z[:, None] - alpha[..., None]*self.means)**2).sum(2)     # (b k)
        d = z.shape[1]
        return share - far/(2*variance) - d/2*torch.log(2*math.pi*variance)

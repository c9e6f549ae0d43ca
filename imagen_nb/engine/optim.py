"""Optimizers by name, and their state without pickle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from imagen_nb.engine.sharding import on_whole
from imagen_nb.store.files import CheckpointError

if TYPE_CHECKING:
    from imagen_nb.training import TrainConfig


def orthogonalize(
    m: Tensor,  # matrices, (k rows cols)
    steps: int = 4,  # Newton-Schulz iterations
) -> Tensor:  # nearest semi-orthogonal matrices, roughly, (k rows cols), float32
    "U V^T of each matrix by a quintic Newton-Schulz iteration (Jordan et al., Muon)."
    x = m.float().mT if m.shape[-2] > m.shape[-1] else m.float()
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    eye = torch.eye(x.shape[-2], device=m.device)
    gram, total = x @ x.mT, eye
    for i in range(steps):  # x <- step @ x, done on the small side only
        step = 3.4445 * eye - 4.7750 * gram + 2.0315 * gram @ gram
        total = step @ total
        if i < steps - 1:
            gram = step @ gram @ step
    x = total @ x
    return x.mT if m.shape[-2] > m.shape[-1] else x


class Muon(torch.optim.Optimizer):
    "Momentum with orthogonal updates; a convolution is a matrix (out, in*k*k).  # not in paper"

    def __init__(
        self,
        params: Iterable[Tensor],  # tensors with at least two dimensions
        lr: float = 1e-3,  # in units of AdamW's: updates are scaled to its size
        momentum: float = 0.95,  # Nesterov
        weight_decay: float = 0.0,  # decoupled
    ):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        "Update every tensor that has a gradient; equal shapes in one batch."
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = torch.lerp(p.grad, state["momentum"], group["momentum"])
                by_shape.setdefault((p.shape[0], p.shape[1:].numel()), []).append((p, update))
            for (rows, cols), pairs in by_shape.items():
                flat = torch.stack([u.reshape(rows, cols) for _, u in pairs])
                updates = on_whole(orthogonalize, flat)
                scale = 0.2 * max(rows, cols) ** 0.5  # root mean square of an AdamW update
                for (p, _), u in zip(pairs, updates):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(u.reshape(p.shape), alpha=-group["lr"] * scale)


CHUNK = 2**24  # numbers that Adafactor updates at once: few calls for small tensors, little memory


def factored_axes(
    shape: Sequence[int],  # of a weight
) -> tuple[int, int] | None:  # second largest axis, largest axis; None: too small to be worth it
    "The two largest axes, if both have 128 entries: of a convolution, its channels."
    largest = sorted(range(len(shape)), key=shape.__getitem__)[-2:]
    if len(largest) < 2 or shape[largest[0]] < 128:
        return None
    return largest[0], largest[1]


def adafactor_shapes(
    shape: Sequence[int],  # of a weight
) -> dict[str, list[int]]:  # shapes of what Adafactor keeps of it, by name
    "Of squared gradients: means over each of the two largest axes, or all of them."
    if (axes := factored_axes(shape)) is None:
        return dict(squares=list(shape))
    second, first = ([1 if i == axis else n for i, n in enumerate(shape)] for axis in axes)
    return dict(rows=first, columns=second)


def rms(
    x: Tensor,  # tensors of one shape, (k ...)
) -> Tensor:  # (k 1 ...)
    "Root mean square of each."
    return x.square().mean([*range(1, x.ndim)], keepdim=True).sqrt() if x.ndim > 1 else x.abs()


class Adafactor(torch.optim.Optimizer):
    "Of Shazeer & Stern, by the defaults of optax (paper F.1): no momentum, steps scaled by size."

    def __init__(
        self,
        params: Iterable[Tensor],  # tensors of any shape
        lr: float = 1e-4,  # size of a step / size of its tensor; unscaled: size of a step
        weight_decay: float = 0.0,  # decoupled, and times lr as in AdamW; optax's is not
        scaled: bool = True,  # by the tensor's root mean square, at least 1e-3
    ):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, scaled=scaled))

    @torch.no_grad()
    def step(self):
        "Update every tensor that has a gradient, equal shapes together; the host never waits."
        for group in self.param_groups:
            alike = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not (state := self.state[p]):
                    state |= {k: p.new_zeros(v) for k, v in adafactor_shapes(p.shape).items()}
                state["step"] = int(state.get("step", 0)) + 1  # on the host, resumed or not
                alike.setdefault((p.shape, state["step"]), []).append(p)
            for (shape, step), params in alike.items():
                n = max(1, CHUNK // max(1, shape.numel()))
                for i in range(0, len(params), n):
                    self.update(params[i : i + n], 1 - step**-0.8, group)

    def update(self, params: list[Tensor], decay: float, group: dict):
        "Tensors of one shape; `decay` is the weight of what is remembered."
        x = torch.stack(params)
        g = torch.stack([p.grad for p in params if p.grad is not None])
        squares, axes = g.square().add_(1e-30), factored_axes(params[0].shape)

        def remember(name: str, news: Tensor) -> Tensor:
            kept = [self.state[p][name] for p in params]
            torch._foreach_lerp_(kept, list(news), 1 - decay)
            return torch.stack(kept)

        if axes is None:
            g = g * remember("squares", squares).rsqrt()
        else:
            second, first = (axis + 1 for axis in axes)
            rows = remember("rows", squares.mean(first, keepdim=True))
            columns = remember("columns", squares.mean(second, keepdim=True))
            g = g * (rows / rows.mean(second, keepdim=True)).rsqrt() * columns.rsqrt()
        g = g / rms(g).clamp(min=1)
        if group["scaled"]:
            g = g * rms(x).clamp(min=1e-3)
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, list(g), alpha=-group["lr"])

    def load_state_dict(self, state_dict: dict):
        "Put the state back; refuse that of torch's Adafactor, which factors the last two axes."
        shapes = [p.shape for group in self.param_groups for p in group["params"]]
        for k, state in state_dict["state"].items():
            got = {name: list(v.shape) for name, v in state.items() if name != "step"}
            if got != (expected := adafactor_shapes(shapes[k])):
                raise CheckpointError(
                    f"Adafactor: memory of a weight {list(shapes[k])}, got {got}, expected {expected}"
                )
        super().load_state_dict(state_dict)


def trainable(network: nn.Module) -> list[nn.Parameter]:
    "The parameters that learn."
    return [p for p in network.parameters() if p.requires_grad]


def adam_options(params: list, c: TrainConfig) -> dict:
    "Settings that Adam and AdamW share."
    is_gpu = bool(params) and params[0].is_cuda
    return dict(lr=c.lr, betas=c.betas, weight_decay=c.weight_decay, fused=is_gpu or None)


def adafactor(network: nn.Module, c: TrainConfig) -> list[torch.optim.Optimizer]:
    "The paper's for the base (4.1, F.1)."
    return [Adafactor(trainable(network), c.lr, c.weight_decay)]


def adafactor_unscaled(network: nn.Module, c: TrainConfig) -> list[torch.optim.Optimizer]:
    "Adafactor's memory with steps as large as Adam's.  # not in paper"
    return [Adafactor(trainable(network), c.lr, c.weight_decay, scaled=False)]


def adam(network: nn.Module, c: TrainConfig) -> list[torch.optim.Optimizer]:
    "The paper's for super-resolution (4.1)."
    params = trainable(network)
    return [torch.optim.Adam(params, **adam_options(params, c))]


def adamw(network: nn.Module, c: TrainConfig) -> list[torch.optim.Optimizer]:
    "Adam with decoupled weight decay.  # not in paper"
    params = trainable(network)
    return [torch.optim.AdamW(params, **adam_options(params, c))]


def inner_matrices(params: list) -> list:
    "What Muon turns: no vectors, no thin matrices, no first and last convolution: they see and give pixels."
    layers = [p for p in params if p.ndim == 4] or [p for p in params if p.ndim > 1]
    ends = {id(p) for p in layers[:1] + layers[-1:]}
    return [
        p
        for p in params
        if p.ndim > 1 and min(p.shape[0], p.shape[1:].numel()) >= 16 and id(p) not in ends
    ]


def muon_with_adamw(network: nn.Module, c: TrainConfig) -> list[torch.optim.Optimizer]:
    "Muon for inner matrices, AdamW for vectors, thin matrices and the layers at both ends."
    params = trainable(network)
    inner = inner_matrices(params)
    turned = set(map(id, inner))
    rest = [p for p in params if id(p) not in turned]
    return [
        *([Muon(inner, c.lr, weight_decay=c.weight_decay)] if inner else []),
        *([torch.optim.AdamW(rest, **adam_options(rest, c))] if rest else []),
    ]


OPTIMIZERS = dict(  # yours may be added
    adafactor=adafactor,
    adafactor_unscaled=adafactor_unscaled,
    adam=adam,
    adamw=adamw,
    muon=muon_with_adamw,
)


def make_optimizers(
    network: nn.Module,  # what to train
    config: TrainConfig,  # which optimizer, and its settings
) -> list[torch.optim.Optimizer]:  # each has its own share of the parameters
    "Optimizers by name."
    return OPTIMIZERS[config.optimizer](network, config)


def take_step(
    optimizers: list[torch.optim.Optimizer],  # what `make_optimizers` gave
    lr: float,  # learning rate of this step
):
    "Update every parameter by its gradient."
    for o in optimizers:
        for group in o.param_groups:
            group["lr"] = lr
        o.step()


def optimizer_tensors(
    optimizers: list[torch.optim.Optimizer],  # what `make_optimizers` gave
) -> dict[str, Tensor]:  # their state by name, ready for safetensors
    "Flatten optimizer state: no pickle in a checkpoint."
    return {
        f"{i}.{k}.{name}": torch.as_tensor(v).cpu()
        for i, o in enumerate(optimizers)
        for k, state in o.state_dict()["state"].items()
        for name, v in state.items()
    }


def load_optimizer_tensors(
    optimizers: list[torch.optim.Optimizer],  # freshly made, same configuration
    tensors: dict[str, Tensor],  # what `optimizer_tensors` gave
):
    "Put the state back, learning rates excepted: those follow from the step."
    for i, o in enumerate(optimizers):
        states: dict[int, dict[str, Tensor]] = {}
        for key, v in tensors.items():
            which, k, name = key.split(".", 2)
            if int(which) == i:
                states.setdefault(int(k), {})[name] = v
        o.load_state_dict(dict(state=states, param_groups=o.state_dict()["param_groups"]))


def optimizer_room(
    optimizers: list[torch.optim.Optimizer],  # freshly made
    kept: dict[str, Tensor],  # what `optimizer_tensors` gave once, without data
) -> dict[str, Tensor]:  # zeros; of what is as large as a sharded weight this process's part
    "Where the state of a checkpoint can be read into."

    def room(key: str, like: Tensor) -> Tensor:
        i, k, _ = key.split(".", 2)
        groups = optimizers[int(i)].param_groups
        p = [p for group in groups for p in group["params"]][int(k)]
        if like.ndim == 0:  # a count of steps
            return torch.zeros((), dtype=like.dtype, device="cpu")
        if like.shape == p.shape:
            return torch.zeros_like(p, dtype=like.dtype, requires_grad=False)
        return p.new_zeros(like.shape, dtype=like.dtype)

    return {key: room(key, like) for key, like in kept.items()}

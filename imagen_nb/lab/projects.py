"""Checks for the four projects of chapter 16: each says in words what is not right yet, or returns what it measured."""

from collections.abc import Callable

import torch
from torch import Tensor

from imagen_nb.data import ShapesWorld
from imagen_nb.diffusion import alpha_sigma, cosine_log_snr, q_sample
from imagen_nb.lab.mixture import GaussianMixture
from imagen_nb.pictures.pixels import Batch
from imagen_nb.stage import Draws, Stage
from imagen_nb.store.keyed import keyed_noise
from imagen_nb.text import TextEmbedding

__all__ = ["NotYet", "check_encoder", "check_own_model", "check_repaired", "check_sampler"]


class NotYet(AssertionError):
    "What a project still lacks."


def need(fine, message: str):
    "Go on, or tell the learner."
    if not bool(fine):
        raise NotYet(message)


# ---------------------------------------------------------------- a sampler

PLAIN: dict = dict(dtype=torch.float32, device="cpu")
ROWS: dict = dict(dtype=torch.int64, device="cpu")
SPOTS = GaussianMixture(
    torch.tensor([[-0.6, -0.4], [0.5, 0.6]], **PLAIN),
    torch.tensor([0.1, 0.2], **PLAIN),
    torch.tensor([0.3, 0.7], **PLAIN),
)
START = keyed_noise([0], (2000, 2), "project start")[0]


def walked(sampler: Callable, world: GaussianMixture, z: Tensor, steps: int) -> tuple[Tensor, int]:
    "Where a sampler ends that asks the exact denoiser, and how often it asked."
    levels, asked = cosine_log_snr(torch.linspace(0.999, 0, steps + 1, **PLAIN)), 0

    def denoise(z, log_snr):
        nonlocal asked
        asked += 1
        return world.denoise(z, log_snr.expand(len(z)))

    def noise(i, z):
        return keyed_noise([i], (len(START), 2), "project noise")[0, : len(z)]

    found = list(sampler(denoise, z, levels, noise=noise))
    need(found, "The sampler yields nothing. Yield (i, z, x0_hat) once for each step.")
    need(
        [len(f) == 3 and f[0] for f in found] == list(range(steps)),
        f"For {steps + 1} noise levels expect {steps} triples, numbered 0 to {steps - 1}; got {len(found)}.",
    )
    need(
        all(f[1].shape == f[2].shape == z.shape for f in found),
        "z and x0_hat must keep the shape of the start.",
    )
    need(asked >= steps, f"{steps} steps asked the denoiser only {asked} times.")
    return found[-1][2], asked


def check_sampler(
    sampler: Callable,  # sampler(denoise, z, log_snrs, *, noise=None), a generator
    steps: int = 100,  # of the test in the plane
) -> dict:  # evaluations a step, errors of shares and standard deviations
    "Does it bring noise to a distribution that is known exactly, whatever the step count?"
    point = GaussianMixture(
        torch.tensor([[0.3, -0.7]], **PLAIN), torch.zeros(1, **PLAIN), torch.ones(1, **PLAIN)
    )
    for n in (1, 5):
        off = (walked(sampler, point, START[:9], n)[0] - point.means).abs().max()
        need(
            off < 1e-3,
            f"All data are one point, and after {n} steps the samples are {off:.3f} away from it.",
        )
    x, asked = walked(sampler, SPOTS, START, steps)
    alone = walked(sampler, SPOTS, START[:3], steps)[0]
    need(
        (alone - x[:3]).abs().max() < 1e-3,
        "Three samples alone differ from the same three among 2000. Take fresh noise from noise(i, z).",
    )
    spot = SPOTS.component(x)
    share = abs((spot == 1).float().mean().item() - 0.7)
    need(
        share < 0.04,
        f"The right spot should hold 0.70 of the samples; the error is {share:.3f}, chance allows 0.04.",
    )
    spread = [x[spot == k].std(0).mean().item() / SPOTS.stds[k].item() for k in (0, 1)]
    need(
        all(abs(s - 1) < 0.15 for s in spread),
        f"Standard deviations over the true ones: {spread[0]:.2f} and {spread[1]:.2f}, expected 0.85 to 1.15.",
    )
    return dict(evaluations_a_step=asked / steps, error_of_share=share, std_over_true=spread)


# ---------------------------------------------------------------- an own folder


@torch.no_grad()
def check_own_model(
    stage: Stage,  # a base that was trained on your folder
    text: Callable,  # captions -> TextEmbedding, as in training
    pictures,  # held-out pictures of the folder: `load_captioned(..., split="valid")`
) -> dict:  # loss with the own caption and with another, and how sure the difference is
    "Has a base learnt to read captions? Asked on pictures that it never saw."
    need(stage.is_trained, "The stage was never trained. Take the one that `Trainer.fit` returns.")
    n = min(len(pictures), 64)
    need(n >= 8, f"Hold out 8 pictures or more; this split has {n}.")
    captions = [pictures.caption(i) for i in range(n)]
    need(len(set(captions)) > 1, "All captions are equal, so that none can tell anything.")
    other = [
        next(j % n for j in range(i, i + n) if captions[j % n] != c) for i, c in enumerate(captions)
    ]
    images, words = pictures.images(range(n)), text(captions)
    eps = keyed_noise(list(range(n)), tuple(images.shape[1:]), "project")
    draws = Draws(
        torch.linspace(0.5, 0.95, n, **PLAIN), eps, torch.ones(n, dtype=torch.bool, device="cpu")
    )
    own, wrong = (
        stage.loss(
            Batch(images, words.rows(torch.tensor(rows, **ROWS)), torch.arange(n, **ROWS)), draws
        )
        for rows in (list(range(n)), other)
    )
    cost = wrong - own
    sure = (cost.mean() / (cost.std() / n**0.5).clamp(min=1e-12)).item()
    need(
        sure > 2,
        f"A wrong caption costs {cost.mean():.4f}, which is {sure:.1f} standard errors; 2 are needed."
        " Train longer, or look whether captions and pictures belong together.",
    )
    return dict(own=own.mean().item(), another=wrong.mean().item(), standard_errors=sure)


# ---------------------------------------------------------------- an encoder


def as_set(text: TextEmbedding) -> Tensor:
    "The real tokens of one caption in an order of their own: attention knows no other."
    tokens = text.tokens[0][text.mask[0]]
    return tokens[(tokens @ torch.linspace(1, 2, tokens.shape[1], **PLAIN).sin()).argsort()]


def check_form(encoder, captions: list[str]) -> TextEmbedding:
    "Shapes, types, and that a caption does not feel its neighbors."
    text, width = encoder(captions), encoder.width
    fine = isinstance(text, TextEmbedding) and text.tokens.shape[::2] == (len(captions), width)
    need(fine, f"Return a TextEmbedding with tokens (b l {width}) for `width` {width}.")
    need(
        text.mask.dtype == torch.bool and text.mask.shape == text.tokens.shape[:2],
        "The mask is bool, (b l), and True where a token is real.",
    )
    need(text.mask.any(1).all(), "Every caption needs a real token, the empty one too.")
    need(not text.tokens.requires_grad, "The encoder is frozen: its tokens carry no gradient.")
    need("tokenizer" in encoder.identity, "`identity` must name encoder, revision and tokenizer.")
    for caption, row in zip(captions, range(len(captions))):
        alone, among = encoder([caption]), text.rows(torch.tensor([row], **ROWS)).trim()
        need(
            alone.tokens.shape == among.tokens.shape
            and (alone.tokens - among.tokens).abs().max() < 1e-5,
            f"{caption!r} alone and in a batch differ: padding must not change real tokens.",
        )
    return text


def colour_share(encoder, n: int = 120) -> float:
    "A straight line from the mean token to the colour, fitted on n captions: right answers on as many others."
    world = ShapesWorld("train", level="quick")
    chosen = [i for i in range(6 * n) if len(world.scene(i).things) == 1][: 2 * n]
    text = encoder([world.caption(i) for i in chosen])
    mean = (text.tokens * text.mask[..., None]).sum(1) / text.mask.sum(1, keepdim=True)
    names = sorted({world.scene(i).things[0].colour for i in chosen})
    target = torch.tensor([names.index(world.scene(i).things[0].colour) for i in chosen], **ROWS)
    x = torch.cat([mean, torch.ones(len(mean), 1, **PLAIN)], 1).double()
    y = torch.nn.functional.one_hot(target).double()
    line = torch.linalg.solve(
        x[:n].T @ x[:n] + 1e-3 * torch.eye(x.shape[1], dtype=x.dtype, device="cpu"), x[:n].T @ y[:n]
    )
    return ((x[n:] @ line).argmax(1) == target[n:]).double().mean().item()


def check_encoder(
    encoder,  # callable with `width` and `identity`
) -> dict:  # share of colours that a straight line reads off
    "Could a stage be trained with it? Form, words, and the order of words."
    check_form(encoder, ["a red circle", "", "a small blue ring to the left of a green cross"])
    share = colour_share(encoder)
    need(
        share > 0.9,
        f"Colours can be read off the mean token in {share:.0%} of captions; 90 % are needed.",
    )
    left, right = (
        as_set(encoder([caption]))
        for caption in ("a red circle left of a blue ring", "a blue ring left of a red circle")
    )
    need(
        left.shape != right.shape or (left - right).abs().max() > 1e-3,
        "Two captions with the same words in another order have the same tokens, so that no network"
        " can tell left from right: attention sees a set. A token must know its place.",
    )
    return dict(colours_read=share)


# ---------------------------------------------------------------- planted bugs


def check_repaired(
    keep: Callable,  # keep(n, drop, generator) -> bool (n,): which captions stay
    guide: Callable,  # guide(cond, uncond, w) -> prediction
    step: Callable,  # step(z, x0_hat, log_snr, next_log_snr) -> z
) -> str:
    "Three symptoms; none of them names a line."
    g = torch.Generator("cpu").manual_seed(0)
    batches = torch.stack([keep(20, 0.1, g) for _ in range(300)]).double()
    need(abs(batches.mean() - 0.9) < 0.02, "Not a tenth of all captions is dropped.")
    need(
        batches.mean(1).std() < 0.1,
        "Some batches keep every caption and others keep none: each caption has its own luck.",
    )
    cond, uncond = torch.tensor([1.0, 2.0], **PLAIN), torch.tensor([0.5, -1.0], **PLAIN)
    need(
        torch.allclose(guide(cond, uncond, 0.0), uncond),
        "At w = 0 the caption must not count, and it does.",
    )
    need(
        torch.allclose(guide(cond, uncond, 1.0), cond),
        "At w = 1 the prediction must be the one with the caption, and it is not.",
    )
    x0, eps = keyed_noise([0, 1], (2, 50), "project repaired").unbind(1)
    now, then = torch.tensor(-1.0, **PLAIN), torch.tensor(2.0, **PLAIN)
    z = step(q_sample(x0, eps, now.expand(2)), x0, now, then)
    alpha, sigma = alpha_sigma(then)
    noise = (z - alpha * x0).square().mean().sqrt() / sigma / eps.square().mean().sqrt()
    need(
        abs(noise - 1) < 1e-3,
        f"With the true x0, the noise after a step is {noise:.2f} times what the next level asks for.",
    )
    return "All three are repaired."

"The checks of the four projects pass on right answers and tell what is wrong with others."

import json
from pathlib import Path

import pytest
import torch

from imagen_nb.diffusion import alpha_sigma
from imagen_nb.lab.projects import (
    NotYet,
    check_encoder,
    check_own_model,
    check_repaired,
    check_sampler,
)
from imagen_nb.sampling import sample_ddim, sample_ddpm, sample_dpmpp_2m
from imagen_nb.text import TextEmbedding, TextEncoder

PAGE = Path(__file__).resolve().parents[1] / "nbs" / "16_projects.ipynb"


@pytest.fixture(scope="module")
def page() -> dict:
    "What the page defines, its training apart: imports, starts and solutions."
    cells = json.loads(PAGE.read_text(encoding="utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    space: dict = {}
    for source in code:
        if source.startswith("import") or "\ndef " in f"\n{source}" or "\nclass " in source:
            exec(compile(source, str(PAGE), "exec"), space)
    return space


# ---------------------------------------------------------------- a sampler


@pytest.mark.parametrize("sampler", [sample_ddim, sample_ddpm, sample_dpmpp_2m])
def test_samplers_of_the_library_pass(sampler):
    assert check_sampler(sampler)["error_of_share"] < 0.04


def test_the_solution_passes_and_the_start_is_told_why(page):
    assert check_sampler(page["sample_heun"])["evaluations_a_step"] > 1.9
    with pytest.raises(NotYet, match="Standard deviations|spot"):
        check_sampler(page["sample_mine"])


def of_ddim(change):
    "DDIM with something wrong."

    def sampler(denoise, z, log_snrs, *, noise=None):
        for found in sample_ddim(denoise, z, log_snrs, noise=noise):
            yield change(*found)

    return sampler


def shifted(i, z, x0_hat):
    return i, z, x0_hat + 0.01


def counted_from_one(i, z, x0_hat):
    return i + 1, z, x0_hat


def with_its_own_noise(i, z, x0_hat):
    return i, z, x0_hat + 2e-3 * torch.randn_like(z) * (len(z) != 9)


def flattened(i, z, x0_hat):
    return i, z, x0_hat.flatten()


@pytest.mark.parametrize(
    "change, message",
    [
        (shifted, "away from it"),
        (counted_from_one, "numbered 0 to"),
        (with_its_own_noise, "alone differ"),
        (flattened, "keep the shape"),
    ],
)
def test_a_wrong_sampler_is_told_what_is_wrong(change, message):
    with pytest.raises(NotYet, match=message):
        check_sampler(of_ddim(change))


# ---------------------------------------------------------------- an own folder


class Pictures:
    "Gray pictures whose caption is their gray."

    def __len__(self):
        return 16

    def caption(self, i):
        return str(i)

    def images(self, indices):
        return torch.stack([torch.full((3, 4, 4), i / 16) for i in indices])


def as_text(captions):
    tokens = torch.tensor([float(c) / 16 for c in captions])[:, None, None]
    return TextEmbedding(tokens, torch.ones(len(captions), 1, dtype=torch.bool))


class Reader:
    "In place of a stage: its loss is how far a caption is from its picture, or is deaf."

    def __init__(self, is_trained=True, is_deaf=False):
        self.is_trained, self.is_deaf = is_trained, is_deaf

    def loss(self, batch, draws):
        gray, told = batch.images.mean((1, 2, 3)), batch.text.tokens[:, 0, 0]
        return draws.eps.square().mean((1, 2, 3)) + (gray - told).abs() * (not self.is_deaf)


def test_a_model_that_reads_passes():
    found = check_own_model(Reader(), as_text, Pictures())
    assert found["another"] > found["own"] and found["standard_errors"] > 2


@pytest.mark.parametrize(
    "reader, message",
    [
        (Reader(is_trained=False), "never trained"),
        (Reader(is_deaf=True), "A wrong caption costs 0.0000"),
    ],
)
def test_a_model_that_does_not_read_is_told_so(reader, message):
    with pytest.raises(NotYet, match=message):
        check_own_model(reader, as_text, Pictures())


# ---------------------------------------------------------------- an encoder


def test_encoders_that_ship_and_the_solution_pass(page):
    assert check_encoder(page["WordsInOrder"]())["colours_read"] > 0.9
    assert check_encoder(TextEncoder.toy())["colours_read"] > 0.9


def test_words_without_order_are_not_enough(page):
    with pytest.raises(NotYet, match="same words in another order"):
        check_encoder(page["Words"]())


def numbers_as_mask(text):
    return TextEmbedding(text.tokens, text.mask.float())


def leaking(text):
    return TextEmbedding(text.tokens + text.tokens.mean((0, 1)), text.mask)


def learning(text):
    return TextEmbedding(text.tokens.clone().requires_grad_(), text.mask)


def colour_blind(text):
    return TextEmbedding(torch.ones_like(text.tokens), text.mask)


@pytest.mark.parametrize(
    "change, message",
    [
        (numbers_as_mask, "mask is bool"),
        (leaking, "alone and in a batch"),
        (learning, "frozen"),
        (colour_blind, "Colours can be read"),
    ],
)
def test_a_wrong_encoder_is_told_what_is_wrong(page, change, message):
    class Wrong(page["WordsInOrder"]):
        def __call__(self, captions):
            return change(super().__call__(captions))

    with pytest.raises(NotYet, match=message):
        check_encoder(Wrong())


# ---------------------------------------------------------------- planted bugs


def test_the_repaired_program_passes(page):
    right = page["keep_each"], page["guide_of_paper"], page["step_to_next"]
    assert check_repaired(*right) == "All three are repaired."


@pytest.mark.parametrize(
    "place, name, message",
    [(0, "keep", "own luck"), (1, "guide", "At w = 0"), (2, "step", "next level asks for")],
)
def test_each_planted_bug_has_its_symptom(page, place, name, message):
    parts = [page["keep_each"], page["guide_of_paper"], page["step_to_next"]]
    parts[place] = page[name]
    with pytest.raises(NotYet, match=message):
        check_repaired(*parts)


def test_a_step_to_the_right_level_is_alone_right(page):
    def halved(z, x0_hat, log_snr, next_log_snr):
        alpha, sigma = alpha_sigma(next_log_snr)
        right = page["step_to_next"](z, x0_hat, log_snr, next_log_snr)
        return alpha * x0_hat + (right - alpha * x0_hat) / 2

    with pytest.raises(NotYet, match="0.50 times"):
        check_repaired(page["keep_each"], page["guide_of_paper"], halved)

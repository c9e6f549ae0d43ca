"""How long training would take on this machine: a part of one step, timed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from imagen_nb.engine.distributed import gradient, undisturbed
from imagen_nb.engine.keeping import Learned
from imagen_nb.engine.samples import to_device
from imagen_nb.recipes import Recipe
from imagen_nb.stage import Stage, StageConfig
from imagen_nb.store.config import counted
from imagen_nb.text import TextEmbedding
from imagen_nb.training import Samples, TrainConfig, update

__all__ = ["clock", "pace", "seconds_per_step"]

TIMED = 8  # samples in the step that is timed
WHERE = {"cpu": "one core, if nothing shares it", "cuda": "this GPU"}
LARGE = {
    "cpu": 20e6,
    "cuda": 500e6,
}  # parameters; networks with more take minutes to time, or do not fit


def pace(
    pictures,  # that would be trained on
    recipe: Recipe,  # how
    stages: list[int],  # that would be trained
    is_timed: bool = True,  # False: epochs alone
) -> Iterator[str]:  # a line for each stage
    "Steps, epochs, and the time they take: of one core whatever else the machine does, or of its GPU."
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for k in stages:
        stage, training = recipe.stages[k], recipe.training[k]
        epochs = training.steps * training.batch / len(pictures)
        told = f"stage {k}: {counted(training.steps, 'step')} of {training.batch} are {epochs:,.1f} epochs"
        if not is_timed:
            yield told
        elif (n := parameters(stage)) > LARGE[device.type]:
            yield f"{told}; not timed, with {n / 1e6:,.0f} million parameters"
        else:
            seconds = seconds_per_step(pictures, stage, training, device) * training.steps
            yield f"{told}, {clock(seconds)} of {WHERE[device.type]}"


def parameters(stage: StageConfig) -> int:
    "How many a network has; it is not built."
    with torch.device("meta"):
        return sum(p.numel() for p in stage.network.build().parameters())


def seconds_per_step(
    pictures,  # that would be trained on
    config: StageConfig,
    training: TrainConfig,
    device: torch.device,
) -> float:
    "From a part of a step: reading and passes through the network scale with samples, the update does not."
    now = time.process_time if device.type == "cpu" else time.perf_counter
    with torch.random.fork_rng(), on_one_core(), undisturbed():
        learned = Learned.begin(Stage(config), training, device)
        stage = Stage(config, learned.network)
        samples = Samples(config, pictures, NoText(max(config.network.text_dim, 1)), training)
        for few in (1, min(TIMED, training.batch)):  # the first warms up
            since = now()
            batch, draws = samples(torch.arange(few, device="cpu"))
            gradient(
                stage, to_device(batch, device), to_device(draws, device), 1
            ).tolist()  # a GPU has finished
            passed = now()
            update(learned, 0, training)
        return (passed - since) * training.batch / few + now() - passed


class NoText:
    "Any caption as sixteen tokens of zeros: as much work as a real one."

    def __init__(self, width: int):
        self.width = width

    def __getitem__(self, captions: list[str]) -> TextEmbedding:
        tokens = torch.zeros(len(captions), 16, self.width, dtype=torch.float32, device="cpu")
        return TextEmbedding(tokens, torch.ones_like(tokens[..., 0], dtype=torch.bool))


@contextmanager
def on_one_core() -> Iterator[None]:
    "Torch computes in one thread during a block, as each process of `imagen-nb train` does."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def clock(seconds: float) -> str:
    "A time for people."
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"

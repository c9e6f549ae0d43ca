"""What a Trainer is given: a slip is named in one line, before anything is written."""

import os
import warnings

from imagen_nb.store.checks import check
from imagen_nb.store.config import counted

__all__ = ["check_trainer"]

NUMBERED, STREAMED = ("caption", "images", "__len__"), ("resume", "size", "state", "__iter__")


def check_trainer(
    stage,  # to be a Stage
    dataset,  # to be pictures by number, or a stream of them
    text,  # to read captions
    config,  # to be a TrainConfig
    out_dir,  # to name a folder
    valid,  # to be pictures by number, or None
    execution,  # to be an Execution, or None
):
    "Refuse what a Trainer cannot work with, one line each."
    kinds = dict(stage=(stage, "Stage"), config=(config, "TrainConfig"))
    if execution is not None:
        kinds |= dict(execution=(execution, "Execution"))
    for name, (given, kind) in kinds.items():
        names = {o.__name__ for o in type(given).__mro__}
        check(kind in names, f"Trainer: {name}", type(given).__name__, f"a {kind}")
    learns = any(p.requires_grad for p in stage.network.parameters())
    check(learns, "Trainer: stage", "only frozen weights", "some with requires_grad")
    is_path = isinstance(out_dir, (str, os.PathLike))
    check(is_path, "Trainer: out_dir", type(out_dir).__name__, "the name of a folder")
    for name, given in (("dataset", dataset), ("valid", valid)):
        if given is not None or name == "dataset":
            check_source(f"Trainer: {name}", given, is_stream=name == "dataset")
    check_text(text, dataset, stage.config.network.text_dim)
    if config.warmup > config.steps:
        warnings.warn(
            f"Trainer: warmup={config.warmup:,} is longer than steps={config.steps:,}:"
            f" the learning rate never reaches lr={config.lr:g}; give a warm-up"
            f" of {counted(max(1, config.steps // 20), 'step')} or so"
        )


def check_source(
    what: str,  # the function, a colon, the argument
    given,  # pictures
    is_stream: bool,  # may they be one?
):
    "Refuse what gives no pictures."

    def has(names):
        return all(hasattr(given, name) for name in names)

    if not has(NUMBERED) and not (is_stream and has(STREAMED)):
        kind = f"{type(given).__module__}.{type(given).__name__}".removeprefix("builtins.")
        raise ValueError(
            f"{what}, got a {kind}, expected `caption`, `images` and `len`, as ShapesWorld and"
            " `load_captioned` have them" + (", or a stream" if is_stream else "")
        )
    check(not has(NUMBERED) or len(given) > 0, what, "no picture", "some")


def check_text(
    text,  # text[captions] -> TextEmbedding
    dataset,  # a caption of it is tried
    width: int,  # numbers of an embedding that the network takes
):
    "Refuse what does not read captions, or reads them for another network."
    if width == 0 or not hasattr(dataset, "images"):
        return
    try:
        found = text[[dataset.caption(0, 0)]]
    except TypeError:
        found = None
    is_text = hasattr(found, "tokens") and hasattr(found, "mask")
    expected = "text[captions] -> TextEmbedding, as an `EmbeddingCache` does"
    check(is_text, "Trainer: text", f"a {type(text).__name__}", expected)
    got = found.tokens.shape[-1] if is_text else 0
    check(got == width, "Trainer: text", f"embeddings of {got} numbers", f"text_dim={width}")

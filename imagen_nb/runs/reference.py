"""Is mine normal? A run beside the reference runs that ship."""

import json

from imagen_nb.store.config import with_defaults
from imagen_nb.store.files import assets

__all__ = ["trained_as", "find_reference"]

TRAINED = (
    "size",
    "network",
    "lowres_size",
    "crop",
    "schedule",
    "target",
    "loss_weight",
    "time_law",
    "caption_drop",
    "aug_schedule",
    "aug_max",
    "is_residual",
)  # of a stage: what training depends on
ASIDE = ("seed", "save_every", "keep")  # of training: what it does not depend on, or only by chance


def trained_as(
    config: dict,  # a stage's config.json, of any version
) -> list:
    "What a training curve depends on, seed aside."
    config = with_defaults(config)
    text = config["text"].get("revision") if isinstance(config["text"], dict) else config["text"]
    return [
        {k: config["stage"][k] for k in TRAINED},
        {k: v for k, v in config["train"].items() if k not in ASIDE},
        config["data"],
        text,
    ]


def find_reference(
    config: dict,  # a stage's config.json
) -> dict | None:  # that stage of the card; None: no such runs
    "The stage of run card `toy-reference` that was trained like this one."
    path = assets() / "runs" / "toy-reference.json"
    stages = json.loads(path.read_text())["stages"].values() if path.exists() else ()
    return next((o for o in stages if trained_as(o["config"]) == trained_as(config)), None)

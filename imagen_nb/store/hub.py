"""Models in folders and on the hub: where their files are, how they are written and read."""

import tempfile
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from imagen_nb.store.card import model_card
from imagen_nb.store.checkpoint import STEP, load_directory, save_directory
from imagen_nb.store.checks import check, check_among
from imagen_nb.store.files import SHIPPED, CheckpointError, as_path, assets, is_hub_name
from imagen_nb.store.manifest import MANIFEST

__all__ = ["Pretrained", "find_model"]

DTYPES = (torch.float16, torch.bfloat16, torch.float32)  # of weights on disk


class Pretrained(ABC):
    "A model that is saved to a folder or the hub, and loaded from there."

    KIND: str  # of the model; in its files, so that none is taken for another

    @abstractmethod
    def to_files(
        self,
    ) -> tuple[dict, dict, dict]:  # tensors by file; what goes beside them; what the card tells
        "All that is to be saved."

    @classmethod
    @abstractmethod
    def from_files(
        cls,
        tensors: dict,  # by file
        meta: dict,  # what lay beside them, and in which "folder"
        encoder,  # a text encoder, or its folder; None: look for the one that the files name
    ) -> Self:
        "The model that `to_files` took apart."

    def save_pretrained(
        self,
        path: str | Path,  # a directory
        dtype: torch.dtype = torch.float16,  # of the weights on disk
        card: dict | None = None,  # run card of the training, for the model card
    ):
        "Write configs, weights and a README.md; the directory is complete or absent."
        self._save(path, dtype, card, as_path(path).resolve().name)

    def push_to_hub(
        self,
        name: str,  # repository, "user/model"
        dtype: torch.dtype = torch.float16,  # of the weights on the hub
        card: dict | None = None,  # run card of the training, for the model card
    ):
        "Save to a temporary directory and upload it."
        from huggingface_hub import HfApi

        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder) / "model", dtype, card, name)
            HfApi().create_repo(name, exist_ok=True)
            HfApi().upload_folder(repo_id=name, folder_path=Path(folder) / "model")

    def _save(self, path: str | Path, dtype: torch.dtype, card: dict | None, name: str):
        "Write the directory; `name` is what its card tells people to load."
        check_among("save_pretrained: dtype", dtype, DTYPES)
        tensors, meta, facts = self.to_files()
        for file, group in tensors.items():
            for key, x in group.items():
                group[key] = _narrowed(x, dtype, f"save_pretrained: {file}, {key}")
        meta = dict(kind=self.KIND, **meta)
        save_directory(path, tensors, meta, readme=self.readme(facts, card, name))

    def readme(self, facts: dict, card: dict | None, name: str) -> str:
        "The model card, in Markdown: of a cascade, unless a model says otherwise."
        return model_card(facts, card, name)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,  # a directory, a run, a hub repository, or one of `SHIPPED`
        encoder=None,  # a text encoder, or its folder; None: look for the one that the files name
    ) -> Self:
        "Read what `save_pretrained` wrote."
        folder = find_model(name)
        tensors, meta = load_directory(folder)
        if (kind := meta.get("kind")) != cls.KIND:
            raise ValueError(
                f"{cls.__name__}.from_pretrained: {name}, got {kind!r}, expected {cls.KIND!r}"
            )
        return cls.from_files(tensors, {**meta, "folder": folder}, encoder)


def _narrowed(x: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    "A weight in the dtype on disk, or in float32 where it holds more than that can."
    if not x.is_floating_point():
        return x
    wide = x.detach().float()
    check(wide.isfinite(), what, "NaN or infinity", "finite numbers", wait=True)
    narrow = wide.to(dtype)
    if narrow.isfinite().all():
        return narrow
    most, kind = torch.finfo(dtype).max, str(dtype).removeprefix("torch.")
    warnings.warn(
        f"{what}, got {wide.abs().max():g}, more than {most:g} of {kind}: kept in float32"
    )
    return wide


def find_model(
    name: str | Path,  # a directory, a run, a hub repository, or one of `SHIPPED`
) -> Path:  # a local directory
    "Where a model's files are; a hub name is downloaded."
    if str(name) in SHIPPED:
        if (path := assets() / name / "meta.json").is_file():
            return path.parent
        raise ValueError(
            f"find_model: {str(name)!r}, got no such weights in this installation, expected"
            f" some; run `imagen-nb train {name}`, load 'runs/{name}/model'"
        )
    if (path := as_path(name)).is_dir():
        return _model_in(path)
    if is_hub_name(name):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(str(name), allow_patterns=["*.safetensors", "*.json"]))
        except Exception as e:  # the hub's client raises many kinds
            raise ValueError(
                f"find_model: {name}, no such directory, and not to be had from the hub"
                f" ({type(e).__name__}: {str(e).splitlines()[0]})"
            ) from e
    raise ValueError(
        f"find_model: {name}, no such directory;"
        f" expected a directory, {' or '.join(map(repr, SHIPPED))}, or a name on the hub, 'owner/model'"
    )


def _model_in(path: Path) -> Path:
    "The model in a directory: itself, or that of the run which the directory is, or is a stage of."
    home = path.resolve()
    is_checkpoint = bool(STEP.fullmatch(home.name)) and (home.parent / "config.json").exists()
    if (path / "meta.json").exists() and not is_checkpoint:
        return path
    stage = home.parent if is_checkpoint else home
    is_stage = is_checkpoint or any((*stage.glob("step_*"), *stage.glob("log.jsonl")))
    run = stage.parent if is_stage else path
    model = run / "model"
    if (model / "meta.json").exists() and not is_checkpoint:
        return model
    if (model / "meta.json").exists():
        advice = f"that of its run is {model}"
    elif (run / "config.json").exists():
        advice = f"write what its run has learned so far: `imagen-nb export {run} OUT`, load OUT"
    elif is_stage or any(run.glob("*px/step_*")):
        advice = "`Imagen(encoder, [trainer.fit()]).save_pretrained(OUT)` writes one, load OUT"
    elif (path / MANIFEST).exists():
        return path  # what is read next says what it lacks
    else:
        raise CheckpointError(
            f"find_model: {path}, got a directory without meta.json, expected that of a model, or of"
            " a run, which `imagen-nb train RECIPE --out RUN` makes"
        )
    what = (
        "a checkpoint of training"
        if is_checkpoint
        else f"{'a stage' * is_stage or 'a run'} without a model"
    )
    raise ValueError(f"find_model: {path}, got {what}, expected a model; {advice}")

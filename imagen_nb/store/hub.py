"""Models in folders and on the hub: where their files are, how they are written and read."""

import tempfile
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from imagen_nb.store.card import model_card
from imagen_nb.store.checkpoint import load_directory, save_directory
from imagen_nb.store.checks import check, check_among
from imagen_nb.store.files import assets

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
        self._save(path, dtype, card, Path(path).name)

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
        save_directory(path, tensors, meta, readme=model_card(facts, card, name))

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,  # a directory, a run, a hub repository, or "toy"
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
    name: str | Path,  # a directory, a run, a hub repository, or "toy"
) -> Path:  # a local directory
    "Where a model's files are; a hub name is downloaded."
    if str(name) == "toy":
        if (path := assets() / "toy").is_dir():
            return path
        raise ValueError(
            "find_model: 'toy', got no toy weights in this installation, expected"
            " some; run `imagen-nb train toy --out runs/toy`, load 'runs/toy/model'"
        )
    if Path(name).is_dir():
        return _model_of_run(Path(name))
    if str(name).count("/") == 1 and not str(name).startswith((".", "/", "~")):
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
        " expected a directory, 'toy' or a hub name 'user/model'"
    )


def _model_of_run(path: Path) -> Path:
    "The model inside the directory of a run; any other directory itself."
    if (path / "meta.json").exists() or not (path / "config.json").exists():
        return path
    if (path / "model").is_dir():
        return path / "model"
    raise ValueError(
        f"find_model: {path}, got a run without a model, expected one that has ended;"
        f" write what it has learned so far: `imagen-nb export {path} OUT`, load OUT"
    )

"""From a folder as T5 is published to one that holds its encoder alone, in bfloat16.

Published T5 folders hold encoder and decoder in float32, some as pickles only. `convert_encoder`
reads them once, tensor by tensor and without running anything in them, and writes safetensors of
at most a gibibyte. The new folder is complete or absent; `encoder.json` in it holds the digest of the
weights, which `TextEncoder.from_pretrained` computes anyway and compares.
"""

import json
import shutil
import warnings
from functools import partial
from pathlib import Path

import torch

from imagen_nb.store.files import as_path, check_room, flush
from imagen_nb.store.foreign import TOKENIZER, check_file, check_files, weight_files
from imagen_nb.store.identity import digest_tensors
from imagen_nb.store.text_models import FAMILIES

__all__ = ["convert_encoder", "encoder_bytes"]

T5S = [family for family in FAMILIES if family.endswith("t5")]
SHARD = 1 << 30  # bytes in one file


def convert_encoder(
    source: str | Path,  # folder of a T5: config, weights (.bin or .safetensors), tokenizer
    target: str | Path,  # folder to make
) -> Path:  # the new folder
    "Write the encoder of a T5 alone, in bfloat16: `imagen-nb embed --convert SRC DST`."
    source, target = as_path(source), as_path(target)
    config = read_config(source)
    check_files("convert_encoder", source)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"convert_encoder: {target} is there already, expected a folder to make")
    files, names = weight_files("convert_encoder", source), encoder_names(config)
    if not files:
        raise ValueError(
            f"convert_encoder: {source}, got no model*.safetensors and no pytorch_model*.bin there,"
            " expected weights"
        )
    new = target.parent / f".{target.name}.new"
    shutil.rmtree(new, ignore_errors=True)  # of one that was killed
    new.mkdir(parents=True)
    try:
        places = write_shards(new, encoder_tensors(files, names), names)
        copy_rest(source, new, config)
        write_digest(new, places, source.resolve().name)
        for file in new.iterdir():
            flush(file)
        new.rename(target)  # also over an empty folder
    finally:
        shutil.rmtree(new, ignore_errors=True)
    flush(target.parent)
    return target


def encoder_bytes(
    config,  # of a T5, from `transformers`
) -> dict[str, int]:  # bytes of the whole model in float32, and of its encoder in bfloat16
    "Sizes before and after conversion, from the configuration alone: no weights are made."
    import transformers

    with torch.device("meta"):
        whole = transformers.T5ForConditionalGeneration(config)
        encoder = transformers.T5EncoderModel(config)
    return {
        "whole, float32": 4 * sum(p.numel() for p in whole.parameters()),
        "encoder, bfloat16": 2 * sum(p.numel() for p in encoder.parameters()),
    }


def read_config(source: Path) -> dict:
    "The configuration of a T5 folder."
    if not (source / "config.json").exists():
        raise ValueError(
            f"convert_encoder: {source}, got no config.json there, expected a folder with config,"
            " weights and tokenizer"
        )
    check_file("convert_encoder", source / "config.json")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") not in T5S:
        raise ValueError(
            f"convert_encoder: {source} is of the kind {config.get('model_type')!r}, expected one of"
            f" {T5S}; BERT and CLIP are small, and load as they are"
        )
    return config


def encoder_names(config: dict) -> dict:
    "Name -> shape of every parameter of the encoder."
    import transformers

    with torch.device("meta"):
        family = getattr(transformers, FAMILIES[config["model_type"]])
        model = family(transformers.AutoConfig.for_model(**config))
    return {name: value.shape for name, value in model.named_parameters()}


def encoder_tensors(files: list, names: dict):
    "Pairs of name and tensor, one at a time; what is no part of the encoder is passed over."
    alias = {"encoder.embed_tokens.weight": "shared.weight"}  # one table under two names
    left = dict(names)
    for file in files:
        for key, read in stored(file):
            key = alias.get(key, key)
            if (shape := left.pop(key, None)) is None:
                continue
            if (value := read()).shape != shape:
                raise ValueError(
                    f"convert_encoder: {key}, got shape {tuple(value.shape)}, expected {tuple(shape)}"
                )
            yield key, value
    if left:
        raise ValueError(
            f"convert_encoder: weights are incomplete, {len(left)} missing, first {min(left)}"
        )


def stored(file: Path):
    "Pairs of name and a function that reads the tensor."
    from safetensors import safe_open

    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as f:
            yield from ((key, partial(f.get_tensor, key)) for key in f.keys())
    else:
        weights = load_bin(file)
        yield from ((key, partial(weights.get, key)) for key in weights)


def load_bin(file: Path) -> dict:
    "A state dict of tensors, memory-mapped where its format allows; nothing in the file is run."
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:
        warnings.warn(
            f"{file.name} is in an old format, and is read whole: {file.stat().st_size / 1e9:.1f} GB of memory"
        )
        return torch.load(file, map_location="cpu", weights_only=True)


def write_shards(folder: Path, pairs, names: dict) -> dict:
    "Write bfloat16 tensors as they come, at most SHARD bytes a file; name -> file."
    from safetensors.torch import save_file

    total = 2 * sum(shape.numel() for shape in names.values())
    check_room(folder, total, "convert_encoder")
    places: dict[str, str] = {}
    for count, shard in enumerate(shards(pairs)):
        file = f"part-{count:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    if len({*places.values()}) == 1:
        (folder / file).rename(folder / "model.safetensors")
        return dict.fromkeys(places, "model.safetensors")
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return places


def shards(pairs):
    "Dictionaries of bfloat16 tensors, at most SHARD bytes each."
    shard: dict[str, torch.Tensor] = {}
    for key, value in pairs:
        if shard and sum(v.nbytes for v in shard.values()) + 2 * value.numel() > SHARD:
            yield shard
            shard = {}
        shard[key] = value.to(torch.bfloat16, copy=True).contiguous()
    yield shard


def copy_rest(source: Path, folder: Path, config: dict):
    "Tokenizer and configuration."
    found = [name for name in TOKENIZER if (source / name).is_file()]
    if not {"spiece.model", "tokenizer.json"} & set(found):
        raise ValueError(
            f"convert_encoder: {source}, got no spiece.model and no tokenizer.json there, expected one"
        )
    for name in found:
        shutil.copy(source / name, folder / name)
    config = {k: v for k, v in config.items() if k != "torch_dtype"}
    config |= {"architectures": [FAMILIES[config["model_type"]]], "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def write_digest(folder: Path, places: dict, name: str):
    "The digest that `TextEncoder` will find, computed tensor by tensor."
    from safetensors import safe_open

    def read(key):
        with safe_open(folder / places[key], "pt") as f:
            return f.get_tensor(key)

    revision = digest_tensors((key, read(key)) for key in sorted(places))
    (folder / "encoder.json").write_text(
        json.dumps({"source": name, "dtype": "bfloat16", "revision": revision}) + "\n"
    )

"""Folders of other people's models: what is wrong with a file, in words, before a library stumbles over it."""

import json
import zipfile
from pathlib import Path

__all__ = ["TOKENIZER", "check_file", "check_files", "in_words", "weight_files"]

TOKENIZER = (  # files that a tokenizer may be made of
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
CONFIGS = (
    "config.json",
    "encoder.json",
    "reduced.safetensors",
    "statistics.safetensors",
)  # the last three are ours
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
NEEDED = ("imagen_nb", "transformers", "importlib", "torch")  # on the way to a broken package


def check_files(
    who: str,  # begins the error
    folder: Path,  # with config, weights and tokenizer
):
    "Refuse a folder in which a file that will be read is not what its name says."
    for name in (*CONFIGS, *TOKENIZER):
        if (folder / name).exists():
            check_file(who, folder / name)
    for file in weight_files(who, folder):
        check_file(who, file)


def weight_files(
    who: str,  # begins the error
    folder: Path,
) -> list[Path]:  # those that an index names, else those with the usual names
    "The files of a folder that hold weights; safetensors if there are any."
    for pattern in WEIGHTS:
        one, _, kind = pattern.partition("*")
        index = folder / f"{one}{kind}.index.json"
        if (folder / (one + kind)).exists() or not index.exists():
            files = sorted(folder.glob(pattern))
        else:
            check_file(who, index)
            named = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()
            files = [folder / name for name in sorted(set(map(str, named)))]
            if lost := [file.name for file in files if not file.exists()]:
                raise ValueError(
                    f"{who}: {folder}, got {len(files) - len(lost)} of the {len(files)} weight"
                    f" files that {index.name} names, expected all; {lost[0]} is missing"
                )
        if files:
            return files
    return []


def check_file(
    who: str,  # begins the error
    file: Path,
):
    "Refuse a file that is not what its name says."
    if wrong := fault(file):
        raise ValueError(f"{who}: {file} is {wrong}")


def fault(file: Path) -> str:
    "What a file is instead of what its name says; empty if all is well, as far as its ends show."
    if not file.is_file():
        return f"no file but a directory, expected {file.suffix or 'a'} data"
    with file.open("rb") as f:
        head = f.read(512)
    if not head:
        return "empty: a download was cut short; fetch it again"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of git-lfs, not the file itself; run `git lfs pull` in its folder"
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not the file itself; fetch it again"
    return CHECKS.get(file.suffix, lambda *_: "")(file, head)


def not_json(file: Path, head: bytes) -> str:
    "A configuration is one JSON object."
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as e:
        return f"damaged, no JSON: {e}"
    return "" if isinstance(found, dict) else "damaged, no JSON object"


def not_safetensors(file: Path, head: bytes) -> str:
    "The header says how long the file is."
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt"):
            return ""
    except SafetensorError as e:
        return f"damaged or cut short, no safetensors: {e}; fetch it again"


def not_torch(file: Path, head: bytes) -> str:
    "A zip, whose list of contents is at its end, or an old pickle."
    if head[:2] == b"PK":
        return "" if zipfile.is_zipfile(file) else "cut short; fetch it again"
    return "" if head[:1] == b"\x80" else "damaged, no weights as torch writes them"


def not_sentencepiece(file: Path, head: bytes) -> str:
    "A list of pieces, which begins with the first one."
    return "" if head[:1] == b"\n" else "damaged, no model of sentencepiece"


CHECKS = {
    ".json": not_json,
    ".safetensors": not_safetensors,
    ".bin": not_torch,
    ".model": not_sentencepiece,
}


def in_words(
    error: BaseException,  # of a library
) -> str:  # one line
    "The reason of an error; of a failed import the first cause, and the package that is broken."
    package = ""
    while isinstance(error, ImportError) and (cause := error.__cause__ or error.__context__):
        error, package = cause, broken_package(cause)
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if not package:
        return line
    return (
        f"{package} on this machine is broken ({line}); reinstall it so that it fits torch, or"
        " uninstall it if nothing else needs it (of torchvision nothing is needed here)"
    )


def broken_package(error: BaseException) -> str:
    "The first package on an error's way that is not one of those that we need."
    way, trace = [], error.__traceback__
    while trace:
        way.append(trace.tb_frame.f_globals.get("__name__", "").partition(".")[0])
        trace = trace.tb_next
    return next((name for name in way if name and name not in NEEDED), way[-1] if way else "")

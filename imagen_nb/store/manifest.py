"""What a sound directory of tensors holds: its manifest, with the size and digest of every file.

An error here says what is wrong with which file; whoever reads a directory adds its own name.
"""

import hashlib
import json
import re
from pathlib import Path

from imagen_nb.store.files import CheckpointError

__all__ = [
    "FORMAT",
    "MANIFEST",
    "META",
    "NAME",
    "FormatError",
    "check_digests",
    "check_file",
    "check_sizes",
    "file_entry",
    "is_complete",
    "manifest_text",
    "read_json",
    "read_manifest",
]

FORMAT = 1  # of the directory; raised when older readers could not read newer files
MANIFEST, META = "manifest.json", "meta.json"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
LARGEST_JSON = 64 << 20  # bytes


class FormatError(CheckpointError):
    "A complete checkpoint in a format that this version does not read."


def file_entry(path: Path) -> dict:
    "Size and digest of one file."
    with open(path, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def canonical(value: dict) -> bytes:
    "The one way this module writes a manifest."
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def manifest_text(files: dict) -> bytes:
    "The manifest, with a digest of itself."
    from imagen_nb import __version__

    manifest = {"format": FORMAT, "library": __version__, "files": files}
    digest = hashlib.sha256(canonical(manifest)).hexdigest()
    return canonical({**manifest, "sha256": digest})


def read_json(path: Path) -> tuple[dict, bytes]:
    "The object in a JSON file, which cannot be huge; its bytes."
    try:
        with path.open("rb") as f:
            data = f.read(LARGEST_JSON + 1)
    except (FileNotFoundError, NotADirectoryError) as e:
        raise CheckpointError(
            f"no complete checkpoint at {path.parent}, got no {path.name}, expected one"
        ) from e
    if len(data) > LARGEST_JSON:
        size = path.stat().st_size
        raise CheckpointError(f"{path}, got {size} bytes, expected at most {LARGEST_JSON}")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path} is damaged, got {e}, expected JSON") from e
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}, got a {type(value).__name__}, expected an object")
    return value, data


def read_manifest(folder: Path) -> dict:
    "The files of the checkpoint in `folder`, with their sizes and digests, as its manifest says."
    path = folder / MANIFEST
    manifest, data = read_json(path)
    stated = manifest.pop("sha256", None)
    actual = hashlib.sha256(canonical(manifest)).hexdigest()
    if stated != actual or data != canonical({**manifest, "sha256": stated}):
        raise CheckpointError(f"{path} is damaged, got sha256 {actual}, expected {stated}")
    if manifest.get("format") != FORMAT:
        raise FormatError(
            f"{path}, got format {manifest.get('format')} of imagen_nb "
            f"{manifest.get('library')}, expected format {FORMAT}"
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or META not in files:
        raise CheckpointError(f"{path} lists no {META}, expected one")
    for name, entry in files.items():
        check_entry(path, name, entry)
    return files


def check_entry(path: Path, name: str, entry):
    "Refuse a manifest's line that names a file outside of its directory, or is none."
    if not NAME.fullmatch(name) or not (name == META or name.endswith(".safetensors")):
        raise CheckpointError(
            f"{path} lists the file {name!r}, expected {META} and "
            "plain names that end in .safetensors"
        )
    sound = isinstance(entry, dict) and set(entry) == {"bytes", "sha256"}
    if not sound or type(entry["bytes"]) is not int:
        raise CheckpointError(f"{path}, entry {name!r}, got {entry}, expected bytes and sha256")


def check_size(path: Path, entry: dict):
    "Is the file there, with the stated number of bytes?"
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError) as e:
        raise CheckpointError(f"{path} is missing, expected {entry['bytes']} bytes") from e
    if size != entry["bytes"]:
        raise CheckpointError(
            f"{path} is cut or overgrown, got {size} bytes, expected {entry['bytes']}"
        )


def check_file(path: Path, entry: dict):
    "Does the file have the stated size and digest?"
    check_size(path, entry)
    actual = file_entry(path)["sha256"]
    if actual != entry["sha256"]:
        raise CheckpointError(f"{path} is damaged, got sha256 {actual}, expected {entry['sha256']}")


def check_digests(folder: Path, files: dict):
    "Have all files their stated sizes and digests?"
    for name, entry in files.items():
        check_file(folder / name, entry)


def check_sizes(folder: Path, files: dict):
    "Are all files there, in their stated sizes?"
    for name, entry in files.items():
        check_size(folder / name, entry)


def is_complete(folder: Path) -> bool:
    "Is it a checkpoint, though perhaps of another format?"
    try:
        check_sizes(folder, read_manifest(folder))
    except CheckpointError as e:
        return isinstance(e, FormatError)
    return True

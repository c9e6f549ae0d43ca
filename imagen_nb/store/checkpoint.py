"""Directories of tensors that are complete or do not exist.

A checkpoint is a directory of few kinds of file:

    NAME.safetensors   one for each dictionary of tensors; of a run that is sharded, as torch's
                       safetensors writer names them: shard-00001-model-00002-of-00003, see `shards`
    meta.json          what the caller wants to know beside them
    manifest.json      bytes and sha256 of the others, and of itself; written last
    README.md          perhaps, for people: in no digest, as hubs let people edit it

Nothing is ever pickled, and every byte read back is checked against a digest.

How `save_directory(path)` replaces a checkpoint. The directory `path` = `folder/NAME`
has hidden siblings `folder/.NAME.new-ID` and `folder/.NAME.old-ID` while it is written:

1. All files are written into `.NAME.new-ID` and flushed to disk, the manifest last.
2. If there is a checkpoint at `path`, it is renamed to `.NAME.old-ID`.
3. `.NAME.new-ID` is renamed to `path`, and the folder is flushed to disk.
4. `.NAME.old-ID` is deleted.

A writer that dies before step 2 leaves `path` as it was. One that dies between 2 and 3
leaves nothing at `path`, but two complete siblings: every reader here takes the new one,
and the next save in that folder puts it in place. One that dies later has saved. The ID
names host and process, so the next save in the folder also deletes what dead writers left.
One process at a time may save to a path.
"""

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from imagen_nb.store.files import CheckpointError, as_path, check_room, flush, has_ended
from imagen_nb.store.manifest import (
    MANIFEST,
    META,
    NAME,
    FormatError,
    check_digests,
    check_file,
    check_sizes,
    file_entry,
    is_complete,
    manifest_text,
    read_json,
    read_manifest,
)
from imagen_nb.store.shards import is_sharded, read_whole

__all__ = [
    "CheckpointError",
    "checkpoints",
    "load_directory",
    "load_into",
    "load_meta",
    "meta_text",
    "network_itself",
    "new_directory",
    "newest_checkpoint",
    "prune",
    "save_directory",
    "seal",
    "size_of",
    "sweep",
    "verify",
    "weights_to_save",
]

README = "README.md"
STEP = re.compile(r"(?:step[-_])?(\d+)")
SIBLING = re.compile(r"\.(.+)\.(new|old|gone)-([0-9a-f]{8}-(\d+)-[0-9a-f]{8})")
STALE = 3600  # seconds without a write after which another machine's writer is dead
_writing: set[str] = set()  # IDs of this process's unfinished saves


# ---------------------------------------------------------------- saving


def save_directory(
    path,  # directory to make or to replace
    tensors: dict[str, dict[str, Tensor]],  # {"network": {"head.weight": ...}, ...}
    meta: dict,  # anything JSON can hold
    readme: str | None = None,  # text for people, in Markdown
) -> Path:  # the complete directory
    "Save dictionaries of tensors and `meta` at `path`: all of it, or nothing changes."
    groups = {_file_name(k): _ready(k, group) for k, group in tensors.items()}
    text = meta_text(meta)
    with new_directory(path, size_of(groups) + len(text)) as new:
        _write(new, groups)
        seal(new, text, readme)
    return _real(path)


@contextmanager
def new_directory(
    path,  # directory to make or to replace
    size: int,  # bytes that will be in it
) -> Iterator[Path]:  # an empty one beside it
    "What is written into it, and sealed, is at `path` once the block has ended; or nothing changes."
    path = _real(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    _check_replaceable(path)
    check_room(path.parent, size, "save_directory")
    ident = _ident()
    new, old = _sibling(path, "new", ident), _sibling(path, "old", ident)
    _writing.add(ident)
    try:
        new.mkdir()
        yield new
        _publish(new, path, old)
    except BaseException:
        if path.exists() or not old.exists():  # else leave both to `sweep`
            shutil.rmtree(new, ignore_errors=True)
        raise
    finally:
        _writing.discard(ident)
    shutil.rmtree(old, ignore_errors=True)


def _real(path) -> Path:
    "Where a directory lies, or will."
    return Path(os.path.realpath(as_path(path)))


def _file_name(name) -> str:
    "The file that holds the dictionary called `name`."
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(
            f"save_directory: the name of a dictionary of tensors, got {name!r}, "
            "expected letters, digits, '_', '-' and '.'"
        )
    return f"{name}.safetensors"


def _ready(name: str, group: dict) -> dict:
    "The tensors of `group` on the CPU, contiguous, none sharing memory with another."
    ready, seen = {}, set()
    for key, value in group.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"save_directory: {name}[{key!r}], got a {type(value).__name__}, "
                "expected a name and a tensor"
            )
        if value.layout != torch.strided or value.is_meta:
            raise ValueError(
                f"save_directory: {name}[{key!r}], got {value.layout} on "
                f"{value.device}, expected a dense tensor with data"
            )
        value = value.detach().cpu().contiguous()
        storage = value.untyped_storage()
        whole = storage.nbytes() == value.numel() * value.element_size()
        if not whole or storage.data_ptr() in seen:
            value = value.clone(memory_format=torch.contiguous_format)
        seen.add(value.untyped_storage().data_ptr())
        ready[key] = value
    return ready


def meta_text(meta: dict) -> bytes:
    "`meta` as JSON, refusing what would come back as something else."

    def check(value, where):
        if isinstance(value, dict):
            for key, item in value.items():
                if not isinstance(key, str):
                    raise ValueError(
                        f"save_directory: a key of {where}, got {key!r}, expected a str"
                    )
                check(item, f"{where}[{key!r}]")
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                check(item, f"{where}[{i}]")

    if not isinstance(meta, dict):
        kind = type(meta).__name__
        raise ValueError(f"save_directory: meta, got a {kind}, expected a dict")
    check(meta, "meta")
    try:
        text = json.dumps(meta, indent=1, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as e:
        raise ValueError(f"save_directory: meta cannot be saved as JSON: {e}") from e
    return (text + "\n").encode()


def _check_replaceable(path: Path):
    "Refuse to replace anything that is not one of our directories, and nothing else."
    if not path.exists():
        return
    if not path.is_dir():
        raise CheckpointError(f"save_directory: {path}, got a file, expected a directory")
    found = {p.name for p in path.iterdir()} - {".DS_Store"}
    known = (MANIFEST, META, README)
    ours = {n for n in found if n in known or n.endswith(".safetensors")}
    if found and (found - ours or MANIFEST not in found):
        names = sorted(found - ours)[:5] or f"no {MANIFEST}"
        raise CheckpointError(
            f"save_directory: {path} would be replaced whole, got {names} in it, "
            "expected a checkpoint and nothing else"
        )


def size_of(groups: dict) -> int:
    "Bytes that files of these tensors take at most."
    return sum(
        (1 << 16) + sum(t.numel() * t.element_size() + 256 for t in group.values())
        for group in groups.values()
    )


def _write(new: Path, groups: dict):
    "Write a file for each dictionary of tensors."
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    for name, group in groups.items():
        try:
            save_file(group, new / name, metadata={"format": "pt"})
        except SafetensorError as e:
            raise OSError(errno.EIO, f"save_directory: {e}", str(new / name)) from e


def seal(
    new: Path,  # what `new_directory` gave, with its files of tensors
    text: bytes,  # of meta.json
    readme: str | None = None,  # of README.md
    known: dict | None = None,  # sizes and digests of files that are known already, by name
):
    "Flush every file, the manifest last."
    (new / META).write_bytes(text)
    files = {p.name: (known or {}).get(p.name) or file_entry(p) for p in sorted(new.iterdir())}
    if readme is not None:
        (new / README).write_text(readme, encoding="utf-8")
    for file in new.iterdir():
        flush(file)
    (new / MANIFEST).write_bytes(manifest_text(files))
    flush(new / MANIFEST)
    flush(new)


def _publish(new: Path, path: Path, old: Path):
    "Put `new` at `path`, moving what is there to `old`."
    try:
        os.rename(new, path)  # nothing there, or an empty directory
    except OSError as e:
        if e.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        os.rename(path, old)
        try:
            os.rename(new, path)
        except BaseException:
            with suppress(OSError):
                os.rename(old, path)
            raise
    flush(path.parent)


# ---------------------------------------------------------------- loading


def load_directory(
    path,  # a directory written by `save_directory`
) -> tuple[dict[str, dict[str, Tensor]], dict]:  # tensors on the CPU; meta
    "Load a checkpoint, having checked the size and digest of every file."

    def read(folder, files):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        meta, tensors = _meta(folder, files), {}
        if is_sharded(files):
            check_digests(folder, files)
            return read_whole(folder), meta
        for name in sorted(files.keys() - {META}):
            check_file(folder / name, files[name])
            try:
                tensors[name.removesuffix(".safetensors")] = load_file(folder / name)
            except SafetensorError as e:
                raise CheckpointError(f"{folder / name}: {e}") from e
        return tensors, meta

    return _settled(path, read, "load_directory")


def load_meta(
    path,  # a directory written by `save_directory`
) -> dict:
    "The `meta` of a checkpoint, without reading its tensors."
    return _settled(path, _meta, "load_meta")


def verify(
    path,  # a directory written by `save_directory`
    digests: bool = True,  # read every byte; False: look at sizes only
):
    "Raise `CheckpointError` unless every file has its stated size and digest."

    _settled(path, check_digests if digests else check_sizes, "verify")


def _settled(path, read: Callable, caller: str):
    "`read(folder, files)`, again if the checkpoint was replaced meanwhile; errors name the caller."
    try:
        for _ in range(2):
            folder = _resolve(path)
            files = read_manifest(folder)
            try:
                return read(folder, files)
            except CheckpointError:
                if read_manifest(_resolve(path)) == files:
                    raise
        folder = _resolve(path)
        return read(folder, read_manifest(folder))
    except CheckpointError as e:
        raise type(e)(f"{caller}: {e}") from e


def _meta(folder: Path, files: dict) -> dict:
    "The contents of meta.json, checked."
    check_file(folder / META, files[META])
    return read_json(folder / META)[0]


def load_into(
    module: nn.Module,  # takes the weights
    tensors: dict[str, Tensor],  # by name, as its `state_dict` has them
    what: str,  # is loaded; the error begins with it
):
    "Load weights whose names and shapes all fit, or none of them."
    _check_fit(module, tensors, what)
    module.load_state_dict(tensors)


def weights_to_save(
    module: nn.Module,  # a network, perhaps wrapped, it or its parts
    fresh: nn.Module,  # what will load them
    what: str,  # is saved; the error begins with it
) -> dict[str, Tensor]:  # by the names that `fresh` has
    "Weights without the names that wrappers give them; refused unless they can be loaded again."
    tensors = module.state_dict()
    for path, part in reversed(list(module.named_modules())):  # what is inside comes first
        if (inner := _wrapped(part)) is not None:
            outer = f"{path}." if path else ""
            long = f"{outer}{inner}."
            tensors = {
                k.replace(long, outer, 1) if k.startswith(long) else k: tensors[k] for k in tensors
            }
    _check_fit(fresh, tensors, what)
    return tensors


def network_itself(
    module: nn.Module,  # perhaps wrapped
) -> nn.Module:
    "What is inside `torch.compile`, DataParallel and their like."
    return next(part for part in module.modules() if _wrapped(part) is None)


def _wrapped(module: nn.Module) -> str | None:
    "Under which name a wrapper holds the network; None: it is no wrapper."
    if "_orig_mod" in module._modules:  # torch.compile
        return "_orig_mod"
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return "module" if isinstance(module, parallel) else None


def _check_fit(module: nn.Module, tensors: dict[str, Tensor], what: str):
    "Refuse weights of which a name or a shape is not the module's own."

    def shape(group, name):
        return tuple(group[name].shape) if name in group else "nothing"

    own = module.state_dict()
    differ = [
        f"{name}: got {shape(tensors, name)}, expected {shape(own, name)}"
        for name in dict.fromkeys([*own, *tensors])
        if shape(tensors, name) != shape(own, name)
    ]
    if differ:
        more = [f"and {len(differ) - 5} more"] if len(differ) > 5 else []
        raise CheckpointError(
            "\n  ".join([f"{what}: weights of another network", *differ[:5], *more])
        )


# ---------------------------------------------------------------- many checkpoints


def checkpoints(
    path,  # folder of step directories: "100", "step-100", "step_000100"
) -> list[Path]:
    "The complete step directories in `path`, newest first; none if there is no folder."
    path = as_path(path)
    if not path.is_dir():
        return []
    names = {p.name for p in path.iterdir()}
    hidden = [SIBLING.fullmatch(name) for name in names]
    names |= {m[1] for m in hidden if m and m[2] != "gone"}
    found = []
    for name in names:
        step = STEP.fullmatch(name)
        if not step or (path / name).is_file():
            continue
        try:
            _settled(path / name, check_sizes, "checkpoints")
        except FormatError:
            raise
        except CheckpointError as e:
            if (path / name).exists():
                warnings.warn(f"{e}: ignored", stacklevel=2)
            continue
        found.append((int(step[1]), name))
    return [path / name for _, name in sorted(found, reverse=True)]


def newest_checkpoint(
    path,  # folder of step directories
) -> tuple[dict, dict] | None:  # tensors and meta; None: there is none
    "The newest sound checkpoint; one that is damaged is named and passed over."
    for folder in checkpoints(path):
        try:
            return load_directory(folder)
        except CheckpointError as e:
            warnings.warn(f"Trainer: {e}; going back to the checkpoint before")
    return None


def prune(
    path,  # folder of step directories
    keep: int = 2,  # how many of the newest stay, at least 1
) -> list[Path]:  # what was deleted
    "Delete old step directories, once the newest one has proved sound."
    if keep < 1:
        raise ValueError(f"prune: keep, got {keep}, expected at least 1")
    found = checkpoints(path)
    if len(found) <= keep:
        return []
    verify(found[0])
    for p in found[keep:]:
        gone = _sibling(p, "gone", _ident())
        os.rename(_resolve(p), gone)  # at once, so that no half-deleted directory is seen
        shutil.rmtree(gone, ignore_errors=True)
    return found[keep:]


# ---------------------------------------------------------------- dead writers


def _ident() -> str:
    "Names this host, this process, and one save."
    return f"{_host()}-{os.getpid()}-{secrets.token_hex(4)}"


def _host() -> str:
    "Eight digits that name this machine."
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _sibling(path: Path, kind: str, ident: str) -> Path:
    "The hidden directory beside `path` that one save uses."
    return path.parent / f".{path.name}.{kind}-{ident}"


def _resolve(path) -> Path:
    "`path`, or its complete sibling if its writer died between two renames."
    path = _real(path)
    if path.exists():
        return path
    ours = [p for m, p in _siblings(path.parent) if m[1] == path.name and m[2] != "gone"]
    return next((p for p in ours if is_complete(p)), path)


def _siblings(folder: Path) -> list[tuple[re.Match, Path]]:
    "What writers left in `folder`, new states before old ones."
    try:
        found = [(SIBLING.fullmatch(p.name), p) for p in sorted(folder.iterdir())]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(((m, p) for m, p in found if m), key=lambda o: o[0][2])


def sweep(
    folder,  # in which checkpoints are saved
):
    "Finish or remove what writers that died left in `folder`."
    left = [(m, p) for m, p in _siblings(Path(folder)) if _is_dead(m, p)]
    for m, p in left:
        path = p.with_name(m[1])
        if m[2] != "gone" and not path.exists() and is_complete(p):
            with suppress(OSError):
                os.rename(p, path)
    for _, p in left:
        shutil.rmtree(p, ignore_errors=True)


def _is_dead(match: re.Match, folder: Path) -> bool:
    "Has the writer of this sibling ended?"
    ident, host, pid = match[3], match[3][:8], int(match[4])
    try:
        stats = [p.lstat() for p in (folder, *folder.iterdir())]
        newest = max(max(s.st_mtime, s.st_ctime) for s in stats)
    except OSError:  # it is being removed this moment
        return False
    if host == _host():
        if pid == os.getpid():
            return ident not in _writing
        if has_ended(pid):
            return True
    return time.time() - newest > STALE  # another machine's, or another process has its number

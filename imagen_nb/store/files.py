"""Files that are whole or as before, locks, JSON lines, and where things lie."""

import json
import os
import platform
import secrets
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where `locked` keeps nobody out
    fcntl = None


class CheckpointError(ValueError):
    "What is stored is missing, cut, altered, of another format, or in use."


def flush(path: Path):
    "Force a file's bytes, or a directory's names, to the disk."
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some file systems cannot flush a directory
            raise
    finally:
        os.close(handle)


@contextmanager
def locked(
    folder,  # of a run; made if it is not there
):
    "Keep other processes out of `folder` during a block; the system lets go when this one dies."
    path = Path(folder) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise CheckpointError(
                f"{folder} is in use by {owner}; wait, stop it, or use another directory"
            ) from None
        except OSError as e:
            warnings.warn(f"{folder} cannot be locked ({e}): see that one run uses it")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def assets() -> Path:
    "The folder of files that ship with the package."
    here = Path(__file__).resolve().parents[1]
    if (here / "assets").is_dir():  # installed from a wheel
        return here / "assets"
    if (here.parent / "settings.ini").is_file() and (here.parent / "data").is_dir():
        return here.parent / "data"  # a checkout, or installed from one with -e
    raise FileNotFoundError(f"assets: no {here / 'assets'} and no data folder beside the package")


def cache_folder() -> Path:
    "Where catalogs are kept: $IMAGEN_NB_CACHE, or the user's cache; never beside the pictures unless so named."
    place = os.environ.get("IMAGEN_NB_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(place) if place else Path(base) / "imagen_nb"


def replace_text(
    path: str | Path,  # file to make or to replace
    text: str,  # all of its contents
):
    "Write a text file: all of it, or nothing changes."
    path = Path(path)
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with new.open("x", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def read_rows(
    path: str | Path,  # file of JSON lines
) -> list[dict]:  # those with a step; a line that was cut is left out
    "Rows of a log; none if there is no file."
    rows = []
    with suppress(FileNotFoundError):
        for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and "step" in row]


def append(
    path: Path,  # text file, made if it is not there
    line: str,  # to add
) -> bool:  # False: the disk did not take it, and the file is as before
    "Add a line, whole or not at all."
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8") as f:
            f.write(line)
    except OSError:
        with suppress(OSError):
            os.truncate(path, size)
        return False
    return True


def save_png(
    picture,  # PIL image
    path: Path,  # file; its folder is made
) -> bool:  # False: the disk did not take it, and there is no file
    "Save a picture, whole or not at all."
    try:
        path.parent.mkdir(exist_ok=True)
        picture.save(path)
    except OSError:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return False
    return True

"""Files that are made once for a source and kept in the user's cache."""

import atexit
import contextlib
import errno
import functools
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from imagen_nb.store.files import cache_folder, locked


class NoRoom(OSError):
    "The disk of the cache is full: nothing is wrong with the pictures."


@contextlib.contextmanager
def alone(
    name: str,  # of a file in the cache
) -> Iterator[Path]:  # where it lies, or is to be made
    "A file held by this process alone; in a temporary folder where there can be no cache."
    with contextlib.ExitStack() as stack:
        try:
            folder = cache_folder()
            stack.enter_context(locked(folder, f"{name}.lock", wait=True))
        except (OSError, RuntimeError) as e:  # RuntimeError: nobody's home is known
            warnings.warn(
                f"load_captioned: no catalog can be kept ({e}); the pictures are looked"
                " through again each time. Name another folder in IMAGEN_NB_CACHE"
            )
            folder = _own_folder()
        try:
            yield folder / name
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise NoRoom(
                f"load_captioned: {name} cannot be written to {folder}: {e.strerror};"
                " name another folder in IMAGEN_NB_CACHE"
            ) from e


@functools.cache
def _own_folder() -> Path:
    "A folder of this process and its children, gone when it ends."
    folder = Path(tempfile.mkdtemp(prefix="imagen_nb-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder

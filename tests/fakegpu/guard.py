"""What a CPU build of torch lacks, compiled once. It must be loaded before torch is imported."""

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("guard.cpp")
MISSING = "no C++ compiler: put g++ or clang++ on the PATH to run tests on a fake GPU"


def compiler() -> str | None:
    "The first C++ compiler there is."
    return next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)


def build() -> Path:
    "The library, compiled for this torch unless it is there already."
    torch = Path(importlib.util.find_spec("torch").origin).parent
    key = SOURCE.read_bytes() + f"{importlib.metadata.version('torch')} {torch}".encode()
    folder = Path(tempfile.gettempdir()) / f"imagen-nb-fakegpu-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"{hashlib.sha256(key).hexdigest()[:16]}.so"
    if not library.exists():
        fresh = library.with_suffix(f".{os.getpid()}")
        command = [compiler(), "-std=c++20", "-fPIC", "-shared", str(SOURCE), "-o", str(fresh)]
        paths = [f"-I{torch}/include", f"-L{torch}/lib", f"-Wl,-rpath,{torch}/lib"]
        subprocess.run([*command, *paths, "-lc10", "-ltorch_cpu"], check=True)
        os.replace(fresh, library)
    return library


def load():
    "Torch finds it as if it had been built with it."
    ctypes.CDLL(str(build()), mode=ctypes.RTLD_GLOBAL)

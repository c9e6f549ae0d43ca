"Importing the package is free: no network, no files, no heavy libraries, and quick."

import json
import os
import subprocess
import sys
from pathlib import Path

import imagen_nb

PACKAGE = Path(imagen_nb.__file__).parent
HEAVY = ("datasets", "ipywidgets", "matplotlib", "accelerate", "transformers")
LIMIT = 2.0  # processor seconds beyond torch, for all modules together

SCRIPT = """
import json, pkgutil, socket, sys, time

def refuse(*args, **kw): raise RuntimeError("import reached for the network")
for name in ("connect", "connect_ex", "sendto"): setattr(socket.socket, name, refuse)
for name in ("create_connection", "getaddrinfo", "gethostbyname"): setattr(socket, name, refuse)

import torch
read, watch = [], True
def hook(event, args):
    if not watch: return
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
        refuse()
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        raise RuntimeError(f"import started a program: {args}")
    if event == "open" and isinstance(args[0], str) and package in args[0]:
        if not args[0].endswith((".py", ".pyc")) and "__pycache__" not in args[0]:
            read.append(args[0])

package = sys.argv[1]
sys.addaudithook(hook)
before, seconds, brought, start = set(sys.modules), {}, {}, time.process_time()
import imagen_nb
names = [m.name for m in pkgutil.walk_packages(imagen_nb.__path__, "imagen_nb.")]
for name in names:
    seen, t = set(sys.modules), time.process_time()
    __import__(name)
    seconds[name] = time.process_time() - t
    brought[name] = sorted({m.split(".")[0] for m in set(sys.modules) - seen})
total, watch = time.process_time() - start, False
print(json.dumps({"total": total, "seconds": seconds, "brought": brought, "read": read,
                  "cuda": torch.cuda.is_initialized()}))
"""


def imported():
    "What importing every module, in a fresh process with sockets blocked, does."
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(PACKAGE)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", done.stderr  # no warnings either
    return json.loads(done.stdout.splitlines()[-1])


def test_import_is_free():
    imported()  # once unmeasured: the first import writes byte code
    told = imported()
    assert told["seconds"], "no modules found"
    heavy = {m: sorted(set(b) & set(HEAVY)) for m, b in told["brought"].items()}
    assert {m: h for m, h in heavy.items() if h} == {}
    assert told["read"] == []
    assert not told["cuda"]
    assert told["total"] < LIMIT, told["seconds"]


def test_every_public_name_exists():
    import importlib
    import pkgutil

    for found in pkgutil.walk_packages(imagen_nb.__path__, "imagen_nb."):
        module = importlib.import_module(found.name)
        for name in getattr(module, "__all__", []):
            assert hasattr(module, name), f"{found.name}.{name}"
            assert not name.startswith("_"), f"{found.name}.{name}"


def test_versions_agree():
    settings = PACKAGE.parent / "settings.ini"
    if not settings.exists():  # installed from a wheel
        return
    lines = [line for line in settings.read_text().splitlines() if "version =" in line]
    assert f"version = {imagen_nb.__version__}" in lines

"""Execute notebooks with a real kernel, honouring the flags of their cells.

    python tools/checks/run_nbs.py [paths]            execute in place, store outputs, clean
    python tools/checks/run_nbs.py --check -j 2       execute copies, report, rewrite nothing

Cells marked `#| eval: false` are never run and keep no output. Cells marked `#| slow`,
`#| gpu` or `#| net` are left alone, and so are their stored outputs, unless asked for:
`--with slow`.
"""

import argparse
import base64
import io
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("slow", "gpu", "net")
NEVER = re.compile(r"^\s*#\|\s*eval:\s*false\s*$", re.M)
VIEW = "application/vnd.jupyter.widget-view+json"
UNSEEN = 2.0  # levels of 255, root mean square: a change of colours that no eye finds


def skipped(source: str, wanted=()) -> bool:
    "Is this cell's source marked as one that this run leaves alone?"
    if NEVER.search(source) or "nbdev_export" + "(" in source:
        return True
    flags = "|".join(f for f in FLAGS if f not in wanted)
    return bool(flags and re.search(rf"^\s*#\|\s*({flags})\s*$", source, re.M))


def client_class(wanted):
    "An nbclient that steps over the cells that are left alone."
    from nbclient import NotebookClient

    class Client(NotebookClient):
        async def async_execute_cell(self, cell, cell_index, **kw):
            if cell.cell_type == "code" and skipped(cell.source, wanted):
                if NEVER.search(cell.source):
                    cell.outputs, cell.execution_count = [], None
                return cell
            return await super().async_execute_cell(cell, cell_index, **kw)

    return Client


def execute(path: Path, wanted=(), timeout=1800):
    "Run the notebook at `path` in a fresh kernel; return the executed copy."
    import nbformat
    from traitlets.config import Config

    nb = nbformat.read(path, as_version=4)
    nb.metadata.pop("widgets", None)
    with tempfile.TemporaryDirectory() as tmp:
        cfg = Config()
        cfg.KernelManager.transport = "ipc"
        cfg.KernelManager.ip = f"{tmp}/k"
        client_class(wanted)(
            nb,
            timeout=timeout,
            kernel_name="python3",
            config=cfg,
            resources={"metadata": {"path": str(path.parent)}},
            coalesce_streams=True,
            store_widget_state=False,
            record_timing=False,
        ).execute()
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if VIEW not in o.get("data", {})]
            for data in (o.get("data", {}) for o in cell.outputs):
                if "image/png" in data:
                    data.pop("image/jpeg", None)  # PIL offers both: keep the exact one
    return nb


def in_few_colours(png: str) -> str:
    "A figure in base64 as a PNG of 256 colours, a third as large; as it is where one would see it."
    from PIL import Image, ImageChops, ImageStat

    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    few = image.quantize(256, dither=Image.Dither.NONE)
    lost = ImageStat.Stat(ImageChops.difference(image, few.convert("RGB"))).rms
    few.save(file := io.BytesIO(), "PNG", optimize=True)
    small = base64.b64encode(file.getvalue()).decode()
    return small if max(lost) < UNSEEN and len(small) < len(png) else png


def lighten(nb):
    "Store figures in few colours."
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                output["data"]["image/png"] = in_few_colours(png)


def save(nb, path: Path):
    "Write the executed notebook back, light, and cleaned so that diffs are stable."
    import nbformat
    from execnb.nbio import read_nb, write_nb
    from nbdev.clean import clean_nb

    lighten(nb)
    nbformat.write(nb, path)
    nb = read_nb(path)
    clean_nb(nb)
    write_nb(nb, path)


def run(path: Path, check=False, wanted=(), timeout=1800):
    "One notebook: (name, seconds, bytes, error or None)."
    start, error = time.time(), None
    try:
        nb = execute(path, wanted, timeout)
        if not check:
            save(nb, path)
    except Exception as e:  # reported per notebook, so that the others still run
        error = f"{type(e).__name__}: {e}"
    return path.name, time.time() - start, path.stat().st_size, error


def find(paths):
    "The notebooks named, or all below nbs/ that are not hidden."
    if paths:
        return [Path(p).resolve() for p in paths]
    every = (ROOT / "nbs").glob("**/*.ipynb")

    def hidden(p):
        return any(q[0] in "._" for q in p.relative_to(ROOT).parts)

    return sorted(p for p in every if not hidden(p))


def main(argv=None) -> int:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("paths", nargs="*", help="notebooks; all of nbs/ if none")
    ap.add_argument("-j", type=int, default=1, help="kernels side by side")
    ap.add_argument("--check", action="store_true", help="rewrite nothing")
    ap.add_argument("--with", dest="wanted", nargs="*", default=[], choices=FLAGS)
    ap.add_argument("--timeout", type=int, default=1800, help="seconds for one cell")
    a = ap.parse_args(argv)
    os.environ.setdefault("PYTHONHASHSEED", "0")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PYTHONPATH"] = str(ROOT)  # this checkout, whatever is installed
    failed = 0
    with ThreadPoolExecutor(a.j) as pool:
        jobs = pool.map(lambda p: run(p, a.check, a.wanted, a.timeout), find(a.paths))
        for name, seconds, size, error in jobs:
            mark = "FAILED" if error else "ok"
            print(f"{name}: {mark} {seconds:.1f}s {size / 1024:.0f} KiB", flush=True)
            if error:
                print(error, file=sys.stderr, flush=True)
                failed += 1
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

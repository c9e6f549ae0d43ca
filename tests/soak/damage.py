"Files with a flipped bit, cut, or gone: noticed on loading? Ours, safetensors, torch.save, Accelerate's directory."

import json
import random
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from imagen_nb.store.checkpoint import load_directory

from . import bound, done, make_trainer
from .saves import Accelerates

KINDS = ("detected", "altered", "harmless")


def flat(tensors: dict) -> dict:
    "Dictionaries in dictionaries as one."
    return {
        f"{k}/{j}".rstrip("/"): v
        for k, g in tensors.items()
        for j, v in (flat(g) if isinstance(g, dict) else {"": g}).items()
    }


def copied(tensors: dict) -> dict:
    "Apart from the file, which `load_file` maps into memory."
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in flat(tensors).items()}


def equal(a: dict, b: dict) -> bool:
    "The same names, types and values."
    a, b = flat(a), flat(b)

    def same(x, y):
        return (
            torch.equal(x, y) and x.dtype == y.dtype
            if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor)
            else x == y
        )

    return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)


def told(load, path, expected) -> str:
    "What loading does: it raises, gives something else, or gives what was saved."
    try:
        found = load(path)
    except Exception:
        return "detected"
    return "harmless" if equal(found, expected) else "altered"


def flip(data: bytes, r: random.Random) -> bytes:
    "One bit the other way."
    broken, bit = bytearray(data), r.randrange(8 * len(data))
    broken[bit // 8] ^= 1 << bit % 8
    return bytes(broken)


def cut(data: bytes, r: random.Random) -> bytes:
    "Some bytes of the end missing, at least one."
    return data[: r.randrange(len(data))]


def attack(load, path: Path, files: list[Path], change, trials: int, r: random.Random) -> dict:
    "Change one file after the other, each as often; count what loading says."
    expected, counts = copied(load(path)), dict.fromkeys(KINDS, 0)
    for k in range(trials):
        file = files[k % len(files)]
        whole = file.read_bytes()
        file.write_bytes(change(whole, r))
        counts[told(load, path, expected)] += 1
        file.write_bytes(whole)
    return dict(trials=trials, **counts, missed_at_most=bound(counts["altered"], trials))


def removals(load, path: Path, files: list[Path]) -> dict:
    "Remove each file in turn."
    result, expected = {}, copied(load(path))
    for file in files:
        aside = file.rename(file.with_name("aside"))
        result[file.name] = (
            "detected" if told(load, path, expected) == "detected" else "not noticed"
        )
        aside.rename(file)
    return result


def material(folder: Path) -> Path:
    "A checkpoint of a run; what it holds in a safetensors and in a torch.save file; Accelerate's of another."
    make_trainer(folder / "run", 4).fit()
    path = folder / "run" / "step_00000004"
    tensors, meta = load_directory(path)
    save_file(flat(tensors), folder / "all.safetensors")
    torch.save(dict(meta=meta, **tensors), folder / "all.pt")
    return path


def experiment(folder: Path, trials: int):
    "All of it, into told.json."
    path, r = material(folder), random.Random(0)

    def ours(p):
        return (lambda tensors, meta: dict(tensors, meta=meta))(*load_directory(p))

    loads = dict(
        ours=(ours, path, sorted(path.iterdir())),
        safetensors=(load_file, *[folder / "all.safetensors"] * 1, [folder / "all.safetensors"]),
        torch_load=(
            lambda p: torch.load(p, weights_only=True),
            folder / "all.pt",
            [folder / "all.pt"],
        ),
    )
    result = {
        name: dict(files=[p.name for p in files], bits={}, cuts={})
        for name, (_, _, files) in loads.items()
    }
    for name, (load, where, files) in loads.items():
        for kind, change in dict(bits=flip, cuts=cut).items():
            result[name][kind] = attack(load, where, files, change, trials, r)
    gone = dict(ours=removals(*loads["ours"]))
    (folder / "checkpoints").mkdir()
    Accelerates().prepare(folder, 0)()
    there = folder / "checkpoints" / "checkpoint_0"

    def theirs(p):
        n, tensors = Accelerates().resume(folder, str(p))
        return {str(i): t for i, t in enumerate(tensors)}

    gone["accelerate"] = removals(theirs, there, sorted(there.iterdir()))
    (folder / "told.json").write_text(json.dumps(dict(ways=result, each_file_removed=gone)))


def measure(folder: Path, quick: bool) -> dict:
    "Card of bits, cuts and missing files."
    done(lambda: experiment(folder, 25 if quick else 500))
    return json.loads((folder / "told.json").read_text())

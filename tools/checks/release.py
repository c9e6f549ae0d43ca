"""A release, tried without releasing: build, metadata, and the wheel in a fresh environment of each Python.

    python tools/checks/release.py                       build sdist and wheel, check what they say of themselves
    python tools/checks/release.py python3.11 python3.13 and install the wheel there, draw a picture with it
    python tools/checks/release.py --bare python3.12     without its requirements: what needs none

Nothing is uploaded. Tools (build, twine) go into an environment of their own, which is thrown away.
"""

import argparse
import configparser
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CAPTION = "a 3d emoji of a strawberry"


def settings(root: Path = ROOT):
    "The values of settings.ini."
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(root / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def disagreements(root: Path = ROOT) -> list[str]:
    "Files that name another version than settings.ini does, a line each."
    version = settings(root)["version"]
    places = {
        "imagen_nb/__init__.py": r'^__version__ = "(.+)"',
        "CITATION.cff": r"^version: (.+)",
        "CHANGELOG.md": r"^## (\S+)",  # the newest
    }
    found = []
    for name, pattern in places.items():
        match = re.search(pattern, (root / name).read_text(encoding="utf-8"), re.M)
        if not match or match[1] != version:
            said = match[1] if match else "no version"
            found.append(f"{name}: got {said}, expected {version}, as in settings.ini")
    return found


def run(*command, cwd=None) -> str:
    "What a command prints; its failure ends the trial."
    print("$", shlex.join(map(str, command)), flush=True)
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(
            f"{done.stdout[-3000:]}{done.stderr[-3000:]}\nrelease: exit code {done.returncode}"
        )
    return done.stdout


def environment(python: str, folder: Path) -> Path:
    "The interpreter of a new, empty environment."
    run(python, "-m", "venv", folder)
    return folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"


def build(out: Path, scratch: Path):
    "The sdist, and the wheel built from it alone; what they say of themselves is valid, and renders."
    tools = environment(sys.executable, scratch / "tools")
    run(tools, "-m", "pip", "install", "-q", "build", "twine")
    run(tools, "-m", "build", "--outdir", out, ROOT)
    print(run(tools, "-m", "twine", "check", "--strict", *sorted(out.iterdir())))


def try_wheel(wheel: Path, python: str, scratch: Path, bare: bool, torch_flags: list[str]):
    "Install it where nothing else is, and use it."
    own = environment(python, scratch / f"env-{Path(python).name}")
    install = [own, "-m", "pip", "install", "-q", "--no-compile"]
    if bare:
        run(*install, "--no-deps", wheel)
    else:
        run(*install, "torch", *torch_flags)
        run(*install, wheel)
    command = own.with_name("imagen-nb")
    print(run(own, "--version").strip(), "|", run(command, "--version", cwd=scratch).strip())
    for name in re.findall(r"^    (\w+) ", run(command, "--help", cwd=scratch), re.M):
        run(command, name, "--help", cwd=scratch)
    if bare:
        return
    print(run(command, "env", cwd=scratch))
    out = scratch / f"pictures-{Path(python).name}"
    run(command, "sample", CAPTION, "--out", out, cwd=scratch)
    if not any(path.stat().st_size > 1000 for path in out.glob("a-3d-emoji*.png")):
        sys.exit(f"release: no picture in {out}")


def main(arguments) -> int:
    "Build or take what is built, check, try."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pythons", nargs="*", help="interpreters to try the wheel with")
    parser.add_argument(
        "--bare", action="store_true", help="install no requirements: try what needs none"
    )
    parser.add_argument("--built", type=Path, help="folder of a wheel; build nothing")
    parser.add_argument("--keep", type=Path, help="folder for what is built")
    parser.add_argument("--torch-flags", type=shlex.split, default=[], help="of pip, for torch")
    args = parser.parse_args(arguments)
    if found := disagreements():
        sys.exit("\n".join(found))
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        out = (args.built or args.keep or scratch / "dist").absolute()
        if args.built is None:
            build(out, scratch)
        (wheel,) = out.glob("*.whl")
        for python in args.pythons:
            try_wheel(wheel, python, scratch, args.bare, args.torch_flags)
    print(f"release: {settings()['version']} could be released")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

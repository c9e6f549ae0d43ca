"Wheel and sdist build, install and find their files outside the checkout."

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import release

ROOT = Path(__file__).resolve().parents[1]
IGNORE = shutil.ignore_patterns("__pycache__", "*.pyc", ".ipynb_checkpoints", "*.egg-info")
NEEDED = (
    "setup.py",
    "settings.ini",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "constraints.txt",
)
ONE_FILE = "probe/nested/one.json"  # so that the test holds while data/ is still empty

SCRIPT = """
import json, pkgutil, importlib
import imagen_nb
from imagen_nb.store.files import assets
modules = [m.name for m in pkgutil.walk_packages(imagen_nb.__path__, "imagen_nb.")]
for name in modules: importlib.import_module(name)
files = sorted(p.relative_to(assets()).as_posix() for p in assets().rglob("*") if p.is_file())
told = {"at": imagen_nb.__file__, "assets": str(assets()), "files": files, "modules": modules}
print(json.dumps(told))
"""


def run(*command, cwd, **kw):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        **kw,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    "A copy of what a checkout holds, without leaving build folders in this one."
    copy = tmp_path_factory.mktemp("source") / "imagen_nb"
    copy.mkdir()
    for name in NEEDED:
        shutil.copy(ROOT / name, copy)
    for name in ("imagen_nb", "data", "nbs", "tests", "tools"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, copy / name, ignore=IGNORE)
    probe = copy / "data" / ONE_FILE
    probe.parent.mkdir(parents=True)
    probe.write_text("1")
    return copy


@pytest.fixture(scope="module")
def built(source):
    "The sdist, and the wheel built from it alone."
    run(sys.executable, "-m", "build", "--no-isolation", ".", cwd=source)
    (sdist,), (wheel,) = source.glob("dist/*.tar.gz"), source.glob("dist/*.whl")
    return sdist, wheel


def test_sizes(source, built):
    "What ships stays small: 50 MB of data, 20 MB of toy weights, a wheel no larger."

    def size(folder):
        return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())

    assert size(source / "data" / "toy") <= 20e6 and size(source / "data") <= 50e6
    assert built[1].stat().st_size <= 50e6


def data_files(source):
    data = source / "data"
    return sorted(
        p.relative_to(data).as_posix()
        for p in data.rglob("*")
        if p.is_file() and p.name != ".DS_Store"
    )


def fresh_environment(folder, *install):
    "A new environment that sees this one's libraries, but not this package."
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    site = run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=folder)
    libraries = sysconfig.get_path("purelib")
    (Path(site.strip()) / "libraries.pth").write_text(libraries + "\n")
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--no-compile",
        *install,
        cwd=folder,
    )
    return python


def test_the_wheel_holds_the_package_and_its_data_alone(source, built):
    names = zipfile.ZipFile(built[1]).namelist()
    inside = {n for n in names if ".dist-info/" not in n}
    modules = {p.relative_to(source).as_posix() for p in (source / "imagen_nb").rglob("*.py")}
    assert inside == modules | {f"imagen_nb/assets/{f}" for f in data_files(source)}
    assert any(n.endswith("LICENSE") for n in names)


def test_the_sdist_holds_what_builds_it(source, built):
    with tarfile.open(built[0]) as f:
        names = {n.split("/", 1)[1] for n in f.getnames() if "/" in n}
    assert {*NEEDED} <= names
    assert {f"data/{f}" for f in data_files(source)} <= names


def test_metadata(built):
    wheel = zipfile.ZipFile(built[1])
    path = next(n for n in wheel.namelist() if n.endswith("METADATA"))
    text = wheel.read(path).decode()
    assert re.search(r"^Name: imagen-nb$", text, re.M)
    assert re.search(r"^Requires-Python: >=3.11$", text, re.M)
    core = set(re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", text, re.M))
    assert core == {
        "torch",
        "transformers",
        "sentencepiece",
        "protobuf",
        "datasets",
        "accelerate",
        "safetensors",
        "numpy",
        "pillow",
        "matplotlib",
        "ipywidgets",
        "psutil",
        "tqdm",
    }
    links = re.findall(r"\]\(([^)\s]+)\)", text.partition("\n\n")[2])
    assert len(links) > 20 and all(o.startswith(("https://", "#")) for o in links), links
    assert "/raw/main/data/runs/emoji-chosen.jpg" in text
    extras = set(re.findall(r"^Provides-Extra: (\w+)$", text, re.M))
    assert extras == {"nb", "emoji", "eval", "track", "bench", "witness", "docs", "dev"}


@pytest.mark.slow
def test_it_works_from_the_wheel(source, built, tmp_path):
    python = fresh_environment(tmp_path / "env", built[1])
    told = json.loads(run(python, "-c", SCRIPT, cwd=tmp_path).splitlines()[-1])
    assert Path(told["at"]).is_relative_to(tmp_path / "env")
    assert Path(told["assets"]).name == "assets"
    assert {"imagen_nb.stage", "imagen_nb.store.config"} <= {*told["modules"]}
    assert told["files"] == data_files(source)
    command = tmp_path / "env" / "bin" / "imagen-nb"
    caption = "a small red circle to the left of a big blue square"
    printed = run(command, "sample", caption, "--steps", "2,1,1", cwd=tmp_path).split()
    assert printed == [
        "pictures/a-small-red-circle-to-the-left-of-a-big-blue-square-seed0.png",
        "pictures/grid.png",
    ]
    assert all((tmp_path / name).stat().st_size > 1000 for name in printed)


def test_it_works_from_a_checkout(source):
    told = json.loads(run(sys.executable, "-c", SCRIPT, cwd=source).splitlines()[-1])
    assert Path(told["assets"]) == source / "data"
    assert told["files"] == data_files(source)


@pytest.mark.slow
def test_it_works_installed_editable(source, tmp_path):
    python = fresh_environment(tmp_path / "env", "-e", source)
    told = json.loads(run(python, "-c", SCRIPT, cwd=tmp_path).splitlines()[-1])
    assert Path(told["at"]).is_relative_to(source)
    assert Path(told["assets"]) == source / "data"
    assert told["files"] == data_files(source)


def test_every_file_names_the_version_of_the_settings(tmp_path):
    assert release.disagreements() == []
    for name in ("settings.ini", "CITATION.cff", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "imagen_nb").mkdir()
    (tmp_path / "imagen_nb" / "__init__.py").write_text('__version__ = "0.0.9"\n')
    [found] = release.disagreements(tmp_path)
    assert "imagen_nb/__init__.py: got 0.0.9" in found


def test_the_release_is_tried_on_every_python_that_the_package_names():
    text = (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")
    tried = set(re.findall(r'"(3\.\d+)"', text.partition("matrix:")[2]))
    named = re.search(r'pythons = "(.+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))[1]
    assert tried == set(named.split())


def test_a_report_asks_for_versions():
    forms = list((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    asked = {p.stem for p in forms if "`imagen-nb env`" in p.read_text(encoding="utf-8")}
    assert asked == {p.stem for p in forms} - {"config"} and "bug" in asked


def test_a_commit_runs_the_gates():
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    made = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"entry: make --no-print-directory (\w+)", text)
    assert set(targets) == {"form", "types"} and all(f"\n{o}:\n" in made for o in targets)

"The pages of docs/pages: what they name exists, every block runs, and nobody typed a figure that a run card has."

import argparse
import ast
import builtins
import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace

import ask_site
import build_docs
import facts
import launch_cells
import pytest
import transcripts
from build_docs import CELL, CHINESE, LOOK_UP, TASKS

from imagen_nb.recipes import find_recipe
from imagen_nb.runs.options import parser
from imagen_nb.store.config import change

ROOT = Path(__file__).resolve().parents[1]
PAGES = {p.stem: p.read_text(encoding="utf-8") for p in sorted((ROOT / "docs/pages").glob("*.md"))}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def prose(path: str) -> str:
    "The text of a file, or of a notebook's cells that are no code."
    text = (ROOT / path).read_text(encoding="utf-8")
    if not path.endswith(".ipynb"):
        return text
    cells = (c for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    return "\n\n".join("".join(cell["source"]) for cell in cells)


FRONTS = ("README.md", "README.zh.md", "nbs/index.ipynb", "nbs/00_tour.ipynb")
TEXTS = PAGES | {path: prose(path) for path in FRONTS}


def blocks(page: str, language: str) -> list[str]:
    "The blocks of a page in one language, settings filled in."
    text = re.sub(r"\{\{setting (\w+)\}\}", lambda m: facts.setting(ROOT, m[1]), TEXTS[page])
    return [code for name, code in BLOCK.findall(text) if name == language]


def lines(page: str) -> list[list[str]]:
    "The words of each line of a shell, variables before a command left out."
    text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    rows = [shlex.split(line, comments=True) for line in text.split("\n")]
    return [row[next((i for i, w in enumerate(row) if "=" not in w), 0) :] for row in rows if row]


COMMANDS = [(page, row) for page in TEXTS for row in lines(page) if row[0] == "imagen-nb"]


def test_every_page_has_its_place_in_the_sidebar():
    assert set(PAGES) == {"start", *TASKS, *LOOK_UP, *CHINESE}


@pytest.mark.parametrize("page, row", COMMANDS, ids=lambda o: o if isinstance(o, str) else "")
def test_commands_are_understood(page, row):
    args = parser().parse_args(row[1:])
    if getattr(args, "set", None):
        recipe = find_recipe(args.recipe)
        for path, _, value in (text.partition("=") for text in args.set):
            assert change(recipe, path, value) != recipe or row.count("plan")


def test_there_are_commands_and_other_lines_are_known():
    assert len(COMMANDS) > 20
    known = {"imagen-nb", "git", "cd", "pip", "jupyter", "torchrun", "accelerate", "srun"}
    others = {row[0] for page in TEXTS for row in lines(page)} - known
    assert others == {"show", "make"}  # of scontrol; targets are in the Makefile
    extras = {o for page in TEXTS for o in re.findall(r'"\.\[(\w+)\]"', TEXTS[page])}
    assert extras and all(facts.setting(ROOT, f"{extra}_requirements") for extra in extras)


def test_paths_in_prose_exist():
    for page, text in PAGES.items():
        for path in re.findall(r"\]\(([^)#:\s]+)[)#]", text):
            assert (ROOT / "docs/pages" / path).exists(), f"{page}: {path}"
        for folder in re.findall(r"python (tools/[\w/]+\.py)", text):
            assert (ROOT / folder).exists(), f"{page}: {folder}"


def test_licences_name_everything_that_ships():
    for path in (ROOT / "data").iterdir():
        assert f"`{path.name}`" in PAGES["licences"], path.name


def test_the_glossary_is_in_the_order_of_letters():
    rows = re.findall(r"^\| (.+?) \| (.+?) \| \[", PAGES["glossary"], re.M)
    names = [name.lower().replace("`", "").split(",")[0] for name, _ in rows]
    assert len(names) > 45 and names == sorted(names)
    assert all(meaning.count(".") == 0 for _, meaning in rows)  # one sentence each


# ---------------------------------------------------------------- facts


@pytest.fixture
def checkout(tmp_path):
    "A folder with one run card."
    (tmp_path / "data/runs").mkdir(parents=True)
    found = dict(steps=28800, by=[dict(gap=2e-6)])
    (tmp_path / "data/runs/mine.json").write_text(json.dumps(found))
    return tmp_path


def test_a_page_asks_for_facts(checkout):
    text = "{{card mine steps ,}} steps, {{card mine by/0/gap .0e}}, {{card mine steps .1f 1e3}} k"
    assert facts.fill(text, checkout) == "28,800 steps, 2e-06, 28.8 k"
    with pytest.raises(ValueError, match="fact, got 'cart', expected one of card"):
        facts.fill("{{cart mine}}", checkout)
    with pytest.raises(KeyError):
        facts.fill("{{card mine gone}}", checkout)


def test_every_step_that_was_proved_is_told(checkout):
    good = dict(holds=True, seconds=90, core_seconds=60, counts=dict(passed=2345), wrong=[])
    bad = good | dict(holds=False, counts={}, wrong=["MISSED one"])
    steps = dict(slow=good | dict(commit="abc"), faults=bad | dict(commit="def"))
    (checkout / "data/runs/prove.json").write_text(json.dumps(dict(steps=steps)))
    assert facts.fill("{{proof}}", checkout).splitlines()[2:] == [
        "| slow | yes | 2,345 passed | 1.5 | 1.0 | `abc` |",
        "| faults | no: MISSED one | – | 1.5 | 1.0 | `def` |",
    ]


def test_the_reference_of_commands_is_the_parsers():
    text = facts.fill("{{commands}}", ROOT)
    for name, own in facts.parsers(ROOT).items():
        section = text.partition(f"## `imagen-nb {name}`\n")[2].partition("\n## ")[0]
        for action in own._actions:
            for option in action.option_strings:
                assert isinstance(action, argparse._HelpAction) or f"`{option}" in section, option
    assert "| `--n N`, `--num-images N` | `1` |" in text and "| `--model MODEL` | `emoji` |" in text
    assert "| `--seed SEED` | `0` | of weights and draws |" in text
    assert "| `--validate-every N` | 1 % of the time |" in text
    assert "(default 200); with --data: share" in text  # two defaults stay where they are told
    assert facts.fill("{{help evaluate nothing}}", ROOT).count("## ") <= 1


def test_tables_hold_what_cards_and_recipes_hold():
    text = facts.fill("{{runs}}\n{{recipes}}\n{{scores}}\n{{guards}}", ROOT)
    card = facts.read_card(ROOT, "toy")["seeds"][0]["stages"]["32px"]
    epochs = card["samples"] / 100_000
    assert f"| `toy` | 32px | 100,000 | 48 | 1,400 | {epochs:.1f} | muon, 0.004 |" in text
    assert "| `paper` | 1024 px | 2,048 | 2,500,000 | adam, 0.0001 | eps | ddpm, 32 | 8 |" in text
    assert text.count("| `toy` | 0 | 200 of") == 3 and "| samples are noise | error |" in text


@pytest.mark.slow
def test_every_page_gets_its_facts():
    for page, text in PAGES.items():
        assert "{{" not in facts.fill(CELL.sub("", text)), page


@pytest.mark.slow
def test_the_table_of_memory_is_what_plan_counts():
    from imagen_nb.runs.plan import gib, plan

    text, made = facts.plans(ROOT, "emoji", "h100"), plan(find_recipe("emoji"))
    peaks = [gib(p.memory.peak(p.batch)) for p in made.stages]
    for p, peak in zip(made.stages, peaks):
        assert f"| h100 | {p.costed.stage.size}\xa0px | {p.batch} | {peak} |" in text
    assert facts.fill("{{peak emoji}}", ROOT) in peaks


# ---------------------------------------------------------------- what a reader types


def run_python(code: str, page: str):
    "A block as a script."
    exec(compile(code, f"{page}.md", "exec"), {"__name__": "__main__"})


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in TEXTS if blocks(p, "python") and p != "several-gpus"])
def test_python_runs_as_a_script(page, tmp_path):
    with contextlib.chdir(tmp_path):
        for code in blocks(page, "python"):
            run_python(code, page)
    if page in ("start", "own-pictures", "zh", *FRONTS):
        assert list(tmp_path.glob("*.png"))  # a reader sees something


@pytest.mark.slow
def test_the_block_of_the_readme_shows_a_picture_in_a_notebook(tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.delenv("MPLBACKEND", raising=False)  # that of tests; a kernel brings its own
    code = [nbformat.v4.new_code_cell(code) for code in blocks("README.md", "python")]
    notebook = nbformat.v4.new_notebook(cells=code)
    NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [o.get("data", {}) for cell in notebook.cells for o in cell.outputs]
    assert any("image/png" in data for data in shown), shown


LAUNCHED = {
    path: cell
    for path in sorted((ROOT / "nbs").rglob("*.ipynb"))
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
    if cell["id"] == launch_cells.ID
}


def test_a_launched_notebook_brings_the_package_where_there_is_none():
    code, calls = launch_cells.source(has_tests=True), []
    shell = SimpleNamespace(run_line_magic=lambda *words: calls.append(words))
    exec(code, {"get_ipython": lambda: shell})
    assert calls == []  # it is here

    def bare(name, *rest):
        raise ImportError(name)

    exec(
        code, {"get_ipython": lambda: shell, "__builtins__": vars(builtins) | {"__import__": bare}}
    )
    source = f"git+{facts.setting(ROOT, 'git_url')}"
    assert calls == [("pip", f"install -q 'fastcore<2' {source}")]
    assert {"index.ipynb", "00_tour.ipynb"} <= {path.name for path in LAUNCHED}
    for path, cell in LAUNCHED.items():
        has_tests = "from fastcore" in path.read_text(encoding="utf-8")
        assert "".join(cell["source"]) == launch_cells.source(has_tests), path.name


def test_colab_is_offered_where_the_cell_is_and_nowhere_else():
    site = build_docs.Site(ROOT)
    for notebook in site.notebooks:
        cells = [dict(source=f"# {notebook.title}")]
        build_docs.put_links(cells, notebook, site)
        assert ("colab" in cells[0]["source"]) == (notebook.path in LAUNCHED), notebook.file


def head_of(path: Path) -> list[str]:
    "The first cells of a notebook: they import, or install what is missing."
    code = [c for c in json.loads(path.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
    sources = ("".join(c["source"]) for c in code)
    trees = ((source, ast.parse(source).body) for source in sources)
    kinds = ast.Import, ast.ImportFrom, ast.Try, ast.If
    return [s for s, tree in takewhile(lambda o: all(isinstance(n, kinds) for n in o[1]), trees)]


@pytest.mark.slow
def test_every_notebook_that_colab_can_open_begins_in_a_bare_kernel(tmp_path):
    "All packages of this interpreter but ours; the first cell fetches it, from here, and then all imports succeed."
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    python = next(tmp_path.glob("bin/python"))
    (lib,) = tmp_path.glob("lib/python*/site-packages")
    (lib / "others.pth").write_text(sysconfig.get_path("purelib"))  # editable installs stay out
    absent = "import importlib.util as i; assert i.find_spec('imagen_nb') is None\n"
    script = tmp_path / "heads.ipy"
    script.write_text(
        absent + "\n".join(s for path in LAUNCHED for s in head_of(path)) + "\nprint('all')"
    )
    git = dict(
        COUNT="1", KEY_0=f"url.{ROOT.as_uri()}.insteadOf", VALUE_0=facts.setting(ROOT, "git_url")
    )
    pip = dict(NO_DEPS="1", NO_INDEX="1", NO_BUILD_ISOLATION="0")  # 0: without
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= {f"GIT_CONFIG_{k}": v for k, v in git.items()} | {f"PIP_{k}": v for k, v in pip.items()}
    command = [python, "-m", "IPython", "--quick", "--no-banner", script]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.endswith("all\n"), done.stdout[-2000:] + done.stderr[-2000:]
    assert next(lib.glob("imagen_nb/__init__.py"))


def test_the_cell_is_put_in_once_and_before_what_needs_it(tmp_path):
    imports = dict(cell_type="code", id="b", source=["import imagen_nb"])
    cells = [dict(cell_type="code", id="a", source=["#| default_exp x"]), imports]
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps(dict(cells=cells)))
    assert launch_cells.add(path) and not launch_cells.add(path)
    found = json.loads(path.read_text())["cells"]
    assert [cell["id"] for cell in found] == ["a", "launch", "b"]


def few_steps(row: list[str]) -> list[str]:
    "A training command with two steps for each stage, and one process."
    own = [w for i, w in enumerate(row) if w != "--set" and row[i - 1] != "--set"]
    short = [f"training.{k}.{v}" for k in range(3) for v in ("steps=2", "batch=2", "warmup=1")]
    return [*own, "--processes", "1", *(w for text in short for w in ("--set", text))]


@pytest.mark.slow
def test_the_commands_of_own_pictures_run(tmp_path):
    "One after the other, in one folder; trainings are cut to two steps."
    from imagen_nb.cli import main

    with contextlib.chdir(tmp_path):
        transcripts.prepare(tmp_path)
        for row in lines("own-pictures"):
            if row[0] == "imagen-nb":
                assert main(few_steps(row)[1:] if row[1] == "train" else row[1:]) == 0, row


@pytest.mark.slow
def test_two_processes_run_the_script_of_several_gpus(tmp_path):
    code = blocks("several-gpus", "python")[0]
    few = ", ".join(("steps=2", "batch=4", "warmup=1"))
    code = code.replace(
        "recipe.training[0],", f"__import__('dataclasses').replace(recipe.training[0], {few}),"
    )
    transcripts.prepare(tmp_path)
    (tmp_path / "train_base.py").write_text(code)
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    rows = lines("several-gpus")
    first = next(row for row in rows if row[1] == "embed")
    second = next(row for row in rows if "train_base.py" in row)
    assert second[0] == "torchrun"
    embed = [sys.executable, "-m", "imagen_nb.cli", *first[1:]]
    run = [sys.executable, "-m", "torch.distributed.run", *second[1:]]
    for command in (embed, run):
        subprocess.run(command, cwd=tmp_path, env=env, check=True)
    assert list((tmp_path / "runs/base").glob("step_00000002"))


@pytest.mark.slow
def test_sessions_are_as_recorded():
    for name, text in transcripts.record():
        recorded = (transcripts.FOLDER / f"{name}.txt").read_text(encoding="utf-8")
        assert transcripts.words(text) == transcripts.words(recorded), name


# ---------------------------------------------------------------- search

INDEX = dict(
    docnames=["guidance", "noise", "long", "store/noise"],
    filenames=["a", "b", "c", "d"],
    titles=["Guidance", "I got noise", "Long", "imagen_nb.store.noise"],
    terms=dict(sampl=[0, 1, 2, 3], nois=[0, 1, 2, 3], unicorn=1, weight=[0, 2])
    | {f"word{i}": 2 for i in range(40)},
    titleterms=dict(guidanc=0, nois=[1, 3], weight=0),
    alltitles={},
    indexentries={},
    objects={},
    objnames={},
    objtypes={},
)
SCRIPTS = """var splitQuery = (q) => q.match(/[a-z0-9_]+/g) || [];
class Stemmer { stemWord(w) { return w.replace(/(e|es|ing)$/, ""); } }
class SearchResultKind { static get text() { return "text"; } }
const Search = { _index: INDEX };
RANKING
const asked = JSON.parse(require("fs").readFileSync(0, "utf8"));
const words = (text) => new Set(splitQuery(text).map((w) => new Stemmer().stemWord(w)));
const ranked = (text) => Search.performTermsSearch(words(text), new Set(["excluded"]));
console.log(JSON.stringify(asked.map((q) => ranked(q).sort((a, b) => b[4] - a[4]).map((r) => r[0]))));
"""


@pytest.mark.skipif(not ask_site.node(), reason="no node on this machine")
def test_pages_are_ranked_by_rare_words_and_headings():
    ranking = (ROOT / "docs/ranking.js").read_text(encoding="utf-8")
    script = SCRIPTS.replace("INDEX", json.dumps(INDEX)).replace("RANKING", ranking)
    questions = ["noise", "sampling unknown unicorn", "weight", "nothing known"]
    done = subprocess.run(
        [ask_site.node(), "-e", script], input=json.dumps(questions), capture_output=True, text=True
    )
    assert not done.stderr
    noise, rare, weight, nothing = json.loads(done.stdout)
    assert noise[0] == "noise" and "long" not in noise  # a title; the reference comes after
    assert rare[0] == "noise"  # a word that nobody has stops nothing
    assert weight[0] == "guidance" and nothing == []


def test_a_question_counts_where_its_page_is_among_the_first(tmp_path):
    assert ask_site.rank(["experiments/guidance", "stage", "guidance"], ["guidance"]) == 3
    assert ask_site.rank(["runs/doctor"], ["doctor"]) == 1 and ask_site.rank([], ["a"]) == 0
    (tmp_path / "a.html").write_text("<p>How <b>large</b>, is&nbsp;it?</p>")
    assert ask_site.copied(tmp_path, ["how large is it", "how small"]) == ["how large is it"]


def test_what_is_missed_is_told_and_what_is_awaited_is_not_forgotten(tmp_path, monkeypatch, capsys):
    rows = [dict(question=q, pages=["a"]) for q in ("found", "missed", "known gap")]
    (tmp_path / "q.json").write_text(json.dumps(rows))
    answers = {"found": ["b", "a"], "missed": list("bcda"), "known gap": []}
    monkeypatch.setattr(ask_site, "QUESTIONS", tmp_path / "q.json")
    monkeypatch.setattr(ask_site, "AWAITED", {"known gap": "chapter 99"})
    monkeypatch.setattr(ask_site, "search", lambda root, questions: map(answers.get, questions))
    assert ask_site.main([str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "not among the first 3: missed" in said and "awaited: known gap: chapter 99" in said
    assert "1 of 3 questions" in said
    answers["missed"] = ["a"]
    assert ask_site.main([str(tmp_path)]) == 0
    answers["known gap"] = ["a"]
    assert ask_site.main([str(tmp_path)]) == 1
    assert "no longer awaited, take it off: known gap" in capsys.readouterr().out


@pytest.mark.slow
def test_forty_questions_find_their_pages():
    site = ROOT / "docs/_build/html"
    if not (site / "searchindex.js").exists():
        pytest.skip("no built site: make docs")
    assert ask_site.main([str(site)]) == 0

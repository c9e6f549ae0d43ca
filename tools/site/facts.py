"""What pages of docs/pages ask for in double braces: figures, tables and help that nobody types.

`{{card NAME PATH [FORMAT]}}` is a value of a run card, `{{runs}}` a table of what was trained; any other word
is a function below. The parser, the recipes and `imagen-nb plan` are imported where they are asked.
"""

import argparse
import configparser
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from claims import judged, section, summary

ROOT = Path(__file__).resolve().parents[2]
PLACE = re.compile(r"\{\{(\w+)( [^{}]*)?\}\}")
COMMAND_LINE = "imagen-nb"
DEFAULT = re.compile(r" ?\(default:? ([^()]*)\)")  # in the help of an option
# Run cards of trainings, and what came of each in words that the card holds.
TRAINED = ("toy", "toy-full", "emoji", "symbols")


def fill(text: str, root: Path = ROOT, among: tuple[str, ...] = ()) -> str:
    "Markdown with each place filled, or only those of some facts."

    def fact(match) -> str:
        name, words = match[1], shlex.split(match[2] or "")
        if among and name not in among:
            return match[0]
        if name not in FACTS:
            raise ValueError(f"fill: fact, got {name!r}, expected one of {', '.join(FACTS)}")
        return FACTS[name](root, *words)

    return PLACE.sub(fact, text)


def table(rows: list[list[str]]) -> str:
    "Markdown of a table; the first row is its head."
    head, *others = ([str(cell).replace("|", r"\|") for cell in row] for row in rows)
    rows = [head, ["---"] * len(head), *others]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


# ---------------------------------------------------------------- run cards


def read_card(root: Path, name: str) -> dict:
    "A run card that ships."
    return json.loads((root / "data" / "runs" / f"{name}.json").read_text(encoding="utf-8"))


def card(root: Path, name: str, path: str, form: str = "", per: str = "1") -> str:
    "A value of a run card: keys with slashes between, perhaps divided by a number, in a format."
    value = read_card(root, name)
    for key in path.split("/"):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return format(value / float(per) if per != "1" else value, form)


def runs(root: Path) -> str:
    "A row for each stage that was trained: with what, how long, on what."
    rows = [
        "run card",
        "stage",
        "pictures",
        "batch",
        "steps",
        "epochs",
        "optimizer, rate",
        "minutes",
    ]
    return table([rows, *(row for name in TRAINED for row in rows_of(name, read_card(root, name)))])


def rows_of(name: str, found: dict) -> list[list[str]]:
    "Stages of the first seed of a card."
    rows = []
    for stage, run in found["seeds"][0]["stages"].items():
        train, data = run["config"]["train"], run["config"]["data"]
        number = re.search(r"([\d,]+) (?:pictures|scenes)", data)[1].replace(",", "")
        epochs = run["samples"] / int(number)
        how = f"{train['optimizer']}, {train['lr']:g}"
        minutes = f"{run['training_seconds'] / 60:.0f}"
        row = [stage, f"{int(number):,}", train["batch"], f"{run['steps']:,}", f"{epochs:.1f}"]
        rows.append([f"`{name}`", *row, how, minutes])
    return rows


def scores(root: Path) -> str:
    "Shares of test pictures that are right in every attribute, with intervals, of the cards that have them."
    rows = [["run card", "seed", "pictures", "right, % (95 % interval)"]]
    for name in TRAINED:
        for seed in read_card(root, name)["seeds"]:
            for size, found in (seed.get("scores") or {}).items():
                o = found["all"]["all"]
                share = f"{100 * o['share']:.1f} ({100 * o['low']:.0f}–{100 * o['high']:.0f})"
                rows.append([f"`{name}`", seed["seed"], f"{o['n']} of {size} px", share])
    return table(rows)


def claims(root: Path) -> str:
    "The paper's findings beside ours: a table, then a section for each."
    rows = judged(lambda name: read_card(root, name))
    parts = [section(k, *row) for k, row in enumerate(rows, 1)]
    return "\n\n".join([table(summary(rows)), *parts])


def decided(root: Path) -> str:
    "How many of the findings have a verdict, and how many of those agree."
    verdicts = [found.verdict for _, found in judged(lambda name: read_card(root, name))]
    told = {word: verdicts.count(word) for word in ("agrees", "differs", "undecided")}
    return f"{told['agrees']} agree, {told['differs']} differ, {told['undecided']} are undecided"


def own(root: Path) -> str:
    "What became of a folder after some minutes of one core, by where the base began."
    rows = [["begins with", "CPU minutes", "samples", "captions of training, %", "kept back, %"]]
    for name, arm in read_card(root, "own-pictures")["arms"].items():
        start = "random weights" if arm["init"] is None else f"`--init {name}`"
        for shot in arm["snapshots"]:
            shares = [
                f"{100 * m['share']:.0f} ({100 * m['low']:.0f}–{100 * m['high']:.0f})"
                for m in (shot["right"][kind] for kind in ("trained", "kept back"))
            ]
            rows.append([start, f"{shot['cpu_minutes']:g}", f"{shot['samples']:,}", *shares])
    return table(rows)


def shards(root: Path) -> str:
    "A row for each optimizer: how far a run that was shared out anew ends from one of one process."
    found = read_card(root, "sharding")
    ways = list(next(iter(found["reshard"].values())))
    rows = [["optimizer", *(f"{way.replace('-', ' → ')}" for way in ways), "sums in another order"]]
    for name, row in found["reshard"].items():
        parts = [row[way]["difference"] for way in ways]
        other = found["order_of_sums"][name]["difference"]
        rows.append([name, *(f"{d:.0e}" if d else "0" for d in (*parts, other))])
    return table(rows)


def launchers(root: Path) -> str:
    "A row for each way to start processes: how far their weights are from those of one process."
    found = read_card(root, "launchers")["difference"]
    ways = list(dict.fromkeys(name.rpartition("_")[0] for name in found))
    counts = list(dict.fromkeys(name.rpartition("_")[2] for name in found))
    rows = [["started by", *(f"{n} process{'es' * (n != '1')}" for n in counts)]]
    for way in ways:
        rows.append([way, *(f"{d:.0e}" if (d := found[f"{way}_{n}"]) else "0" for n in counts)])
    return table(rows)


def planned(root: Path) -> str:
    "A row for each way to share the work: memory that a fake GPU counted, and how far the plan is from it."
    found, names = read_card(root, "plan")["cases"], dict(ddp="DDP", fsdp="FSDP2")
    cells = {(o["strategy"], o["count"], o["batch"], o["size"]): o for o in found}
    sizes = (f"{size} px" for size in dict.fromkeys(o["size"] for o in found))
    rows = [["GPUs", "pictures at once", *sizes]]
    for way in dict.fromkeys(key[:3] for key in cells):
        told = (o for key, o in cells.items() if key[:3] == way)
        name = "one" if way[1] == 1 else f"{names[way[0]]} on {way[1]}"
        shown = (f"{o['measured_gib']:.1f} GiB ({100 * o['gap']:+.1f} %)" for o in told)
        rows.append([name, way[2], *shown])
    return table(rows)


def guards(root: Path) -> str:
    "What `imagen-nb doctor` looks for: each planted fault, what it says of it, and how grave it is."
    rows = [[r["fault"], r["planted"], f"`{r['seen']}`"] for r in read_card(root, "doctor")["rows"]]
    return table([["fault", "level", "what the doctor sees"], *rows])


def proof(root: Path) -> str:
    "What `make prove` found: each step that has been run, as its card has it."
    rows = [["step", "holds", "counted", "minutes", "core minutes", "commit"]]
    for name, step in read_card(root, "prove")["steps"].items():
        counted = ", ".join(f"{n:,} {what}" for what, n in step["counts"].items()) or "–"
        minutes = [f"{step[k] / 60:.1f}" for k in ("seconds", "core_seconds")]
        holds = "yes" if step["holds"] else f"no: {'; '.join(step['wrong'])}"
        rows.append([name, holds, counted, *minutes, f"`{step['commit']}`"])
    return table(rows)


# ---------------------------------------------------------------- files


def include(root: Path, path: str) -> str:
    "A file of the checkout as it is."
    return f"```text\n{(root / path).read_text(encoding='utf-8').rstrip()}\n```"


def transcript(root: Path, name: str) -> str:
    "What a command printed, recorded by `transcripts.py`."
    text = (root / "docs" / "transcripts" / f"{name}.txt").read_text(encoding="utf-8")
    return f"```console\n{text.rstrip()}\n```"


def packages(root: Path) -> str:
    "What the package needs, what is allowed, and what its tests run with."
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(root / "settings.ini", encoding="utf-8")
    pins = dict(
        line.split("==")
        for line in (root / "constraints.txt").read_text(encoding="utf-8").split()
        if "==" in line
    )
    rows = [["package", "allowed", "tested with"]]
    for need in parser["DEFAULT"]["requirements"].split():
        name, bound = re.match(r"([\w.-]+)(.*)", need).groups()
        rows.append([f"`{name}`", bound or "any", pins.get(name, "not pinned")])
    return table(rows)


def setting(root: Path, key: str) -> str:
    "A value of settings.ini."
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(root / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"][key]


# ---------------------------------------------------------------- recipes and plans


def library(root: Path):
    "The package of this checkout, and no other."
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))


def recipes(root: Path) -> str:
    "A row for each stage of each recipe, as `recipes.py` has it."
    library(root)
    from imagen_nb.recipes import RECIPES

    head = ["recipe", "stage", "batch", "steps", "optimizer, rate", "target", "sampler, steps"]
    rows = [[*head, "w", "threshold", "aug_t"]]
    for name, make in RECIPES.items():
        recipe = make()
        for stage, train in zip(recipe.stages, recipe.training):
            how = [f"{train.batch:,}", f"{train.steps:,}", f"{train.optimizer}, {train.lr:g}"]
            draw = [f"{stage.sampler}, {stage.steps}", f"{stage.w:g}", stage.threshold]
            aug = f"{stage.aug_t:g}" if stage.lowres_size else "–"
            rows.append([f"`{name}`", f"{stage.size} px", *how, stage.target, *draw, aug])
    return table(rows)


def plans(root: Path, recipe: str, *gpus: str) -> str:
    "Memory and time of each stage of a recipe on one GPU of each kind, as `imagen-nb plan` counts them."
    library(root)
    from imagen_nb.recipes import find_recipe
    from imagen_nb.runs.plan import Machines, duration, gib, plan, plan_stage

    head = ["GPU", "stage", "pictures at once", "memory", "at most at once"]
    rows = [[*head, "with `--recompute`", "GPU time of all steps"]]
    costs = [p.costed for p in plan(find_recipe(recipe)).stages]
    for on in (Machines(gpu=gpu) for gpu in gpus):
        for p in (plan_stage(costed, k, on) for k, costed in enumerate(costs)):
            most = [f"{m.most(on.room):,}" for m in (p.memory, p.recomputed)]
            taken = [p.batch if p.fits else "does not fit", gib(p.memory.peak(p.batch)), *most]
            size = f"{p.costed.stage.size} px"
            rows.append([on.gpu, size, *taken, duration(p.gpu_seconds(on))])
    return table(rows).replace(" px", "\xa0px").replace(" days", "\xa0days")


def peak(root: Path, recipe: str) -> str:
    "Memory of the largest stage of a recipe on one GPU with its whole batch at once."
    library(root)
    from imagen_nb.recipes import find_recipe
    from imagen_nb.runs.plan import gib, plan

    return gib(max(p.memory.peak(p.batch) for p in plan(find_recipe(recipe)).stages))


def share(root: Path) -> str:
    "Of a data sheet's speed that plans believe in, in per cent."
    library(root)
    from imagen_nb.runs.plan import Machines

    return f"{100 * Machines().share:.0f}"


# ---------------------------------------------------------------- command line


def parsers(root: Path) -> dict[str, argparse.ArgumentParser]:
    "Name of a command -> its parser."
    library(root)
    from imagen_nb.runs.options import parser

    actions = parser()._actions
    return next(a for a in actions if isinstance(a, argparse._SubParsersAction)).choices


def commands(root: Path) -> str:
    "Every command: what it does, how it is called, its options with defaults, what it prints."
    return "\n\n".join(command(root, name) for name in parsers(root))


def help(root: Path, *names: str) -> str:
    "Some commands, as far as they exist."
    return "\n\n".join(command(root, name) for name in names if name in parsers(root))


def command(root: Path, name: str) -> str:
    "The section of one command."
    parser = parsers(root)[name]
    parts = [f"## `{COMMAND_LINE} {name}`", sentence(parser.description or "")]
    if parser.epilog:
        lines = parser.epilog.partition("\n")[2].split("\n")
        lines = [re.sub(r" {3,}(?=\S)", "  # ", line.strip()) for line in lines]  # what it does
        parts.append("```bash\n" + "\n".join(lines) + "\n```")
    rows = [option_row(a) for a in parser._actions if not isinstance(a, argparse._HelpAction)]
    if rows:
        parts.append(table([["argument", "default", "meaning"], *rows]))
    if (root / "docs" / "transcripts" / f"{name}.txt").exists():
        parts.append(transcript(root, name))
    return "\n\n".join(parts)


def option_row(action: argparse.Action) -> list[str]:
    "How an argument is written, its default, its help."
    value = action.metavar or action.dest.upper()
    value = " ".join(value) if isinstance(value, tuple) else value
    if action.choices:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    takes = "" if action.nargs == 0 else f" {value}"
    names = action.option_strings or [value]
    written = ", ".join(f"`{name}{takes if action.option_strings else ''}`" for name in names)
    words, default = (action.help or "").replace("%%", "%"), shown_default(action)
    if len(told := DEFAULT.findall(words)) == 1:
        words, default = DEFAULT.sub("", words), default or escaped(told[0])
    return [written, default, escaped(words)]


def shown_default(action: argparse.Action) -> str:
    "The default that the parser holds, if that says something."
    is_empty = action.default is None or action.default is False or action.default == []
    return "" if is_empty else f"`{action.default}`"


def escaped(text: str) -> str:
    "Markdown that shows a text as it is."
    return re.sub(r"([\\*_\[\]<>$~#`])", r"\\\1", text)


def sentence(text: str) -> str:
    "A text as a sentence begins."
    return escaped(text[:1].upper() + text[1:])


LINKED = ("claims",)  # facts that link to pages and files
FACTS: dict[str, Callable[..., str]] = {
    f.__name__: f
    for f in (card, runs, scores, claims, decided, guards, own, planned, proof, shards)
    + (launchers, include, transcript, packages, setting, recipes, plans, peak, share)
    + (commands, help)
}

"""`imagen-nb doctor`: reads the directory of a run, asks every guard, says what to do. Nothing is written."""

import json
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from safetensors.torch import load_file

from imagen_nb.engine import guards as health
from imagen_nb.engine.captions import EmbeddingCache
from imagen_nb.engine.guards import Finding, say, soften, unknown
from imagen_nb.pictures.captioned import evenly
from imagen_nb.recipes import Recipe
from imagen_nb.runs.drawings import FEW, SMALL, draw_model, look_at_drawing
from imagen_nb.runs.reference import find_reference
from imagen_nb.runs.setup import load_recipe, open_data
from imagen_nb.store.checkpoint import CheckpointError, load_directory, load_meta, verify
from imagen_nb.store.config import counted, with_defaults
from imagen_nb.store.files import as_path, read_rows
from imagen_nb.store.text_models import shipped_as

__all__ = ["doctor", "report"]

LARGE = 2**31  # bytes; of larger checkpoints only the sizes of files are looked at
# Share of the steps from which pictures and a base's validation, and that of other stages, must be well:
# the reference runs pass every guard at these moments.
EARLY, LATE = 0.15, 0.6
# What a damaged file can raise.
DAMAGE = (ValueError, OSError, KeyError, TypeError, AttributeError, RuntimeError)


def doctor(
    run: str | Path,  # directory of a run, of one of its stages, or of a saved model
    draw: int
    | None = None,  # pictures to draw with the newest average; None: 8 if networks are small
) -> list[Finding]:  # all that was looked at, well or not
    "What is wrong with a run, and what to do. Needs no GPU and no network."
    run = as_path(run)
    if not run.is_dir():
        raise ValueError(f"doctor: {run}, no such directory")
    if draw is not None and draw < 0:
        raise ValueError(f"doctor: draw, got {draw}, expected 0 or more pictures")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # findings say it
        return list(examine(run, draw))


def examine(run: Path, draw: int | None) -> Iterator[Finding]:
    "Every guard in turn."
    is_stage = (run / "log.jsonl").exists() or any(run.glob("step_*"))
    home, folders = (run.parent, [run]) if is_stage else (run, stage_folders(run))
    if not folders and (run / "meta.json").exists():
        return (yield from attempt("model", look_at_model(run, draw)))
    if not folders and not (run / "config.json").exists():
        why = "no config.json and no stage in this directory"
        advice = "imagen-nb train RECIPE --out DIRECTORY makes a run"
        return (yield Finding("error", "run", why, advice))
    recipe, found = read_recipe(home)
    shown: dict = {}  # what is known of the pictures of each stage, and how many there are
    yield from found
    if recipe is not None:
        yield from attempt("data", look_at_data(recipe, [folder.name for folder in folders], shown))
        yield from attempt("drawing", look_at_drawing(home, recipe, draw, shown))
    used = [o for o in (stage_config(p).get("text") for p in folders) if isinstance(o, dict)]
    yield from attempt("text cache", look_at_cache(home / "captions", used))
    if (home / "model").is_dir():
        yield from attempt("model", look_at_model(home / "model", 0))
    yield from attempt("untrained stages", look_at_origin(home))
    is_fresh = recipe is None or recipe.init is None
    for folder in folders:
        seen = look_at_stage(folder, shown.get(folder.name, {}), shown.get("pictures"), is_fresh)
        yield from (o._replace(where=folder.name) for o in attempt("stage", seen))


def stage_folders(run: Path) -> list[Path]:
    "Directories of a run's stages, the base first."
    folders = (p for p in run.glob("*px") if p.is_dir())
    return sorted(folders, key=lambda p: (len(p.name), p.name))


def read_recipe(home: Path) -> tuple[Recipe | None, list[Finding]]:
    "The recipe of a run, or why there is none."
    try:
        return load_recipe(home), []
    except FileNotFoundError:
        return None, [unknown("recipe", "no config.json of a whole run")]
    except DAMAGE as e:
        advice = "restore it from another run of the same recipe"
        return None, [Finding("error", "recipe", f"config.json: {e}", advice)]


def attempt(what: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    "Findings up to a file that cannot be understood, which is one too."
    try:
        yield from findings
    except DAMAGE as e:
        advice = "a damaged file? what follows it was not looked at"
        yield Finding("error", what, f"{type(e).__name__}: {e}", advice)


# ---------------------------------------------------------------- one stage


def look_at_stage(
    folder: Path,  # of one stage
    shown: dict,  # what is known of its pictures
    pictures: int | None,  # how many it learns from
    is_fresh: bool,  # it began with random weights
) -> Iterator[Finding]:
    "What one stage's directory says."
    found, newest = sound_checkpoints(folder)
    yield found
    if not (config := stage_config(folder)):
        advice = "restore it from another run of the same recipe"
        return (yield Finding("error", "configuration", "no sound config.json", advice))
    stage, train = config["stage"], config["train"]
    is_base = stage["lowres_size"] is None
    rows, bad = read_rows(folder / "log.jsonl")
    step = max([r["step"] for r in rows[-1:]] + [int(newest.name[5:]) if newest else 0])
    if newest:
        yield health.has_learned(load_file(newest / "average.safetensors"))
    yield health.guidance_is_trained(stage["w"], stage["caption_drop"])
    if is_base:
        yield health.enough_samples(train["steps"] * train["batch"], pictures, is_fresh)
    else:
        yield health.aug_level(stage["aug_t"], stage["aug_max"])
    if step:
        yield health.average_is_warm(step, train["ema"], train["ema_power"])
    if bad:
        why = f"{counted(len(bad), 'line is', 'lines are')} no JSON, left out here"
        yield Finding("warning", "log", why, "look at the disk")
    yield from look_at_log(rows, config) if rows else [unknown("log", "no log.jsonl")]
    checks = read_rows(folder / "validation.jsonl")[0]
    for found in look_at_validation(checks, shown.get("validation"), is_base):
        yield soften(found, step, train["steps"], EARLY if is_base else LATE)
    drawn = shown.get("stats") or next(reversed(read_rows(folder / "samples.jsonl")[0]), None)
    for found in look_at_pictures(drawn, shown.get("truth"), shown.get("before")):
        yield soften(found, step, train["steps"], EARLY)


def sound_checkpoints(folder: Path) -> tuple[Finding, Path | None]:
    "Is every checkpoint as it was written? And the newest sound one."
    sound, damaged = [], []
    for path in sorted(p for p in folder.glob("step_*") if p.is_dir()):
        try:
            verify(path, digests=sum(p.stat().st_size for p in path.iterdir()) < LARGE)
        except (ValueError, OSError) as e:
            damaged.append(f"{path.name} ({e})")
        else:
            sound.append(path)
    return say(
        "checkpoints",
        f"{len(sound)} sound" + f", damaged: {'; '.join(damaged)}" * bool(damaged),
        ("error", damaged and not sound, "none can be used: restore one, or train anew"),
        ("warning", damaged, "training goes back to the newest sound one; look at the disk"),
        ("note", not sound, "never trained: sampling stops before this stage"),
    ), sound[-1] if sound else None


def look_at_log(rows: list[dict], config: dict) -> Iterator[Finding]:
    "What `log.jsonl` says."
    train, step = config["train"], rows[-1]["step"]
    warm = [r for r in rows if r["step"] > train["warmup"]]
    yield say(
        "progress",
        f"step {step:,} of {train['steps']:,}",
        ("note", step < train["steps"], "unfinished: the same command goes on"),
    )
    yield health.warm_up_is_over(step, train["warmup"], train["steps"])
    yield health.few_skipped(max(r["skipped"] for r in rows), step)
    yield health.rarely_clipped([r["grad_norm"] for r in warm], train["clip"])
    waiting = [r["waiting"] for r in rows if r.get("waiting") is not None][-10:]
    yield health.data_is_fast(waiting) if waiting else unknown("data wait", "not in this log")
    yield health.loss_falls([r["loss"] for r in warm])
    reference = find_reference(config)
    yield (
        health.loss_is_normal(rows, reference["loss"])
        if reference
        else unknown("reference", "no reference runs of this configuration")
    )


def look_at_validation(rows: list[dict], fresh: dict | None, is_base: bool) -> Iterator[Finding]:
    "What `validation.jsonl` says, or a validation of just now."
    row = rows[-1] if rows else fresh
    if row is None:
        return (yield unknown("validation", "no validation.jsonl"))
    yield health.beats_trivial(row)
    yield health.text_helps(row["text_gain"], is_base)
    yield health.no_overfitting(
        [sum(r["loss"]) / len(r["loss"]) for r in rows if r.get("on") != "train"]
    )


def look_at_pictures(
    stats: dict | None, truth: float | None = None, before: list | None = None
) -> Iterator[Finding]:
    "What a stage's pictures say, beside the share of saturated true pixels and the mean colour of the stage before."
    if stats is None:
        return (yield unknown("samples", "no pictures of this stage"))
    if "neighbours" in stats:
        yield health.not_noise(stats["neighbours"])
    yield health.not_constant(stats.get("contrast", stats["std"]))
    yield health.not_saturated(stats["saturated"], truth)
    if before:
        yield health.same_colour(stats["mean"], before)
    if stats.get("lowres_gap") is not None:
        yield health.follows_lowres(stats["lowres_gap"])


# ---------------------------------------------------------------- what stages share


def look_at_data(recipe: Recipe, stages: list[str], shown: dict) -> Iterator[Finding]:
    "Pictures as these stages take them, and captions, if they are on this machine; notes in `shown` how many."
    if recipe.data is not None and not as_path(recipe.data.source).exists():
        return (yield unknown("pictures", f"{recipe.data.source} is not on this machine"))
    world = open_data(recipe)
    shown["pictures"] = len(world)
    for size in (c.size for c in recipe.stages if f"{c.size}px" in stages):
        images = world.images(evenly(world, FEW), size)
        for found in (health.picture_size(images, size), health.pixel_range(images)):
            yield found._replace(where=f"{size}px")
    yield health.captions_differ(
        [caption for i in evenly(world, 1000) for caption in world.captions(i) or [""]]
    )


def look_at_cache(path: Path, used: list[dict]) -> Iterator[Finding]:
    "The cached captions; `used` are the encoders that the stages name."
    if not path.is_dir():
        return (yield unknown("text cache", f"no folder {path.name}"))
    cache = EmbeddingCache.open(path)
    for encoder in used[:1]:
        yield health.same_encoder(cache.identity, encoder)
    if len(cache) == 1:
        yield health.captions_differ(["the only one"] * 2)


def look_at_origin(run: Path) -> Iterator[Finding]:
    "Are all stages trained whose pictures lie in `samples`?"
    drawn = {int(p.stem[6:]) for p in (run / "samples").glob("00000_*.png")}
    trained = {int(p.parent.name[:-2]) for p in run.glob("*px/step_*")}
    with suppress(CheckpointError):
        meta = load_meta(run / "model")
        trained |= {
            c["size"] for c, is_trained in zip(meta["stages"], meta["trained"]) if is_trained
        }
    if drawn:
        yield health.none_untrained(sorted(drawn), sorted(trained))


def look_at_model(path: Path, draw: int | None) -> Iterator[Finding]:
    "A saved cascade: every byte of it, its settings, and pictures that it draws if its encoder ships with the package."
    tensors, meta = load_directory(path)
    configs, trained = list(map(with_defaults, meta["stages"])), meta["trained"]
    missing = [f"{c['size']} px" for c, is_trained in zip(configs, trained) if not is_trained]
    yield say(
        "model",
        f"{counted(len(configs), 'stage')}, digests agree",
        ("note", missing, f"never trained, so left out: {', '.join(missing)}"),
    )
    is_small = sum(v.numel() for group in tensors.values() for v in group.values()) < SMALL
    n = FEW * is_small if draw is None else draw
    can_draw = n and not missing and shipped_as((meta["encoder"] or {}).get("encoder"))
    pictures = draw_model(path, n) if can_draw else {}
    for k, config in enumerate(configs):
        found = [health.has_learned(tensors[f"stage{k}"])] * trained[k]
        if config["lowres_size"]:
            found.append(health.aug_level(config["aug_t"], config["aug_max"]))
        if shown := pictures.get(f"{config['size']}px"):
            found += look_at_pictures(shown["stats"], None, shown["before"])
        for o in found:
            yield o._replace(what=f"model's {o.what}", where=f"{config['size']}px")


# ---------------------------------------------------------------- files


def stage_config(folder: Path) -> dict:
    "A stage's config.json with the defaults of today; empty if there is none to read."
    with suppress(*DAMAGE):
        config = with_defaults(json.loads((folder / "config.json").read_text()))
        return config if {"stage", "train"} <= set(config) else {}
    return {}


# ---------------------------------------------------------------- the table


def report(
    findings: list[Finding],  # what `doctor` gave
) -> str:
    "A table: where, verdict, guard, what was seen, what to do."
    lines, missing = [], [f for f in findings if f.level == "unknown"]
    for where in sorted({f.where for f in findings}, key=lambda o: (len(o), o)):
        lines.append(where or "run")
        for f in findings:
            if f.where != where or f.level == "unknown":
                continue
            lines.append(f"  {f.level:<8} {f.what:<18} {f.why}")
            if f.level != "ok":
                lines.append(f"{'':<30}-> {f.advice}")
    if missing:
        lines.append(
            "not looked at: "
            + "; ".join(f"{f.where + ' ' * bool(f.where)}{f.what} ({f.why})" for f in missing)
        )
    levels = [f.level for f in findings]
    found = ", ".join(counted(levels.count(level), level) for level in ("error", "warning", "note"))
    lines.append(f"{len(findings) - len(missing)} looked at: {found}")
    return "\n".join(lines)

"""The command line `imagen-nb`. Each command is a few lines here; the work is done by the library."""

import argparse
import dataclasses
import difflib
import io
import json
import sys
import warnings
from pathlib import Path

__all__ = ["main"]

INTRO = """\
Train Imagen cascades and draw with them.

  imagen-nb sample "a small red circle to the left of a big blue square"
  imagen-nb train toy                        train on drawn scenes; minutes on two CPU cores
  imagen-nb data path/to/folder              look at your own pictures before training
  imagen-nb train toy --data path/to/folder  train on them

`imagen-nb COMMAND --help` explains a command."""

COMMANDS = ("train", "sample", "upscale", "export", "embed", "data", "doctor", "env")
DATA_HELP = (
    "a folder (with metadata.jsonl, metadata.csv, a .txt beside each picture, or no captions at all; of .tar,"
    " .parquet or .arrow files; COCO's), one such file, a .csv, .tsv or .jsonl list, or a dataset of the hub"
)


# ---------------------------------------------------------------- commands


def train(args):
    "Train a recipe, perhaps changed."
    from imagen_nb.recipes import find_recipe
    from imagen_nb.runs import run as runs
    from imagen_nb.store.config import change

    recipe = find_recipe(args.recipe, args.seed)
    if args.encoder and args.init:
        raise ValueError(
            "--encoder: not together with --init, whose networks know their own encoder alone"
        )
    if args.encoder:
        recipe = runs.read_with(recipe, args.encoder)
    if args.init:
        recipe = runs.start_from(recipe, args.init)
    if args.data:
        recipe = dataclasses.replace(recipe, data=own_pictures(args))
    elif args.image_column or args.caption_column or args.min_size:
        raise ValueError("--image-column, --caption-column, --min-size: only with --data")
    for text in args.set:
        path, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text}: expected path=value, as in training.0.steps=500")
        recipe = change(recipe, path.strip(), value.strip())
    scored = runs.HELD_OUT if args.data or args.held_out is None else args.held_out
    names = ("accumulate", "compile", "recompute", "track", "validate_every", "sample_every")
    execution = {name: value for name in names if (value := getattr(args, name)) not in (None, [])}
    runs.train(
        recipe, args.out or f"runs/{args.recipe}", args.stage, args.processes, scored, **execution
    )


def own_pictures(args):
    "What --data and its companions say."
    from imagen_nb.recipes import DataConfig

    where = Path(args.data).resolve()
    return DataConfig(
        source=str(where) if where.exists() else args.data,
        image_column=args.image_column,
        caption_column=args.caption_column,
        min_size=args.min_size,
        held_out=args.held_out or 0.0,
    )


def work(args):
    "One of the processes of a run."
    from imagen_nb.runs import run as runs

    runs.work(args.out, args.stage, args.held_out, json.loads(args.execution))


def sample(args):
    "Draw captions."
    from imagen_nb.runs.run import count_trained, draw_captions

    if args.n < 1:
        raise ValueError(f"sample: --n, got {args.n}, expected at least 1")
    seeds = [args.seed + k for k in range(args.n)] * len(args.captions)
    size, imagen = args.size and read_size(args.size), load_model(args)
    warn_of_untrained(imagen)
    options = sampling_options(args, max(count_trained(imagen), 1))
    if args.model == "toy" and (words := spelled(imagen.encoder, args.captions)):
        print(
            f"the toy encoder has never met, and only spells: {', '.join(words)}", file=sys.stderr
        )
    paths = draw_captions(
        imagen, args.captions, seeds, args.out, args.out / "grid.png", size=size, **options
    )
    for path in dict.fromkeys([*paths, args.out / "grid.png"]):
        print(path)


def upscale(args):
    "Enlarge a picture with the super-resolution stages."
    from imagen_nb.data import decode_picture
    from imagen_nb.pictures.pixels import to_square
    from imagen_nb.plots import save_picture

    imagen = load_model(args)
    picture = decode_picture(args.image.read_bytes())
    sides = [o.config.lowres_size for o in imagen.stages if o.config.lowres_size]
    if not sides:
        raise ValueError(f"upscale: {args.model} has no super-resolution stage")
    side = max((s for s in sides if s <= min(picture.size)), default=min(sides))
    print(
        f"{args.image.name}: {picture.width} x {picture.height}; its centred square is taken to {side} px"
        f" and enlarged to {imagen.stages[-1].config.size} px"
    )
    options = sampling_options(args, len(sides) - sides.index(side))
    image = imagen.sample(
        [args.caption],
        seeds=[args.seed],
        lowres=to_square(picture, side)[None],
        progress=True,
        **options,
    )[0]
    out = args.out or args.image.with_name(f"{args.image.stem}-{image.shape[-1]}px.png")
    save_picture(image, out)
    print(out)


def export(args):
    "A model from a run that has not finished."
    from imagen_nb.runs import run as runs

    for size, steps in runs.export(args.run_folder, args.out).items():
        print(
            f"{size} px: {f'averaged weights of step {steps:,}' if steps else 'no checkpoint yet'}"
        )
    print(f"{args.out}: imagen-nb sample ... --model {args.out}")


def embed(args):
    "Encode captions once and for all, or convert a T5 to its encoder alone."
    if args.convert:
        return convert(*args.convert)
    if args.source is None or args.out is None:
        raise ValueError("embed: expected SOURCE and --out DIR, or --convert SRC DST")
    from imagen_nb.engine.captions import EmbeddingCache

    captions, share = read_captions(args.source, args.column), read_share(args.share)
    encoder, options = (
        make_encoder(args),
        dict(dtype=read_dtype(args.store), share=share, verify=args.verify),
    )
    try:
        cache = EmbeddingCache.build(
            encoder, captions, args.out, args.batch, progress=True, **options
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped; what is encoded is in {args.out}. Run the same command to go on."
        ) from None
    size = sum(p.stat().st_size for p in args.out.rglob("*") if p.is_file())
    print(
        f"{args.out}: {len(set(captions)):,} different captions of {len(captions):,}; the folder holds {len(cache):,},"
        f" {size / 1e6:.1f} MB; {encoder.truncated:,} longer than {encoder.max_length} tokens were cut"
    )


def convert(source, target):
    "A published T5 as its encoder alone, in bfloat16."
    from imagen_nb.engine.convert import convert_encoder

    before, after = (
        sum(p.stat().st_size for p in Path(o).iterdir() if p.suffix in (".bin", ".safetensors"))
        for o in (source, convert_encoder(source, target))
    )
    print(
        f"{target}: the encoder alone, in bfloat16; weights {before / 1e6:.1f} MB before, {after / 1e6:.1f} MB now"
    )


def read_captions(source: str, column: str | None) -> list[str]:
    "Captions of a text, JSON-lines or CSV file, else of captioned pictures."
    import csv

    path = Path(source)
    kind = path.suffix.lower() if path.is_file() else ""
    if kind not in (".txt", ".jsonl", ".csv", ".tsv"):
        from imagen_nb.pictures.captioned import load_captioned

        pictures = load_captioned(source, 64, check=False)
        return [caption for i in range(len(pictures)) for caption in pictures.captions(i) or [""]]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise ValueError(f"embed: {path} is not UTF-8, {e}") from e
    if kind == ".txt":
        return text.splitlines()
    if kind == ".jsonl":
        try:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as e:
            raise ValueError(f"embed: {path}, a line is no JSON, {e}") from e
    else:
        rows = list(
            csv.DictReader(io.StringIO(text, newline=""), delimiter="," if kind == ".csv" else "\t")
        )
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"embed: {path} has no rows with names")
    names = [column] if column else ["caption", "text"]
    name = next((n for n in names if n in rows[0]), None)
    if name is None:
        raise ValueError(
            f"embed: {path} has columns {', '.join(map(str, rows[0]))}, expected {' or '.join(names)}; --column names another"
        )
    return [row.get(name) for row in rows]


def read_share(text: str) -> tuple[int, int]:
    "K/N as two numbers."
    k, slash, n = text.partition("/")
    if not (slash and k.isdecimal() and n.isdecimal() and int(k) < int(n)):
        raise ValueError(
            f"embed: --share, got {text!r}, expected K/N with K from 0 to N - 1, as in 0/4"
        )
    return int(k), int(n)


def read_dtype(name: str | None):
    "bf16 and fp32 as torch calls them."
    import torch

    return {"bf16": torch.bfloat16, "fp32": torch.float32, None: None}[name]


def make_encoder(args):
    "The encoder that was asked for, where it is fastest."
    import torch

    from imagen_nb.store.files import assets
    from imagen_nb.text import TextEncoder

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    is_toy = args.encoder == "toy"
    dtype = read_dtype(args.dtype or ("fp32" if is_toy else None))
    return TextEncoder.from_pretrained(
        assets() / "t5-toy" if is_toy else args.encoder, args.length, dtype, device
    )


def data(args):
    "What is in a source, what is left out and why, and what a network would receive."
    from imagen_nb.pictures.captioned import load_captioned
    from imagen_nb.recipes import find_recipe
    from imagen_nb.runs.run import make_encoder, save_grid

    recipe = find_recipe(args.recipe)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report says it all
        pictures = load_captioned(
            args.source,
            recipe.stages[-1].size,
            args.split,
            args.image_column,
            args.caption_column,
            "all" if args.decode else True,
            min_size=args.min_size,
            held_out=args.held_out,
            max_skipped=1,
        )
        print(pictures.report())
        if recipe.encoder == "toy":
            tell_words(make_encoder(recipe), pictures)
        for line in forecast(pictures, recipe):
            print(line)
        chosen = list(range(len(pictures)))[:: max(1, len(pictures) // 8)][:8]
        sizes = [stage.size for stage in recipe.stages]
        save_grid(
            [pictures.caption(i)[:200] for i in chosen],
            [pictures.images(chosen, size) for size in sizes],
            args.out,
        )
    print(
        f"{args.out}: pictures as the stages of {recipe.name} receive them, {', '.join(map(str, sizes))} px"
    )


def tell_words(encoder, pictures, most: int = 10_000):
    "What the toy encoder makes of captions, the first ten thousand of them."
    captions = list(
        dict.fromkeys(
            c for i in range(min(most, len(pictures))) for c in pictures.captions(i) or [""]
        )
    )
    longest = max(map(len, encoder.tokenize(captions)))
    print(
        f"tokens: at most {longest} of {encoder.max_length}; {encoder.truncated} captions are cut there"
    )
    if words := spelled(encoder, captions):
        print(
            f"words the toy encoder has never met, and only spells: {len(words)}, as {', '.join(words[:5])}; \n  one that"
            " reads real language: imagen-nb train ... --encoder google/t5-v1_1-base"
        )


def forecast(pictures, recipe, most: int = 32):
    "For each stage: epochs a recipe takes, pictures that are too small, and how long reading an epoch would take."
    import time

    sides, chosen = (
        pictures.catalog.sizes(),
        list(range(len(pictures)))[:: max(1, len(pictures) // most)][:most],
    )
    for k, (stage, training) in enumerate(zip(recipe.stages, recipe.training)):
        since = time.perf_counter()
        for i in chosen:
            pictures.images([i], stage.size)
        seconds = (time.perf_counter() - since) / len(chosen) * len(pictures)
        epochs, small = (
            training.steps * training.batch / len(pictures),
            int((sides < stage.size).sum()),
        )
        yield (
            f"stage {k}, {stage.size} px: {training.steps:,} steps of {training.batch} are {epochs:,.1f} epochs; {small} pictures are"
            f" smaller and would be enlarged; reading all once takes {clock(seconds)} on one core, by {len(chosen)} of them"
        )


def clock(seconds: float) -> str:
    "A time for people."
    return (
        f"{seconds:.1f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def doctor(args):
    "What is wrong with a run; 1 if there is an error."
    from imagen_nb.runs.doctor import doctor, report

    findings = doctor(args.run_dir, args.draw)
    print(report(findings))
    return int(any(f.level == "error" for f in findings))


def env(args):
    "What a bug report needs."
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from imagen_nb import __version__
    from imagen_nb.stage import has_fast_bf16

    def installed(name):
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    cpu = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    rows = {
        "imagen_nb": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "CPU": cpu,
        "GPU": gpu,
        "fast bf16": has_fast_bf16("cuda" if torch.cuda.is_available() else "cpu"),
    }
    names = (
        "torch",
        "transformers",
        "datasets",
        "accelerate",
        "safetensors",
        "sentencepiece",
        "pillow",
        "numpy",
    )
    for name, value in (rows | {o: installed(o) for o in names}).items():
        print(f"{name:<14} {value}")


# ---------------------------------------------------------------- what commands share


def load_model(args):
    "The model the user named, on the GPU if there is one."
    import torch

    from imagen_nb.cascade import Imagen
    from imagen_nb.text import TextEncoder

    encoder = TextEncoder.from_pretrained(args.encoder) if args.encoder else None
    imagen = Imagen.from_pretrained(args.model, encoder)
    return imagen.to("cuda") if torch.cuda.is_available() else imagen


def warn_of_untrained(imagen):
    "Say which stages cannot draw yet."
    missing = [o.config.size for o in imagen.stages if not o.is_trained]
    if missing:
        print(
            "never trained, so left out: " + ", ".join(f"{size} px" for size in missing),
            file=sys.stderr,
        )


def spelled(encoder, captions: list[str]) -> list[str]:
    "Words that a tokenizer takes to pieces."
    words = dict.fromkeys(
        word for caption in captions for word in caption.replace(",", " ").split()
    )
    return [word for word in words if len(encoder.tokenizer.tokenize(word)) > 1]


def sampling_options(args, n: int) -> dict:
    "What the user gave, each a value for all stages or a list with one for each of n."
    kinds = dict(steps=int, w=float, sampler=str, threshold=str, aug_t=float)
    options = {}
    for name, kind in kinds.items():
        if (text := getattr(args, name)) is None:
            continue
        flag = "--" + name.replace("_", "-")
        try:
            values = [kind(o) for o in text.split(",")]
        except ValueError:
            raise ValueError(
                f"{flag}: got {text!r}, expected {'a whole number' if kind is int else 'a number'},"
                f" or {n} of them with commas between"
            ) from None
        if len(values) not in (1, n):
            raise ValueError(
                f"{flag}: got {len(values)} values, expected one, or one for each of {n} stages"
            )
        if name == "threshold":
            values = [None if v == "none" else v for v in values]
        options[name] = values * n if len(values) == 1 else values
    return options


def read_size(text: str) -> tuple[int, int]:
    "HxW as two numbers."
    h, x, w = text.lower().partition("x")
    if not (x and h.isdecimal() and w.isdecimal()):
        raise ValueError(
            f"sample: --size, got {text!r}, expected height x width of the base's pictures, as in 32x48"
        )
    return int(h), int(w)


class Parser(argparse.ArgumentParser):
    "A parser whose complaints are one line that names what exists."

    def error(self, message):
        kind, _, given = message.partition(": ")
        known = [o for o in self._option_string_actions if o.startswith("--")]
        if "invalid choice" in given:
            given, known = given.split("'")[1], COMMANDS
            message = f"no command {given!r}"
        near = [m for word in given.split() for m in difflib.get_close_matches(word, known, 1, 0.7)]
        hint = f" Did you mean {near[0]}?" if near else f" There are: {', '.join(known)}."
        if kind == "unrecognized arguments" or known is COMMANDS:
            message += "." + hint
        self.exit(
            2,
            f"{self.prog}: {message}{'' if message[-1] in '.?' else '.'} See {self.prog} --help.\n",
        )

    def parse_args(self, args=None, namespace=None):
        "Complaints about unknown options come from the command they were given to."
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            getattr(parsed, "parser", self).error(f"unrecognized arguments: {' '.join(rest)}")
        return parsed


def number(text: str) -> int | float:
    "A whole number, or a share."
    return int(text) if text.isdecimal() else float(text)


def add_columns(p):
    "Options of commands that read pictures."
    p.add_argument("--image-column", metavar="NAME", help="of a table (default: guessed)")
    p.add_argument(
        "--caption-column", metavar="NAME", help="of a table or of .json files (default: guessed)"
    )
    p.add_argument(
        "--min-size",
        type=int,
        default=0,
        metavar="N",
        help="leave out pictures whose shorter side has fewer pixels",
    )


def add_execution(p):
    "Options of training that change how it is done, not what is learned."
    p.add_argument(
        "--accumulate",
        type=int,
        metavar="N",
        help="micro-batches of a step: less memory, same result (default 1)",
    )
    p.add_argument(
        "--recompute",
        action="store_true",
        default=None,
        help="compute activations twice instead of keeping them: less memory",
    )
    p.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="compile the network's blocks (default: on a GPU)",
    )
    p.add_argument(
        "--validate-every",
        type=int,
        metavar="N",
        help="steps between validations; 0: none (default: 1 %% of the time)",
    )
    p.add_argument(
        "--sample-every",
        type=int,
        metavar="N",
        help="steps between grids of samples; 0: none (default: 1 %% of the time)",
    )
    p.add_argument(
        "--track",
        action="append",
        default=[],
        metavar="NAME",
        help="also tell tensorboard or wandb; may be repeated",
    )


def add_sampling(p):
    "Options of commands that draw."
    p.add_argument(
        "--model",
        default="toy",
        help="directory, hub name or toy, which ships with the package (default)",
    )
    p.add_argument(
        "--encoder",
        metavar="DIR",
        help="folder of the text encoder, for a model trained with one of your own",
    )
    p.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the noise; the same seed gives the same picture (default 0)",
    )
    p.add_argument(
        "--steps", help="network evaluations: one number, or one for each stage as in 16,6,4"
    )
    p.add_argument("--w", help="guidance weight, 1 = off; one number, or one for each stage")
    p.add_argument("--sampler", help="ddpm, ddim or dpmpp_2m; one, or one for each stage")
    p.add_argument("--threshold", help="none, static or dynamic; one, or one for each stage")
    p.add_argument(
        "--aug-t",
        help="noise on the pictures that a stage enlarges, 0 to 1; one, or one for each stage (the base has no use for its own)",
    )


def parser() -> argparse.ArgumentParser:
    "Commands, options, help."
    raw = argparse.RawDescriptionHelpFormatter
    p = Parser(prog="imagen-nb", description=INTRO, formatter_class=raw)
    commands = p.add_subparsers(
        title="commands", dest="command", required=True, parser_class=Parser, metavar="COMMAND"
    )

    def command(run, text, examples=""):
        c = commands.add_parser(
            run.__name__,
            **(dict(help=text, description=text + ".") if text else {}),
            epilog=examples and "examples:\n" + examples,
            formatter_class=raw,
        )
        c.set_defaults(run=run, parser=c)
        return c

    t = command(
        train,
        "train a recipe; run the same command again to go on",
        """\
  imagen-nb train toy                                   drawn scenes, minutes on two CPU cores
  imagen-nb train toy --data photos --out runs/photos   your pictures, from scratch
  imagen-nb train toy --data photos --init toy          your pictures, from the weights that ship
  imagen-nb train toy --data list.tsv --image-column path --caption-column title --min-size 256 --held-out .05
  imagen-nb train toy --stage 0 --set training.0.steps=300 --set stages.0.network.dim=32""",
    )
    t.add_argument("recipe", help="toy, toy-full or paper")
    t.add_argument("--data", metavar="SOURCE", help=DATA_HELP)
    t.add_argument(
        "--init",
        metavar="MODEL",
        help="start from this model's stages and weights: directory, hub name or toy",
    )
    t.add_argument(
        "--encoder",
        metavar="NAME",
        help="read captions with this T5, BERT or CLIP: folder or hub name (default: the recipe's)",
    )
    t.add_argument(
        "--stage",
        type=int,
        metavar="N",
        help="train this stage alone; 0 is the base (default: all, in turn)",
    )
    t.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="path=value",
        help="change the recipe, as in training.0.lr=1e-3; may be repeated",
    )
    t.add_argument("--out", type=Path, help="directory of the run (default runs/RECIPE)")
    t.add_argument("--seed", type=int, default=0, help="of weights and draws (default 0)")
    t.add_argument("--processes", type=int, help="on a CPU (default one per core, at most 2)")
    t.add_argument(
        "--held-out",
        type=number,
        metavar="N",
        help="on drawn scenes: test captions to draw and score (default 200);"
        " with --data: share kept back as valid, and as much as test (default 0)",
    )
    add_columns(t)
    add_execution(t)
    s = command(
        sample,
        "draw captions: a PNG for each, and grid.png with all stages",
        """\
  imagen-nb sample "a small red circle to the left of a big blue square"
  imagen-nb sample "a striped star on a black background" "two pink rings against white" --n 4 --w 3,1,1 --out stars""",
    )
    s.add_argument(
        "captions", nargs="+", metavar="CAPTION", help='what to draw; "" draws without a caption'
    )
    s.add_argument("--n", type=int, default=1, help="pictures of each caption (default 1)")
    s.add_argument(
        "--size",
        metavar="HxW",
        help="height and width of the base's pictures, as 32x48; the stages enlarge them (default: as trained)",
    )
    s.add_argument(
        "--out", type=Path, default=Path("pictures"), help="folder for the files (default pictures)"
    )
    add_sampling(s)
    u = command(
        upscale,
        "enlarge a picture with the super-resolution stages",
        """\
  imagen-nb upscale small.png "a red circle on a gray background" """,
    )
    u.add_argument(
        "image", type=Path, metavar="IMAGE", help="a picture file; its centred square is used"
    )
    u.add_argument("caption", metavar="CAPTION", help="what it shows")
    u.add_argument("--out", type=Path, help="PNG file (default: beside IMAGE)")
    add_sampling(u)
    x = command(
        export,
        "write the model of a run that has not finished, from its newest checkpoints",
        """\
  imagen-nb export runs/toy model-so-far""",
    )
    x.add_argument("run_folder", type=Path, metavar="RUN", help="directory of a run")
    x.add_argument("out", type=Path, metavar="OUT", help="directory for the model")
    e = command(
        embed,
        "encode captions once, for training; run the same command again to go on",
        """\
  imagen-nb embed photos --encoder google/t5-v1_1-base --out photos-embedded
  imagen-nb embed captions.jsonl --column text --out captions-embedded
  imagen-nb embed --convert t5-v1_1-xxl t5-xxl-encoder            44 GB to 9.5 GB, once
  CUDA_VISIBLE_DEVICES=1 imagen-nb embed captions.txt --encoder t5-xxl-encoder --share 1/2 --out embedded""",
    )
    e.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help=f"a .txt (a caption in each line), .jsonl, .csv or .tsv file, or {DATA_HELP}",
    )
    e.add_argument(
        "--encoder",
        default="toy",
        help="toy, or a folder or hub name of a T5, BERT or CLIP (default toy)",
    )
    e.add_argument("--out", type=Path, metavar="DIR", help="folder to make, or to add to")
    e.add_argument(
        "--column",
        metavar="NAME",
        help="of the captions in .jsonl, .csv and .tsv files (default caption or text)",
    )
    e.add_argument(
        "--length",
        type=int,
        default=128,
        metavar="N",
        help="tokens kept of a caption; the rest is cut and counted (default 128)",
    )
    e.add_argument(
        "--dtype",
        choices=["bf16", "fp32"],
        help="the encoder computes in (default bf16 where it is fast, else fp32)",
    )
    e.add_argument(
        "--store", choices=["bf16", "fp32"], default="bf16", help="on disk (default bf16)"
    )
    e.add_argument("--device", help="cuda, cuda:1 or cpu (default cuda if there is one)")
    e.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="captions at once (default 256 on a GPU, 64 on a CPU)",
    )
    e.add_argument(
        "--share",
        default="0/1",
        metavar="K/N",
        help="encode the K-th of N shares; one process for each, one DIR for all",
    )
    e.add_argument(
        "--verify",
        action="store_true",
        help="read every byte of what is there; damaged parts alone are encoded anew",
    )
    e.add_argument(
        "--convert",
        nargs=2,
        metavar=("SRC", "DST"),
        help="a published T5 folder to one with its encoder alone, in bf16",
    )
    d = command(
        data,
        "look at pictures before training: counts, what is left out and why, a grid",
        """\
  imagen-nb data photos
  imagen-nb data coco --split valid
  imagen-nb data shards --recipe paper --min-size 256
  imagen-nb data list.tsv --image-column path --caption-column title""",
    )
    d.add_argument("source", metavar="SOURCE", help=DATA_HELP)
    d.add_argument("--recipe", default="toy", help="whose sizes to show (default toy)")
    d.add_argument(
        "--out",
        type=Path,
        default=Path("data.png"),
        help="PNG file for the grid (default data.png)",
    )
    d.add_argument("--split", default="train", help="train, valid or test (default train)")
    d.add_argument(
        "--held-out",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of train, kept back as valid and as much as test (default 0)",
    )
    add_columns(d)
    d.add_argument(
        "--decode", action="store_true", help="decode every picture, not just look at both its ends"
    )
    h = command(
        doctor,
        "look for faults in a run: data, log, checkpoints, validation, pictures; exit code 1 if there is an error",
        """\
  imagen-nb doctor runs/toy            a run: finished, unfinished or damaged
  imagen-nb doctor runs/toy/32px       one stage of it
  imagen-nb doctor runs/toy --draw 0   draw nothing: quicker""",
    )
    h.add_argument(
        "run_dir",
        type=Path,
        metavar="RUN",
        help="directory of a run, of one of its stages, or of a saved model",
    )
    h.add_argument(
        "--draw",
        type=int,
        metavar="N",
        help="pictures to draw with the newest averaged weights (default 8 if the networks"
        " have under 20 million parameters in all, else 0)",
    )
    command(env, "versions and devices, for bug reports")
    w = command(work, None)
    w.add_argument("out", type=Path)
    w.add_argument("--stage", type=int)
    w.add_argument("--held-out", type=int)
    w.add_argument("--execution", default="{}")
    return p


def main(argv: list[str] | None = None) -> int:
    "Entry point of `imagen-nb`."
    from imagen_nb.engine.stopping import TrainingError

    args = parser().parse_args(argv)
    warnings.showwarning = lambda message, *_, **__: print(f"imagen-nb: {message}", file=sys.stderr)
    try:
        return args.run(args) or 0
    except (
        ValueError,
        OSError,
        TrainingError,
    ) as e:  # the user's to mend; anything else is ours and shows its traceback
        reason = f"{e.strerror}: {e.filename}" if isinstance(e, OSError) and e.filename else str(e)
        print(
            f"imagen-nb {args.command}: {reason.removeprefix(args.command + ': ')}", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt as e:
        print(f"\nimagen-nb: {e or 'stopped'}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

"""What the command line understands: commands, options, help, and complaints in one line."""

import argparse
import difflib
import math
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from imagen_nb import __version__
from imagen_nb.store.config import did_you_mean
from imagen_nb.store.files import SHIPPED, as_path

__all__ = ["parser"]

# What exists, without the libraries that know more; tests compare.
RECIPES = ("emoji", "toy", "toy-full", "paper")
GPUS = ("b200", "h200", "h100", "a100", "a100-40", "l40s", "l4", "5090", "4090", "3090")
SAMPLERS = ("ddpm", "ddim", "dpmpp_2m")
THRESHOLDS = ("none", "static", "dynamic")
TRACKERS = ("tensorboard", "wandb")
DRAWN_SCENES = ("toy", "toy-full")  # recipes that need no pictures
STAGES = 3  # of every recipe

INTRO = """\
Train Imagen cascades and draw with them.

  imagen-nb sample "a 3d emoji of a strawberry"
  imagen-nb train toy                        train on drawn scenes; minutes on two CPU cores
  imagen-nb data path/to/folder              look at your own pictures before training
  imagen-nb train toy --data path/to/folder  train on them

`imagen-nb COMMAND --help` explains a command."""

DATA_HELP = (
    "a folder (with metadata.jsonl, metadata.csv, a .txt beside each picture, or no captions at all; of .tar,"
    " .parquet or .arrow files; COCO's), one such file, a .csv, .tsv or .jsonl list, or a dataset of the hub"
)


class Parser(argparse.ArgumentParser):
    "A parser whose complaints are one line that names what exists."

    def error(self, message):
        kind, _, given = message.partition(": ")
        known = [o for o in self._option_string_actions if o.startswith("--")]
        if is_command := kind == "argument COMMAND":
            given, known = given.split("'")[1], list(USES)
            message = f"no command {given!r}"
        elif given == "COMMAND":  # none was typed
            message = f"expected a command: {', '.join(USES)}"
        near = [m for word in given.split() for m in difflib.get_close_matches(word, known, 1, 0.7)]
        hint = f" Did you mean {near[0]}?" if near else f" There are: {', '.join(known)}."
        if kind == "unrecognized arguments" or is_command:
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


def refused(text: str, expected: str) -> argparse.ArgumentTypeError:
    "What an option got and what it takes."
    return argparse.ArgumentTypeError(f"got {text!r}, expected {expected}")


def whole(least: int = 0) -> Callable[[str], int]:
    "A reader of whole numbers from `least` on."

    def read(text: str) -> int:
        with suppress(ValueError):
            if (value := int(text)) >= least:
                return value
        raise refused(text, f"a whole number, {least} or more")

    return read


def real(least: float, most: float = math.inf) -> Callable[[str], float]:
    "A reader of numbers between two."

    def read(text: str) -> float:
        with suppress(ValueError):
            if math.isfinite(value := float(text)) and least <= value <= most:
                return value
        upto = f"{least:g} or more" if most == math.inf else f"{least:g} to {most:g}"
        raise refused(text, "a number" if least == -math.inf else f"a number, {upto}")

    return read


def among(names: Collection[str]) -> Callable[[str], str]:
    "A reader of one of these names."

    def read(text: str) -> str:
        if text in names:
            return text
        raise refused(text, f"one of {', '.join(names)}{did_you_mean(text, names)}")

    return read


def each(read: Callable[[str], Any]) -> Callable[[str], list]:
    "A reader of one value for all stages, or one for each with commas between."

    def values(text: str) -> list:
        try:
            return [read(o) for o in text.split(",")]
        except argparse.ArgumentTypeError as e:
            told = str(e).partition(", expected ")[2]
            raise refused(text, f"{told}; or one for each stage, with commas between") from None

    return values


def number(text: str) -> int | float:
    "A number of test captions, or a share of pictures."
    return whole()(text) if text.isdecimal() else real(0)(text)


def change(text: str) -> str:
    "A change of a recipe."
    if "=" in text:
        return text
    raise refused(text, "path=value, as in training.0.steps=500")


def sides(text: str) -> tuple[int, int]:
    "Height and width."
    h, x, w = text.lower().partition("x")
    if not (x and h.isdecimal() and w.isdecimal()):
        raise refused(text, "height x width of the base's pictures, as in 32x48")
    return int(h), int(w)


def share(text: str) -> tuple[int, int]:
    "K/N as two numbers."
    k, slash, n = text.partition("/")
    if not (slash and k.isdecimal() and n.isdecimal() and int(k) < int(n)):
        raise refused(text, "K/N with K from 0 to N - 1, as in 0/4")
    return int(k), int(n)


def path(text: str) -> Path:
    "A path, or a complaint in one line."
    try:
        return as_path(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from None


def words(text: str) -> str:
    "What was typed, in UTF-8 whatever the locale says; bytes that are none become marks."
    return os.fsencode(text).decode(errors="replace")


Kind = dict[str, Any]  # what `add_argument` is told
INT: Kind = dict(type=int)
COUNT: Kind = dict(type=whole(1))
SIZE: Kind = dict(type=whole())
RECIPE: Kind = dict(type=among(RECIPES))
PATH: Kind = dict(type=path)
FLAG: Kind = dict(action="store_true")
MANY: Kind = dict(action="append", default=[])
COLUMNS = {
    "--image-column NAME": "of a table (default: guessed)",
    "--caption-column NAME": "of a table or of .json files (default: guessed)",
    "--min-size N": "leave out pictures whose shorter side has fewer pixels (default 0)",
}
EXECUTION = {  # how training is done, not what is learned
    "--accumulate,--gradient-accumulation N": "micro-batches of a step: less memory, same result (default 1)",
    "--shard": "with several processes: each keeps a part of weights, average and optimizer state, not all of them",
    "--recompute,--gradient-checkpointing": "compute activations twice instead of keeping them: less memory",
    "--compile": "compile the network's blocks (default: on a GPU)",
    "--validate-every N": "steps between validations; 0: none (default: 1 %% of the time)",
    "--sample-every N": "steps between grids of samples; 0: none (default: 1 %% of the time)",
    "--track NAME": "also tell tensorboard or wandb; may be repeated",
}
TRAIN = {
    "recipe": "emoji, toy, toy-full or paper",
    "--data SOURCE": f"{DATA_HELP} (default: drawn scenes)",
    "--init,--fine-tune MODEL": "start from the stages and weights of this model or run: directory, hub name, emoji or"
    " toy (default: random weights)",
    "--encoder,--text-encoder NAME": "read captions with english or toy, which ship, or with a T5, BERT or CLIP:"
    " folder or hub name (default: the recipe's);"
    " with --init: where the model's own encoder lies",
    "--stage N": "train this stage alone; 0 is the base (default: all, in turn)",
    "--steps N": "training steps: one number, or one for each stage (default: the recipe's)",
    "--batch,--batch-size N": "pictures of a step, likewise (default: the recipe's)",
    "--lr,--learning-rate RATE": "likewise (default: the recipe's)",
    "--set path=value": "change anything of the recipe, as in training.0.optimizer=adam; may be repeated",
    "--out,--output RUN": "directory of the run (default runs/RECIPE)",
    "--seed": "of weights and draws (default 0)",
    "--processes,--gpus N": "one for each GPU (default 1); on a CPU one for each core (default 2 at most)",
    "--device": "cuda or cpu (default: GPUs where there are some)",
    "--online": "encode captions while training runs, on the device that trains, not before it into a cache on disk;"
    " may change when a run goes on",
    "--held-out N": "on drawn scenes: test captions to draw and score (default 200);"
    " with --data: share kept back as valid, and as much as test (default 0)",
}
PLAN = {
    "recipe": "emoji, toy, toy-full or paper",
    "--gpu NAME": "b200, h200, h100, a100, a100-40, l40s, l4, 5090, 4090 or 3090 (default h100)",
    "--count,--gpus N": "GPUs (default 1)",
    "--strategy": "ddp: every GPU holds all of it; fsdp: each holds a part (default ddp)",
    "--batch,--batch-size N": "pictures at once on a GPU (default: as many as fit)",
    "--recompute,--gradient-checkpointing": "compute activations twice instead of keeping them: less memory",
    "--share": "of the GPU's peak in its data sheet that is reached (default 0.4)",
    "--price": "of a GPU for an hour, in any currency (default: time alone is told)",
    "--pictures N": "to train on, for sizes on disk (default: as many as the recipe says, if it does)",
    "--set path=value": "change the recipe, as in training.0.batch=256; may be repeated",
}
SAMPLING = {
    "--model": "emoji (default) or toy, which ship with the package; a directory of a model or a run; a hub name",
    "--encoder,--text-encoder DIR": "folder of the text encoder, for a model trained with one of your own"
    " (default: the model says which)",
    "--seed": "of the noise; the same seed gives the same picture (default 0)",
    "--steps,--sampling-steps N": "network evaluations: one number, or one for each stage as in 16,6,4"
    " (default: the model's)",
    "--w,--guidance-scale WEIGHT": "how strongly captions are obeyed, 1 = guidance off; one number, or one for each"
    " stage (default: the model's)",
    "--sampler,--scheduler NAME": "ddpm, ddim or dpmpp_2m; one, or one for each stage (default: the model's)",
    "--threshold,--thresholding NAME": "none, static or dynamic; one, or one for each stage (default: the model's)",
    "--aug-t,--aug-level LEVEL": "noise on the pictures that a stage enlarges, 0 to 1; one, or one for each stage,"
    " where the base has no use for its own (default: the model's)",
}
SAMPLE = {
    "captions CAPTION": 'what to draw; "" draws without a caption',
    "--n,--num-images N": "pictures of each caption (default 1)",
    "--size HxW": "height and width of the base's pictures, as 32x48; the stages enlarge them"
    " (default: as trained)",
    "--literal": "emoji: draw words that are no names of its set as they are, not as the nearest name",
    "--out,--output FOLDER": "folder for the files (default pictures)",
}
UPSCALE = {
    "image IMAGE": "a picture file; its centred square is used",
    "caption CAPTION": "what it shows",
    "--out,--output FILE": "PNG, JPEG or WebP file (default: beside IMAGE)",
}
EXPORT = {
    "run_folder RUN": "directory of a run",
    "out OUT": "directory for the model",
    "--out,--output OUT": "the same as an option",
}
EMBED = {
    "source SOURCE": f"a .txt (a caption in each line), .jsonl, .csv or .tsv file, or {DATA_HELP}",
    "--encoder,--text-encoder NAME": "toy or english, or a folder or hub name of a T5, BERT or CLIP (default toy)",
    "--out,--output DIR": "folder to make, or to add to; needed unless --convert is given",
    "--column NAME": "of the captions in .jsonl, .csv and .tsv files (default caption or text)",
    "--length,--max-length N": "tokens kept of a caption; the rest is cut and counted (default 128)",
    "--dtype": "the encoder computes in (default bf16 where it is fast, else fp32)",
    "--store": "on disk (default bf16)",
    "--device": "cuda, cuda:1 or cpu (default cuda if there is one)",
    "--batch,--batch-size N": "captions at once (default 256 on a GPU, 64 on a CPU)",
    "--share K/N": "encode the K-th of N shares; one process for each, one DIR for all (default 0/1: everything)",
    "--verify": "read every byte of what is there; damaged parts alone are encoded anew",
    "--convert": "a published T5 folder to one with its encoder alone, in bf16, and nothing else",
}
DATA = {
    "source SOURCE": DATA_HELP,
    "--recipe NAME": "whose sizes to show (default: toy or emoji, by the words of the captions)",
    "--encoder,--text-encoder NAME": "read captions as english, toy, or this T5, BERT or CLIP does: folder or hub name"
    " (default: by their words)",
    "--out,--output FILE": "PNG, JPEG or WebP file for the grid (default data.png)",
    "--split": "train, valid or test (default train)",
    "--held-out SHARE": "of train, kept back as valid and as much as test (default 0)",
}
DRAWBENCH = {
    "model": "toy or emoji, which ship with the package; a directory of a model or a run; a hub name",
    "--prompts SOURCE": "own (our 200), shapes or emoji (one world of them); a .csv, .tsv or .jsonl file with"
    " columns Category and Prompts, or a dataset of the hub: those are drawn, not scored (default: the model's world,"
    " else own)",
    "--n,--num-images N": "pictures of each prompt (default 2; the paper shows people 8)",
    "--out,--output FOLDER": "folder for pictures, grids, report.html and scores.json (default drawbench/MODEL)",
} | {k: v for k, v in SAMPLING.items() if k not in ("--model", "--seed")}
RATE = {
    "a": "folder that `imagen-nb drawbench` has filled: model A",
    "b": "another one: model B, or the originals for --protocol coco",
    "--out,--output FOLDER": "folder for rating.html, which raters open, and key.json, which they must not see"
    " (default rating)",
    "--protocol": "drawbench: which represents the caption better, which is of higher quality; coco: which looks more"
    " real, does the caption describe it (default drawbench)",
    "--each N": "prompts of a category, at most (default: all)",
    "--seed": "decides which pictures come first (default 0)",
    "--ratings FILE": "count what raters sent: one file or more, for the page in --out (default: make that page)",
}
EMOJI = {
    "out FOLDER": "a new folder, for pictures to train on and pictures held out",
    "--size N": "side of the pictures in pixels (default 256)",
    "--packages DIR": "where npm's packages lie or are put (default: beside FOLDER)",
    "--all": "every emoji but flags, not only the things that the shipped model learned",
    "--more-styles": "three styles more, for training alone; the shipped model learned from them too",
}
EVALUATE = {
    "model MODEL": "toy, emoji, a directory of a model or a run, or a hub name",
    "--protocol": "own: captions and pictures of a folder (default); coco-fid30k: 30,000 random captions of COCO's"
    " validation set, 256 px",
    "--data SOURCE": f"needed with own: {DATA_HELP}",
    "--coco DIR": "needed with coco-fid30k: folder with COCO's annotations and pictures",
    "--extractor NAME": "who looks at pictures for FID, KID, precision and recall: inception (default), inception:FILE"
    " with its weights, clip:NAME, or judge, which ships and knows emoji",
    "--matcher NAME": "who compares pictures with captions: clip:NAME, judge or none"
    " (default clip:openai/clip-vit-base-patch16; with extractor judge: judge)",
    "--n,--num-images N": "pictures to draw (default: the protocol's; own: as many as there are real ones)",
    "--out,--output FOLDER": "folder of the evaluation (default evaluations/PROTOCOL)",
    "--share K/N": "draw the K-th of N shares; one process for each, one --out for all (default 0/1: everything)",
}
DECODE = {
    "--decode": "decode every picture, not just look at both its ends",
    "--no-timing": "do not time a few training samples: quicker, and no forecast of hours",
}
DOCTOR = {
    "run_dir RUN": "directory of a run, of one of its stages, or of a saved model",
    "--draw N": "pictures to draw with the newest averaged weights (default 8 if the networks"
    " have under 20 million parameters in all, else 0)",
}
DRAWN: dict[str, Kind] = dict(
    seed=INT | dict(default=0),
    steps=dict(type=each(whole(1))),
    w=dict(type=each(real(-math.inf))),
    sampler=dict(type=each(among(SAMPLERS))),
    threshold=dict(type=each(among(THRESHOLDS))),
    aug_t=dict(type=each(real(0, 1))),
)
DRAWS: dict[str, Kind] = dict(model=dict(default=SHIPPED[0])) | DRAWN
DTYPE: Kind = dict(choices=["bf16", "fp32"])
SHARE: Kind = dict(type=share, default="0/1")


class Use(NamedTuple):
    "How a command is called."

    text: str  # what it does
    examples: str  # lines of a shell
    options: dict[str, str]  # flag and perhaps the name of its value -> help
    kinds: dict[str, Kind]  # of some options


USES = {
    "train": Use(
        "train a recipe; run the same command again to go on",
        """\
  imagen-nb train toy                                   drawn scenes, minutes on two CPU cores
  imagen-nb train toy --data photos --out runs/photos   your pictures, from scratch
  imagen-nb train toy --data photos --init toy          your pictures, from the weights that ship
  imagen-nb train toy --data list.tsv --image-column path --caption-column title --min-size 256 --held-out .05
  imagen-nb train toy --stage 0 --steps 300 --set stages.0.network.dim=32
  imagen-nb train paper --data shards --processes 8     eight GPUs of this machine
  srun imagen-nb train paper --data shards              one task for each GPU, any number of machines""",
        TRAIN | COLUMNS | EXECUTION,
        dict(
            recipe=RECIPE,
            stage=dict(type=int, choices=range(STAGES)),
            steps=dict(type=each(whole(1))),
            batch=dict(type=each(whole(1))),
            lr=dict(type=each(real(0))),
            set=MANY | dict(type=change),
            out=PATH,
            seed=INT | dict(default=0),
            processes=COUNT,
            device=dict(choices=["cuda", "cpu"]),
            online=FLAG,
            held_out=dict(type=number),
            min_size=SIZE | dict(default=0),
            accumulate=COUNT,
            shard=FLAG | dict(default=None),
            recompute=FLAG | dict(default=None),
            compile=dict(action=argparse.BooleanOptionalAction),
            validate_every=SIZE,
            sample_every=SIZE,
            track=MANY | dict(type=among(TRACKERS)),
        ),
    ),
    "plan": Use(
        "count what training a recipe takes: memory, FLOPs, time, money, disk; exit code 1 if a stage does not fit",
        """\
  imagen-nb plan emoji --gpu 4090
  imagen-nb plan paper --gpu h100 --count 8 --strategy fsdp --price 2.5
  imagen-nb plan paper --gpu a100 --count 64 --recompute --set training.0.optimizer=adam""",
        PLAN,
        dict(
            recipe=RECIPE,
            gpu=dict(type=among(GPUS)),
            strategy=dict(choices=["ddp", "fsdp"]),
            count=COUNT,
            batch=COUNT,
            recompute=FLAG | dict(default=None),
            share=dict(type=real(0, 1)),
            price=dict(type=real(0)),
            pictures=COUNT,
            set=MANY | dict(type=change),
        ),
    ),
    "sample": Use(
        "draw captions: a PNG for each, and grid.png with all stages",
        """\
  imagen-nb sample "a 3d emoji of a strawberry"
  imagen-nb sample "an octopus" "a black and white emoji of a key" --n 4 --guidance-scale 3,1,1 --out some
  imagen-nb sample --model toy "a small red circle to the left of a big blue square" """,
        SAMPLE | SAMPLING,
        DRAWS
        | dict(
            captions=dict(nargs="+", type=words),
            n=COUNT | dict(default=1),
            size=dict(type=sides),
            literal=FLAG,
            out=PATH | dict(default=Path("pictures")),
        ),
    ),
    "upscale": Use(
        "enlarge a picture with the super-resolution stages",
        """\
  imagen-nb upscale small.png "a red apple" """,
        UPSCALE | SAMPLING,
        DRAWS | dict(image=PATH, caption=dict(type=words), out=PATH),
    ),
    "export": Use(
        "write the model of a run that has not finished, from its newest checkpoints",
        """\
  imagen-nb export runs/toy --out model-so-far""",
        EXPORT,
        {
            "run_folder": PATH,
            "out": PATH | dict(nargs="?", default=argparse.SUPPRESS),
            "--out": PATH,
        },
    ),
    "embed": Use(
        "encode captions once, for training; run the same command again to go on",
        """\
  imagen-nb embed photos --encoder google/t5-v1_1-base --out photos-embedded
  imagen-nb embed captions.jsonl --column text --out captions-embedded
  imagen-nb embed --convert t5-v1_1-xxl t5-xxl-encoder            44 GB to 9.5 GB, once
  CUDA_VISIBLE_DEVICES=1 imagen-nb embed captions.txt --encoder t5-xxl-encoder --share 1/2 --out embedded""",
        EMBED,
        dict(
            source=dict(nargs="?"),
            encoder=dict(default="toy"),
            out=PATH,
            length=COUNT | dict(default=128),
            dtype=DTYPE,
            store=DTYPE | dict(default="bf16"),
            batch=COUNT,
            share=SHARE,
            verify=FLAG,
            convert=dict(nargs=2, metavar=("SRC", "DST")),
        ),
    ),
    "data": Use(
        "look at pictures before training: counts, what is left out and why, a grid, and what to type next",
        """\
  imagen-nb data photos
  imagen-nb data coco --split valid
  imagen-nb data shards --recipe paper --min-size 256
  imagen-nb data list.tsv --image-column path --caption-column title""",
        DATA | COLUMNS | DECODE,
        dict(
            out=PATH | dict(default=Path("data.png")),
            recipe=RECIPE,
            split=dict(default="train"),
            held_out=dict(type=real(0, 0.5), default="0"),
            min_size=SIZE | dict(default=0),
            decode=FLAG,
            no_timing=FLAG,
        ),
    ),
    "emoji": Use(
        "draw the emoji that recipe emoji learns, from packages of npm; needs pip install imagen-nb[emoji]",
        """\
  imagen-nb emoji emoji-set
  imagen-nb train emoji --data emoji-set""",
        EMOJI,
        dict(out=PATH, size=COUNT | dict(default=256), packages=PATH, all=FLAG, more_styles=FLAG),
    ),
    "evaluate": Use(
        "draw captions and compare with real pictures: FID, KID, CLIP score; run the same command again to go on",
        """\
  imagen-nb evaluate emoji --data emoji-set --extractor judge --n 200
  imagen-nb evaluate runs/paper --protocol coco-fid30k --coco coco --w 1.35,8 --aug-t 0
  CUDA_VISIBLE_DEVICES=1 imagen-nb evaluate runs/paper --protocol coco-fid30k --coco coco --share 1/8""",
        EVALUATE | {flag: text for flag, text in SAMPLING.items() if flag != "--model"},
        DRAWN
        | dict(
            protocol=dict(choices=["own", "coco-fid30k"], default="own"),
            coco=PATH,
            extractor=dict(default="inception"),
            n=COUNT,
            out=PATH,
            share=SHARE,
        ),
    ),
    "drawbench": Use(
        "draw difficult prompts by kind, score them atom by atom; run the same command again to go on",
        """\
  imagen-nb drawbench toy
  imagen-nb drawbench runs/mine --prompts shapes --n 4
  imagen-nb drawbench runs/mine --prompts drawbench.csv --n 8     the published prompts, for people to rate""",
        DRAWBENCH,
        DRAWN | dict(n=COUNT | dict(default=2), out=PATH),
    ),
    "rate": Use(
        "ask people which of two models is better: a page that needs no server; then count their answers",
        """\
  imagen-nb rate drawbench/old drawbench/new --out rating
  imagen-nb rate drawbench/old drawbench/new --out rating --ratings ratings-ann.json ratings-bob.json""",
        RATE,
        dict(
            a=PATH,
            b=PATH,
            out=PATH | dict(default=Path("rating")),
            protocol=dict(choices=["drawbench", "coco"], default="drawbench"),
            each=COUNT,
            seed=INT | dict(default=0),
            ratings=dict(nargs="+", type=path),
        ),
    ),
    "doctor": Use(
        "look for faults in a run: data, log, checkpoints, validation, pictures; exit code 1 if there is an error",
        """\
  imagen-nb doctor runs/toy            a run: finished, unfinished or damaged
  imagen-nb doctor runs/toy/32px       one stage of it
  imagen-nb doctor runs/toy --draw 0   draw nothing: quicker""",
        DOCTOR,
        dict(run_dir=PATH, draw=SIZE),
    ),
    "env": Use("versions and devices, for bug reports", "", {}, {}),
}


def parser() -> argparse.ArgumentParser:
    "Commands, options, help."
    raw = argparse.RawDescriptionHelpFormatter
    p = Parser(prog="imagen-nb", description=INTRO, formatter_class=raw)
    p.add_argument("--version", action="version", version=f"imagen-nb {__version__}")
    commands = p.add_subparsers(
        title="commands", dest="command", required=True, parser_class=Parser, metavar="COMMAND"
    )
    for name, use in USES.items():
        c = commands.add_parser(
            name,
            help=use.text,
            description=use.text + ".",
            epilog=use.examples and "examples:\n" + use.examples,
            formatter_class=raw,
        )
        c.set_defaults(parser=c)
        for spec, words in use.options.items():
            flags, _, metavar = spec.partition(" ")
            first, *others = flags.split(",")
            name = first.lstrip("-").replace("-", "_")
            named: Kind = dict(metavar=metavar) if metavar else {}
            kind = use.kinds.get(first, use.kinds.get(name, {}))
            c.add_argument(first, *others, help=words, **named | kind)
    return p

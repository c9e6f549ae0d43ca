"""The command line `imagen-nb`. Each command is a few lines here; the work is done by the library."""

import dataclasses
import os
import shlex
import sys

from imagen_nb.runs.errors import in_one_line
from imagen_nb.runs.options import parser
from imagen_nb.runs.request import check_request
from imagen_nb.store.config import change, counted
from imagen_nb.store.files import as_path

__all__ = ["main"]

# ---------------------------------------------------------------- commands


def train(args):
    "Train a recipe, perhaps changed."
    from imagen_nb.runs import results, run

    scored = results.HELD_OUT if args.data or args.held_out is None else args.held_out
    out = args.out or f"runs/{args.recipe}"
    how = (args.stage, args.processes, scored, args.device, args.online)
    run.train(wanted(args), out, *how, **execution(args))


def wanted(args):
    "The recipe with every change that was asked for."
    from imagen_nb.recipes import find_recipe
    from imagen_nb.runs.pretrained import read_with, start_from

    recipe = find_recipe(args.recipe, args.seed)
    if args.init:
        recipe = start_from(recipe, args.init, args.encoder)
    elif args.encoder:
        recipe = read_with(recipe, args.encoder)
    if args.data:
        recipe = dataclasses.replace(recipe, data=own_pictures(args))
    return changed(recipe, [*in_short(args, len(recipe.stages)), *args.set])


def in_short(args, stages: int) -> list[str]:
    "What --steps, --batch and --lr mean in the words of --set; one value with --stage is that stage's."
    which = range(stages) if args.stage is None else [args.stage]
    found = []
    for name in ("steps", "batch", "lr"):
        values = getattr(args, name) or []
        if len(values) not in (0, 1, stages):
            raise ValueError(
                f"--{name}: got {counted(len(values), 'value')}, expected one, or one for each"
                f" of {counted(stages, 'stage')}"
            )
        pairs = enumerate(values) if len(values) > 1 else ((k, v) for k in which for v in values)
        found += [f"training.{k}.{name}={value}" for k, value in pairs]
    return found


def changed(recipe, changes: list[str]):
    "A recipe with what --set says."

    for text in changes:
        path, _, value = text.partition("=")
        recipe = change(recipe, path.strip(), value.strip())
    return recipe


def own_pictures(args):
    "What --data and its companions say."
    from imagen_nb.recipes import DataConfig

    where = as_path(args.data).resolve()
    return DataConfig(
        source=str(where) if where.exists() else args.data,
        image_column=args.image_column,
        caption_column=args.caption_column,
        min_size=args.min_size,
        held_out=args.held_out or 0.0,
    )


def execution(args) -> dict:
    "The fields of `Execution` that were given."
    from imagen_nb.training import Execution

    given = ((f.name, getattr(args, f.name, None)) for f in dataclasses.fields(Execution))
    return {name: value for name, value in given if value not in (None, [])}


def sample(args):
    "Draw captions."
    from imagen_nb.runs.results import count_trained, draw_captions
    from imagen_nb.runs.words import beyond, renamings

    seeds = [args.seed + k for k in range(args.n)] * len(args.captions)
    imagen = load_model(args)
    if missing := [f"{o.config.size} px" for o in imagen.stages if not o.is_trained]:
        print(f"never trained, so left out: {', '.join(missing)}", file=sys.stderr)
    options = sampling_options(args, max(count_trained(imagen), 1))
    for line in beyond(args.model, imagen.encoder.tokenizer, args.captions):
        print(line, file=sys.stderr)
    asked = args.captions
    names = {} if args.literal else renamings(args.model, imagen.encoder, asked)
    for caption, other in names.items():
        nearest = f"drawn as {other!r}, its nearest; --literal draws it as it is"
        what = nearest if other else "none is near, so it is drawn as it is"
        print(f"no name of the emoji set in {caption[:60]!r}: {what}", file=sys.stderr)
    drawn = [names.get(caption) or caption for caption in asked]
    options |= dict(size=args.size, drawn=drawn)
    for path in draw_captions(imagen, asked, seeds, args.out, args.out / "grid.png", **options):
        print(path)


def upscale(args):
    "Enlarge a picture with the super-resolution stages."
    from imagen_nb.pictures.decode import decode_picture
    from imagen_nb.pictures.pixels import to_square
    from imagen_nb.plots import add_picture
    from imagen_nb.store.files import picture_file

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
    name = f"{args.image.stem}-{imagen.stages[-1].config.size}px.png"
    out = picture_file(args.out or args.image.with_name(name))
    lowres = to_square(picture, side)[None]
    image = imagen.sample(
        [args.caption], seeds=[args.seed], lowres=lowres, progress=True, **options
    )[0]
    print(add_picture(image, out))


def export(args):
    "A model from a run that has not finished."
    from imagen_nb.runs import pretrained

    if (args.out / "meta.json").exists():
        print(f"{args.out}: the model that is there is replaced")
    for size, held in pretrained.export(args.run_folder, args.out).items():
        print(f"{size} px: {held}")
    print(f"{args.out}: imagen-nb sample ... --model {shlex.quote(str(args.out))}")


def embed(args):
    "Encode captions once and for all, or convert a T5 to its encoder alone."
    import torch

    from imagen_nb.runs import embed as embedding
    from imagen_nb.runs import setup

    if args.convert:
        return embedding.convert(*args.convert)
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32, None: None}
    captions = embedding.read_captions(args.source, args.column)
    options = dict(dtype=dtypes[args.store], share=args.share)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    encoder = setup.make_encoder(args.encoder, args.length, dtypes[args.dtype], device)
    embedding.embed(encoder, captions, args.out, args.batch, verify=args.verify, **options)


def data(args):
    "What is in a source, what is left out and why, and what a network would receive."
    from imagen_nb.runs.look import look

    options = dict(split=args.split, min_size=args.min_size, held_out=args.held_out)
    columns = dict(image_column=args.image_column, caption_column=args.caption_column)
    how = dict(encoder=args.encoder, check="all" if args.decode else True)
    is_timed = not args.no_timing
    look(args.source, args.recipe, args.out, is_timed=is_timed, **how, **options, **columns)


def emoji(args):
    "The pictures of recipe emoji."
    from imagen_nb.pictures.emoji import make_emoji

    things = () if args.all else None
    for split, n in make_emoji(
        args.out, args.size, args.packages, things, args.more_styles
    ).items():
        print(f"{args.out / split}: {counted(n, 'picture')}")
    print(f"{args.out}: imagen-nb train emoji --data {shlex.quote(str(args.out))}")


def evaluate(args):
    "A model against real pictures."
    from imagen_nb.lab.extractors import find_extractor
    from imagen_nb.pictures.captioned import load_captioned
    from imagen_nb.runs.evaluate import PROTOCOLS, evaluate, report, stages_for

    imagen, rules = load_model(args), PROTOCOLS[args.protocol]
    stages, size = stages_for(imagen, rules.size)
    default = "judge" if args.extractor == "judge" else "clip:openai/clip-vit-base-patch16"
    wanted = args.matcher or default
    extractor = find_extractor(args.extractor, device())
    matcher = None if wanted == "none" else find_extractor(wanted, device())
    pictures = load_captioned(str(args.coco or args.data), size, rules.split)
    out = args.out or as_path("evaluations") / args.protocol
    how = dict(n=args.n, seed=args.seed, share=args.share)
    options = sampling_options(args, stages)
    scores = evaluate(imagen, pictures, args.protocol, out, extractor, matcher, **how, **options)
    print(report(scores) if scores else f"{out}: other shares have still to draw")


def drawbench(args):
    "Draw difficult prompts and score them."
    from imagen_nb.runs.drawbench import drawbench, score_table
    from imagen_nb.runs.results import count_trained

    imagen = load_model(args)
    options = sampling_options(args, max(count_trained(imagen), 1))
    out = args.out or as_path("drawbench") / (as_path(args.model).name or "model")
    source = args.prompts or dict(toy="shapes", emoji="emoji").get(args.model, "own")
    print(score_table(drawbench(imagen, args.model, source, out, args.n, options)))
    print(out / "report.html")


def rate(args):
    "A page for people who compare two models, or what they answered."
    from imagen_nb.runs import drawbench as bench

    if args.ratings:
        found = bench.count_ratings(args.out, args.ratings, (args.a.name, args.b.name))
        print(f"A is {args.a}, B is {args.b}\n\n{bench.rating_table(found)}")
        print(args.out / "preferences.png")
        return
    page, key = bench.make_rating(args.a, args.b, args.out, args.protocol, args.each, args.seed)
    print(f"{page}: send it to raters; each sends back a file, and --ratings counts them")
    print(f"{key}: whose pictures are whose; keep it from raters")


def doctor(args):
    "What is wrong with a run; 1 if there is an error."
    from imagen_nb.runs.doctor import doctor, report

    findings = doctor(args.run_dir, args.draw)
    print(report(findings))
    return int(any(f.level == "error" for f in findings))


def plan(args):
    "What a recipe takes before it is trained; 1 if a stage does not fit."
    from imagen_nb.recipes import find_recipe
    from imagen_nb.runs.plan import Machines, plan, report

    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(Machines)}
    on = Machines(**{name: value for name, value in given.items() if value is not None})
    made = plan(changed(find_recipe(args.recipe), args.set), on)
    print(report(made))
    return int(not all(stage.fits for stage in made.stages))


def env(args):
    "What a bug report needs."
    from imagen_nb.runs.env import versions

    for name, value in versions().items():
        print(f"{name:<14} {value}")


# ---------------------------------------------------------------- what commands share


def load_model(args):
    "The model the user named, on the GPU if there is one."
    from imagen_nb.cascade import Imagen

    return Imagen.from_pretrained(args.model, args.encoder).to(device())


def device() -> str:
    "Where networks go."
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def sampling_options(args, n: int) -> dict:
    "What the user gave, each a value for all stages or a list with one for each of n."
    options = {}
    for name in ("steps", "w", "sampler", "threshold", "aug_t"):
        if (values := getattr(args, name)) is None:
            continue
        if len(values) not in (1, n):
            raise ValueError(
                f"--{name.replace('_', '-')}: got {counted(len(values), 'value')}, expected one, or one for each"
                f" of {counted(n, 'stage')}"
            )
        values = [None if v == "none" else v for v in values]
        options[name] = values * n if len(values) == 1 else values
    return options


# ---------------------------------------------------------------- entry

# Where nobody watches, progress is a line now and then; tqdm reads these when it is imported.
LINES = dict(
    TQDM_MININTERVAL="30",
    TQDM_MAXINTERVAL="30",
    TQDM_BAR_FORMAT="{l_bar} {n_fmt} of {total_fmt}, {elapsed} so far, {remaining} left{postfix}\n",
)


COMMANDS = {
    command.__name__: command
    for command in (
        train,
        plan,
        sample,
        upscale,
        export,
        embed,
        data,
        emoji,
        evaluate,
        drawbench,
        rate,
        doctor,
        env,
    )
}


def main(argv: list[str] | None = None) -> int:
    "Entry point of `imagen-nb`: the exit code, 2 for what is refused."
    try:
        args = parser().parse_args(argv)
    except SystemExit as stop:  # help, version, a refusal
        return int(stop.code or 0)
    if not sys.stderr.isatty():
        os.environ.update(LINES | os.environ)
    return in_one_line(args.command, lambda: check_request(args) or COMMANDS[args.command](args))


if __name__ == "__main__":
    sys.exit(main())

"""What the command line was given, checked before a heavy library is loaded: what is there, what goes together."""

from collections.abc import Callable

from imagen_nb.runs.options import DRAWN_SCENES
from imagen_nb.store.config import did_you_mean
from imagen_nb.store.files import SHIPPED, as_path, is_hub_name

__all__ = ["check_request"]


def check_request(
    args,  # of a command, as its parser read them
):
    "Refuse what cannot be carried out, in one line; nothing is written or loaded for that."
    if args.command in TOGETHER:
        TOGETHER[args.command](args)
    for name, check in NAMED.items():
        if (value := getattr(args, name, None)) is not None:
            check(args.command, value)


# ---------------------------------------------------------------- what is there


def check_folder(command: str, path):
    "A folder that the command reads."
    if not as_path(path).is_dir():
        what = "the directory of a run" if command in ("export", "doctor") else "a folder"
        raise ValueError(f"{command}: {path}, no such directory; expected {what}")


def check_image(command: str, path):
    "A picture that the command reads."
    if not as_path(path).is_file():
        raise ValueError(f"{command}: {path}, no such file; expected a picture")


def check_model(command: str, name: str):
    "A model: shipped, in a folder, or perhaps on the hub."
    if name not in SHIPPED and not as_path(name).is_dir() and not is_hub_name(name):
        raise ValueError(
            f"{command}: {name}, no such directory; expected a directory, {', '.join(SHIPPED)},"
            f" or a name on the hub, 'owner/model'{did_you_mean(name, SHIPPED)}"
        )


def check_encoder(command: str, name: str):
    "A text encoder; what looks like a path is one."
    if str(name)[:1] in ("/", "~", ".") and not as_path(name).is_dir():
        raise ValueError(f"{command}: encoder, got {name!r}, no such folder")


def check_source(command: str, name: str):
    "Captioned pictures, or a file of captions: on this machine, or perhaps on the hub."
    if not as_path(name).exists() and not is_hub_name(name):
        raise ValueError(
            f"{command}: source, got {name}, which does not exist; expected a folder or file that"
            " is there, or a dataset of the hub, 'owner/name'"
        )


NAMED: dict[str, Callable] = dict(
    image=check_image,
    run_folder=check_folder,
    run_dir=check_folder,
    a=check_folder,
    b=check_folder,
    coco=check_folder,
    model=check_model,
    init=check_model,
    encoder=check_encoder,
    data=check_source,
    source=check_source,
)

# ---------------------------------------------------------------- what goes together


def check_train(args):
    "Columns belong to own pictures; what is held out is a share of those, or a number of drawn scenes."
    held_out = args.held_out
    if args.data and held_out is not None and held_out >= 0.5:
        raise ValueError(f"train: --held-out, got {held_out}, expected a share below 0.5")
    if args.data:
        return
    if args.image_column or args.caption_column or args.min_size:
        raise ValueError("train: --image-column, --caption-column, --min-size: only with --data")
    if args.recipe not in DRAWN_SCENES:
        raise ValueError(
            f"train: recipe {args.recipe} needs pictures of your own: give --data SOURCE"
        )
    if held_out is not None and (not isinstance(held_out, int) or held_out < 2):
        raise ValueError(
            f"train: --held-out, got {held_out}, expected at least 2 captions to score,"
            " or --data SOURCE and a share of its pictures"
        )


def check_export(args):
    "Something to read and somewhere to write."
    if args.out is None:
        raise ValueError("export: expected RUN and --out OUT")


def check_embed(args):
    "Something to read and somewhere to write, or a conversion."
    if not args.convert and (args.source is None or args.out is None):
        raise ValueError("embed: expected SOURCE and --out DIR, or --convert SRC DST")


def check_evaluate(args):
    "A protocol has its own kind of pictures."
    is_coco = args.protocol == "coco-fid30k"
    if bool(args.coco) != is_coco or bool(args.data) == is_coco:
        raise ValueError(
            f"evaluate: --protocol {args.protocol}, expected {'--coco DIR' if is_coco else '--data SOURCE'}"
            " beside it, and it alone"
        )


TOGETHER: dict[str, Callable] = dict(
    train=check_train, export=check_export, embed=check_embed, evaluate=check_evaluate
)

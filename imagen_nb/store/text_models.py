"""Published text models as files: found, loaded complete, named by digest."""

import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from imagen_nb.store.config import counted
from imagen_nb.store.files import as_path, assets
from imagen_nb.store.foreign import TOKENIZER, check_files, in_words
from imagen_nb.store.identity import check_identity
from imagen_nb.store.reduced import REDUCED, read_reduced

__all__ = [
    "FAMILIES",
    "SHIPPED",
    "check_captions",
    "check_options",
    "check_parts",
    "find_encoder",
    "find_folder",
    "import_transformers",
    "is_shipped",
    "load_statistics",
    "load_text_model",
    "load_tokenizer",
    "loss_lines",
    "losses_told",
    "shipped_as",
    "with_source",
]


class Shipped(NamedTuple):
    "A text encoder that comes with the package."

    label: str  # in identities, and of its folder among the assets
    about: str  # what to know of it, for people


SHIPPED = {  # by the name that a user gives
    "toy": Shipped(
        "t5-toy", "It ships with imagen_nb; it has read captions of ShapesWorld and nothing else."
    ),
    "english": Shipped(
        "english",
        "It ships with imagen_nb: all-MiniLM-L6-v2 (Apache-2.0) in 8 and 4 bits. It saw no pictures, but was tuned on"
        " pairs of sentences that include the captions of COCO and Flickr30k.",
    ),
}

FAMILIES = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "bert": "BertModel",
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
}
MULTILINGUAL = "--encoder google/mt5-base"  # T5 in 101 languages; umT5 is like it
RECORD = "encoder.json"  # beside weights that we wrote: their digest, and where they are from
PLAIN = ("model", "encoder", "text_encoder", "weights")  # names that say nothing alone


def check_captions(
    function: str,  # named in the error
    captions,  # what was given
    is_freed: bool = False,  # an encoder let go of its weights
):
    "Raise unless `captions` is a list or tuple of at least one str, and there is who reads them."
    if is_freed:
        raise ValueError(f"{function}: got captions after free()")
    if not isinstance(captions, (list, tuple)) or not captions:
        raise ValueError(
            f"{function}: captions, got {repr(captions)[:60]}, expected a list of at least one str"
        )
    wrong = [caption for caption in captions if not isinstance(caption, str)]
    if wrong:
        raise ValueError(
            f"{function}: captions, got {len(wrong)} that are no str, first"
            f" {repr(wrong[0])[:60]}, expected a list of str"
        )
    halves = [caption for caption in captions if re.search("[\ud800-\udfff]", caption)]
    if halves:
        raise ValueError(
            f"{function}: captions, got {len(halves)} with half a character, first"
            f" {ascii(halves[0])[:60]}, expected text that UTF-8 can hold"
        )


def check_options(
    max_length: int,  # tokens kept of a caption
    dtype: torch.dtype | None = None,  # None is not checked
):
    "Raise unless an encoder can be made so."
    if not isinstance(max_length, int) or max_length < 1:
        raise ValueError(
            f"TextEncoder: max_length, got {max_length!r}, expected a whole number of at least 1"
        )
    if dtype not in (None, torch.bfloat16, torch.float32):
        raise ValueError(
            f"TextEncoder: dtype, got {dtype}, expected torch.bfloat16 or"
            " torch.float32; float16 overflows in T5"
        )


def check_parts(
    model,  # text model of `transformers`
    tokenizer,  # that should be its own
    max_length: int,  # tokens kept of a caption
):
    "Raise unless an encoder can be made of these."
    check_options(max_length)
    check_tokenizer(model, tokenizer)


def load_text_model(
    name: str,  # name on the hub, or a folder
    dtype: torch.dtype,  # of the weights
):  # model in eval mode without gradients; its tokenizer
    "The encoder half of a pretrained text model, checked to be complete."
    transformers = import_transformers()
    with in_one_line(transformers, name):
        config = transformers.AutoConfig.from_pretrained(name)
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"TextEncoder.from_pretrained: {name} is of an unsupported"
            f" kind, got {config.model_type!r}, expected one of {[*FAMILIES]}"
        )
    tokenizer = load_tokenizer(name)
    extra: dict[str, Any] = {}
    if config.model_type == "bert":
        extra["add_pooling_layer"] = False
    if reduced := restored_weights(Path(name)):
        extra |= {"config": config, "state_dict": reduced}
    with in_one_line(transformers, name):
        model, info = getattr(transformers, FAMILIES[config.model_type]).from_pretrained(
            None if reduced else name,
            dtype=dtype,
            weights_only=True,
            output_loading_info=True,
            **extra,
        )
    wrong = sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"]))
    if wrong:
        raise ValueError(
            f"TextEncoder.from_pretrained: weights of {name} are incomplete,"
            f" {len(wrong)} missing or of another shape, first {wrong[0]}"
        )
    return model.eval().requires_grad_(False), tokenizer


def restored_weights(folder: Path) -> dict:  # float32 by name; empty if there are none
    "Weights of a folder that keeps them in fewer bits."
    if not (folder / REDUCED).is_file():
        return {}
    if not (folder / RECORD).is_file():
        raise ValueError(
            f"TextEncoder.from_pretrained: {folder}, got {REDUCED} without {RECORD}, expected both"
        )
    return read_reduced(folder / REDUCED, json.loads((folder / RECORD).read_text())["sha256"])


def load_tokenizer(
    name: str,  # name on the hub, or a folder
):  # of `transformers`
    "The tokenizer of a text model alone: small, and enough to count tokens."
    folder, transformers = Path(name), import_transformers()
    if folder.is_dir() and not any((folder / file).exists() for file in TOKENIZER):
        raise ValueError(
            f"TextEncoder.from_pretrained: {name}, got no tokenizer there, expected one of"
            f" {', '.join(TOKENIZER[:2])}, vocab.txt beside the weights; a published pipeline keeps"
            " them in `tokenizer`, next to `text_encoder`: copy them over"
        )
    has_pieces_alone = (folder / "spiece.model").exists() and not (
        folder / "tokenizer.json"
    ).exists()
    with in_one_line(transformers, name):  # of umT5 the automatic one reads tokenizer.json alone
        kind = transformers.T5Tokenizer if has_pieces_alone else transformers.AutoTokenizer
        return kind.from_pretrained(name)


def import_transformers():
    "The library, or how to install it."
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "TextEncoder: encoding text needs transformers, which is missing;"
            " install it with: pip install transformers"
        ) from error
    return transformers


@contextmanager
def in_one_line(
    transformers,  # the library, which is quiet during the block
    name: str,  # of what it loads
) -> Iterator[None]:
    "Whatever goes wrong in a block, say in one line what was loaded and why it failed."
    logging = transformers.utils.logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except ImportError as error:
        raise ImportError(f"TextEncoder.from_pretrained: {in_words(error)}") from error
    except Exception as error:  # its loaders raise many kinds
        raise ValueError(
            f"TextEncoder.from_pretrained: cannot load {name}, expected a"
            f" name on the hub or a folder with config, weights and"
            f" tokenizer; {in_words(error)}"
        ) from error
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def check_tokenizer(
    model,  # text model of `transformers`
    tokenizer,  # that should be its own
):
    "Refuse a tokenizer that knows no words, or that belongs to another model."
    config, vocab = model.config, tokenizer.get_vocab()
    rows = model.get_input_embeddings().num_embeddings
    words = {*vocab.values()} - {*getattr(tokenizer, "added_tokens_decoder", ())}
    end = getattr(config, "eos_token_id", None) if config.model_type.endswith("t5") else None
    kinds = [kind for kind in ("T5", "Bert", "CLIP") if kind in type(tokenizer).__name__]
    if len(words) < 2:
        wrong = "no words, its files are missing or empty"
    elif max(vocab.values()) >= rows:
        wrong = f"token numbers up to {max(vocab.values())}, expected below {rows}"
    elif rows - len(vocab) > max(1000, rows // 4):
        wrong = f"{counted(len(vocab), 'token')}, expected about {rows}"
    elif end not in (None, tokenizer.eos_token_id):
        wrong = f"end mark {tokenizer.eos_token_id}, expected {end}"
    elif kinds and kinds[0].lower() not in config.model_type:
        wrong = f"{type(tokenizer).__name__} for a model of the kind {config.model_type!r}"
    else:
        return
    raise ValueError(
        f"TextEncoder: tokenizer, got {wrong}; it cannot read for this model, expected the"
        " tokenizer that the model was trained with"
    )


@contextmanager
def losses_told(
    who: str,  # begins the warnings
    encoder,  # who reads in the block
) -> Iterator[None]:
    "Warn after a block of the captions that an encoder cut in it, or could not read."
    before = count_losses(encoder)
    yield
    cut, unknown = (now - old for now, old in zip(count_losses(encoder), before))
    name = (getattr(encoder, "identity", None) or {}).get("encoder")
    kept = getattr(encoder, "max_length", None)
    for line in loss_lines(cut, unknown, kept, name):
        warnings.warn(f"{who}: {line}")


def count_losses(encoder) -> tuple[int, int]:
    "Captions that were cut so far, and that held unknown characters; an encoder need not count."
    return getattr(encoder, "truncated", 0), getattr(encoder, "unknown", 0)


def loss_lines(
    cut: int,  # captions that were cut
    unknown: int,  # captions that hold characters without a token
    kept: int | None,  # tokens of a caption that were not cut
    name: str | None,  # of the encoder that has read them
) -> list[str]:  # one for each kind of loss
    "What captions lose, for people."
    lines = []
    if cut:
        lines.append(
            f"{counted(cut, 'caption')} longer than {kept} tokens: the rest"
            " was cut, and the networks never see it"
        )
    if unknown:
        lines.append(
            f"{counted(unknown, 'caption')} with characters that encoder"
            f" {name!r} has no token for, and reads as unknown (<unk>);"
            f" a model that is trained with {MULTILINGUAL} reads most scripts"
        )
    return lines


def find_folder(
    name: str | Path,  # "toy", "english", a name on the hub, or a folder
) -> tuple[Path | None, str]:  # the folder, None for a name on the hub; what to call it
    "Tell folders from names; a folder that does not exist or is damaged is an error."
    folder, name = as_path(name), str(name)
    if name in SHIPPED:
        return assets() / SHIPPED[name].label, SHIPPED[name].label
    if folder.is_dir():
        check_files("TextEncoder.from_pretrained", folder)
        return folder, folder_label(folder)
    if folder.is_absolute() or name[:1] in ".~" or name.count("/") > 1 or name[-1:] == "/":
        raise ValueError(
            f"TextEncoder.from_pretrained: no such folder, got {name!r},"
            " expected a folder or a name on the hub"
        )
    return None, name


def is_shipped(
    name: str | Path,  # as a user gives it
) -> bool:
    "Is it a text encoder that comes with the package? A folder of that name is `./NAME`."
    return str(name) in SHIPPED


def shipped_as(
    label: str | None,  # an encoder's, as identities have it
) -> str:  # what to load it as; empty if it does not ship
    "The name of a shipped encoder."
    return next((name for name, shipped in SHIPPED.items() if shipped.label == label), "")


def folder_label(folder: Path) -> str:
    "What a person would look for: a name on the hub, or a folder's and a slash, with its parent's if it says little."
    parts = Path(os.path.abspath(folder)).parts
    for part in parts:
        if part.startswith("models--"):  # where the hub's client keeps what it downloads
            return part.removeprefix("models--").replace("--", "/")
    return "/".join(parts[-2:] if parts[-1] in PLAIN else parts[-1:]) + "/"


def find_encoder(
    identity: dict | None,  # of the encoder wanted; None: of any
    load: Callable,  # (name, max_length, dtype) -> encoder
    given: str | Path | None = None,  # a folder or a name on the hub; None: look around
    model: Path | None = None,  # folder of the model that it reads for
) -> tuple[str, Any]:  # where it was found; the encoder, None if none is wanted or given
    "The encoder whose digests agree: where it was, in the run beside the model, beside the model, on the hub."
    if identity is None:
        return str(given or ""), load(given) if given else None
    how = identity.get("max_length", 128), getattr(torch, identity.get("dtype", ""), None)

    def load_same(place: str):
        encoder = load(place, *how)
        check_identity(encoder.identity, identity)
        return place, encoder

    if given:
        return load_same(str(given))
    tried = []
    for place in places(identity, model):
        try:
            return load_same(place)
        except (ValueError, OSError) as error:
            tried.append(str(error).partition(": ")[2] or str(error))
    raise ValueError(
        f"load_encoder: the text encoder of this model was not found, expected {identity['encoder']!r}"
        f" of digest {identity.get('revision')}; say where it is with --encoder DIR, in Python"
        f" from_pretrained(..., encoder=DIR). {'; '.join(tried)}"
    )


def places(identity: dict, model: Path | None) -> list[str]:
    "Where a model's encoder may lie, the likeliest first; a shipped one of the same source is the last."
    name = identity["encoder"]
    own = shipped_as(name.strip("/"))
    if own and name[-1:] != "/":
        return [own]
    found, folders = [own] if own else [], [Path(name)]
    if model is not None:
        with suppress(OSError, ValueError):  # no run there
            run = json.loads((model.parent / "config.json").read_text(encoding="utf-8"))
            found.append(str(run["encoder"]))
        folders += [model / name, model.parent / name]
    found += [str(folder) for folder in folders if folder.is_dir()]
    return list(dict.fromkeys([*found, name, *akin(identity)]))


def akin(identity: dict) -> list[str]:
    "Shipped encoders that come from the same source."
    source = identity.get("source")
    stated = {name: stated_source(assets() / shipped.label) for name, shipped in SHIPPED.items()}
    return [name for name, o in stated.items() if source and o.get("source") == source]


def load_statistics(
    folder: Path | None,  # of a text model, None for one from the hub
) -> dict:  # "mean", "std" (d,) of its tokens; empty if it has none
    "Read `statistics.safetensors`, which only our toy T5 has."
    if folder is None or not (folder / "statistics.safetensors").is_file():
        return {}
    from safetensors.torch import load_file

    return load_file(folder / "statistics.safetensors")


def with_source(
    encoder,  # whose identity is as its weights are
    folder: Path | None,  # that it was read from, None: from the hub
):  # itself
    "Compare an encoder with what its folder says of it, and complete its identity."
    if folder is not None:
        check_revision(folder, encoder.identity)
        encoder.identity |= stated_source(folder)
    return encoder


def stated_source(
    folder: Path,  # of a text model
) -> dict:  # "source", "storage", "cosine" of reduced weights; else empty
    "What a folder says of the weights that its own were reduced from."
    if not (folder / REDUCED).is_file():
        return {}
    return json.loads((folder / RECORD).read_text())["original"]


def check_revision(
    folder: Path,  # of a text model
    identity: dict,  # of the encoder that was read from it
):
    "Compare with the digest that was written beside the weights, if one was."
    if not (folder / RECORD).is_file():
        return
    stated = json.loads((folder / RECORD).read_text())
    same = identity["revision"] == stated["revision"]
    if identity["dtype"] == stated["dtype"] and not same:
        raise ValueError(
            f"TextEncoder.from_pretrained: weights in {folder} are damaged, got digest"
            f" {identity['revision']}, expected {stated['revision']}; convert them again"
        )

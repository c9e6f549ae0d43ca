"""Published text models as files: found, loaded complete, named by digest."""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from imagen_nb.store.files import as_path, assets
from imagen_nb.store.foreign import TOKENIZER, check_files, in_words

__all__ = [
    "FAMILIES",
    "check_captions",
    "check_identity",
    "check_options",
    "check_parts",
    "check_revision",
    "differences",
    "digest_tensors",
    "find_encoder",
    "find_folder",
    "identify",
    "import_transformers",
    "load_statistics",
    "load_text_model",
    "load_tokenizer",
    "loss_lines",
    "losses_told",
]

FAMILIES = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "bert": "BertModel",
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
}
MULTILINGUAL = "--encoder google/mt5-base"  # T5 in 101 languages; umT5 is like it
PLAIN = ("model", "encoder", "text_encoder", "weights")  # names that say nothing alone


def check_captions(
    function: str,  # named in the error
    captions,  # what was given
):
    "Raise unless `captions` is a list or tuple of at least one str."
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
        family = transformers.AutoConfig.from_pretrained(name).model_type
    if family not in FAMILIES:
        raise ValueError(
            f"TextEncoder.from_pretrained: {name} is of an unsupported"
            f" kind, got {family!r}, expected one of {[*FAMILIES]}"
        )
    tokenizer = load_tokenizer(name)
    extra = {"add_pooling_layer": False} if family == "bert" else {}
    with in_one_line(transformers, name):
        model, info = getattr(transformers, FAMILIES[family]).from_pretrained(
            name, dtype=dtype, weights_only=True, output_loading_info=True, **extra
        )
    wrong = sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"]))
    if wrong:
        raise ValueError(
            f"TextEncoder.from_pretrained: weights of {name} are incomplete,"
            f" {len(wrong)} missing or of another shape, first {wrong[0]}"
        )
    return model.eval().requires_grad_(False), tokenizer


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
        wrong = f"{len(vocab)} tokens, expected about {rows}"
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
            f"{cut:,} caption{'s' * (cut > 1)} longer than {kept} tokens: the rest"
            " was cut, and the networks never see it"
        )
    if unknown:
        lines.append(
            f"{unknown:,} caption{'s' * (unknown > 1)} with characters that encoder"
            f" {name!r} has no token for, and reads as unknown (<unk>);"
            f" {MULTILINGUAL} reads most scripts"
        )
    return lines


def identify(
    name: str,  # for people to read
    model,  # text model of `transformers`
    tokenizer,  # its tokenizer
    max_length: int,  # tokens kept of a caption
    statistics: dict,  # "mean", "std" (d,) to standardise by, or empty
) -> dict:  # "encoder", "revision", "tokenizer", "max_length", "dtype"
    "All that decides the numbers: the same from any folder and any file format."
    weights = sorted({**dict(model.named_parameters()), **statistics}.items())
    return {
        "encoder": name,
        "revision": digest_tensors(weights),
        "tokenizer": digest_tokenizer(tokenizer),
        "max_length": max_length,
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def digest_tensors(
    pairs,  # of name and Tensor, in order of their names
) -> str:  # 16 hexadecimal digits
    "Digest of tensors by value: the same from any folder and any file format."
    found = hashlib.sha256()
    for key, value in pairs:
        if value.is_meta:
            raise ValueError(
                "TextEncoder: model, got offloaded weights, expected them in"
                " memory; make the encoder first, then offload `encoder.model`"
            )
        found.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def digest_tokenizer(
    tokenizer,  # of `transformers`
) -> str:  # 16 hexadecimal digits
    "Digest of all that a tokenizer knows, its padding and truncation excepted."
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
        known = tokenizer.backend_tokenizer.to_str()
    else:
        known = repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(known.encode()).hexdigest()[:16]


def find_folder(
    name: str | Path,  # "toy", a name on the hub, or a folder
) -> tuple[Path | None, str]:  # the folder, None for a name on the hub; what to call it
    "Tell folders from names; a folder that does not exist or is damaged is an error."
    folder, name = as_path(name), str(name)
    if name == "toy":
        return assets() / "t5-toy", "t5-toy"
    if folder.is_dir():
        check_files("TextEncoder.from_pretrained", folder)
        return folder, folder_label(folder)
    if folder.is_absolute() or name[:1] in ".~" or name.count("/") > 1 or name[-1:] == "/":
        raise ValueError(
            f"TextEncoder.from_pretrained: no such folder, got {name!r},"
            " expected a folder or a name on the hub"
        )
    return None, name


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
    for place in places(identity["encoder"], model):
        try:
            return load_same(place)
        except (ValueError, OSError) as error:
            tried.append(str(error).partition(": ")[2] or str(error))
    raise ValueError(
        f"load_encoder: the text encoder of this model was not found, expected {identity['encoder']!r}"
        f" of digest {identity.get('revision')}; say where it is with --encoder DIR, in Python"
        f" from_pretrained(..., encoder=DIR). {'; '.join(tried)}"
    )


def places(name: str, model: Path | None) -> list[str]:
    "Where a model's encoder may lie, the likeliest first."
    if name.strip("/") == "t5-toy":
        return ["toy"]
    found, folders = [], [Path(name)]
    if model is not None:
        with suppress(OSError, ValueError):  # no run there
            run = json.loads((model.parent / "config.json").read_text(encoding="utf-8"))
            found.append(str(run["encoder"]))
        folders += [model / name, model.parent / name]
    found += [str(folder) for folder in folders if folder.is_dir()]
    return list(dict.fromkeys([*found, name]))


def check_identity(
    ours: dict,  # of the encoder at hand
    theirs: dict,  # of the one wanted
):
    "Refuse another encoder and say what differs; a name alone decides nothing."
    if wrong := differences(ours, theirs):
        raise ValueError(
            f"load_encoder: got {ours['encoder']!r}, expected the encoder of training,"
            f" {theirs['encoder']!r}; it differs in {'; '.join(wrong)}"
        )


def differences(
    ours: dict,  # identity of the encoder at hand
    theirs: dict,  # of the one wanted
) -> list[str]:  # one for each thing that decides the numbers
    "In what two encoders differ, their names excepted."
    return [
        f"{key}, got {ours.get(key)!r}, expected {theirs.get(key)!r}"
        for key in dict.fromkeys([*theirs, *ours])
        if key != "encoder" and ours.get(key) != theirs.get(key)
    ]


def load_statistics(
    folder: Path | None,  # of a text model, None for one from the hub
) -> dict:  # "mean", "std" (d,) of its tokens; empty if it has none
    "Read `statistics.safetensors`, which only our toy T5 has."
    if folder is None or not (folder / "statistics.safetensors").is_file():
        return {}
    from safetensors.torch import load_file

    return load_file(folder / "statistics.safetensors")


def check_revision(
    folder: Path | None,  # of a text model, None for one from the hub
    identity: dict,  # of the encoder that was read from it
):
    "Compare with the digest that `imagen-nb embed --convert` wrote, if it did."
    if folder is None or not (folder / "encoder.json").is_file():
        return
    stated = json.loads((folder / "encoder.json").read_text())
    same = identity["revision"] == stated["revision"]
    if identity["dtype"] == stated["dtype"] and not same:
        raise ValueError(
            f"TextEncoder.from_pretrained: weights in {folder} are damaged, got digest"
            f" {identity['revision']}, expected {stated['revision']}; convert them again"
        )

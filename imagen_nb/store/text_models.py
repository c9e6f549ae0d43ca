"""Published text models as files: found, loaded complete, named by digest."""

import hashlib
import json
import re
from pathlib import Path

import torch

from imagen_nb.store.files import as_path

__all__ = [
    "FAMILIES",
    "check_captions",
    "check_options",
    "check_revision",
    "digest_tensors",
    "find_folder",
    "identify",
    "load_statistics",
    "load_text_model",
]

FAMILIES = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "bert": "BertModel",
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
}


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


def load_text_model(
    name: str,  # name on the hub, or a folder
    dtype: torch.dtype,  # of the weights
):  # model in eval mode without gradients; its tokenizer
    "The encoder half of a pretrained text model, checked to be complete."
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "TextEncoder: encoding text needs transformers, which is missing;"
            " install it with: pip install transformers"
        ) from error
    logging = transformers.utils.logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        family = transformers.AutoConfig.from_pretrained(name).model_type
        if family not in FAMILIES:
            raise ValueError(
                f"TextEncoder.from_pretrained: {name} is of an unsupported"
                f" kind, got {family!r}, expected one of {[*FAMILIES]}"
            )
        extra = {"add_pooling_layer": False} if family == "bert" else {}
        model, info = getattr(transformers, FAMILIES[family]).from_pretrained(
            name, dtype=dtype, weights_only=True, output_loading_info=True, **extra
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise ValueError(
            f"TextEncoder.from_pretrained: cannot load {name}, expected a"
            f" name on the hub or a folder with config, weights and"
            f" tokenizer; {str(error).splitlines()[0]}"
        ) from error
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
    wrong = sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"]))
    if wrong:
        raise ValueError(
            f"TextEncoder.from_pretrained: weights of {name} are incomplete,"
            f" {len(wrong)} missing or of another shape, first {wrong[0]}"
        )
    return model.eval().requires_grad_(False), tokenizer


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
    name: str | Path,  # name on the hub, or a folder
) -> tuple[Path | None, str]:  # the folder, None for a name on the hub; what to call it
    "Tell folders from names; a folder that does not exist is an error."
    folder, name = as_path(name), str(name)
    if folder.is_dir():
        return folder, folder.resolve().name
    if folder.is_absolute() or name[:1] in ".~" or name.count("/") > 1 or name[-1:] == "/":
        raise ValueError(
            f"TextEncoder.from_pretrained: no such folder, got {name!r},"
            " expected a folder or a name on the hub"
        )
    return None, name


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

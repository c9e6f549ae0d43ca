"""Who a text encoder is: digests of what decides its numbers, and of the source that they come from."""

import hashlib
import warnings

import torch
from torch import Tensor

__all__ = [
    "SAID",
    "check_identity",
    "differences",
    "digest_tensors",
    "identify",
    "is_same_source",
]

SAID = ("encoder", "source", "storage", "cosine")  # in an identity, but not what decides it


def identify(
    name: str,  # for people to read
    model,  # text model of `transformers`
    tokenizer,  # its tokenizer
    max_length: int,  # tokens kept of a caption
    statistics: dict,  # "mean", "std" (d,) to standardise by, or empty
) -> dict:  # "encoder", "source", "revision", "tokenizer", "max_length", "dtype"
    "All that decides the numbers: the same from any folder and any file format."
    weights = sorted({**dict(model.named_parameters()), **statistics}.items())
    return {
        "encoder": name,
        "source": digest_source(weights),
        "revision": digest_tensors(weights),
        "tokenizer": digest_tokenizer(tokenizer),
        "max_length": max_length,
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def digest_source(
    pairs,  # of name and Tensor, in order of their names
) -> str:  # 16 hexadecimal digits
    "What float32 and bfloat16 of the same weights have in common: their digest in bfloat16."

    def rounded(value: Tensor) -> Tensor:
        return value.to(torch.bfloat16) if value.is_floating_point() else value

    return digest_tensors((key, rounded(value)) for key, value in pairs)


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


def check_identity(
    ours: dict,  # of the encoder at hand
    theirs: dict,  # of the one wanted
):
    "Refuse another encoder and say what differs; the same source in other storage is taken, and said."
    wrong = differences(ours, theirs)
    if not wrong:
        return
    if not is_same_source(ours, theirs):
        raise ValueError(
            f"load_encoder: got {ours['encoder']!r}, expected the encoder of training,"
            f" {theirs['encoder']!r}; it differs in {'; '.join(wrong)}"
        )
    warnings.warn(
        f"load_encoder: got {in_words(ours)}, expected the encoder of training,"
        f" {in_words(theirs)}; it is the same source in other storage, so pictures differ a little"
    )


def in_words(identity: dict) -> str:
    "An encoder's name and how its weights are stored."
    storage, cosine = identity.get("storage"), identity.get("cosine")
    how = f"{storage}, computed in {identity['dtype']}" if storage else identity["dtype"]
    told = f"; mean cosine of its token vectors with the original's {cosine:g}" if cosine else ""
    return f"{identity['encoder']!r} ({how}{told})"


def is_same_source(
    ours: dict,  # identity of an encoder
    theirs: dict,  # of another one
) -> bool:
    "Do two encoders read alike, with the same weights rounded in different ways?"
    kept = ("source", "tokenizer", "max_length")  # an old identity has no source
    return all(ours.get(key) == theirs.get(key) is not None for key in kept)


def differences(
    ours: dict,  # identity of the encoder at hand
    theirs: dict,  # of the one wanted
) -> list[str]:  # one for each thing that decides the numbers
    "In what two encoders differ, their names and what is only said of them excepted."
    return [
        f"{key}, got {ours.get(key)!r}, expected {theirs.get(key)!r}"
        for key in dict.fromkeys([*theirs, *ours])
        if key not in SAID and ours.get(key) != theirs.get(key)
    ]

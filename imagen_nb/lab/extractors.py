"""Who looks at pictures for a metric, found by name. A name and its resize rule belong beside every number.

judge, or judge:FOLDER            ours; ships, needs nothing, knows emoji
inception, or inception:FILE      FID's network as torch-fidelity has it; FILE holds its weights
clip:NAME                         a CLIP of transformers, folder or hub name; reads captions too
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from imagen_nb.lab.judge import Judge
from imagen_nb.store.files import as_path
from imagen_nb.store.text_models import import_transformers, in_one_line

__all__ = ["Extractor", "find_extractor"]

Look = Callable[[Tensor], Tensor]  # pictures, (b 3 h w) in [-1, 1], to vectors, (b d)


@dataclass(frozen=True)
class Extractor:
    "How pictures, and perhaps captions, become vectors."

    name: str  # for people, with the digest or file that decides it
    rule: str  # what is done to pictures before they are looked at
    features: Look  # for distances between sets
    images: Look | None = None  # for matching with captions; None: it reads none
    captions: Callable[[list[str]], Tensor] | None = None  # to vectors, (b d)


def find_extractor(
    name: str,  # see above
    device: torch.device | str = "cpu",  # where its network goes
) -> Extractor:
    "An extractor by its name."
    kind, _, where = name.partition(":")
    if kind in ("judge", "inception", "clip") and (where or kind != "clip"):
        return dict(judge=_judge, inception=_inception, clip=_clip)[kind](where, device)
    raise ValueError(
        f"find_extractor: {name!r}, expected judge, judge:FOLDER, inception, inception:FILE or clip:NAME"
    )


def _quietly(look: Callable) -> Callable:
    "Without gradients, on the CPU, in float32."

    @torch.no_grad()
    def looked(x):
        return look(x).float().cpu()

    return looked


def _bytes(images: Tensor, device) -> Tensor:  # (b 3 h w), 0 to 255
    "As files hold pictures."
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).to(device)


# ---------------------------------------------------------------- ours


def _judge(where: str, device) -> Extractor:
    "The judge of emoji, or another one."
    judge = Judge.from_pretrained(where) if where else Judge.shipped()
    judge.to(device)
    return Extractor(
        f"judge {judge.encoder().identity['revision']}",
        f"to {judge.config.size} px, bilinear with anti-aliasing",
        _quietly(judge.image_features),
        _quietly(judge.image_vectors),
        _quietly(judge.text_vectors),
    )


# ---------------------------------------------------------------- the field's


def _inception(where: str, device) -> Extractor:
    "Inception v3 of FID, with TensorFlow's resize inside."
    kind = _fidelity("feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    weights = str(as_path(where)) if where else None  # None: torch-fidelity fetches them
    if weights:  # it reads pickles: only one that holds nothing but tensors
        torch.load(weights, map_location="cpu", weights_only=True)
    network = kind("inception-v3-compat", ["2048"], feature_extractor_weights_path=weights)
    network = network.to(device).eval()
    return Extractor(
        f"torch-fidelity's Inception v3{f', {as_path(where).name}' if where else ''}, 2048 features",
        "bytes, to 299 px, bilinear without anti-aliasing as in TensorFlow 1",
        _quietly(lambda x: network(_bytes(x, device))[0]),
    )


def _fidelity(module: str) -> ModuleType:
    "A module of torch-fidelity without the package's own imports, which need a torchvision of this very torch."
    name = f"torch_fidelity.{module}"
    if name in sys.modules:
        return sys.modules[name]
    if (spec := importlib.util.find_spec("torch_fidelity")) is None:
        raise ImportError(
            "inception: torch-fidelity is missing; install it with: pip install --no-deps torch-fidelity"
            " (its torchvision is not needed), or name another extractor, such as judge"
        )
    package = ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations or ())
    before = sys.modules.get("torch_fidelity")
    sys.modules["torch_fidelity"] = before or package
    try:
        return importlib.import_module(name)
    finally:
        if before is None:
            del sys.modules["torch_fidelity"]


def _clip(where: str, device) -> Extractor:
    "A CLIP of transformers."
    transformers = import_transformers()
    with in_one_line(transformers, where):
        model = transformers.CLIPModel.from_pretrained(where).to(device).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(where)
    size = model.config.vision_config.image_size
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    mean, std = (
        torch.tensor(v, dtype=torch.float32, device="cpu")[:, None, None]
        for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    )

    def images(x):
        x = F.interpolate(x.float(), (size, size), mode="bicubic", antialias=True).clamp(-1, 1)
        x = ((x.cpu() + 1) / 2 - mean) / std
        seen = model.vision_model(pixel_values=x.to(device)).pooler_output
        return model.visual_projection(seen)

    def captions(texts):
        most = model.config.text_config.max_position_embeddings
        how = dict(padding=True, truncation=True, max_length=most, return_tensors="pt")
        words = tokenizer(list(texts), **how).to(device)
        read = model.text_model(
            input_ids=words["input_ids"], attention_mask=words["attention_mask"]
        )
        return model.text_projection(read.pooler_output)

    return Extractor(
        f"CLIP {as_path(where).name if as_path(where).exists() else where}",
        f"to {size} px, bicubic with anti-aliasing",
        _quietly(images),
        _quietly(images),
        _quietly(captions),
    )

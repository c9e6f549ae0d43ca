"""What a bug report needs: versions and devices."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from imagen_nb import __version__
from imagen_nb.stage import has_fast_bf16

PACKAGES = "torch transformers datasets accelerate safetensors sentencepiece pillow numpy".split()


def versions() -> dict[str, object]:
    "Name -> version, or device."
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "imagen_nb": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "CPU": f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        "GPU": gpu,
        "fast bf16": has_fast_bf16("cuda" if torch.cuda.is_available() else "cpu"),
        **{name: installed(name) for name in PACKAGES},
    }


def installed(name: str) -> str:
    "Version of a package."
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"

"A model cloned without git-lfs, or a download cut short: one ValueError/OSError that names the file, not a library's traceback."

import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import transformers as T

from imagen_nb.engine.convert import convert_encoder
from imagen_nb.text import TextEncoder

warnings.simplefilter("ignore")
T.utils.logging.set_verbosity_error()
T.utils.logging.disable_progress_bar()
pointer = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1200000\n"
)
model = T.T5EncoderModel(
    T.T5Config(vocab_size=400, d_model=32, d_kv=8, num_heads=4, d_ff=64, num_layers=2)
)


def make(name, change):
    folder = Path(tempfile.mkdtemp()) / "t5"
    model.save_pretrained(folder)
    shutil.copy(toy() / "tokenizer.json", folder / "tokenizer.json")
    change(folder)
    return name, folder


def toy():
    from imagen_nb.store.files import assets

    return assets() / "t5-toy"


def weights(folder):
    (folder / "model.safetensors").write_bytes(pointer)


def old(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pointer)


def cut(folder):
    f = folder / "model.safetensors"
    b = f.read_bytes()
    f.write_bytes(b[: len(b) // 2])


def words(folder):
    (folder / "tokenizer.json").write_bytes(pointer)


bad = []
for name, folder in (
    make("safetensors", weights),
    make(".bin", old),
    make("cut safetensors", cut),
    make("tokenizer.json", words),
):
    for does, go in (
        ("load", lambda: TextEncoder.from_pretrained(folder, dtype=torch.float32)),
        ("convert", lambda: convert_encoder(folder, Path(tempfile.mkdtemp()) / "out")),
    ):
        if (name, does) == ("tokenizer.json", "convert"):
            continue
        try:
            go()
            bad.append(f"{does} {name}: loaded")
        except (ValueError, OSError) as e:
            if "damaged" not in str(e) and not any(
                p in str(e) for p in ("safetensors", ".bin", "tokenizer")
            ):
                bad.append(f"{does} {name}: names no file")
        except Exception as e:
            bad.append(f"{does} {name}: {type(e).__name__}")
print("; ".join(bad) or "each refused by name")
sys.exit(bool(bad))

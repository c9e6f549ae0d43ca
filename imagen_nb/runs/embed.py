"""Captions encoded once, before training: `imagen-nb embed`."""

from pathlib import Path

from imagen_nb.engine.captions import EmbeddingCache
from imagen_nb.engine.convert import convert_encoder
from imagen_nb.pictures.captioned import load_captioned
from imagen_nb.pictures.tables import table_captions
from imagen_nb.store.config import counted
from imagen_nb.store.files import as_path

__all__ = ["embed", "convert", "read_captions"]


def embed(
    encoder,  # who reads
    captions: list[str],  # to encode
    out: Path,  # folder of the cache, to make or to add to
    batch: int | None,  # captions at once; None: by device
    **options,  # of `EmbeddingCache.build`
):
    "Encode, and say what the folder holds."
    encoder.batch_size = batch
    try:
        cache = EmbeddingCache.build(encoder, captions, out, progress=True, **options)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped; what is encoded is in {out}. Run the same command to go on."
        ) from None
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    print(
        f"{out}: {counted(len(set(captions)), 'different caption')} of {len(captions):,};"
        f" the folder holds {len(cache):,}, {size / 1e6:.1f} MB"
    )


def convert(
    source: str | Path,  # folder of a published T5
    target: str | Path,  # folder to make
):
    "A published T5 as its encoder alone, in bfloat16."
    before, after = (
        sum(p.stat().st_size for p in as_path(o).iterdir() if p.suffix in (".bin", ".safetensors"))
        for o in (source, convert_encoder(source, target))
    )
    print(
        f"{target}: the encoder alone, in bfloat16; weights {before / 1e6:.1f} MB before,"
        f" {after / 1e6:.1f} MB now"
    )


def read_captions(
    source: str,  # .txt, .jsonl, .csv or .tsv file, or captioned pictures
    column: str | None,  # of a table; None: caption or text
) -> list[str]:
    "Captions of a text, JSON-lines or CSV file, else of captioned pictures."
    path = as_path(source)
    if path.is_file() and path.suffix.lower() in (".txt", ".jsonl", ".csv", ".tsv"):
        return table_captions(path, column)
    pictures = load_captioned(source, 64, caption_column=column, check=False)
    return [caption for i in range(len(pictures)) for caption in pictures.captions(i) or [""]]

"""Captions encoded while training runs, where a cache of all of them would not fit on a disk.

`OnlineText` stands where an `EmbeddingCache` stands and gives the same numbers. On a GPU batches are made ahead:
processes load pictures, and a thread of the trainer's own process encodes their captions, on the encoder's device,
while the step before is computed. A process that loads has no encoder, so it leaves text out; `with_text` puts it in.
"""

import os

import torch

from imagen_nb.engine.captions import encode_rows
from imagen_nb.pictures.pixels import Batch
from imagen_nb.store.text_models import check_captions
from imagen_nb.text import Encoder, TextEmbedding, pad_rows

__all__ = ["OnlineText", "with_text"]


class OnlineText:
    "Embeddings of any captions, made when they are asked for."

    def __init__(
        self,
        encoder: Encoder,  # on a device of its own or on the network's
        dtype: torch.dtype = torch.bfloat16,  # rounded to, as a cache stores them
    ):
        self.encoder, self.dtype, self.home = encoder, dtype, os.getpid()
        self.identity, self.width = encoder.identity, encoder.width

    def __getstate__(self) -> dict:
        return self.__dict__ | dict(encoder=None)  # for workers: no model is sent

    def __getitem__(
        self,
        captions: list[str],  # of a batch
    ) -> TextEmbedding | None:  # as of `EmbeddingCache`; None in another process than its own
        "Encode a batch."
        if os.getpid() != self.home:
            return None
        check_captions("OnlineText", captions)
        return pad_rows(encode_rows(self.encoder, captions, self.dtype))


def with_text(
    batch: Batch,  # of a worker, perhaps without text, but with captions
    make,  # `Samples`, which made it and knows the text
) -> Batch:  # with text
    "Encode what a worker could not."
    return batch if batch.text is not None else batch._replace(text=make.text[batch.captions])

"Captions in a script the encoder's vocabulary lacks (Chinese with an English T5): every caption becomes <unk>; someone must say so."

import contextlib
import io
import sys
import tempfile
import warnings
from pathlib import Path

import sentencepiece
import torch
import transformers as T

from imagen_nb.engine.captions import EmbeddingCache
from imagen_nb.text import TextEncoder

T.utils.logging.set_verbosity_error()
T.utils.logging.disable_progress_bar()
top = Path(tempfile.mkdtemp())
folder = top / "t5"
T.T5EncoderModel(
    T.T5Config(vocab_size=400, d_model=32, d_kv=8, num_heads=4, d_ff=64, num_layers=2)
).save_pretrained(folder)
(top / "lines").write_text(
    "\n".join(
        f"a {c} {s} beside the {t}"
        for c in ("red", "blue", "green")
        for s in ("circle", "square", "star")
        for t in ("ring", "cross", "moon")
    )
)
sentencepiece.SentencePieceTrainer.train(
    input=str(top / "lines"),
    model_prefix=str(folder / "spiece"),
    vocab_size=40,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    hard_vocab_limit=False,
    minloglevel=2,
)
encoder = TextEncoder.from_pretrained(folder, dtype=torch.float32)
captions = ["红色的圆", "两只蓝色的猫"]
said = io.StringIO()
with (
    warnings.catch_warnings(record=True) as w,
    contextlib.redirect_stdout(said),
    contextlib.redirect_stderr(said),
):
    warnings.simplefilter("always")
    EmbeddingCache.build(encoder, captions, top / "cache", progress=True)
same = torch.equal(*(encoder([c]).tokens for c in captions))
told = bool(w) or "unknown" in said.getvalue() or getattr(encoder, "unknown", 0)
print(
    f"two captions, {'one' if same else 'two'} embedding(s); {'said' if told else 'nothing said'}"
)
sys.exit(same and not told)

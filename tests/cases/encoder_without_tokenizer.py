"A T5/mT5/BERT folder with weights but no tokenizer file (text_encoder/ of a published pipeline): must be refused, not read as all-unknown."

import sys
import tempfile
from pathlib import Path

import torch
import transformers as T

from imagen_nb.text import TextEncoder

T.utils.logging.set_verbosity_error()
T.utils.logging.disable_progress_bar()
t5 = dict(vocab_size=400, d_model=32, d_kv=8, num_heads=4, d_ff=64, num_layers=2)
models = {
    "T5": T.T5EncoderModel(T.T5Config(**t5)),
    "mT5": T.MT5EncoderModel(T.MT5Config(**t5)),
    "BERT": T.BertModel(
        T.BertConfig(
            vocab_size=400,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
        )
    ),
}
bad = []
for name, model in models.items():
    folder = Path(tempfile.mkdtemp()) / "text_encoder"
    model.save_pretrained(folder)
    try:
        encoder = TextEncoder.from_pretrained(folder, dtype=torch.float32)
    except (ValueError, OSError):
        continue
    a, b = encoder(["a red circle"]).tokens, encoder(["two blue squares"]).tokens
    if a.shape == b.shape and torch.equal(a, b):
        bad.append(name)
print("two different captions, one embedding, no complaint:", ", ".join(bad) or "never")
sys.exit(bool(bad))

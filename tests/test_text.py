"""Text: embeddings, frozen encoders, the cache."""

import socket
import time

import pytest
import torch

from imagen_nb.checkpoint import CheckpointError, assets, save_directory
from imagen_nb.data import ShapesWorld, wordings
from imagen_nb.text import EmbeddingCache, TextEmbedding, TextEncoder

TOY = assets() / "t5-toy"


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder.toy()


@pytest.fixture(scope="module")
def captions():
    world = ShapesWorld("train", level="full")
    return [world.caption(i) for i in range(120)]


@pytest.fixture(scope="module")
def cache(encoder, captions, tmp_path_factory):
    path = tmp_path_factory.mktemp("cache") / "c"
    return path, EmbeddingCache.build(encoder, captions + captions[:30] + [""], path)


def random_t5(folder, vocab=192):
    "A T5 with random weights as Google's v1.1 folders are: spiece.model and .bin only."
    import sentencepiece
    from transformers import T5Config, T5ForConditionalGeneration

    world = ShapesWorld("train", level="full")
    lines = folder.parent / "lines.txt"
    folder.mkdir()
    lines.write_text("\n".join(world.caption(i) for i in range(60)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(lines), model_prefix=str(folder / "spiece"), vocab_size=60, pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2)
    (folder / "spiece.vocab").unlink()
    config = T5Config(vocab_size=vocab, d_model=32, d_kv=8, num_heads=4, d_ff=64,
                      num_layers=2, feed_forward_proj="gated-gelu")
    model = T5ForConditionalGeneration(config).eval()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    config.save_pretrained(folder)
    return model


# ---------------------------------------------------------------- TextEmbedding

def ragged():
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0]]).bool()
    return TextEmbedding(torch.randn(3, 5, 4)*mask[..., None], mask)


def test_trim_drops_columns_that_no_row_uses():
    text = ragged()
    short = text.trim()
    assert short.mask.shape == (3, 3) and short.tokens.shape == (3, 3, 4)
    torch.testing.assert_close(short.tokens, text.tokens[:, :3])
    assert text.rows([1]).trim().mask.shape == (1, 1)
    gap = TextEmbedding(text.tokens, text.mask & torch.tensor([1, 0, 1, 1, 1]).bool())
    torch.testing.assert_close(gap.trim().tokens, text.tokens[:, [0, 2]])
    empty = TextEmbedding(text.tokens, torch.zeros(3, 5, dtype=torch.bool))
    assert empty.trim().mask.shape == (3, 1) and not empty.mask.any()


def test_pad_concat_and_rows():
    text = ragged()
    padded = text.pad(8)
    assert padded.mask.shape == (3, 8) and not padded.tokens[:, 5:].any()
    assert not padded.mask[:, 5:].any() and padded.mask.dtype == torch.bool
    with pytest.raises(ValueError, match="TextEmbedding.pad.*got 5.*at most 4"):
        text.pad(4)
    both = TextEmbedding.concat([text.trim(), text.null(), text])
    assert both.mask.shape == (9, 5)
    torch.testing.assert_close(both.rows(slice(6, 9)).tokens, text.tokens)
    torch.testing.assert_close(both.rows(torch.tensor([2, 0])).tokens, text.tokens[[2, 0]])


def test_null_is_one_zero_token():
    null = ragged().to(dtype=torch.float64).null()
    assert null.tokens.shape == (3, 1, 4) and null.mask.all() and not null.tokens.any()
    assert null.tokens.dtype == torch.float64 and null.mask.dtype == torch.bool


# ---------------------------------------------------------------- TextEncoder

def test_padding_changes_nothing(encoder, captions):
    long = " ".join(captions[:5])
    together = encoder(captions[:40] + [long])
    for i, caption in enumerate(captions[:40]):
        alone = encoder([caption])
        n = alone.mask.sum()
        assert together.mask[i].sum() == n
        torch.testing.assert_close(
            together.tokens[i, :n], alone.tokens[0, :n], atol=1e-5, rtol=0)
    assert not together.tokens[~together.mask].any()


def test_order_is_restored_after_sorting(encoder, captions):
    mixed = TextEncoder(encoder.model, encoder.tokenizer, statistics=encoder.statistics)
    mixed.batch_size = 7
    a, b = encoder(captions), mixed(captions)
    assert len({int(n) for n in a.mask.sum(1)}) > 5
    torch.testing.assert_close(a.mask, b.mask)
    torch.testing.assert_close(a.tokens, b.tokens, atol=1e-5, rtol=0)
    back = encoder(captions[::-1])
    torch.testing.assert_close(back.tokens.flip(0), a.tokens, atol=1e-5, rtol=0)


def test_output_is_frozen_trimmed_and_float32(encoder):
    text = encoder(["a red circle", "two small stars"])
    assert text.tokens.dtype == torch.float32 == encoder.dtype
    assert not text.tokens.requires_grad and not encoder.model.training
    assert not any(p.requires_grad for p in encoder.model.parameters())
    assert text.tokens.shape[2] == encoder.width and text.trim().mask.shape == text.mask.shape


def test_blank_captions_are_the_null_embedding(encoder):
    text = encoder(["", "a red circle", "  "])
    assert text.mask.sum(1).tolist()[::2] == [1, 1] and text.mask[[0, 2], 0].all()
    assert not text.tokens[[0, 2]].any() and text.tokens[1].any()
    alone = encoder([""])
    assert alone.tokens.shape == (1, 1, encoder.width) and alone.mask.all()


def test_truncation_keeps_the_end_mark_and_is_counted(captions):
    short = TextEncoder.from_pretrained(TOY, max_length=6, dtype=torch.float32)
    text = short(["a red circle on a gray background", "a red circle"])
    assert short.truncated == 1 and text.mask.shape[1] == 6
    ids = short.tokenize(["a red circle on a gray background"])[0]
    assert len(ids) == 6 and ids[-1] == short.tokenizer.eos_token_id
    theirs = short.tokenizer("a red circle on a gray background", truncation=True,
                             max_length=6)["input_ids"]
    assert ids == theirs and short.truncated == 2


@pytest.mark.parametrize("bad", ["a red circle", [], [1], ["a", None], None, {"a": 1}])
def test_only_lists_of_str(encoder, bad):
    with pytest.raises(ValueError, match="TextEncoder: captions, got"):
        encoder(bad)


def test_same_numbers_as_transformers(encoder, captions):
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, T5EncoderModel

    model = T5EncoderModel.from_pretrained(TOY, dtype=torch.float32).eval()
    tokenizer, statistics = AutoTokenizer.from_pretrained(TOY), load_file(TOY / "statistics.safetensors")
    ours = encoder(captions[:20])
    for i, caption in enumerate(captions[:20]):
        with torch.no_grad():
            out = model(**tokenizer(caption, return_tensors="pt")).last_hidden_state[0]
        out = (out - statistics["mean"])/statistics["std"]
        torch.testing.assert_close(ours.tokens[i, :len(out)], out, atol=1e-5, rtol=0)
        assert ours.mask[i].sum() == len(out)


def test_folder_with_spiece_and_bin_only(tmp_path, captions):
    import sentencepiece

    model = random_t5(tmp_path / "old")
    encoder = TextEncoder.from_pretrained(tmp_path / "old", dtype=torch.float32)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "old/spiece.model"))
    ours = encoder(captions[:8])
    for i, caption in enumerate(captions[:8]):
        ids = torch.tensor([pieces.encode(caption) + [1]])
        with torch.no_grad():
            out = model.encoder(input_ids=ids).last_hidden_state[0]
        torch.testing.assert_close(ours.tokens[i, :len(out)], out, atol=1e-5, rtol=0)
    # the same weights in another format are the same encoder
    model.save_pretrained(tmp_path / "new")
    encoder.tokenizer.save_pretrained(tmp_path / "new")
    (tmp_path / "new").rename(tmp_path / "elsewhere")
    other = TextEncoder.from_pretrained(tmp_path / "elsewhere", dtype=torch.float32)
    assert other.identity["revision"] == encoder.identity["revision"]


def test_incomplete_weights_are_refused(tmp_path):
    model = random_t5(tmp_path / "t5")
    weights = model.state_dict()
    lost = "encoder.block.1.layer.0.SelfAttention.q.weight"
    del weights[lost]
    torch.save(weights, tmp_path / "t5/pytorch_model.bin")
    with pytest.raises(ValueError, match="incomplete.*" + lost):
        TextEncoder.from_pretrained(tmp_path / "t5", dtype=torch.float32)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "~/no-such-folder", "a/b/c"])
def test_missing_folder(name):
    with pytest.raises(ValueError, match="no such folder, got .*expected a folder"):
        TextEncoder.from_pretrained(name)


def test_unsupported_kind(tmp_path):
    from transformers import GPT2Config

    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="got 'gpt2', expected one of .*t5"):
        TextEncoder.from_pretrained(tmp_path)


def test_bert_and_clip_towers(tmp_path):
    from transformers import (BertConfig, BertModel, CLIPTextConfig, CLIPTextModel,
                              PreTrainedTokenizerFast)

    tokenizer = PreTrainedTokenizerFast.from_pretrained(TOY)
    small = dict(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=3,
                 num_attention_heads=2, intermediate_size=32)
    for model, config in ((BertModel, BertConfig(**small)),
                          (CLIPTextModel, CLIPTextConfig(**small, eos_token_id=1))):
        folder = tmp_path / config.model_type
        whole = model(config).eval()
        whole.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        encoder = TextEncoder.from_pretrained(folder, dtype=torch.float32)
        text = encoder(["a red circle", "a red circle left of a blue square"])
        ids = tokenizer("a red circle", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            out = whole(input_ids=ids, output_hidden_states=True).hidden_states
        out = out[-2] if config.model_type.startswith("clip") else out[-1]
        torch.testing.assert_close(text.tokens[0, :4], out[0], atol=1e-5, rtol=0)
        assert encoder.width == 16 and text.mask.sum(1).tolist() == [4, 9]
    assert encoder.max_length == 77


def test_no_transformers(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install transformers"):
        TextEncoder.toy()


def test_toy_works_offline(monkeypatch):
    def refuse(*_): raise OSError("network is not allowed here")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert TextEncoder.toy()(["a red circle"]).mask.shape == (1, 4)


def test_toy_is_small_and_knows_every_word():
    assert sum(f.stat().st_size for f in TOY.rglob("*") if f.is_file()) <= 3_000_000
    tokenizer = TextEncoder.toy().tokenizer
    words = {w for level in ("quick", "full") for i in range(300)
             for c in wordings(ShapesWorld("test", level=level).scene(i))
             for w in c.replace(",", " ").split()}
    assert words and all(len(tokenizer.tokenize(word)) == 1 for word in words)
    odd = "Ünïcode ✓ 日本\n#42"
    assert tokenizer.unk_token_id not in tokenizer(odd)["input_ids"]


def test_toy_tokens_are_standardised(encoder, captions):
    text = encoder(captions)
    rows = text.tokens[text.mask]
    assert rows.mean(0).abs().max() < .75 and .8 < rows.std() < 1.25


def test_identity_names_what_decides_the_numbers(encoder):
    assert encoder.identity == TextEncoder.toy().identity
    other = TextEncoder.from_pretrained(TOY, max_length=64, dtype=torch.float32)
    assert other.identity != encoder.identity
    bare = TextEncoder(encoder.model, encoder.tokenizer, "t5-toy")
    assert bare.identity["revision"] != encoder.identity["revision"]
    encoder(["one", "two words"])  # use does not change it
    assert TextEncoder(encoder.model, encoder.tokenizer, "t5-toy",
                       statistics=encoder.statistics).identity == encoder.identity


# ---------------------------------------------------------------- EmbeddingCache

def test_cache_gives_what_the_encoder_gives(encoder, captions, cache):
    _, built = cache
    asked = [captions[5], "", captions[0], captions[5]]
    ours, theirs = built[asked], encoder(asked)
    torch.testing.assert_close(ours.mask, theirs.mask)
    torch.testing.assert_close(ours.tokens, theirs.tokens, atol=1e-5, rtol=0)
    assert ours.tokens.dtype == torch.float32


def test_cache_stores_each_caption_once_and_no_padding(encoder, captions, cache):
    path, built = cache
    distinct = list(dict.fromkeys(captions + [""]))
    assert len(built) == len(distinct) and captions[3] in built and "no" not in built
    real = int(encoder(distinct).mask.sum())
    assert sum(tokens.shape[0] for tokens, _, _ in built.shards) == real
    size = sum(f.stat().st_size for f in path.iterdir())
    text = sum(len(c.encode()) for c in distinct)
    assert size < real*encoder.width*4 + text + 8*len(distinct) + 4096


def test_cache_opens_again_and_over_several_shards(encoder, captions, cache, tmp_path,
                                                    monkeypatch):
    path, built = cache
    again = EmbeddingCache.open(path, encoder)
    torch.testing.assert_close(again[captions].tokens, built[captions].tokens)
    monkeypatch.setattr(EmbeddingCache, "shard", 25)
    many = EmbeddingCache.build(encoder, captions, tmp_path / "many")
    assert len(many.shards) > 3 and many.captions == list(dict.fromkeys(captions))
    monkeypatch.undo()
    many = EmbeddingCache.open(tmp_path / "many", encoder)
    asked = captions[::-7] + captions[:9]
    torch.testing.assert_close(many[asked].mask, built[asked].mask)
    torch.testing.assert_close(many[asked].tokens, built[asked].tokens, atol=1e-5, rtol=0)


def test_cache_refuses_another_encoder(cache):
    other = TextEncoder.from_pretrained(TOY, max_length=64, dtype=torch.float32)
    with pytest.raises(ValueError, match="another encoder.*64.*128"):
        EmbeddingCache.open(cache[0], other)


def test_cache_names_an_unknown_caption(captions, cache):
    with pytest.raises(KeyError, match="1 of 2.*a green whale"):
        cache[1][[captions[0], "a green whale"]]
    with pytest.raises(ValueError, match="EmbeddingCache: captions"):
        cache[1][captions[0]]


def test_damaged_or_foreign_folders_are_refused(encoder, captions, tmp_path):
    EmbeddingCache.build(encoder, captions[:4], tmp_path / "c")
    file = next((tmp_path / "c").glob("shard*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        EmbeddingCache.open(tmp_path / "c")
    file.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        EmbeddingCache.open(tmp_path / "c")
    save_directory(tmp_path / "d", {"x": {"y": torch.zeros(1)}}, {"kind": "other"})
    with pytest.raises(ValueError, match="no embedding cache, got kind 'other'"):
        EmbeddingCache.open(tmp_path / "d")


def test_a_build_that_dies_leaves_nothing(encoder, captions, tmp_path):
    class Dies(TextEncoder):
        def batches(self, captions, batch_size=None):
            for index, text in super().batches(captions, batch_size):
                if len(index) < 4: raise KeyboardInterrupt
                yield index, text

    dies = Dies(encoder.model, encoder.tokenizer, statistics=encoder.statistics)
    with pytest.raises(KeyboardInterrupt):
        EmbeddingCache.build(dies, captions[:10], tmp_path / "c", batch_size=4)
    with pytest.raises(CheckpointError):
        EmbeddingCache.open(tmp_path / "c")


def test_cache_of_bfloat16_gives_float32(captions, tmp_path):
    random_t5(tmp_path / "t5")
    encoder = TextEncoder.from_pretrained(tmp_path / "t5", dtype=torch.bfloat16)
    built = EmbeddingCache.build(encoder, captions[:3], tmp_path / "c")
    assert built.shards[0][0].dtype == torch.bfloat16
    text = built[captions[:3]]
    assert text.tokens.dtype == torch.float32
    torch.testing.assert_close(text.tokens, encoder(captions[:3]).tokens.float(),
                               atol=.05, rtol=.05)  # bf16 differs by batch


def test_lookup_is_fast(captions, cache):
    asked, best = captions[:48], 1.
    for _ in range(200):
        start = time.perf_counter()
        cache[1][asked]
        best = min(best, time.perf_counter() - start)
    assert best < 2e-3  # .3 ms on an idle core

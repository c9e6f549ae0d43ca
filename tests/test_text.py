"""Text: embeddings through whole networks, frozen encoders, conversion. The cache is in test_cache.py."""

import json
import socket

import pytest
import torch

from imagen_nb.cascade import Imagen
from imagen_nb.data import ShapesWorld, wordings
from imagen_nb.efficient_unet import EfficientUNet, EfficientUNetConfig
from imagen_nb.engine.captions import EmbeddingCache
from imagen_nb.engine.convert import convert_encoder, encoder_bytes
from imagen_nb.stage import Stage, StageConfig, has_fast_bf16
from imagen_nb.store.files import assets
from imagen_nb.store.foreign import in_words
from imagen_nb.text import TextEmbedding, TextEncoder, fast_dtype, pad_rows
from imagen_nb.unet import UNet, UNetConfig

TOY = assets() / "t5-toy"


def train_pieces(folder, lines):
    "Write the spiece.model of a T5 that reads such lines."
    import sentencepiece

    text = folder.parent / "lines.txt"
    text.write_text("\n".join(lines), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "spiece.vocab").unlink()


def random_t5(folder, vocab=192):
    "A T5 with random weights as Google's v1.1 folders are: spiece.model and .bin only."
    from transformers import T5Config, T5ForConditionalGeneration

    world = ShapesWorld("train", level="full")
    folder.mkdir()
    train_pieces(folder, [world.caption(i) for i in range(60)])
    config = T5Config(
        vocab_size=vocab,
        d_model=32,
        d_kv=8,
        num_heads=4,
        d_ff=64,
        num_layers=2,
        feed_forward_proj="gated-gelu",
    )
    model = T5ForConditionalGeneration(config).eval()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    config.save_pretrained(folder)
    return model


def tiny(width):
    "A network that reads tokens of this width."
    return UNetConfig(
        dim=16, mults=(1, 2), blocks=1, attention=(False, True), head_dim=16, text_dim=width,
        text_width=16, emb_dim=32,
    )  # fmt: skip


# ---------------------------------------------------------------- TextEmbedding


def ragged():
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0]]).bool()
    return TextEmbedding(torch.randn(3, 5, 4) * mask[..., None], mask)


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


def test_pad_rows():
    rows = [torch.ones(3, 2), 2 * torch.ones(1, 2, dtype=torch.bfloat16)]
    text = pad_rows(rows)
    assert text.mask.tolist() == [[True] * 3, [True, False, False]] and text.tokens.sum() == 10
    assert text.tokens.dtype == torch.float32
    whole = ragged()
    again = pad_rows([tokens[mask] for tokens, mask in zip(*whole)])
    torch.testing.assert_close(again.tokens, whole.trim().tokens)


def test_null_is_one_zero_token():
    null = ragged().to(dtype=torch.float64).null()
    assert null.tokens.shape == (3, 1, 4) and null.mask.all() and not null.tokens.any()
    assert null.tokens.dtype == torch.float64 and null.mask.dtype == torch.bool


def test_concat_keeps_order_and_refuses_other_widths():
    text = ragged()
    for order in ([0, 1, 2], [2, 0, 1]):
        parts = [text.rows([i]).trim() for i in order]
        torch.testing.assert_close(
            TextEmbedding.concat(parts).pad(5).tokens, text.rows(order).tokens
        )
    wide = TextEmbedding(torch.zeros(1, 2, 6), torch.ones(1, 2).bool())
    with pytest.raises(ValueError, match=r"TextEmbedding.concat.*widths \[4, 6\]"):
        TextEmbedding.concat([text, wide])
    with pytest.raises(ValueError, match="TextEmbedding.concat.*got 0"):
        TextEmbedding.concat([])


# ---------------------------------------------------------------- through whole networks


def networks():
    "A base U-Net and a super-resolution one with all of their text paths open, and other inputs."
    torch.manual_seed(0)
    base = UNet(
        UNetConfig(
            dim=16,
            mults=(1, 2),
            blocks=1,
            attention=(False, True),
            head_dim=16,
            text_dim=12,
            text_width=16,
            emb_dim=32,
        )
    ).eval()
    large = EfficientUNet(
        EfficientUNetConfig(
            channels=(16, 32),
            blocks=(1, 1),
            strides=(2, 2),
            heads=2,
            stem=16,
            self_attention=(False, True),
            text_attention=(True, True),
            text_dim=12,
            text_width=16,
            emb_dim=32,
        )
    ).eval()
    for network in (base, large):
        for parameter in network.parameters():  # zero at the start hides the text
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    z_t, log_snr = torch.randn(3, 3, 16, 16), torch.linspace(-3, 3, 3)
    return {
        "base": (base, (z_t, log_snr), ()),
        "large": (large, (z_t, log_snr), (torch.randn(3, 3, 16, 16), log_snr)),
    }


@pytest.fixture(scope="module", params=["base", "large"])
def draw_with(request):
    network, before, after = networks()[request.param]

    @torch.no_grad()
    def run(text, rows=slice(None)):
        return network(*(x[rows] for x in before), text, *(x[rows] for x in after))

    return run


def captions_of_three():
    g = torch.Generator().manual_seed(1)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]).bool()
    return TextEmbedding(torch.randn(3, 4, 12, generator=g) * mask[..., None], mask)


def test_text_reaches_the_picture(draw_with):
    text = captions_of_three()
    assert (draw_with(text) - draw_with(text.null())).abs().max() > 1e-3


@pytest.mark.parametrize("length", [5, 16, 128])
def test_padding_does_not_change_a_network_s_output(draw_with, length):
    text = captions_of_three()
    torch.testing.assert_close(draw_with(text.pad(length)), draw_with(text), atol=1e-5, rtol=0)
    torch.testing.assert_close(draw_with(text.pad(length).trim()), draw_with(text), atol=0, rtol=0)


def test_masked_positions_have_no_influence_at_all(draw_with):
    text = captions_of_three()
    noise = torch.where(text.mask[..., None], text.tokens, 1e3 * torch.randn_like(text.tokens))
    assert torch.equal(draw_with(TextEmbedding(noise, text.mask)), draw_with(text))


def test_null_is_one_thing_for_all_captions(draw_with):
    text = captions_of_three()
    alone = [draw_with(text.rows([i]).null(), [i]) for i in range(3)]
    torch.testing.assert_close(draw_with(text.null()), torch.cat(alone), atol=1e-5, rtol=0)
    dropped = TextEmbedding(torch.zeros(3, 4, 12), torch.tensor([[True, False, False, False]] * 3))
    torch.testing.assert_close(draw_with(text.null()), draw_with(dropped), atol=1e-5, rtol=0)


def test_concat_through_a_network_keeps_order(draw_with):
    text = captions_of_three()
    joined = TextEmbedding.concat([text.rows([i]).trim() for i in (2, 0)])
    torch.testing.assert_close(
        draw_with(joined, [2, 0]), draw_with(text)[[2, 0]], atol=1e-5, rtol=0
    )


# ---------------------------------------------------------------- TextEncoder


def test_padding_changes_nothing(encoder, captions):
    long = " ".join(captions[:5])
    together = encoder(captions[:40] + [long])
    for i, caption in enumerate(captions[:40]):
        alone = encoder([caption])
        n = alone.mask.sum()
        assert together.mask[i].sum() == n
        torch.testing.assert_close(together.tokens[i, :n], alone.tokens[0, :n], atol=1e-5, rtol=0)
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
    theirs = short.tokenizer("a red circle on a gray background", truncation=True, max_length=6)[
        "input_ids"
    ]
    assert ids == theirs and short.truncated == 2


def test_long_words_are_not_cut():
    "It is tokens that are counted: a hundred words of ten letters are fewer than 128."
    encoder, caption = TextEncoder.toy(), " ".join(["background"] * 100)
    (ids,) = encoder.tokenize([caption])
    assert ids == encoder.tokenizer(caption)["input_ids"] and 100 < len(ids) <= 128
    assert encoder.truncated == 0


@pytest.mark.parametrize("bad", ["a red circle", [], [1], ["a", None], None, {"a": 1}])
def test_only_lists_of_str(encoder, bad):
    with pytest.raises(ValueError, match="TextEncoder: captions, got"):
        encoder(bad)


def test_same_numbers_as_transformers(encoder, captions):
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, T5EncoderModel

    model = T5EncoderModel.from_pretrained(TOY, dtype=torch.float32).eval()
    tokenizer, statistics = (
        AutoTokenizer.from_pretrained(TOY),
        load_file(TOY / "statistics.safetensors"),
    )
    ours = encoder(captions[:20])
    for i, caption in enumerate(captions[:20]):
        with torch.no_grad():
            out = model(**tokenizer(caption, return_tensors="pt")).last_hidden_state[0]
        out = (out - statistics["mean"]) / statistics["std"]
        torch.testing.assert_close(ours.tokens[i, : len(out)], out, atol=1e-5, rtol=0)
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
        torch.testing.assert_close(ours.tokens[i, : len(out)], out, atol=1e-5, rtol=0)
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
    from transformers import (
        BertConfig,
        BertModel,
        CLIPTextConfig,
        CLIPTextModel,
        PreTrainedTokenizerFast,
    )

    tokenizer = PreTrainedTokenizerFast.from_pretrained(TOY)
    small = dict(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
    )
    for model, config in (
        (BertModel, BertConfig(**small)),
        (CLIPTextModel, CLIPTextConfig(**small, eos_token_id=1)),
    ):
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


def bert_tokenizer(folder):
    "A WordPiece tokenizer as BERT's folders have it."
    from transformers import BertTokenizerFast

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "red",
        "blue",
        "circle",
        "square",
        "left",
        "of",
        "##s",
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    return BertTokenizerFast(str(folder / "vocab.txt"))


def test_bert_with_its_own_tokenizer(tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = bert_tokenizer(tmp_path)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    whole = BertForMaskedLM(
        config
    ).eval()  # as published: with a head, and names that begin with bert.
    whole.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    encoder = TextEncoder.from_pretrained(tmp_path / "bert", dtype=torch.float32)
    captions = ["a red circle", "Red circles left of a blue square", ""]
    text = encoder(captions)
    assert encoder.max_length == 32 and text.mask.sum(1).tolist() == [5, 10, 1]
    for i, caption in enumerate(captions[:2]):
        with torch.no_grad():
            out = whole.bert(**tokenizer(caption, return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(text.tokens[i, : len(out)], out, atol=1e-5, rtol=0)


def test_clip_s_text_tower_out_of_the_whole_model(tmp_path):
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    n = len(tokens)
    small = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)
    words = small | dict(vocab_size=n, bos_token_id=n - 2, eos_token_id=n - 1, pad_token_id=n - 1)
    whole = CLIPModel(
        CLIPConfig(
            text_config=words,
            vision_config=small | dict(image_size=8, patch_size=4),
            projection_dim=8,
        )
    ).eval()
    whole.save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    encoder = TextEncoder.from_pretrained(tmp_path / "clip", dtype=torch.float32)
    assert encoder.max_length == 77 and type(encoder.model).__name__.startswith("CLIPText")
    captions = ["a red circle", "a blue square on a cat " * 9]
    text = encoder(captions)
    assert encoder.truncated == 1 and text.mask.shape == (2, 77)
    for i, caption in enumerate(captions):
        inputs = tokenizer(caption, return_tensors="pt", truncation=True, max_length=77)
        with torch.no_grad():
            layers = whole.text_model(**inputs, output_hidden_states=True).hidden_states
        assert len(layers) == 4  # embeddings and three layers: the one before the last is the third
        torch.testing.assert_close(
            text.tokens[i, : inputs["input_ids"].shape[1]], layers[2][0], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("kind", ["relu", "gated-gelu"])
def test_t5_of_both_versions(tmp_path, kind, captions, encoder):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=len(encoder.tokenizer),
        d_model=32,
        d_kv=8,
        num_heads=4,
        d_ff=64,
        num_layers=2,
        feed_forward_proj=kind,
        tie_word_embeddings=kind == "relu",
    )
    whole = T5ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path / "t5")
    encoder.tokenizer.save_pretrained(tmp_path / "t5")
    ours = TextEncoder.from_pretrained(tmp_path / "t5", dtype=torch.float32)
    text = ours(captions[:8])
    inputs = encoder.tokenizer(captions[:8], padding=True, return_tensors="pt")
    with torch.no_grad():
        out = whole.encoder(**inputs).last_hidden_state
    torch.testing.assert_close(text.mask, inputs["attention_mask"].bool())
    torch.testing.assert_close(text.tokens, out * text.mask[..., None], atol=1e-5, rtol=0)


def test_dtype_follows_the_device(tmp_path):
    random_t5(tmp_path / "t5")
    assert fast_dtype("cuda") == torch.bfloat16 and fast_dtype("mps") == torch.float32
    assert has_fast_bf16("cuda") and not has_fast_bf16("mps")  # networks follow the same rule
    assert fast_dtype() == fast_dtype("cuda" if torch.cuda.is_available() else "cpu")
    assert TextEncoder.from_pretrained(tmp_path / "t5").dtype == fast_dtype()
    asked = TextEncoder.from_pretrained(tmp_path / "t5", dtype=torch.bfloat16, device="cpu")
    assert asked.dtype == torch.bfloat16 and asked.identity["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(max_length=0), "max_length, got 0"),
        (dict(max_length="9"), "max_length, got '9'"),
        (dict(dtype=torch.float16), "dtype, got torch.float16.*overflows"),
        (dict(dtype="bf16"), "dtype, got bf16"),
    ],
)
def test_options_that_cannot_be(options, words):
    with pytest.raises(ValueError, match="TextEncoder: " + words):
        TextEncoder.from_pretrained(TOY, **options)


@pytest.mark.parametrize("size", [0, -3])
def test_batch_size(encoder, size):
    mine = TextEncoder(encoder.model, encoder.tokenizer)
    mine.batch_size = size
    with pytest.raises(ValueError, match="batch_size, got"):
        mine(["a"])


def test_folder_without_weights_or_tokenizer(tmp_path):
    random_t5(tmp_path / "t5")
    (tmp_path / "t5/pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match="cannot load .*expected a name on the hub or a folder"):
        TextEncoder.from_pretrained(tmp_path / "t5")


def test_free_keeps_what_opens_a_cache(captions):
    mine = TextEncoder.toy()
    identity = mine.identity
    mine.free()
    assert mine.model is None and mine.identity == identity and mine.width == 128
    assert mine.to("cpu") is mine
    with pytest.raises(ValueError, match="after free"):
        mine(["a red circle"])


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_weights_give_the_same_numbers(encoder, captions, tmp_path, where):
    import accelerate

    mine = TextEncoder.toy()
    if where == "cpu":
        accelerate.cpu_offload(mine.model, "cpu")
    else:
        accelerate.disk_offload(mine.model, tmp_path, "cpu")
    assert mine.model.device.type == "meta"
    torch.testing.assert_close(
        mine(captions[:9]).tokens, encoder(captions[:9]).tokens, atol=1e-5, rtol=0
    )
    with pytest.raises(ValueError, match="offloaded weights.*first"):
        TextEncoder(mine.model, mine.tokenizer)


# ---------------------------------------------------------------- an encoder proves that it can read

SMALL = dict(vocab_size=192, d_model=32, d_kv=8, num_heads=4, d_ff=64, num_layers=2)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1200000\n"
CHINESE = ["红色的圆", "两只蓝色的猫", "绿色的方块在左边", "黄色的星在右边"]


def test_characters_without_a_token_are_counted_and_told(tmp_path):
    random_t5(tmp_path / "t5")
    encoder = TextEncoder.from_pretrained(tmp_path / "t5", dtype=torch.float32)
    with pytest.warns(UserWarning, match="2 captions with char.*'t5/'.*<unk>.*google/mt5") as said:
        EmbeddingCache.build(encoder, [*CHINESE[:2], "a red circle"], tmp_path / "c")
    assert len(said) == 1 and encoder.unknown == 2 and encoder.truncated == 0
    with pytest.warns(UserWarning, match="1 caption with characters"):
        Imagen(encoder, [Stage(StageConfig(size=16, network=tiny(32)))]).encode(["红", "a circle"])
    toy = TextEncoder.toy()
    toy(CHINESE)  # it spells what it has never met
    assert toy.unknown == 0


@pytest.mark.parametrize("kind", ["MT5", "UMT5"])
def test_a_multilingual_encoder_reads_many_scripts(tmp_path, kind):
    import transformers

    config = getattr(transformers, kind + "Config")(**SMALL)
    getattr(transformers, kind + "ForConditionalGeneration")(config).save_pretrained(tmp_path / "m")
    train_pieces(tmp_path / "m", CHINESE * 9)
    encoder = TextEncoder.from_pretrained(tmp_path / "m", dtype=torch.float32)
    text = encoder(CHINESE[:2])
    assert encoder.unknown == 0 and (text.tokens[0, 1] - text.tokens[1, 1]).abs().max() > 1e-3
    convert_encoder(tmp_path / "m", tmp_path / "n")
    old, new = (TextEncoder.from_pretrained(tmp_path / n, dtype=torch.bfloat16) for n in "mn")
    assert {**old.identity, "encoder": ""} == {**new.identity, "encoder": ""}


def test_a_long_prompt_is_told_when_drawing(encoder):
    imagen = Imagen(encoder, [Stage(StageConfig(size=16, network=tiny(128)))])
    with pytest.warns(UserWarning, match="Imagen.sample: 1 caption longer than 128 tokens"):
        imagen.encode(["a red circle " * 60, "a red circle"])


def other_words(folder):
    "A tokenizer with more words than the model."
    words = [f"w{i}" for i in range(300)]
    (folder / "vocab.txt").write_text("\n".join(["[UNK]", "[PAD]", "[CLS]", "[SEP]", *words]))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (folder / "spiece.model").unlink()


def few_words(folder):
    from transformers import T5Config, T5ForConditionalGeneration

    T5ForConditionalGeneration(T5Config(**SMALL | dict(vocab_size=5000))).save_pretrained(folder)


def no_words(folder):
    (folder / "spiece.model").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')


def other_end(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | dict(eos_token_id=7)))


def bert_s_words(folder):
    bert_tokenizer(folder).save_pretrained(folder)
    (folder / "spiece.model").unlink()


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda folder: (folder / "spiece.model").unlink(), "no tokenizer there.*`text_encoder`"),
        (no_words, "got no words"),
        (other_words, "token numbers up to 304, expected below 192"),
        (few_words, "got .* tokens, expected about 5000"),
        (other_end, "end mark 1, expected 7"),
        (bert_s_words, "end mark None, expected 1"),
    ],
)
def test_a_tokenizer_that_cannot_read_for_this_model_is_refused(tmp_path, change, words):
    random_t5(tmp_path / "t5")
    change(tmp_path / "t5")
    with pytest.raises(ValueError, match=words):
        TextEncoder.from_pretrained(tmp_path / "t5", dtype=torch.float32)


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def folder_instead(file):
    file.unlink()
    file.mkdir()


DAMAGE = {
    "a pointer of git-lfs": lambda file: file.write_bytes(POINTER),
    "empty": lambda file: file.write_bytes(b""),
    "a web page": lambda file: file.write_bytes(b"\n<!DOCTYPE html><html>404</html>"),
    "no file but a directory": folder_instead,
    "damaged|cut short": cut,
}


@pytest.mark.parametrize("words", DAMAGE)
@pytest.mark.parametrize("name", ["config.json", "pytorch_model.bin", "model.safetensors"])
def test_a_damaged_file_is_named_and_said_what_it_is(tmp_path, name, words):
    model = random_t5(tmp_path / "t5")
    if name.startswith("model."):
        model.save_pretrained(tmp_path / "t5")
    DAMAGE[words](tmp_path / "t5" / name)
    for read in (
        lambda: TextEncoder.from_pretrained(tmp_path / "t5"),
        lambda: convert_encoder(tmp_path / "t5", tmp_path / "n"),
    ):
        with pytest.raises(ValueError, match=f"{name} is ({words})"):
            read()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "spiece.model"])
@pytest.mark.parametrize(
    "content, words", [(POINTER, "git-lfs"), (b"", "empty"), (b"?", "damaged")]
)
def test_a_damaged_tokenizer_is_named(tmp_path, name, content, words):
    random_t5(tmp_path / "t5")
    (tmp_path / "t5" / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is .*{words}"):
        TextEncoder.from_pretrained(tmp_path / "t5")


def test_a_missing_shard_and_a_bad_index_are_named(tmp_path):
    model, folder = random_t5(tmp_path / "t5"), tmp_path / "t5"
    model.save_pretrained(folder, max_shard_size="20KB")
    shards, index = sorted(folder.glob("*.safetensors")), folder / "model.safetensors.index.json"
    assert len(shards) > 1 and TextEncoder.from_pretrained(folder).width == 32
    shards[1].rename(tmp_path / "away")
    words = f"{len(shards) - 1} of the {len(shards)} weight files .*{shards[1].name} is missing"
    for read in (TextEncoder.from_pretrained, lambda o: convert_encoder(o, tmp_path / "n")):
        with pytest.raises(ValueError, match=words):
            read(folder)
    index.write_text("{")
    with pytest.raises(ValueError, match="index.json is damaged, no JSON"):
        TextEncoder.from_pretrained(folder)


def test_what_is_not_read_may_be_damaged(tmp_path):
    random_t5(tmp_path / "t5").save_pretrained(tmp_path / "t5")
    (tmp_path / "t5" / "pytorch_model.bin").write_bytes(POINTER)  # cloned without the .bin
    assert TextEncoder.from_pretrained(tmp_path / "t5").width == 32


def test_a_broken_package_on_the_way_is_named(tmp_path, monkeypatch):
    (tmp_path / "hearing.py").write_text("raise RuntimeError('hearing::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    library = {"__name__": "transformers.models"}
    try:
        try:
            exec("import hearing", library)
        except RuntimeError as e:
            raise ModuleNotFoundError("Could not import T5EncoderModel") from e.with_traceback(
                e.__traceback__.tb_next
            )
    except ModuleNotFoundError as e:
        assert in_words(e).startswith("hearing on this machine is broken (hearing::nms does not")


# ---------------------------------------------------------------- conversion


def folder_size(folder):
    return sum(f.stat().st_size for f in folder.iterdir() if f.suffix in (".bin", ".safetensors"))


@pytest.mark.parametrize("layout", ["one", "many"])
def test_convert_writes_the_encoder_alone(tmp_path, captions, monkeypatch, layout):
    from imagen_nb.engine import convert

    random_t5(tmp_path / "old")
    if layout == "many":
        monkeypatch.setattr(convert, "SHARD", 9000)
    new = convert_encoder(tmp_path / "old", tmp_path / "new")
    names = {f.name for f in new.iterdir()}
    assert {"config.json", "encoder.json", "spiece.model"} <= names and not any(
        n.endswith(".bin") for n in names
    )
    assert ("model.safetensors" in names) == (layout == "one")
    assert folder_size(new) < 0.3 * folder_size(tmp_path / "old")
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["new", "old"]
    before, after = (
        TextEncoder.from_pretrained(tmp_path / n, dtype=torch.bfloat16) for n in ("old", "new")
    )
    assert {k: v for k, v in before.identity.items() if k != "encoder"} == {
        k: v for k, v in after.identity.items() if k != "encoder"
    }
    torch.testing.assert_close(
        before(captions[:5]).tokens, after(captions[:5]).tokens, atol=0, rtol=0
    )
    kinds = {str(v.dtype) for f in new.glob("*.safetensors") for v in load(f).values()}
    assert kinds == {"torch.bfloat16"} and not any(
        "decoder" in k or "lm_head" in k for f in new.glob("*.safetensors") for k in load(f)
    )


def load(file):
    from safetensors.torch import load_file

    return load_file(file)


def test_convert_reads_safetensors_and_old_pickles(tmp_path):
    model = random_t5(tmp_path / "old")
    want = TextEncoder.from_pretrained(tmp_path / "old", dtype=torch.bfloat16).identity["revision"]
    torch.save(
        model.state_dict(), tmp_path / "old/pytorch_model.bin", _use_new_zipfile_serialization=False
    )
    with pytest.warns(UserWarning, match="old format"):
        convert_encoder(tmp_path / "old", tmp_path / "a")
    model.save_pretrained(tmp_path / "old")
    convert_encoder(tmp_path / "old", tmp_path / "b")
    for name in "ab":
        assert json.loads((tmp_path / name / "encoder.json").read_text())["revision"] == want


def test_a_damaged_conversion_is_refused(tmp_path):
    random_t5(tmp_path / "old")
    file = convert_encoder(tmp_path / "old", tmp_path / "new") / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-7] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="damaged, got digest .*convert"):
        TextEncoder.from_pretrained(tmp_path / "new", dtype=torch.bfloat16)


def test_convert_runs_nothing_and_leaves_nothing(tmp_path):
    import os

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    model = random_t5(tmp_path / "old")
    torch.save({"shared.weight": Evil()}, tmp_path / "old/pytorch_model.bin")
    with pytest.raises(Exception, match="[Ww]eights.?only"):
        convert_encoder(tmp_path / "old", tmp_path / "new")
    weights = model.state_dict()
    del weights["encoder.final_layer_norm.weight"]
    torch.save(weights, tmp_path / "old/pytorch_model.bin")
    with pytest.raises(
        ValueError, match="incomplete, 1 missing, first encoder.final_layer_norm.weight"
    ):
        convert_encoder(tmp_path / "old", tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["old"]


def test_convert_refuses(tmp_path):
    from transformers import BertConfig

    random_t5(tmp_path / "old")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    with pytest.raises(ValueError, match="is there already"):
        convert_encoder(tmp_path / "old", tmp_path / "full")
    with pytest.raises(ValueError, match="no config.json"):
        convert_encoder(tmp_path / "none", tmp_path / "new")
    (tmp_path / "old/pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match="no model.*safetensors"):
        convert_encoder(tmp_path / "old", tmp_path / "new")
    BertConfig().save_pretrained(tmp_path / "old")
    with pytest.raises(ValueError, match="kind 'bert'"):
        convert_encoder(tmp_path / "old", tmp_path / "new")


def test_forecast_of_t5_xxl():
    from transformers import T5Config

    config = T5Config(
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        vocab_size=32128,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    sizes = encoder_bytes(config)
    assert 44e9 < sizes["whole, float32"] < 45e9 and 9e9 < sizes["encoder, bfloat16"] < 10e9


# ---------------------------------------------------------------- the rest


def test_no_transformers(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install transformers"):
        TextEncoder.toy()


def test_toy_works_offline(monkeypatch):
    def refuse(*_):
        raise OSError("network is not allowed here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert TextEncoder.toy()(["a red circle"]).mask.shape == (1, 4)


def test_a_caption_keeps_128_tokens_unless_it_is_told(encoder):
    "The paper does not say how many; 128 is what others take."
    assert encoder.max_length == encoder.identity["max_length"] == 128
    assert TextEncoder(encoder.model, encoder.tokenizer).max_length == 128
    assert len(encoder.tokenize(["red " * 200])[0]) == 128


def test_toy_is_small_and_knows_every_word():
    assert sum(f.stat().st_size for f in TOY.rglob("*") if f.is_file()) <= 3_000_000
    tokenizer = TextEncoder.toy().tokenizer
    words = {
        w
        for level in ("quick", "full")
        for i in range(300)
        for c in wordings(ShapesWorld("test", level=level).scene(i))
        for w in c.replace(",", " ").split()
    }
    assert words and all(len(tokenizer.tokenize(word)) == 1 for word in words)
    odd = "Ünïcode ✓ 日本\n#42"
    assert tokenizer.unk_token_id not in tokenizer(odd)["input_ids"]


def test_toy_tokens_are_standardised(encoder, captions):
    text = encoder(captions)
    rows = text.tokens[text.mask]
    assert rows.mean(0).abs().max() < 0.75 and 0.8 < rows.std() < 1.25


def test_identity_names_what_decides_the_numbers(encoder):
    assert encoder.identity == TextEncoder.toy().identity
    other = TextEncoder.from_pretrained(TOY, max_length=64, dtype=torch.float32)
    assert other.identity != encoder.identity
    bare = TextEncoder(encoder.model, encoder.tokenizer, "t5-toy")
    assert bare.identity["revision"] != encoder.identity["revision"]
    encoder(["one", "two words"])  # use does not change it
    assert (
        TextEncoder(
            encoder.model, encoder.tokenizer, "t5-toy", statistics=encoder.statistics
        ).identity
        == encoder.identity
    )


@pytest.mark.net
def test_a_real_t5_of_the_hub():
    "HF_HUB_OFFLINE=0 pytest -m net: half a gigabyte the first time."
    from huggingface_hub import constants
    from transformers import AutoTokenizer, T5EncoderModel

    if constants.HF_HUB_OFFLINE:
        pytest.skip("needs the hub: set HF_HUB_OFFLINE=0")
    name, caption = "google/t5-v1_1-small", "an eggplant on a bicycle"
    t5 = TextEncoder.from_pretrained(name, dtype=torch.float32)
    half = TextEncoder.from_pretrained(name, dtype=torch.bfloat16)
    assert t5.width == 512 and t5.identity["source"] == half.identity["source"]
    model = T5EncoderModel.from_pretrained(name, dtype=torch.float32).eval()
    with torch.no_grad():
        ids = AutoTokenizer.from_pretrained(name)(caption, return_tensors="pt")
        wanted = model(**ids).last_hidden_state
    torch.testing.assert_close(t5([caption, "a"]).tokens[:1], wanted, atol=1e-4, rtol=0)


# ---------------------------------------------------------------- an encoder of one's own


class Letters:
    "A vector for each letter: an encoder that has what `Encoder` says, and nothing else."

    width = 6
    identity = dict(
        encoder="letters", revision="1", tokenizer="letters", max_length=16, dtype="float32"
    )

    def __call__(self, captions):
        table = torch.randn(128, 6, generator=torch.Generator().manual_seed(0))
        ids = [[ord(letter) % 128 for letter in caption[:16] or " "] for caption in captions]
        return pad_rows([table[row] for row in ids])


def test_an_encoder_of_ones_own_fills_a_cache_and_draws(tmp_path):
    own, captions = Letters(), ["a red circle", "", "two stars", "a red circle"]
    cache = EmbeddingCache.build(own, captions, tmp_path / "c", dtype=torch.float32)
    assert len(cache) == 3 and cache.width == 6
    again = EmbeddingCache.open(tmp_path / "c", own)
    torch.testing.assert_close(again[captions].tokens, own(captions).tokens)
    torch.testing.assert_close(again[captions].mask, own(captions).mask)
    with pytest.raises(ValueError, match="'t5-toy' differs in revision.*max_length"):
        EmbeddingCache.open(tmp_path / "c", TextEncoder.toy())

    imagen = Imagen(own, [Stage(StageConfig(size=16, network=tiny(6)))])
    imagen.stages[0].is_trained = True
    pictures = imagen.sample(["a red circle"], steps=2)
    assert pictures.shape == (1, 3, 16, 16)
    imagen.save_pretrained(tmp_path / "model", dtype=torch.float32)
    loaded = Imagen.from_pretrained(tmp_path / "model", own)
    torch.testing.assert_close(loaded.sample(["a red circle"], steps=2), pictures)
    other = Letters()
    other.identity = own.identity | dict(revision="2")
    with pytest.raises(ValueError, match="expected the encoder of training"):
        Imagen.from_pretrained(tmp_path / "model", other)

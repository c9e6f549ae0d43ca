"`imagen-nb evaluate`: drawn once, resumed with the same numbers, by several processes; extractors by name."

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_cascade import BASE_STAGE, SR_STAGE, awake

from imagen_nb.cascade import Imagen
from imagen_nb.cli import main
from imagen_nb.evaluation import clip_score, frechet_distance
from imagen_nb.lab import extractors
from imagen_nb.lab.extractors import Extractor, find_extractor
from imagen_nb.lab.judge import Judge
from imagen_nb.pictures.captioned import load_captioned
from imagen_nb.runs import evaluate as module
from imagen_nb.runs.evaluate import (
    PROTOCOLS,
    choose_captions,
    evaluate,
    picture_path,
    report,
    stages_for,
)
from imagen_nb.store.files import assets
from imagen_nb.text import TextEncoder

COLOURS = ("red", "green", "blue", "white", "black", "gray", "navy", "teal")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Forty pictures of one colour, two captions each."
    root = tmp_path_factory.mktemp("real")
    rows = []
    for i in range(40):
        name, colour = f"{i:02d}.png", COLOURS[i % 8]
        Image.new("RGB", (20 + i, 16), colour).save(root / name)
        rows.append(dict(file_name=name, text=[f"a {colour} card", f"card {i} is {colour}"]))
    lines = "\n".join(map(json.dumps, rows))
    (root / "metadata.jsonl").write_text(lines + "\n")
    return root


def small():
    "Random weights, awake, which read the toy's encoder."
    encoder = TextEncoder.toy()

    def reads(stage):
        return replace(stage, network=replace(stage.network, text_dim=encoder.width))

    return Imagen(encoder, [awake(reads(BASE_STAGE)), awake(reads(SR_STAGE))])


def means(images):
    return images.float().mean((2, 3))


MEANS = Extractor(
    "means of channels", "none", means, means, lambda texts: torch.ones(len(texts), 3)
)


def run(folder, out, extractor=MEANS, **options):
    imagen = small()
    size = imagen.stages[-1].config.size
    pictures = load_captioned(str(folder), size)
    how = dict(n=40, steps=1) | options
    return evaluate(imagen, pictures, "own", out, extractor, MEANS, **how)


# ---------------------------------------------------------------- what is asked


def test_captions_are_drawn_by_lot_without_repetition(folder):
    pictures = load_captioned(str(folder), 16)
    chosen, every = choose_captions(pictures, 60, 0), choose_captions(pictures, 80, 0)
    assert len(set(chosen)) < 60  # "a red card" is the caption of several pictures
    assert sorted(every) == sorted(c for i in range(40) for c in pictures.captions(i))
    assert chosen == every[:60] != choose_captions(pictures, 60, 1)
    assert len(choose_captions(pictures, None, 0)) == 40
    for n in (1, 81):
        with pytest.raises(ValueError, match="evaluate: captions, got 80"):
            choose_captions(pictures, n, 0)


def test_the_protocol_is_the_papers():
    assert PROTOCOLS["coco-fid30k"][:3] == ("valid", 30_000, 256)


def test_the_stage_of_the_protocols_size_is_the_last_to_draw():
    imagen = small()
    assert stages_for(imagen, None) == (2, 64) and stages_for(imagen, 16) == (1, 16)
    with pytest.raises(ValueError, match=r"got stages of \[16, 64\] px, expected one of 256 px"):
        stages_for(imagen, 256)
    imagen.stages[1].is_trained = False  # it would draw noise
    assert stages_for(imagen, None) == (1, 16)
    with pytest.raises(ValueError, match=r"got stages of \[16\] px, expected one of 64 px"):
        stages_for(imagen, 64)


# ---------------------------------------------------------------- numbers


def test_numbers_are_those_of_the_functions(folder, tmp_path):
    scores = run(folder, tmp_path / "out")
    pictures = load_captioned(str(folder), 64)
    drawn = [Image.open(picture_path(tmp_path / "out", k)) for k in range(40)]
    pixels = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in drawn])
    ours, real = means(pixels / 127.5 - 1), means(pictures.images(range(40), 64))
    assert scores["fid"] == pytest.approx(frechet_distance(real, ours), rel=1e-6)
    match = clip_score(ours, torch.ones(40, 3)).mean().item()
    assert scores["match"]["mean"] == pytest.approx(match, rel=1e-5)
    assert scores["fid"] > scores["fid_of_halves"] > 0 and scores["real"] == 40


def test_every_number_stands_beside_n_extractor_and_resize_rule(folder, tmp_path):
    text = report(run(folder, tmp_path / "out", n=20))
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 6
    for row in rows:
        assert "means of channels" in row and any(f"{n} " in row for n in (20, 40))
    assert "resize: real pictures: middle square to 64 px" in text
    coco = dict(json.loads((tmp_path / "out" / "scores.json").read_text()), protocol="coco-fid30k")
    assert "| Imagen | zero-shot | 7.27 |" in report(coco) and "7.27" not in text


# ---------------------------------------------------------------- once


def test_a_part_that_was_cut_is_drawn_again_and_nothing_else(folder, tmp_path, monkeypatch):
    first = run(folder, tmp_path / "a")
    whole = [picture_path(tmp_path / "a", k).read_bytes() for k in range(40)]
    for k in (3, 21, 39):
        picture_path(tmp_path / "a", k).unlink()
    kept = picture_path(tmp_path / "a", 4).stat().st_mtime_ns
    (tmp_path / "a" / "scores.json").unlink()
    seeds = []
    sample = Imagen.sample

    def watched(self, captions, **options):
        seeds.extend(options["seeds"])
        return sample(self, captions, **options)

    monkeypatch.setattr(Imagen, "sample", watched)
    assert run(folder, tmp_path / "a") == first
    assert seeds == list(range(40))  # three parts, one picture of each was lost
    assert picture_path(tmp_path / "a", 4).stat().st_mtime_ns == kept
    assert [picture_path(tmp_path / "a", k).read_bytes() for k in range(40)] == whole
    seeds.clear()
    assert run(folder, tmp_path / "a") == first and not seeds


def test_shares_draw_what_one_process_draws(folder, tmp_path):
    whole = run(folder, tmp_path / "one")
    assert run(folder, tmp_path / "two", share=(1, 2)) is None
    drawn = [k for k in range(40) if picture_path(tmp_path / "two", k).exists()]
    assert drawn == list(range(16, 32))
    assert run(folder, tmp_path / "two", share=(0, 2)) == whole


def test_a_folder_of_another_evaluation_is_refused(folder, tmp_path):
    run(folder, tmp_path / "out", n=4)
    for change, what in (dict(seed=1), "seed"), (dict(n=5), "n"), (dict(steps=2), "steps"):
        with pytest.raises(ValueError, match=f"holds another evaluation:\n.*{what}"):
            run(folder, tmp_path / "out", **dict(n=4) | change)


def test_vectors_are_kept_for_each_extractor(folder, tmp_path):
    first = run(folder, tmp_path / "out")
    other = replace(MEANS, name="means, thrice", features=lambda x: 3 * means(x))
    assert run(folder, tmp_path / "out", other)["fid"] == pytest.approx(9 * first["fid"], rel=1e-5)
    blind = replace(MEANS, features=None)  # its vectors are there: it is not asked
    assert run(folder, tmp_path / "out", blind) == first


@pytest.mark.slow
def test_a_killed_command_goes_on_with_the_same_numbers(folder, tmp_path):
    environment = dict(os.environ, OMP_NUM_THREADS="1")

    def command(out):
        how = ["--extractor", "judge", "--n", "64", "--steps", "4,2,2", "--out", str(out)]
        return [
            sys.executable,
            "-m",
            "imagen_nb.cli",
            "evaluate",
            "emoji",
            "--data",
            str(folder),
            *how,
        ]

    out, quiet = tmp_path / "killed", dict(env=environment, stderr=subprocess.DEVNULL)
    child = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, **quiet)
    while not picture_path(out, 20).exists() and child.poll() is None:
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not picture_path(out, 63).exists()
    both = [
        subprocess.run(command(o), capture_output=True, text=True, env=environment)
        for o in (out, tmp_path / "whole")
    ]
    assert all(done.returncode == 0 for done in both), both[0].stderr
    assert both[0].stdout == both[1].stdout and "FID" in both[0].stdout


# ---------------------------------------------------------------- the command


def test_the_command_runs_offline_with_the_judge(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "PART", 4)
    how = ["--data", str(folder), "--extractor", "judge", "--n", "6", "--steps", "1,1,1"]
    out = ["--out", str(tmp_path / "out")]
    assert main(["evaluate", "toy", *how, *out, "--share", "0/2"]) == 0
    assert "other shares have still to draw" in capsys.readouterr().out
    assert main(["evaluate", "toy", *how, *out, "--share", "1/2"]) == 0
    assert "| CLIP score |" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["n"] == 6


def test_the_command_refuses_in_one_line(folder, tmp_path, capsys):
    for line, told in (
        (["toy"], "expected --data SOURCE"),
        (["toy", "--protocol", "coco-fid30k", "--data", "x"], "expected --coco DIR"),
        (["toy", "--protocol", "coco-fid30k", "--coco", "./x"], "no such directory"),
        (["toy", "--protocol", "coco-fid30k", "--coco", str(folder)], "expected one of 256 px"),
        (["toy", "--data", str(folder), "--extractor", "eye"], "expected judge, judge:FOLDER"),
        (["emoji", "--data", str(folder), "--extractor", "judge", "--n", "99"], "got 80"),
    ):
        assert main(["evaluate", *line, "--out", str(tmp_path / "out")]) == 2
        found = capsys.readouterr().err.splitlines()[-1]
        assert found.startswith("imagen-nb evaluate: ") and told in found, found


@pytest.mark.slow
def test_coco_is_drawn_by_its_protocol(tmp_path, monkeypatch, capsys):
    "Its validation captions, 256 px, and the paper's table below."
    from test_sources import coco

    monkeypatch.setitem(PROTOCOLS, "coco-fid30k", PROTOCOLS["coco-fid30k"]._replace(n=4))
    root = coco(tmp_path / "coco")
    how = ["--coco", str(root), "--extractor", "judge", "--steps", "1,1,1"]
    line = ["evaluate", "emoji", "--protocol", "coco-fid30k", *how, "--out", str(tmp_path / "out")]
    assert main(line) == 0
    assert "| Imagen | zero-shot | 7.27 |" in capsys.readouterr().out
    asked = json.loads((tmp_path / "out" / "asked.json").read_text())
    assert asked["n"] == 4 and asked["size"] == 256
    assert Image.open(picture_path(tmp_path / "out", 3)).size == (256, 256)


# ---------------------------------------------------------------- extractors


def test_the_judge_as_an_extractor_is_the_judge():
    judge, found = Judge.shipped(), find_extractor("judge")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    captions = ["a 3d emoji of a cat", "a flat emoji of a dog"]
    torch.testing.assert_close(found.features(images), judge.image_features(images).detach())
    score = clip_score(found.images(images), found.captions(captions))
    torch.testing.assert_close(score, 100 * judge.score(images, captions))
    named = find_extractor(f"judge:{assets() / 'judge'}")
    assert named.name == found.name and "32 px" in found.rule


def test_a_matcher_must_read(folder, tmp_path):
    with pytest.raises(ValueError, match="evaluate: matcher, got means"):
        pictures = load_captioned(str(folder), 64)
        evaluate(small(), pictures, "own", tmp_path, MEANS, replace(MEANS, captions=None))


@pytest.fixture
def clip(tmp_path):
    "A CLIP of random weights with a tokenizer of its own, as transformers saves them."
    import transformers

    text = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    ends = dict(vocab_size=600, max_position_embeddings=16, bos_token_id=1, eos_token_id=2)
    sight = dict(text, image_size=32, patch_size=8)
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text | ends, vision_config=sight, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(tmp_path / "clip")
    words = ["<pad>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "cat", "dog", "a"]
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def test_a_clip_of_transformers_is_asked_as_it_asks_itself(clip):
    import transformers

    found = find_extractor(f"clip:{clip}")
    g = torch.Generator().manual_seed(1)
    images, captions = torch.rand(2, 3, 32, 32, generator=g) * 2 - 1, ["a cat", "a dog a dog"]
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    pixels = ((images + 1) / 2 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[
        :, None, None
    ]
    with torch.no_grad():
        said = model(pixel_values=pixels, **tokenizer(captions, padding=True, return_tensors="pt"))
    cosines = clip_score(found.images(images), found.captions(captions)) / 100
    expected = (said.logits_per_image / model.logit_scale.exp()).diagonal()
    torch.testing.assert_close(cosines, expected.detach(), atol=1e-5, rtol=1e-4)
    many, most = (found.captions(["cat " * n]) for n in (40, 14))  # 16 places, two for the ends
    torch.testing.assert_close(many, most)
    assert found.rule == "to 32 px, bicubic with anti-aliasing"


@pytest.mark.slow
def test_inception_is_torch_fidelitys(tmp_path, monkeypatch):
    "With random weights from a file, without torchvision, where torch-fidelity is there."
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed")
    their = extractors._fidelity("feature_extractor_inceptionv3")
    kind = their.FeatureExtractorInceptionV3
    with monkeypatch.context() as m:
        m.setattr(kind, "load_state_dict", lambda self, state: None)
        m.setattr(their, "load_state_dict_from_url", lambda *_, **__: {})
        network = kind("random", ["2048"])
    torch.save(network.state_dict(), tmp_path / "random.pth")
    found = find_extractor(f"inception:{tmp_path / 'random.pth'}")
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        (expected,) = network(((images + 1) * 127.5).round().byte())
    assert expected.shape == (2, 2048) and expected.std() > 0
    torch.testing.assert_close(found.features(images), expected)
    assert "random.pth" in found.name and "299 px" in found.rule
    assert not any(name.split(".")[0] == "torchvision" for name in sys.modules)
    torch.save(dict(bad=Path("x")), tmp_path / "pickle.pth")
    with pytest.raises(Exception, match="[Ww]eights.only"):
        find_extractor(f"inception:{tmp_path / 'pickle.pth'}")


def test_what_an_extractor_lacks_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps torch-fidelity"):
        find_extractor("inception")

"""The photographs that ship, and the small network that enlarges them."""

import json

import pytest
import torch
import torch.nn.functional as F
from judge_enlarger import energy, fine, judge, psnr
from PIL import Image

from imagen_nb.cascade import Imagen
from imagen_nb.pictures.captioned import load_captioned
from imagen_nb.pictures.pixels import resize
from imagen_nb.store.files import assets

PHOTOS, ENLARGER = assets() / "photos", assets() / "photo-enlarger"
ROWS = [json.loads(line) for line in (PHOTOS / "metadata.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEN_NB_CACHE", str(tmp_path))


@pytest.mark.parametrize("split", ["train", "test"])
def test_photographs_open(split):
    photos = load_captioned(PHOTOS, 64, split)
    rows = [row for row in ROWS if row["file_name"].startswith(split)]
    assert len(photos) == len(rows) == 6 and not photos.skipped
    assert [photos.caption(i) for i in range(6)] == [row["text"] for row in rows]
    assert photos.images(range(6)).flatten(1).std(1).min() > 0.1


def test_photographs_are_named_licensed_and_small():
    files = [path for path in PHOTOS.rglob("*") if path.is_file()]
    names = {path.relative_to(PHOTOS).as_posix() for path in files if path.suffix == ".jpg"}
    assert names == {row["file_name"] for row in ROWS}
    assert sum(path.stat().st_size for path in files) <= 1e6
    readme = (PHOTOS / "README.md").read_text()
    for row in ROWS:
        assert row["rights"].endswith(("CC0", "public domain")) and " of " in row["source"]
        assert " | ".join(row.values()) in readme
        assert 256 <= min(Image.open(PHOTOS / row["file_name"]).size) <= 512


def test_figures_of_an_enlargement():
    "A known error, a known blur, and details alone."
    g = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 256, 256, generator=g) * 2 - 1
    assert torch.allclose(psnr(x + 0.02, x), torch.tensor(40.0), atol=1e-3)
    assert torch.allclose(energy(x / 2) / energy(x), torch.tensor(0.25))
    smooth = F.interpolate(resize(x, 8), scale_factor=32, mode="bicubic")
    assert (fine(smooth).square().mean() < fine(x).square().mean() / 1000).all()
    same = judge(x, x, resize(x, 64))
    assert same["sharpness"] == same["detail"] == [1, 1]


def test_the_enlarger_ships():
    "Small, refused without a picture, faithful to the one that it is given, and sharper than bicubic."
    assert sum(path.stat().st_size for path in ENLARGER.iterdir()) <= 3e6
    imagen = Imagen.from_pretrained("photo-enlarger")
    with pytest.raises(ValueError, match="never trained"):
        imagen.sample(["a cat"])
    original = load_captioned(PHOTOS, 256, "test").images([0])
    low = resize(original, 64)
    image = imagen.sample([""], lowres=low)
    bicubic = F.interpolate(low, scale_factor=4, mode="bicubic").clamp(-1, 1)
    assert psnr(resize(image, 64), low) > 36 and psnr(image, original) > psnr(bicubic, original) - 1
    assert 1.5 * energy(bicubic) < energy(image) < energy(original)

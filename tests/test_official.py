"""CelebA, CelebA-HQ, FFHQ and AFHQ v2 by their official layouts, from tiny stand-ins."""

import numpy as np
import pytest
from hydra.utils import instantiate
from PIL import Image

from vcd.errors import UserError


def put(path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 10, 3), grey, np.uint8)).save(path)


@pytest.fixture
def source(compose, tmp_path):
    return lambda name, *more: instantiate(
        compose(f"dataset={name}", "dataset.size=8", f"data.root={tmp_path}", *more).dataset.source
    )


def greys(data, split) -> list[int]:
    return data.load(split).images[:, 0, 4, 4].tolist()


def test_celeba_has_the_official_partition(source, tmp_path):
    for i in range(1, 7):
        put(tmp_path / "celeba" / "img_align_celeba" / f"{i:06}.png", 10 * i)
    said = "".join(f"{i:06}.png {k}\n" for i, k in zip(range(1, 7), (0, 0, 1, 2, 2, 0), strict=True))
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text(said)
    data = source("celeba")
    assert greys(data, "train") == [10, 20, 60] and greys(data, "val") == [40, 50]
    assert data.load("train").classes == ("images",)
    (tmp_path / "celeba" / "list_eval_partition.txt").unlink()
    with pytest.raises(UserError, match="has no list_eval_partition.txt.*mmlab.ie.cuhk.edu.hk"):
        source("celeba").load("train")


def test_ffhq_is_split_by_number_whatever_its_folders(source, tmp_path):
    for i in range(6):
        put(tmp_path / "ffhq" / f"{i // 2 * 1000:05}" / f"{i:05}.png", 10 * i)
    data = source("ffhq", "dataset.source.first=4")
    assert greys(data, "train") == [0, 10, 20, 30] and greys(data, "val") == [40, 50]
    with pytest.raises(UserError, match="there are 6 images to train with and 0 to validate"):
        source("ffhq").load("train")


def test_afhq_v2_has_its_classes(source, tmp_path):
    for split in ("train", "test"):
        for i, name in enumerate(("cat", "dog", "wild")):
            put(tmp_path / "afhq_v2" / split / name / "a.png", 10 * i)
    assert source("afhq_v2").load("val").labels.tolist() == [0, 1, 2]
    for split in ("train", "test"):
        put(tmp_path / "afhq_v2" / split / "fish" / "a.png", 1)
    with pytest.raises(UserError, match="is not afhq_v2: it has the classes cat, dog, fish, wild"):
        source("afhq_v2").load("val")


@pytest.mark.parametrize("name", ["celeba", "celeba_hq", "ffhq", "afhq_v2"])
def test_what_is_missing_says_where_to_get_it(source, name):
    with pytest.raises(UserError, match=f"{name} is not at .*(mmlab|github.com)"):
        source(name).load("train")

"""Every data set gives the right pixels, and a clear sentence where it cannot."""

import gzip
import hashlib
import http.server
import io
import logging
import os
import pickle
import resource
import struct
import tarfile
import threading
import time
import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torchvision.datasets
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from vcd.cli import CONF
from vcd.data.afhq import AFHQ
from vcd.data.base import Images
from vcd.data.cifar10 import CIFAR10
from vcd.data.digits import Digits
from vcd.data.download import fetch
from vcd.data.folder import Folder
from vcd.data.mnist import MNIST, FashionMNIST
from vcd.errors import UserError

NOWHERE = "http://127.0.0.1:9/"  # a port that nobody listens on


def dataset(name: str, root, **overrides):
    """The data set of conf/dataset/<name>.yaml, as an entry point builds it."""
    node = OmegaConf.merge(OmegaConf.load(CONF / "dataset" / f"{name}.yaml"), overrides)
    cfg = OmegaConf.create({"data": {"root": str(root)}, "dataset": node})
    try:
        return instantiate(cfg.dataset.source)
    except InstantiationException as error:
        raise error.__cause__ from None  # what the command line prints


def noise(*shape: int, seed: int = 0, top: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, shape, dtype=np.uint8)


# --- Images ---------------------------------------------------------------------------------------------------------


def test_balanced_takes_classes_in_turn_and_starts_again_where_one_is_short():
    labels = torch.tensor([2, 0, 0, 2, 0])  # class 1 is empty
    images = Images(torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1), labels, ("a", "b", "c"))
    assert images.balanced(8).flatten().tolist() == [1, 0, 2, 3, 4, 0, 1, 3]
    assert images.batch([4, 1]).flatten().tolist() == [4, 1]
    assert images.batch(np.array([4, 1])).dtype == torch.uint8


# --- digits ---------------------------------------------------------------------------------------------------------


def test_digits_are_split_once_and_evenly():
    from sklearn.datasets import load_digits

    data = Digits(size=8, channels=1)
    train, val = data.load("train"), data.load("val")
    assert (train.images.shape, val.images.shape) == ((1500, 1, 8, 8), (297, 1, 8, 8))
    every = torch.cat([train.images, val.images]).flatten(1)
    original = torch.from_numpy(np.rint(load_digits().data * 255 / 16)).to(torch.uint8)
    assert sorted(every.tolist()) == sorted(original.tolist())  # all 1,797, each once
    assert every.max() == 255
    for split in (train, val):
        counts = torch.bincount(split.labels)
        assert len(counts) == 10 and counts.max() - counts.min() <= 8  # as balanced as the set itself
    assert torch.equal(train.images, Digits(size=8, channels=1).load("train").images)


def test_size_and_channels_that_do_not_fit_name_the_key(tmp_path):
    with pytest.raises(UserError, match="8x8 pixels, not 16: set dataset.size=8"):
        dataset("digits", tmp_path, size=16).load("train")
    with pytest.raises(UserError, match="set dataset.channels=1"):
        dataset("digits", tmp_path, channels=3).load("train")


# --- MNIST ----------------------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def mnist(tmp_path):
    """A tiny MNIST, its images as idx files and its labels as .gz only."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for stem, n in (("train", 7), ("t10k", 5)):
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(idx(noise(n, 28, 28, seed=n)))
        (raw / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(noise(n, seed=n, top=10))))
    return tmp_path


def test_mnist_reads_idx_files_packed_or_not(mnist):
    data = dataset("mnist", mnist)
    for split, n in (("train", 7), ("val", 5)):
        images = data.load(split)
        assert np.array_equal(images.images[:, 0].numpy(), noise(n, 28, 28, seed=n))
        assert np.array_equal(images.labels.numpy(), noise(n, seed=n, top=10))
    same = torchvision.datasets.mnist.read_image_file(str(mnist / "MNIST/raw/train-images-idx3-ubyte"))
    assert torch.equal(data.load("train").images[:, 0], same)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("train-images-idx3-ubyte", lambda raw: raw[:-3]),
        ("train-images-idx3-ubyte", lambda raw: b"<html>" + raw),
        ("train-images-idx3-ubyte", lambda raw: b""),
        ("train-labels-idx1-ubyte.gz", lambda raw: raw[:-9]),
        ("train-labels-idx1-ubyte.gz", lambda raw: b"not packed"),
    ],
)
def test_a_damaged_idx_file_is_named(mnist, file, content):
    path = mnist / "MNIST" / "raw" / file
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(UserError, match=f"{file} is damaged .*: delete it"):
        dataset("mnist", mnist).load("train")


def test_images_and_labels_of_different_number(mnist):
    (mnist / "MNIST/raw/train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(noise(6))))
    with pytest.raises(UserError, match="7 images but 6 labels"):
        dataset("mnist", mnist).load("train")


def test_without_a_network_one_sentence_says_what_where_and_whence(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [NOWHERE])
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"{NOWHERE}cifar-10-python.tar.gz")
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        MNIST(root=str(tmp_path), size=28, channels=1).prepare()
    for part in ("train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", str(tmp_path / "MNIST" / "raw"), NOWHERE):
        assert part in str(error.value)
    with pytest.raises(UserError, match=f"cifar10 is not in {tmp_path} .*: put cifar-10-python.tar.gz there, from"):
        CIFAR10(root=str(tmp_path), size=32, channels=3).load("val")
    assert time.monotonic() - start < 5
    assert "\n" not in str(error.value)


@pytest.fixture
def server(tmp_path):
    """A web server on this machine: its folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args): ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()


def test_missing_files_are_downloaded_and_checked(tmp_path, server, monkeypatch):
    folder, address = server
    resources = []
    for stem, n in (("train", 4), ("t10k", 3)):
        for kind, array in (("images-idx3", noise(n, 28, 28)), ("labels-idx1", noise(n, top=10))):
            content = gzip.compress(idx(array))
            (folder / f"{stem}-{kind}-ubyte.gz").write_bytes(content)
            resources.append((f"{stem}-{kind}-ubyte.gz", hashlib.md5(content).hexdigest()))
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [NOWHERE, address])  # the second one answers
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", resources)
    images = FashionMNIST(root=str(tmp_path), size=28, channels=1).load("val")
    assert np.array_equal(images.images[:, 0].numpy(), noise(3, 28, 28))
    assert len(list((tmp_path / "FashionMNIST" / "raw").iterdir())) == 4  # and nothing half-done beside them


def test_a_download_with_a_wrong_checksum_leaves_nothing(tmp_path, server):
    folder, address = server
    (folder / "a.gz").write_bytes(b"error page")
    with pytest.raises(UserError, match="wrong checksum.*put a.gz there"):
        fetch("a", tmp_path / "a", {"a.gz": "0" * 32}, [address])
    assert not list((tmp_path / "a").iterdir())


# --- CIFAR-10 -------------------------------------------------------------------------------------------------------


class Python2Pickler(pickle._Pickler):
    """Writes byte strings as the official files have them (Python 2's str)."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_string


def python2(obj) -> bytes:
    out = io.BytesIO()
    Python2Pickler(out, protocol=2).dump(obj)
    return out.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def cifar10(folder: Path, dump=python2) -> Path:
    folder.mkdir(parents=True)
    for i, file in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        batch = {b"data": noise(4, 3072, seed=i), b"labels": [i, 0, 1, 2], b"batch_label": b"x"}
        (folder / file).write_bytes(dump(batch if dump is python2 else {k.decode(): v for k, v in batch.items()}))
    return folder


@pytest.mark.parametrize("dump", [python2, pickle.dumps])
def test_cifar10_reads_the_official_batches(tmp_path, dump):
    cifar10(tmp_path / "cifar-10-batches-py", dump)
    train, val = (dataset("cifar10", tmp_path).load(split) for split in ("train", "val"))
    expected = np.concatenate([noise(4, 3072, seed=i) for i in range(5)]).reshape(-1, 3, 32, 32)
    assert np.array_equal(train.images.numpy(), expected)
    assert train.labels.tolist() == [label for i in range(5) for label in (i, 0, 1, 2)]
    assert np.array_equal(val.images.numpy(), noise(4, 3072, seed=5).reshape(-1, 3, 32, 32))


def test_cifar10_is_unpacked_from_an_archive_that_lies_there(tmp_path):
    inner = cifar10(tmp_path / "elsewhere" / "cifar-10-batches-py")
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(inner, arcname=inner.name)
    assert len(dataset("cifar10", root).load("train")) == 20
    assert sorted(p.name for p in root.iterdir()) == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]
    (root / "cifar-10-batches-py" / "test_batch").unlink()
    archive = root / "cifar-10-python.tar.gz"
    archive.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(UserError, match="cifar-10-python.tar.gz is damaged"):
        dataset("cifar10", root).load("val")


def test_a_damaged_or_foreign_pickle_is_named_and_never_run(tmp_path):
    folder = cifar10(tmp_path / "cifar-10-batches-py")

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    for content in (b"", (folder / "test_batch").read_bytes()[:500], pickle.dumps({"data": Evil(), "labels": []})):
        (folder / "test_batch").write_bytes(content)
        with pytest.raises(UserError, match="test_batch is damaged"):
            dataset("cifar10", tmp_path).load("val")
    assert not (tmp_path / "run").exists()


# --- folders of images ----------------------------------------------------------------------------------------------


def smooth(h: int, w: int, seed: int = 0) -> Image.Image:
    """An RGB picture with structure at several scales."""
    return Image.fromarray(noise(5, 7, 3, seed=seed)).resize((w, h), Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path):
    """Two classes, several sizes, an outsider."""
    for i, (h, w) in enumerate([(50, 40), (33, 91), (16, 16), (9, 12), (64, 64), (20, 21)]):
        folder = tmp_path / "photos" / ("cats" if i % 2 else "ants")
        folder.mkdir(parents=True, exist_ok=True)
        smooth(h, w, i).save(folder / f"{i}.png")
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def folder(photos, **overrides) -> Folder:
    return dataset("folder", photos.parent / "root", path=str(photos), **{"size": 16, **overrides})


def every(data) -> dict[str, np.ndarray]:
    """All pixels of a data set, both splits."""
    return {split: data.load(split).images.numpy().copy() for split in ("train", "val")}


def test_images_are_cropped_to_the_centre_and_reduced_with_antialiasing(photos):
    data = folder(photos)
    images = np.concatenate(list(every(data).values()))
    boxes = {0: (0, 5, 40, 45), 1: (29, 0, 62, 33), 2: (0, 0, 16, 16), 3: (1, 0, 10, 9), 4: None, 5: (0, 0, 20, 20)}
    expected = [
        np.asarray(smooth(*size, i).crop(boxes[i]).resize((16, 16), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
        for i, size in enumerate([(50, 40), (33, 91), (16, 16), (9, 12), (64, 64), (20, 21)])
    ]
    assert sorted(images.reshape(6, -1).tolist()) == sorted(np.stack(expected).reshape(6, -1).tolist())
    assert data.load("train").classes == ("ants", "cats")
    labels = torch.cat([data.load(split).labels for split in ("train", "val")])
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]


def test_every_mode_becomes_rgb_or_grey(tmp_path):
    path = tmp_path / "photos" / "a"
    path.mkdir(parents=True)
    rgb = noise(16, 16, 3)
    alpha = noise(16, 16, 1, seed=1)
    grey16 = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    palette = Image.fromarray(rgb).quantize(16)
    sources = {
        "rgb.bmp": (Image.fromarray(rgb), rgb),
        "grey.png": (Image.fromarray(rgb[..., 0]), np.repeat(rgb[..., :1], 3, 2)),
        "alpha.png": (Image.fromarray(np.dstack([rgb, alpha])), np.rint(rgb * (alpha / 255.0))),
        "palette.gif": (palette, np.asarray(palette.convert("RGB"))),
        "cmyk.tif": (Image.fromarray(noise(16, 16, 4, seed=2), "CMYK"), None),
        "sixteen.png": (Image.fromarray(grey16), np.repeat((grey16 // 257)[..., None], 3, 2)),
        "black_white.png": (Image.fromarray(rgb[..., 0] > 127), np.repeat((rgb[..., :1] > 127) * 255, 3, 2)),
        "lossless.webp": (Image.fromarray(rgb), rgb),
    }
    for name, (image, _) in sources.items():
        image.save(path / name, **({"lossless": True} if name.endswith("webp") else {}))
    transposed = Image.fromarray(rgb)
    exif = transposed.getexif()
    exif[0x0112] = 3  # upside down
    transposed.save(path / "turned.png", exif=exif)

    (path.parent / "b").mkdir()
    smooth(16, 16).save(path.parent / "b" / "other.png")
    for channels in (1, 3):
        data = dataset(
            "folder", tmp_path / "root", path=str(path.parent), size=16, channels=channels, val_fraction=0.01
        )
        images = torch.cat([data.load(split).images for split in ("train", "val")])
        labels = torch.cat([data.load(split).labels for split in ("train", "val")])
        assert images.shape == (10, channels, 16, 16)
        found = images[labels == 0].permute(0, 2, 3, 1).int()
        wanted = {**{k: v for k, (_, v) in sources.items()}, "turned.png": rgb[::-1, ::-1]}
        wanted["cmyk.tif"] = np.asarray(sources["cmyk.tif"][0].convert("RGB"))
        for name, pixels in wanted.items():
            pixels = Image.fromarray(pixels.astype(np.uint8)).convert("L" if channels == 1 else "RGB")
            target = torch.from_numpy(np.array(pixels)).view(16, 16, channels).int()
            error = (found - target).abs().amax((1, 2, 3)).min()
            assert error <= (2 if name == "alpha.png" or channels == 1 else 0), name


def test_the_cache_is_used_again_and_depends_on_the_files(photos, caplog):
    caplog.set_level(logging.INFO)
    first = every(folder(photos))
    (array,) = (photos.parent / "root" / "cache").glob("folder-*/images.npy")
    stamp = array.stat().st_mtime_ns
    summary = [record.message for record in caplog.records]
    assert len(summary) == 1 and "6 images cached" in summary[0] and "4 not square" in summary[0]
    assert "1 smaller than 16 (enlarged)" in summary[0]

    assert all(np.array_equal(a, b) for a, b in zip(first.values(), every(folder(photos)).values(), strict=True))
    assert array.stat().st_mtime_ns == stamp and len(caplog.records) == 1
    assert isinstance(np.load(array, mmap_mode="r"), np.memmap)

    smooth(16, 16, 9).save(photos / "ants" / "2.png")  # the same name, another content
    assert any(not np.array_equal(a, b) for a, b in zip(first.values(), every(folder(photos)).values(), strict=True))
    folder(photos, channels=1).prepare()
    assert len(list(array.parent.parent.iterdir())) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda array, record: array.write_bytes(array.read_bytes()[:-100]),
        lambda array, record: array.write_bytes(array.read_bytes()[:-100] + bytes(100)),
        lambda array, record: array.write_bytes(b""),
        lambda array, record: array.unlink(),
        lambda array, record: record.write_text(record.read_text()[:-5]),
        lambda array, record: record.write_text('{"counts": [1]}'),
    ],
)
def test_a_damaged_cache_is_noticed_and_rebuilt(photos, caplog, damage):
    first = every(folder(photos))
    (cache,) = (photos.parent / "root" / "cache").iterdir()
    damage(cache / "images.npy", cache / "record.json")
    again = every(folder(photos))
    assert all(np.array_equal(first[split], again[split]) for split in first)
    assert sum("is damaged" in record.message for record in caplog.records) == 1
    assert len(list(cache.iterdir())) == 2


def test_broken_files_are_named_together_and_skipped_on_request(photos, caplog):
    (photos / "ants" / "0.png").write_bytes(b"not an image")
    whole = (photos / "cats" / "1.png").read_bytes()
    (photos / "cats" / "1.png").write_bytes(whole[: len(whole) // 2])
    (photos / "cats" / "empty.jpg").write_bytes(b"")
    (photos / "cats" / "gone.jpg").symlink_to(photos / "nowhere.jpg")
    for _ in range(2):  # the second time there is a cache without them: still an error
        with pytest.raises(UserError, match="4 of 8 files.*delete them or set dataset.skip_broken=true") as error:
            folder(photos).load("train")
    for name in ("ants/0.png", "cats/1.png", "cats/empty.jpg", "cats/gone.jpg"):
        assert name in str(error.value)
    with pytest.raises(UserError, match="no readable image is left in the val split .*: delete the broken files"):
        folder(photos, skip_broken=True).load("train")  # the one file held out is a broken one
    caplog.clear()
    data = folder(photos, skip_broken=True, val_fraction=0.5)
    assert len(data.load("train")) + len(data.load("val")) == 4
    assert sum(record.levelno == logging.WARNING for record in caplog.records) == 1
    assert "4 of 8 files" in caplog.text


def test_nothing_to_read_is_a_sentence(tmp_path, photos):
    def fails(match, **overrides):
        with pytest.raises(UserError, match=match):
            dataset("folder", tmp_path / "root", **overrides).load("train")

    (tmp_path / "empty").mkdir()
    fails("dataset.path=.*nowhere does not exist", path=str(tmp_path / "nowhere"))
    fails("dataset.path=.*empty holds no images", path=str(tmp_path / "empty"))
    fails("dataset.path=.*notes.txt is neither a folder nor a readable zip", path=str(photos / "notes.txt"))
    Image.new("RGB", (8, 8)).save(tmp_path / "empty" / "one.png")
    fails("dataset.path=.*empty holds one image", path=str(tmp_path / "empty"))
    for name in ("one.png", "two.png"):
        (tmp_path / "empty" / name).write_bytes(b"broken")
    for skip in (False, True):
        fails("none of the 2 files in dataset.path", path=str(tmp_path / "empty"), skip_broken=skip)
    fails("dataset.val_fraction=2", path=str(photos), val_fraction=2.0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the image cache .*set data.root"):
        dataset("folder", tmp_path / "file", path=str(photos)).load("train")
    fails("dataset.path=FOLDER")


def test_a_full_disk_costs_no_cache_and_leaves_no_litter(photos):
    first = every(folder(photos))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with pytest.raises(UserError, match="cannot write the image cache .*: free space or set data.root"):
            folder(photos, size=32).load("train")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    files = [path for path in (photos.parent / "root").rglob("*") if path.is_file()]
    assert len(files) == 2
    assert np.array_equal(every(folder(photos))["train"], first["train"])


def test_the_split_depends_on_each_path_alone(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(60):
        Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(photos / f"{i}.png")

    def held_out(**overrides) -> set[int]:
        images = every(dataset("folder", tmp_path / "root", path=str(photos), size=4, **overrides))
        pixels = {split: set(x[:, 0, 0, 0].tolist()) for split, x in images.items()}
        assert pixels["train"].isdisjoint(pixels["val"])
        return pixels["val"]

    before = held_out(val_fraction=0.25)
    assert 5 <= len(before) <= 30 and before == held_out(val_fraction=0.25)
    assert len(held_out(val_fraction=1e-6)) == 1
    for i in range(60, 80):
        Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(photos / f"{i}.png")
    assert {i for i in held_out(val_fraction=0.25) if i < 60} == before


# --- AFHQ -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def faces(tmp_path):
    """AFHQ's layout with two images a class and split."""
    for i in range(12):
        path = tmp_path / "faces" / ("train", "val")[i % 2] / ("cat", "dog", "wild")[i % 3] / f"flickr_{i:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        smooth(40, 40, i).save(path)
    return tmp_path / "faces"


def test_afhq_is_the_same_from_a_folder_and_from_the_official_zip(tmp_path, faces):
    with zipfile.ZipFile(tmp_path / "afhq.zip", "w") as archive:
        archive.writestr("__MACOSX/afhq/train/cat/._flickr_000000.jpg", b"litter")
        for file in sorted(faces.rglob("*.jpg")):
            archive.write(file, f"afhq/{file.relative_to(faces)}")
    unpacked = dataset("afhq", tmp_path / "a", path=str(faces))
    packed = dataset("afhq", tmp_path / "b", path=str(tmp_path / "afhq.zip"))
    for split in ("train", "val"):
        one, other = unpacked.load(split), packed.load(split)
        assert one.images.shape == (6, 3, 64, 64) and torch.equal(one.images, other.images)
        assert one.labels.tolist() == other.labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert one.classes == ("cat", "dog", "wild")
    with Image.open(faces / "val" / "cat" / "flickr_000003.jpg") as image:
        expected = np.asarray(image.resize((64, 64), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    assert np.array_equal(packed.load("val").images[0].numpy(), expected)


def test_what_is_not_afhq_is_refused(tmp_path, faces, photos):
    with pytest.raises(UserError, match="AFHQ is not at .*stargan-v2"):
        dataset("afhq", tmp_path).prepare()
    with pytest.raises(UserError, match="has no folders train/ and val/"):
        dataset("afhq", tmp_path, path=str(photos)).load("train")
    (faces / "train" / "dog").rename(faces / "train" / "horse")
    with pytest.raises(UserError, match="is not AFHQ: it has the classes cat, dog, horse, wild"):
        dataset("afhq", tmp_path, path=str(faces)).load("train")
    assert AFHQ(path=str(faces), root=str(tmp_path), size=8, channels=3).path == faces


def test_a_zip_with_a_damaged_member_names_it(tmp_path, faces):
    with zipfile.ZipFile(tmp_path / "afhq.zip", "w") as archive:
        for file in sorted(faces.rglob("*.jpg")):
            archive.write(file, file.relative_to(faces))
    packed = bytearray((tmp_path / "afhq.zip").read_bytes())
    packed[200] ^= 255  # inside the first image
    (tmp_path / "afhq.zip").write_bytes(packed)
    with pytest.raises(UserError, match="1 of 12 files .*: train/cat/flickr_000000.jpg; delete"):
        dataset("afhq", tmp_path, path=str(tmp_path / "afhq.zip")).load("train")


# --- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted((CONF / "dataset").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_dataset_yaml(file, tmp_path):
    assert file.read_text().startswith("# ")
    node = OmegaConf.load(file)
    assert isinstance(node.T, int) and isinstance(node.flip, bool)
    data = dataset(file.stem, tmp_path, **({"path": str(tmp_path)} if "path" in node else {}))
    assert (data.name, data.size, data.channels) == (file.stem, node.size, node.channels)

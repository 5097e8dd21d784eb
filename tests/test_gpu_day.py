"""The day on a GPU: what is kept of it, what becomes of it, and its rehearsal."""

import copy
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from vcd.cli import CONF
from vcd.data.folder import Folder
from vcd.randomness import PerImage

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import gpu_parity  # noqa: E402
import gpu_speed  # noqa: E402
import tables  # noqa: E402
from bench_frontier import ends  # noqa: E402
from gpu_quality import unpack  # noqa: E402
from kept import UNFINISHED, Kept  # noqa: E402
from quality import frontier  # noqa: E402

# --- what is kept -----------------------------------------------------------------------------------------------------


def test_what_was_measured_is_not_measured_again(tmp_path):
    calls = []

    def measure(name: str, seconds: float = 100) -> Kept:
        kept = Kept("speed", tmp_path / "a.json", seconds=seconds)
        kept.measure({"name": name}, lambda: calls.append(name) or {"ms": 1.0})
        return kept

    measure("one")
    measure("one")
    measure("two").finish()
    assert calls == ["one", "two"]
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["finished"] and found["rows"] == [{"name": "one", "ms": 1.0}, {"name": "two", "ms": 1.0}]
    with pytest.raises(SystemExit) as end:
        measure("three", seconds=-1)
    assert end.value.code == UNFINISHED
    assert calls == ["one", "two"]


def test_a_row_that_fails_says_why_and_one_that_ends_the_process_gets_a_second_try(tmp_path):
    def fail():
        raise RuntimeError("out of memory\nand more")

    kept = Kept("speed", tmp_path / "a.json")
    kept.measure({"name": "one"}, fail)
    assert kept.table["rows"] == [{"name": "one", "error": "RuntimeError: out of memory"}]
    died = {"name": "two", "tries": 1, "error": "it ended the process"}
    (tmp_path / "a.json").write_text(json.dumps({"rows": [died, died | {"name": "three", "tries": 2}]}))
    kept, calls = Kept("speed", tmp_path / "a.json"), []
    for name in ("two", "three"):
        kept.measure({"name": name}, lambda name=name: calls.append(name) or {})
    assert calls == ["two"] and kept.table["rows"][0] == {"name": "two"}


# --- what is compared -------------------------------------------------------------------------------------------------


def test_a_difference_is_relative_and_nothing_that_is_not_finite_passes():
    a = torch.rand(3, 4) + 1
    assert gpu_parity.differs(a, a) == 0
    assert gpu_parity.differs(a, a * 1.001) == pytest.approx(1e-3, rel=0.01)
    assert gpu_parity.differs(a, a / 0) == float("inf") == gpu_parity.differs(a, a[:1])


def test_numbers_drawn_on_the_cpu_are_those_of_its_generator():
    def drawn():
        torch.manual_seed(0)
        x = torch.zeros(4)
        return [
            torch.randn(3),
            torch.rand_like(x),
            torch.randperm(5),
            torch.empty(4).geometric_(0.3),
            torch.randint(9, (4,)),
        ]

    plain = drawn()
    with gpu_parity.DrawnOnTheCPU():
        assert all(torch.equal(a, b) for a, b in zip(plain, drawn(), strict=True))


@pytest.mark.parametrize(("group", "compared"), [("model", gpu_parity.MODELS), ("sampler", gpu_parity.SAMPLERS)])
def test_every_model_and_sampler_is_compared(group, compared):
    alone = {path.stem for path in (CONF / group).glob("[a-z]*.yaml")} - {
        "diffusevae"
    }  # ddpm with a guess of another run
    assert alone <= compared.keys()


def test_a_wrong_weight_on_the_other_side_is_seen(monkeypatch):
    found = gpu_parity.objective(gpu_parity.MODELS["ddpm"], "cpu")
    assert found["loss"] <= gpu_parity.ALLOWED["loss"] and found["gradients"] <= gpu_parity.ALLOWED["gradients"]

    def wrong(model):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.network.out.bias.add_(0.01)
        return other

    monkeypatch.setattr(gpu_parity, "copy", SimpleNamespace(deepcopy=wrong))
    assert gpu_parity.objective(gpu_parity.MODELS["ddpm"], "cpu")["loss"] > gpu_parity.ALLOWED["loss"]


class Ones(TorchDispatchMode):
    """Tensors without values are 1 where Python asks for one."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            return torch.ones((), dtype=args[0].dtype).item() if args[0].dtype.is_floating_point else 1
        return function(*args, **(kwargs or {}))


def on_a_gpu(model):
    """The model, its tensors with the shape and device of a GPU's and without values."""
    model._device = torch.device("cuda:0")
    levels = model.sampler.grid(model.degradation.T)  # from a tensor's values
    model.sampler.grid = lambda T: levels

    def moved(x):
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")

    for module in model.modules():
        parameters, buffers = module._parameters, module._buffers
        parameters |= {name: torch.nn.Parameter(moved(p)) for name, p in parameters.items() if p is not None}
        buffers |= {name: moved(b) for name, b in buffers.items() if b is not None}
    return model


@pytest.mark.long
@pytest.mark.parametrize("name", gpu_parity.MODELS)
def test_on_a_gpu_no_loss_mixes_devices(name):
    model = gpu_parity.model(gpu_parity.config(*gpu_parity.TINY, *gpu_parity.MODELS[name])).train()
    with FakeTensorMode(), Ones():
        assert on_a_gpu(model).losses(gpu_parity.batch_of(model)).total.device.type == "cuda"


@pytest.mark.long
@pytest.mark.parametrize(
    "name", sorted(gpu_parity.SAMPLERS.keys() - {"exact"})
)  # which looks for levels by their values
def test_on_a_gpu_no_sampler_mixes_devices(name):
    model = gpu_parity.model(gpu_parity.config(*gpu_parity.TINY, *gpu_parity.SAMPLERS[name])).eval()
    with FakeTensorMode(), Ones():
        assert on_a_gpu(model).sample(PerImage(0, range(4), "cuda")).x0.device.type == "cuda"


def test_tensors_of_two_devices_are_seen_without_a_gpu():
    model = gpu_parity.model(gpu_parity.config(*gpu_parity.TINY, "model=vwd"))
    with FakeTensorMode(), Ones():
        batch = gpu_parity.batch_of(on_a_gpu(model), 2)
        model.network.out.bias = torch.nn.Parameter(torch.empty(model.network.out.bias.shape, device="cpu"))
        with pytest.raises(RuntimeError, match="same device"):
            model.losses(batch)


def test_advice_names_the_fastest_mode_and_what_would_make_it_the_choice():
    def row(mode: str, rate: float, **more):
        return {"what": "train", "size": "mnist", "model": "vwd", "mode": mode, "batch": None, "images/s": rate} | more

    rows = [row("bf16", 100.0), row("bf16, compiled", 150.0), row("bf16", 999.0, batch=1024), {"what": "ceiling"}]
    (found,) = gpu_speed.advice(rows[:3], "bf16")
    assert found["fastest"] == "bf16, compiled" and found["times"] == 1.5 and "trainer.compile=true" in found["change"]
    (found,) = gpu_speed.advice([row("bf16", 100.0), row("bf16, compiled", 104.0)], "bf16")
    assert found["change"] == "none"


def test_the_frontier_is_what_no_other_is_both_cheaper_and_nearer_than():
    points = {"a": (1.0, 9.0), "b": (2.0, 9.5), "c": (3.0, 4.0), "d": (4.0, 4.0), "e": (9.0, 1.0)}
    assert frontier(points) == ["a", "c", "e"]


def test_a_shape_ends_where_its_seeds_do_on_average():
    def row(shape: str, seed: int, distance: float) -> dict:
        return {"shape": shape, "seed": seed, "s per 1,000": 2.0, "fcd of held-out images": distance}

    rows = [row("a", 0, 90.0), row("a", 0, 30.0), row("b", 0, 7.0), row("a", 1, 80.0), row("a", 1, 40.0)]
    assert ends(rows) == {"a": (2.0, 35.0), "b": (2.0, 7.0)}


def test_packed_jpegs_become_a_data_set(tmp_path):
    content = []
    for i in range(4):
        Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(file := io.BytesIO(), "JPEG", quality=95)
        content.append(file.getvalue())
    at = np.cumsum([0, *map(len, content)])
    split = {"jpeg": np.frombuffer(b"".join(content), np.uint8), "offsets": at, "labels": np.array([1, 0, 1, 0])}
    (tmp_path / "cifar10").mkdir()
    arrays = {f"{name}_{key}": value for name in ("train", "test") for key, value in split.items()}
    np.savez(tmp_path / "cifar10" / "cifar10_jpeg_bytes.npz", classes=np.array(["cat", "dog"]), **arrays)
    assert unpack(tmp_path, tmp_path / "data") == [
        {"what": "colour32, train", "images": 4}, {"what": "colour32, test", "images": 4}
    ]  # fmt: skip
    images = Folder(
        name="x", path=str(tmp_path / "data" / "colour32.zip"), root=str(tmp_path), size=8, channels=3
    ).load("train")
    assert images.classes == ("cat", "dog") and images.labels.tolist() == [0, 0, 1, 1]
    assert [round(int(x[0].float().mean()) / 60) for x in images.images] == [1, 3, 0, 2]


# --- what becomes of it -----------------------------------------------------------------------------------------------

TEXT = "# Speed\n<!-- gpu: train resume -->\nold\n<!-- /gpu -->\nbetween\n<!-- gpu: mnist -->\n<!-- /gpu -->\nafter\n"


def result(path: Path, rows: list[dict], **machine: str) -> None:
    facts = {"gpu": "H", "torch": "2", "python": "3.12", "date": "2026-11-25"} | machine
    path.write_text(json.dumps({"title": path.stem, "machine": facts, "finished": True, "rows": rows}))


def test_tables_come_from_the_files_and_are_the_same_the_second_time(tmp_path):
    row = {
        "what": "train",
        "size": "mnist",
        "model": "vwd",
        "batch": None,
        "peak MiB": 5.0,
        "share of the ceiling": "9 %",
    }
    rows = [
        row | {"mode": "bf16", "images/s": 200.0},
        row | {"mode": "fp32", "images/s": 50.0},
        {"what": "ceiling", "TFLOP/s": 700.0},
    ]
    result(tmp_path / "train.json", rows)
    (tmp_path / "train.png").touch()
    filled = tables.fill(TEXT, tmp_path, "results/gpu")
    assert "old" not in filled and "between" in filled and filled.endswith(f"{tables.NONE}<!-- /gpu -->\nafter\n")
    assert "*Not measured: resume.*" in filled
    assert "| train | mnist | vwd | published | 200 | 9 % | 5 |  | 50 |" in filled
    assert "![train](results/gpu/train.png)" in filled and "H, torch 2" in filled
    assert tables.fill(filled, tmp_path, "results/gpu") == filled


@pytest.mark.parametrize("machine", [{"rehearsal": "yes"}, {"gpu": None}])
def test_a_rehearsal_is_never_written_into_results(tmp_path, monkeypatch, machine):
    result(tmp_path / "train.json", [], **machine)
    if machine.get("gpu", "") is None:  # as on a CPU
        found = json.loads((tmp_path / "train.json").read_text())
        del found["machine"]["gpu"]
        (tmp_path / "train.json").write_text(json.dumps(found))
    file = tmp_path / "RESULTS.md"
    file.write_text(TEXT)
    monkeypatch.setattr(sys, "argv", ["tables.py", "--results", str(tmp_path), str(file)])
    with pytest.raises(SystemExit, match="error: .*rehearsal"):
        tables.main()
    assert file.read_text() == TEXT


def test_every_step_has_one_place_and_data_none():
    marked = [
        name
        for file in tables.FILES
        for _, names, _ in tables.PLACE.findall(file.read_text())
        for name in names.split()
    ]
    assert sorted([*marked, "data"]) == sorted(tables.WHAT)


# --- the rehearsal ----------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_whole_day_is_rehearsed_goes_on_and_leaves_small_results(tmp_path):
    out, archive = tmp_path / "out", tmp_path / "gpu.tgz"
    packed = tmp_path / "packed"
    packed.mkdir()
    line = [sys.executable, str(BENCHMARKS / "gpu.py"), "--rehearse", "--packed", str(packed), "--out", str(out),
            "--work", str(tmp_path / "work"), "--pack", str(archive)]  # fmt: skip
    first = subprocess.run(line, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout + first.stderr
    states = dict(row.split(": ", 1) for row in first.stdout.splitlines())
    assert len(states) == 14 and states.pop("animals").startswith("unfinished")
    assert all(state.startswith("finished") for state in states.values())
    for path in out.rglob("*"):
        assert path.is_dir() or path.stat().st_size < 200_000, path
    assert {path.name for path in out.glob("*.png")} >= {"mnist.png", "animals-samples.png", "animals-curves.png"}
    with tarfile.open(archive) as tar:
        assert {f"gpu/{name}.json" for name in states} <= set(tar.getnames())
    with pytest.raises(ValueError, match="rehearsal"):
        tables.fill(TEXT, out, "")
    second = subprocess.run([*line, "--only", *states], capture_output=True, text=True)
    assert second.returncode == 0 and second.stdout.count("there already") == len(states)

"""A model that lives in a folder of the user's own trains, samples, is measured, steered and shown: nothing of vcd knows it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SHORT

MINE = '''
"""Two models of one's own: one without latents, and one with the latents of a variational encoder; both with own bounds."""
from vcd.batch import Condition
from vcd.bounds import Bound, Quantity
from vcd.models.base import Diffusion, Losses
from vcd.models.variational import Variational


class Huber(Diffusion):
    """Restores the clean image by Huber's loss."""

    def losses(self, batch):
        x_t = self.shown(batch)
        out = self.network(x_t.network, batch.t, batch.s, batch.condition)
        error = (self.prediction.target(batch, x_t.base, self.degradation) - out).abs()
        huber = error.clamp(max=0.1) * (error - 0.05)
        return Losses(huber.mean(), {"loss": huber.flatten(1).mean(1)})

    def bound(self, x0, randomness):
        number = Quantity(8.0 * len(randomness), "lower", "bits per pixel, of nothing at all")
        return Bound({"naive_bits": number}, {"levels": [1]}, {"naive": [{"t": 1, "bits": 8.0}]})


class Steered(Variational):
    """The clean image in one step, with latents."""

    def losses(self, batch):
        losses = super().losses(batch)
        return Losses(losses.terms["reconstruction_sse"].mean(), losses.terms)

    def bound(self, x0, randomness):
        return Bound({"steered_bits": Quantity(1.5, "neither", "bits per image")}, {"levels": [1, 2, 3]})
'''
TRUST = ["trust=[mine]"]  # what a checkpoint names outside vcd runs only where it is trusted
YAML = {
    "huber": """# @package _global_
# Huber's loss.
defaults:
  - _parts@model
  - override /prediction: x0
  - override /sampler: cold
network:
  unet:
    injection: null
model:
  _target_: mine.Huber
""",
    "steered": """# @package _global_
# Latents without their KL.
defaults:
  - _variational@model
model:
  _target_: mine.Steered
""",
}


@pytest.fixture(scope="module")
def own(command, tmp_path_factory) -> Callable:
    """own("sample", "n=3"): a command in the user's folder, which is on the Python path."""
    cwd = tmp_path_factory.mktemp("own")
    (cwd / "mine.py").write_text(MINE)
    (cwd / "conf" / "model").mkdir(parents=True)
    for name, text in YAML.items():
        (cwd / "conf" / "model" / f"{name}.yaml").write_text(text)

    def run(verb: str, *arguments: str):
        process = command(verb, *arguments, cwd=cwd, VCD_DATA=str(cwd / "data"))
        process.cwd = cwd
        return process

    return run


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "latents", "bound"), [("huber", False, {"naive_bits": 64.0}), ("steered", True, {"steered_bits": 1.5})]
)
def test_a_model_of_ones_own_edits_nothing(own, name, latents, bound):
    short = [o for o in SHORT if latents or not o.startswith("prior")]
    trained = own("train", "--config-dir", "conf", *short, f"model={name}")
    assert trained.returncode == 0, trained.stderr
    last = Path(trained.stdout.splitlines()[-1].split(maxsplit=1)[1])
    ckpt = [f"ckpt={last}", *TRUST]

    sampled = own("sample", *ckpt, "n=3", f"out={name}")
    assert sampled.returncode == 0, sampled.stderr
    assert (sampled.cwd / name / "samples.npy").exists()

    families = "metrics=[spectrum,restoration,bound]"
    measured = own("evaluate", *ckpt, families, "n=20", "restored=8", "device=cpu")
    assert measured.returncode == 0, measured.stderr
    document = json.loads((last.parent / "metrics.json").read_text())
    found = {key: document["metrics"][key] for key in bound}
    assert {key: number["value"] for key, number in found.items()} == bound
    assert all({"data", "test", "images", "seed", "levels"} <= number["protocol"].keys() for number in found.values())
    assert document["subject"]["model"] == name.capitalize()
    ways = {key.partition("_")[2] for key in document["metrics"] if key.startswith("psnr_")}
    assert ways == {"degraded", "algorithm_1", "algorithm_2", "direct", *(["posterior"] if latents else [])}
    assert ("naive" in document["curves"]) == (not latents)

    steered = own("control", *ckpt, "task=exchange", "n=2")
    if latents:
        assert steered.returncode == 0 and (last.parent / "control" / "exchange.png").exists(), steered.stderr
    else:
        assert steered.returncode == 1
        assert "a Huber has no latents to steer by" in steered.stderr and "Traceback" not in steered.stderr

    shown = own("report", f"run={last.parent}", *TRUST, "n=4", "pairs=2")
    assert shown.returncode == 0, shown.stderr
    page = (last.parent / "report.html").read_text()
    assert next(iter(bound)) in page
    assert ("exchange" in page) or not latents

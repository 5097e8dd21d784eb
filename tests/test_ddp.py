"""Several processes that train one run: the gradients of one, noise of their own, and a run that goes on with any number."""

import os
import shutil

import numpy as np
import pytest
import torch
from conftest import SHORT, TINY
from test_train import SABOTAGE, differences, kill, only_run

from vcd import training
from vcd.batch import Degraded
from vcd.data.stream import share

TWO = [a for a in SHORT if not a.startswith("prior")] + [
    "prior=independent",
    "trainer=ddp",
    "model=vcd",
    "perturbation.warmup=4",
]
PORT = "29517"


def batch_for(model, n: int = 8) -> Degraded:
    """n images at levels of their own; the same at every call."""
    torch.manual_seed(3)
    D = model.degradation
    x0 = torch.rand(n, 1, 8, 8) * 2 - 1
    t = torch.arange(n) % D.T + 1
    s, eps = model.prediction.level(t), D.draw(x0)
    return Degraded(x0, t, s, D(x0, t, eps), D(x0, s, eps), eps, torch.zeros(n, dtype=torch.long))


def double(batch: Degraded, rows) -> Degraded:
    parts = {k: None if v is None else v[rows] for k, v in vars(batch).items()}
    return Degraded(**{k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in parts.items()})


class Objective(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return self.model.losses(batch).total


def gradients(rank: int, cfg, folder) -> None:
    """What one of two processes gets from its half of the batch."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": PORT}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = training.build(cfg)
    batch = batch_for(model)
    together = torch.nn.parallel.DistributedDataParallel(Objective(model.double()), find_unused_parameters=True)
    together(double(batch, torch.from_numpy(share(np.arange(8), rank, 2)))).backward()
    if rank == 0:
        torch.save({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, folder / "gradients.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.long
@pytest.mark.parametrize("model", [["model=bansal"], ["model=ddpm", "T=60"]], ids=" ".join)  # no noise drawn by each
def test_gradients_are_those_of_one_process(compose, tmp_path, model):
    cfg = compose(*TINY, *model)
    torch.multiprocessing.spawn(gradients, (cfg, tmp_path), nprocs=2)
    torch.manual_seed(0)
    alone = training.build(cfg)
    batch = batch_for(alone)
    alone.double().losses(double(batch, slice(None))).total.backward()
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    expected = {n: p.grad for n, p in alone.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys() and len(expected) > 20
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-6 * float(gradient.abs().max()), msg=name)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_two_processes_train_are_killed_and_go_on_exactly_or_as_one(command, tmp_path):
    """batch_size is the total, the noise of each process is its own, and one process can go on where two were."""
    folders = {}
    for name in ("straight", "killed"):
        cwd = tmp_path / name
        cwd.mkdir()
        (cwd / "sabotage.py").write_text(SABOTAGE)
        if name == "killed":
            killed = command("train", *TWO, kill("on_train_batch_start", 13), cwd=cwd)
            assert killed.returncode, killed.stdout
            saved = torch.load(only_run(cwd) / "last.ckpt", weights_only=True)
            assert saved["global_step"] == 10
            alone = tmp_path / "alone"
            shutil.copytree(cwd, alone)
        process = command("train", *TWO, cwd=cwd)
        assert process.returncode == 0 and "Traceback" not in process.stderr, process.stderr  # of any of them
        folders[name] = only_run(cwd)
    expected, found = (torch.load(f / "last.ckpt", weights_only=True) for f in folders.values())
    for key in ("current_model_state", "state_dict", "optimizer_states"):
        assert not differences(expected[key], found[key], key)
    rows = [(f / "metrics.csv").read_text().splitlines() for f in folders.values()]
    assert rows[0][-1] == rows[1][-1]
    (states,) = [v["processes"] for k, v in found["callbacks"].items() if "Random" in k]
    assert len(states) == 2 and not torch.equal(states[0]["torch"], states[1]["torch"])
    (position,) = [v for k, v in flat(found["loops"]) if k == "position"]
    assert position == 20  # batches of the whole, not of each process

    one = [a if a != "trainer=ddp" else "trainer=default" for a in TWO]
    process = command("train", *one, cwd=alone)
    assert process.returncode == 0 and "resuming at step 10 of 20" in process.stdout, process.stderr
    assert (
        "trained by 2 processes so far, now by 1" in process.stdout and only_run(alone).name == folders["killed"].name
    )


def flat(node, key=""):
    """(key, value) of every leaf."""
    if isinstance(node, dict):
        for k, v in node.items():
            yield from flat(v, k)
    elif isinstance(node, (list, tuple)):
        for v in node:
            yield from flat(v, key)
    else:
        yield key, node


def test_a_batch_that_cannot_be_shared_out_is_refused(compose):
    from vcd.data.stream import check_share

    with pytest.raises(Exception, match="multiple of 3"):
        check_share(16, 3)

"""A few steps of VCD, compiled and not: losses, graphs, sizes of batches, as JSON. No test: test_hardware.py runs it."""

import copy
import json

import torch
from conftest import TINY
from hydra import compose, initialize_config_dir
from torch._dynamo.utils import counters

from vcd import training
from vcd.batch import Degraded
from vcd.callbacks.compiled import compile_in_place
from vcd.cli import CONF
from vcd.models.base import Diffusion
from vcd.resolvers import register_resolvers

SETTINGS = [
    "model=vcd", "degradation=black_blur", "T=6", "perturbation.p=0.1", "perturbation.true_share=0.0",
    "perturbation.warmup=0",
]  # fmt: skip
BACKEND = "aot_eager"  # no C++ compiler has a part in what is counted


def batch_of(model: Diffusion, n: int) -> Degraded:
    """n images, at all levels in turn."""
    x0, t = torch.rand(n, 1, 8, 8) * 2 - 1, torch.arange(n) % model.degradation.T + 1
    D = model.degradation
    return Degraded(x0, t, t - 1, D(x0, t), D(x0, t - 1), None, torch.zeros(n, dtype=torch.long))


def train(model: Diffusion, teacher: Diffusion, batches: list[Degraded]) -> list[float]:
    """Losses of steps of Adam, from the same random numbers at every call."""
    model.teacher = lambda live: model if live else teacher
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-3), []
    torch.manual_seed(0)
    for batch in batches:
        optimizer.zero_grad()
        losses.append(loss := model.train().losses(batch).total)
        loss.backward()
        optimizer.step()
    return [loss.item() for loss in losses]


def main() -> None:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        torch.manual_seed(0)
        eager = training.build(compose("train", [*TINY, *SETTINGS]))
    batches = [batch_of(eager, n) for n in (64, 64, 48, 64, 80, 64)]
    compiled, teachers = copy.deepcopy(eager), [copy.deepcopy(eager).eval() for _ in range(2)]
    sizes, restore = set(), Diffusion.restore

    def watched(model, x_t, *rest):
        sizes.add(len(x_t))
        return restore(model, x_t, *rest)

    Diffusion.restore = watched
    plain = train(eager, teachers[0], batches)
    for model in (compiled, teachers[1]):
        compile_in_place(model, BACKEND)
    fast = train(compiled, teachers[1], batches)
    print(json.dumps({
        "eager": plain, "compiled": fast, "graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values()),
        "sizes": sorted(sizes), "names": list(eager.state_dict()) == list(compiled.state_dict()),
    }))  # fmt: skip


if __name__ == "__main__":
    main()

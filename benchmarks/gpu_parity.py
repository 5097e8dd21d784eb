"""python benchmarks/gpu_parity.py: the same numbers on the CPU and on a GPU, in float32 without TF32.

Of every degradation its images, of every model its loss and all gradients, of every sampler its samples; random numbers
are drawn on the CPU for both. A row is what differs, as ||a - b|| / ||a||, and what it may.
"""

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from kept import Kept
from measure import arguments, parse
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from variants import config, model

from vcd.batch import Degraded
from vcd.cli import CONF
from vcd.quiet import quiet
from vcd.randomness import PerImage

TINY = ["dataset=digits", "network=tiny", "network.unet.dropout=0.0"]
MODELS = {
    **{name: [f"model={name}"] for name in ("plain", "vwd", "ddpm", "bansal", "rissanen", "vdm")},
    "vcd": ["model=vcd", "perturbation.warmup=0", "perturbation.true_share=0.2"],
    "vcd as published": ["model=vcd", "perturbation=rollout_published", "perturbation.p_warmup=0.125", "injection=emb_concat"],
    "vcd, patches": ["model=vcd", "network.unet.patch=2"],
    "ddpm, eps": ["model=ddpm", "prediction=eps"],
    "ddpm, v": ["model=ddpm", "prediction=v"],
    "vwd, vxt": ["model=vwd", "prediction=vxt"],
    "autoencoder": ["model=autoencoder"],
    "improved ddpm": ["model=ddpm", "prediction=eps_variance", "level_sampler=importance"],
    "soft diffusion": ["model=ddpm", "degradation=soft", "prediction=difference", "weight=simple"],
}  # fmt: skip
SAMPLERS = {  # name -> the model it serves; steps are few, for errors add up
    **{name: ["model=ddpm", "T=20", f"sampler={name}"] for name in ("ancestral", "cold", "large", "naive", "pc", "reverse_sde")},
    **{name: ["model=ddpm", "T=20", "prediction=eps", f"sampler={name}", "sampler.steps=10"] for name in ("dpm", "euler", "heun")},
    "ddim": ["model=ddpm", "T=20", "sampler.steps=10"],
    "learned": ["model=ddpm", "T=20", "prediction=eps_variance", "sampler=learned"],
    "langevin": ["model=ddpm", "schedule=ve", "T=5", "sampler=langevin", "sampler.repeats=5"],
    "momentum": ["model=ddpm", "degradation=blur_noise", "T=20", "sampler=momentum"],
    "one_shot": ["model=bansal", "sampler=one_shot"],
    "sequential": ["model=vwd", "degradation=black_blur"],
    "exact": ["model=vwd", "degradation=black_blur", "sampler=exact"],
}  # fmt: skip
ALLOWED = {"degradation": 1e-5, "loss": 1e-5, "gradients": 1e-3, "sampler": 1e-3}
RANDOM = {torch.rand, torch.randn, torch.randint, torch.randperm, torch.rand_like, torch.randn_like, torch.normal, torch.bernoulli,
          torch.empty_like, Tensor.normal_, Tensor.uniform_, Tensor.exponential_, Tensor.geometric_, Tensor.bernoulli_}  # fmt: skip
IN_PLACE = {function for function in RANDOM if function.__name__.endswith("_")}


class DrawnOnTheCPU(TorchFunctionMode):
    """Random numbers come from the CPU's generator, whatever device asks for them."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function not in RANDOM:
            return function(*args, **kwargs)
        if function in IN_PLACE:
            drawn = function(torch.empty_like(args[0], device="cpu"), *args[1:], **kwargs)
            return args[0].copy_(drawn)
        tensors = [a for a in args if isinstance(a, Tensor)]
        device = kwargs.pop("device", None) or (tensors[0].device if tensors else "cpu")
        args = tree_map_only(Tensor, lambda x: x.cpu(), args)
        return function(*args, **kwargs).to(device)


def differs(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||a||; infinite where either is not finite or their shapes differ."""
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    if a.shape != b.shape or not (a.isfinite().all() and b.isfinite().all()):
        return float("inf")
    return float((a - b).norm() / a.norm().clamp(min=1e-12))


def scrambled(cfg: Any) -> Any:
    """The model with weights of which none is zero."""
    of = model(cfg)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in of.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    return of


def batch_of(of: Any, n: int = 16) -> Degraded:
    """n images of noise at all levels in turn, on the device of the model."""
    D, generator = of.degradation, torch.Generator().manual_seed(2)
    x0 = (torch.rand(n, *of.start.shape, generator=generator) * 2 - 1).to(of.device)
    t = (torch.arange(n) % D.T + 1).to(of.device)
    with DrawnOnTheCPU():
        torch.manual_seed(3)
        eps = D.draw(x0)
        s = of.prediction.level(t)
    return Degraded(x0, t, s, D(x0, t, eps), D(x0, s, eps), eps, torch.zeros(n, dtype=torch.long, device=of.device))


def degradation(name: str, device: str) -> dict[str, float]:
    colours = ["dataset=cifar10", "dataset.size=8"] if "decolour" in name else ["dataset=digits"]
    here = model(
        config("model=plain" if name != "noise" else "model=ddpm", *colours, f"degradation={name}", "network=tiny")
    )
    a, b = batch_of(here), batch_of(copy.deepcopy(here).to(device))
    return {"degradation": max(differs(a.x_t, b.x_t), differs(a.x_s, b.x_s))}


def objective(overrides: list[str], device: str) -> dict[str, float]:
    here = scrambled(config(*TINY, *overrides)).train()
    there = copy.deepcopy(here).to(device)
    totals = []
    for of in (here, there):
        batch = batch_of(of)
        with DrawnOnTheCPU():
            torch.manual_seed(4)
            total = of.losses(batch).total
        total.backward()
        totals.append(total)
    pairs = [(p, q) for p, q in zip(here.parameters(), there.parameters(), strict=True) if p.grad is not None]
    mine, theirs = (torch.cat([p[i].grad.detach().cpu().flatten() for p in pairs]) for i in (0, 1))
    return {"loss": differs(*totals), "gradients": differs(mine, theirs)}


def sampler(overrides: list[str], device: str) -> dict[str, float]:
    here = scrambled(config(*TINY, *overrides)).eval()
    there = copy.deepcopy(here).to(device)
    x = [of.sample(PerImage(0, range(8), of.device), keep=2).x0 for of in (here, there)]
    return {"sampler": differs(*x)}


def rows(device: str, few: bool) -> Iterator[tuple[dict[str, str], Any]]:
    """(what is compared, the call that compares it); few: two of each."""
    names = sorted(path.stem for path in (CONF / "degradation").glob("*.yaml"))
    end = 2 if few else None
    for name in names[:end]:
        yield {"kind": "degradation", "name": name}, lambda name=name: degradation(name, device)
    for name, overrides in list(MODELS.items())[:end]:
        yield {"kind": "model", "name": name}, lambda o=overrides: objective(o, device)
    for name, overrides in list(SAMPLERS.items())[:end]:
        yield {"kind": "sampler", "name": name}, lambda o=overrides: sampler(o, device)


def main() -> None:
    parser = arguments(__doc__.partition("\n")[0], repeats=1)
    parser.add_argument("--few", action="store_true", help="two of each kind")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.set_defaults(out=Path("parity.json"))
    options = parse(parser)
    quiet()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    kept = Kept(f"CPU against {options.device}", options.out, seconds=options.seconds)
    for key, call in rows(options.device, options.few):
        kept.measure(key, call)
    bad = [row for row in kept.finish() if "error" in row or any(row[k] > v for k, v in ALLOWED.items() if k in row)]
    for row in bad:
        print(f"NOT THE SAME: {row}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()

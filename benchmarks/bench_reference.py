"""python benchmarks/bench_reference.py --reference DIR: this code against the original implementation, side by side.

DIR is a checkout of MaxFeucht/VariationalColdDiffusion. Both networks are built at the published size, with the same
batch and threads; the rounds alternate. "patch 2" is network.unet.patch=2, for VCD with our rollout. Exits with 1 where
the parameter counts differ by more than 5 %. (The original embeds t and s side by side, this code adds them, and is 7 %
smaller: here it has larger latents to make up.)
"""

import contextlib
import functools
import importlib
import os
import statistics
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bench_train import Subject
from hydra.utils import instantiate
from measure import arguments, interleaved, parse, ratio, report, seconds
from variants import SIZES, config, model

from vcd.quiet import quiet
from vcd.randomness import PerImage

NETWORKS = {  # the sizes that its main.py builds, and the options of its config files
    "mnist": dict(image_size=28, channels=1, num_res_blocks=2, attention_levels=(2,), dropout=0.1, ch_mult=(1, 2, 2), latent_dim=128, noise_scale=0.002),
    "cifar10": dict(image_size=32, channels=3, num_res_blocks=4, attention_levels=(2, 3), dropout=0.1, ch_mult=(1, 2, 2, 2), latent_dim=256, noise_scale=0.004),
}  # fmt: skip
LATENT = {
    ("mnist", 1): 192,
    ("mnist", 2): 320,
    ("cifar10", 1): 512,
    ("cifar10", 2): 512,
}  # ours, by patch, for as many parameters
DEGRADATIONS = {"noise": "noise", "blur": "blur", "black": "black", "black_blur": "black_blur", "blur_bansal": "gaussian_blur",
                "black_blur_bansal": "black_gaussian_blur", "pixelation": "pixelate"}  # fmt: skip


class Reference:
    """The original's modules, from a checkout."""

    def __init__(self, folder: Path):
        if not (folder / "scripts" / "diffusion.py").is_file():
            sys.exit(
                f"--reference {folder} is no checkout of VariationalColdDiffusion: there is no scripts/diffusion.py"
            )
        sys.path.insert(0, str(folder))
        if importlib.util.find_spec("torchgeometry") is None:  # all that is used of it
            stand_in = types.ModuleType("torchgeometry")
            stand_in.image = types.SimpleNamespace(get_gaussian_kernel2d=_gaussian)
            sys.modules["torchgeometry"] = stand_in
        self.diffusion = importlib.import_module("scripts.diffusion")
        self.degradation = importlib.import_module("scripts.degradation")
        self.unet = importlib.import_module("scripts.nets.vae_unet")
        self.diffusion.tqdm = lambda items, **_: items

    def options(self, size: str, variant: str, device: str, **more: Any) -> dict[str, Any]:
        shape = NETWORKS[size]
        return dict(
            timesteps=6, prediction="vxt", degradation="black_blur", noise_schedule="cosine", vae=True, vae_beta=0.004, vae_loc="emb",
            lr=1e-4, dataset=size, image_size=shape["image_size"], noise_scale=shape["noise_scale"], vcd=variant == "vcd",
            vwd=variant == "vwd", device=device, ris_noise=False, break_symmetry=False, loss_weighting=False, min_t2_step=1,
            autoencoder=False, kl_annealing=20000, skip_ema=False, model_ema_decay=0.998, test_run=False,
        ) | more  # fmt: skip

    def network(self, size: str, variant: str, device: str) -> torch.nn.Module:
        shape = dict(NETWORKS[size])
        with _silence():
            return self.unet.VAEUnet(in_channels=shape.pop("channels"), dim=64, vae_loc="emb", vae_inject="concat", var_timestep=True,
                                     xt_dropout=0, add_noise=variant == "vwd", **shape).to(device)  # fmt: skip

    def trainer(self, size: str, variant: str, device: str) -> Any:
        trainer = self.diffusion.Trainer(
            model=self.network(size, variant, device), **self.options(size, variant, device)
        )
        trainer.model.train()
        return trainer


def _gaussian(size: tuple[int, int], sigma: tuple[float, float]) -> torch.Tensor:
    """The normalised outer product of two Gaussians."""
    sides = [
        torch.exp(-((torch.arange(n) - n // 2) ** 2).float() / (2 * float(s) ** 2))
        for n, s in zip(size, sigma, strict=True)
    ]
    return torch.outer(*(side / side.sum() for side in sides))


def training(reference: Reference, options: Any) -> Iterator[dict[str, Any]]:
    for size in options.sizes:
        for variant in ("vwd", "vcd"):
            theirs = reference.trainer(size, variant, options.device)
            more = [f"experiment={variant}_{size}", f"batch_size={options.batch}", *options.overrides]
            names = {"as published": [*_equal(size, 1), *(["perturbation.p_warmup=0.125"] if variant == "vcd" else [])]}
            if variant == "vcd":
                names["our rollout"] = [*_equal(size, 1), "perturbation=rollout"]
            names["patch 2"] = [*_equal(size, 2), *(["perturbation=rollout"] if variant == "vcd" else [])]
            ours = {name: _subject([*more, *o], options.device) for name, o in names.items()}
            x = torch.rand(options.batch, NETWORKS[size]["channels"], *2 * [NETWORKS[size]["image_size"]])
            batches = [(x, None)] * options.steps
            slow = []
            for i in range(options.repeats + 1):
                with _silence():
                    took = seconds(lambda t=theirs, b=batches: t.train_epoch(b), options.device) / options.steps
                if i:
                    slow.append(took)
                for subject in ours.values():
                    subject.train(options.steps, "gpu" if options.device.startswith("cuda") else "cpu")
            for name, subject in ours.items():
                fast = subject.steps[options.steps :]  # the first round warms up
                fast = [statistics.mean(fast[i : i + options.steps]) for i in range(0, len(fast), options.steps)]
                weights = [sum(p.numel() for p in m.parameters()) for m in (theirs.model, subject.model)]
                yield {"what": f"training step, {variant}, {size}, {name}", "reference ms": 1e3 * statistics.median(slow),
                       "ours ms": 1e3 * statistics.median(fast), "times": ratio(slow, fast),
                       "parameters, reference": weights[0], "ours": weights[1]}  # fmt: skip


def _equal(size: str, patch: int) -> list[str]:
    return [f"network.unet.patch={patch}", f"network.encoder.latent={LATENT[size, patch]}"]


def _subject(overrides: list[str], device: str) -> Subject:
    cfg = config(*overrides)
    return Subject(cfg, model(cfg, device))


def sampling(reference: Reference, options: Any) -> Iterator[dict[str, Any]]:
    for size in options.sizes:
        theirs = reference.network(size, "vwd", options.device).eval()
        sampler = reference.diffusion.Sampler(**reference.options(size, "vwd", options.device))
        prior = torch.randn(options.batch, NETWORKS[size]["latent_dim"], device=options.device)
        ours = {
            patch: model(
                config(f"experiment=vwd_{size}", *_equal(size, patch), *options.overrides), options.device
            ).eval()
            for patch in (1, 2)
        }

        def reference_samples(sampler=sampler, theirs=theirs, prior=prior, size=size) -> None:
            with _silence():
                sampler.sample_x_T(options.batch, NETWORKS[size]["channels"], NETWORKS[size]["image_size"])
                sampler.sample(model=theirs, generate=True, batch_size=options.batch, prior=prior, t_diff=1)

        def our_samples(of) -> None:
            of.sample(PerImage(0, range(options.batch), of.device), keep=2)

        calls = {
            "reference": reference_samples,
            **{patch: functools.partial(our_samples, of) for patch, of in ours.items()},
        }
        taken = interleaved(calls, options.repeats, options.device)
        for patch, name in ((1, ""), (2, ", patch 2")):
            yield _row(
                f"{options.batch} samples, {size}{name}", {"reference": taken["reference"], "ours": taken[patch]}
            )


def degrading(reference: Reference, options: Any) -> Iterator[dict[str, Any]]:
    for size in options.sizes:
        shape = NETWORKS[size]
        x = torch.rand(
            options.batch, shape["channels"], shape["image_size"], shape["image_size"], device=options.device
        )
        for T in (6, 200):
            t = torch.randint(0, T, (options.batch,), device=options.device)
            for theirs, ours in DEGRADATIONS.items():
                if ours not in options.degradations:
                    continue
                if "pixel" in theirs and shape["image_size"] < T:
                    continue  # it refuses
                D = instantiate(config(*SIZES[size], f"degradation={ours}", f"T={T}").degradation).to(options.device)
                arguments = reference.options(size, "vwd", options.device, timesteps=T, degradation=theirs)
                arguments = {
                    k: arguments[k]
                    for k in ("timesteps", "degradation", "noise_schedule", "dataset", "image_size", "device")
                }
                E = reference.degradation.Degradation(**arguments)
                eps = torch.randn_like(x) if theirs == "noise" else None
                taken = interleaved({"reference": lambda E=E, t=t, e=eps, x=x: E.degrade(x, t, noise=e),
                                     "ours": lambda D=D, t=t, e=eps, x=x: D(x, t + 1, e)}, 5 * options.repeats, options.device)  # fmt: skip
                yield _row(f"degradation {ours}, {size}, T={T}, batch {options.batch}", taken)


def _row(what: str, taken: dict[str, list[float]]) -> dict[str, Any]:
    medians = {f"{name} ms": 1e3 * statistics.median(times) for name, times in taken.items()}
    return {"what": what, **medians, "times": ratio(taken["reference"], taken["ours"])}


@contextlib.contextmanager
def _silence():
    """The original prints as it goes."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def main() -> None:
    parser = arguments(__doc__.partition("\n")[0], repeats=3)
    parser.add_argument("--reference", type=Path, required=True, help="a checkout of the original")
    parser.add_argument("--sizes", nargs="+", default=["mnist", "cifar10"], choices=NETWORKS)
    parser.add_argument(
        "--parts",
        nargs="+",
        default=["degrading", "sampling", "training"],
        choices=["degrading", "sampling", "training"],
    )
    parser.add_argument("--degradations", nargs="+", default=list(DEGRADATIONS.values()), choices=DEGRADATIONS.values())
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1, help="training steps a round")
    parser.add_argument("overrides", nargs="*", help="of vcd.train, for ours")
    options = parse(parser)
    quiet()
    reference = Reference(options.reference)
    rows = []
    for row in (row for part in options.parts for row in globals()[part](reference, options)):
        print(f"{row['what']}: {row['times']:.3g} times", file=sys.stderr, flush=True)
        rows.append(row)
    report("The original against this code (times: how many times as fast)", rows, options.out)
    odd = [row["what"] for row in rows if "ours" in row and abs(row["ours"] / row["parameters, reference"] - 1) > 0.05]
    if odd:
        sys.exit(f"the parameter counts differ by more than 5 %: {'; '.join(odd)}")


if __name__ == "__main__":
    main()

"""Where the distance of samples from data comes from: the same model with better and better latents, up to real images."""

import logging
import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from vcd.batch import Condition
from vcd.metrics.evaluation import Evaluation, some
from vcd.metrics.families.distribution import frechet
from vcd.metrics.fidelity import fidelity
from vcd.metrics.results import Number, Result
from vcd.models.variational import Variational
from vcd.randomness import PerImage

log = logging.getLogger("vcd")
NEEDS_A_MODEL = NEEDS_FEATURES = True
BATCH = 256
ROWS = {
    "normal": "latents of N(0, I)",
    "prior": "latents of the model's prior: the samples",
    "true_path": "posteriors of training images at their true states",
    "own_path": "posteriors of training images at the states that decoding reaches",
    "real": "training images; of the train split, held-out ones",
}


def measure(e: Evaluation) -> Result:
    """Fréchet distances of five sets of n images, from either split; bits and PSNR of the own path.

    From one row to the next there is one change. normal to prior: what the fit of the prior brings; prior to own_path:
    what a better prior could; true_path to own_path: what it is worth that posteriors see the model's own states;
    own_path to real: what the decoder loses. Posteriors are of training images, so only their distances to held-out
    images compare with `real`. Nothing for a model without latents.
    """
    model = e.model
    if not isinstance(model, Variational):
        log.warning(
            "metrics=[decomposition]: a %s has no latents, so there is nothing to decompose", type(model).__name__
        )
        return Result()
    if model.guess is not None:
        log.warning("metrics=[decomposition]: of a model that refines a first guess, the prior is only a part")
        return Result()
    rows = some(len(e.train), e.n, seed=0)
    images, kl = _made(model, e.train.batch(rows), e.seed)
    letter, psnr = e.extractor.letter, fidelity(images["own_path"], e.train.batch(rows))["psnr"]
    features = {name: e.extractor.features(x, f"row {name}")[0] for name, x in images.items()} | {
        "prior": e.features[0]
    }
    numbers, table = {}, []
    for c in e.comparisons[::-1] if e.split == "train" else e.comparisons:  # held-out images first
        real = e.features_of(c.other)[0][c.stand_ins]
        reference, floor = e.features_of(c.split)[0], frechet(real, e.features_of(c.split)[0])
        for row, what in ROWS.items():
            value = floor if row == "real" else frechet(features[row], reference)
            protocol = e.protocol(c, **e.extractor.protocol, row=what, seed=e.seed)
            numbers[f"{row}_f{letter}d_{e.n}{c.ending}"] = Number(value, "lower", floor, "", protocol)
            table.append({"row": row, "split": c.split, "distance": value})
    bits = kl.mean(1) / math.log(2)
    own = {"data": e.data.name, "images": len(rows), "split": "train", "seed": e.seed}
    numbers["own_path_bits"] = Number(bits.sum().item(), "neither", None, "bits per image, all steps", own)
    numbers["own_path_psnr"] = Number(psnr.mean().item(), "higher", None, "dB", own)
    levels = [{"t": t + 1, "bits": value} for t, value in enumerate(bits.tolist())]
    log.info("bits at levels 1..%d: %s", len(levels), ", ".join(f"{row['bits']:.1f}" for row in levels))
    return Result(numbers, {"decomposition": table, "own_path_bits": levels})


@torch.no_grad()
def _made(
    model: Variational, images: UInt8[Tensor, "n c h w"], seed: int
) -> tuple[dict[str, UInt8[Tensor, "n c h w"]], Float[Tensor, "T n"]]:
    """What the model makes with the latents of every row but its own prior's, and the KL of the own path in nats."""
    made: dict[str, list[Tensor]] = {"normal": [], "true_path": [], "own_path": []}
    kls, D = [], model.degradation

    def decoded(x_T: Tensor, randomness: PerImage, z: Tensor) -> Tensor:
        return model.sampler(model, x_T, randomness, latents=z, keep=2).x0

    with model.evaluating():
        for part, randomness in _parts(images, seed, model.device):
            x0 = model.space.encode(part.to(model.device))
            own = model.encode_path(x0, randomness.take())
            noise = randomness.take()
            start = model.start.sample(noise)
            z = noise.normal(D.T, model.prior.latent).transpose(0, 1)
            ends = {
                "normal": decoded(start, noise, z),
                "true_path": decoded(own.x_T, own.noise.take(), _on_true_path(model, x0, randomness.take())),
                "own_path": own.x_0 if own.x_0 is not None else x0,
            }
            for name, x in ends.items():
                made[name].append(model.space.decode(x).cpu())
            kls.append(own.kl.cpu())
    return {name: torch.cat(x) for name, x in made.items()}, torch.cat(kls, 1)


def _parts(images: Tensor, seed: int, device: torch.device) -> Iterator[tuple[Tensor, PerImage]]:
    for first in tqdm(range(0, len(images), BATCH), desc="decomposition", unit="batch"):
        part = images[first : first + BATCH]
        yield part, PerImage(seed, range(first, first + len(part)), device)


def _on_true_path(model: Variational, x0: Float[Tensor, "n c h w"], randomness: PerImage) -> Float[Tensor, "T n d"]:
    """z_t ~ q(z_t | x_t, x_s), with the sampler's noise on x_t; zeros at levels that it does not visit."""
    D = model.degradation
    eps = D.draw(x0, randomness)
    z, x0hat = torch.zeros(D.T, len(x0), model.prior.latent, device=x0.device), None
    for level in model.sampler.grid(D.T)[:-1]:
        t = torch.full((len(x0),), level, device=x0.device)
        s = model.sampler.ask(t, model.sampler.below(t, D.T))
        v = model.sampler.noisy(D(x0, t, eps), lambda: randomness.normal(*x0.shape[1:]), None)
        q = model.encode(v, D(x0, s, eps), t, s, x0hat)
        z[level - 1] = q.mean + q.stddev * randomness.normal(model.prior.latent)
        if model.self_conditioning:
            x0hat = model.restore(v, t, s, Condition(z=z[level - 1], x0hat=x0hat))
    return z

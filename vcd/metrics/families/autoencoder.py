"""What a space that loses something costs: real images, encoded and decoded again. No model in it can be closer than that."""

import torch

from vcd.metrics.evaluation import Evaluation
from vcd.metrics.families.distribution import frechet
from vcd.metrics.fidelity import fidelity
from vcd.metrics.results import Number, Result

NEEDS_A_MODEL = True
NEEDS_FEATURES = True


def measure(e: Evaluation) -> Result:
    """PSNR of reconstructions of real images, and their Fréchet distance from either split beside the samples'."""
    assert e.model is not None  # NEEDS_A_MODEL
    space, letter, numbers = e.model.space, e.extractor.letter, dict[str, Number]()
    for c in e.comparisons:
        real = e.of(c.other).batch(c.stand_ins)
        again = [space.decode(space.encode(part.to(e.model.device))).cpu() for part in real.split(256)]
        if not numbers:
            psnr = sum(fidelity(a, b)["psnr"].sum().item() for a, b in zip(again, real.split(256), strict=True)) / len(
                real
            )
            protocol = e.protocol(c, reconstructed=len(real))
            numbers["psnr_reconstructed"] = Number(psnr, "higher", None, "dB", protocol)
        features, _ = e.extractor.features(torch.cat(again), "reconstructions")
        (b, _), h = e.features_of(c.split), e.features_of(c.other)[0][c.stand_ins]
        value = frechet(features, b)
        protocol = e.protocol(c, **e.extractor.protocol)
        numbers[f"f{letter}d_{e.n}_reconstructed{c.ending}"] = Number(value, "lower", frechet(h, b), "", protocol)
    return Result(numbers)

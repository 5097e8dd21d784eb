"""What the config files compute: `${identity:}`, `${latents:...}` and `${self_conditioning:}`."""

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from vcd import identity

# What is self-conditioned by default, where the data set says so: warm VCD, whose rollouts blur.
SELF_CONDITIONED = ["vcd.models.vcd.VCD", "vcd.degradations.soft.Soft", "vcd.predictions.X0"]


def latents(maps: int, size: int, mults: Sequence[int | float]) -> int:
    """`${latents:maps,size,mults}`: how many numbers a convolutional latent has."""
    return maps * (size // 2 ** (len(mults) - 1)) ** 2


def self_conditioning(*, _root_: DictConfig) -> bool:
    """`${self_conditioning:}`: whether the data set asks for it, and the model is warm VCD."""
    chosen = [OmegaConf.select(_root_, f"{part}._target_") for part in ("model", "degradation", "prediction")]
    return bool(OmegaConf.select(_root_, "dataset.self_conditioning")) and chosen == SELF_CONDITIONED


def register_resolvers() -> None:
    """Make them known; called by entry points before Hydra reads the config."""
    OmegaConf.register_new_resolver("identity", identity.name, replace=True)
    OmegaConf.register_new_resolver("latents", latents, replace=True)
    OmegaConf.register_new_resolver("self_conditioning", self_conditioning, replace=True)

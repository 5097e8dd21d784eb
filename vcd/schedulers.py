"""The noise schedule of a model as diffusers' schedulers read it."""

from typing import Any

from vcd.degradations.gaussian import GaussianDegradation
from vcd.errors import UserError
from vcd.models.base import Diffusion
from vcd.predictions import X0, Eps, V

TYPES: dict[type, str] = {Eps: "epsilon", X0: "sample", V: "v_prediction"}


def config(model: Diffusion) -> dict[str, Any]:
    """The config of a DDIMScheduler whose alphas_cumprod[i] is our signal squared at level i + 1.

    UserError where the model has no such schedule: it is not of noise that replaces the signal, or its network predicts
    what diffusers does not know.
    """
    D, kind = model.degradation, TYPES.get(type(model.prediction))
    if not isinstance(D, GaussianDegradation) or not D.preserving or kind is None:
        raise UserError(
            "format=diffusers is for model=ddpm with degradation=noise, a variance-preserving schedule and prediction=eps, x0 "
            "or v: take format=safetensors"
        )
    kept = D.signal.double() ** 2
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": D.T,
        "trained_betas": (1 - kept[1:] / kept[:-1]).tolist(),
        "prediction_type": kind,
        "clip_sample": bool(getattr(model.sampler, "clip", False)),
        "clip_sample_range": 1.0,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "timestep_spacing": "trailing",
    }

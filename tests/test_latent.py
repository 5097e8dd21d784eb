"""Diffusion in the latents of an autoencoder: standardised, stored with the model, decoded wherever images are needed."""

import json

import numpy as np
import pytest
import torch
from conftest import SHORT, TINY
from omegaconf import OmegaConf
from sklearn.decomposition import PCA
from test_diffusevae import composed, numbers, save
from torch import nn
from torch.distributions import Normal

from vcd import __version__, checkpoints, spectra, stages, steering, training
from vcd.batch import Degraded
from vcd.degradations.fade import Fade
from vcd.errors import UserError
from vcd.models.plain import Plain
from vcd.networks.encoder import Posterior
from vcd.perturbations import Unperturbed
from vcd.predictions import X0
from vcd.priors import Independent
from vcd.samplers import Naive
from vcd.schedules import Cosine
from vcd.starts import Black

pytestmark = pytest.mark.usefixtures("seed")
AUTOENCODER = ["model=autoencoder", "dataset=digits", "network.unet.dim=8", "network.unet.mults=[1,2]"]
LATENT = [*TINY, "space=autoencoder"]


@pytest.fixture
def latent(compose, tmp_path):
    """latent("key=value", ...): a model in the latents of a scrambled autoencoder, and its config."""
    save(composed(compose, AUTOENCODER), tmp_path / "ae.ckpt")

    def make(*overrides: str):
        cfg = composed(compose, [*LATENT, f"space.ckpt={tmp_path / 'ae.ckpt'}", *overrides])
        stages.ready(cfg)
        model = training.build(cfg)
        stages.fill(model, stage1=cfg.stage1, autoencoder=cfg.space.get("ckpt"))
        return model.eval(), cfg

    return make


def images(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8)


def test_latents_have_mean_0_and_std_1_over_the_training_set(latent):
    model, _ = latent("model=vwd", "degradation=black")
    parts = [images(n) for n in (60, 60, 7)]  # batches of different sizes
    model.space.fit(parts)
    x = torch.cat([model.space.encode(part) for part in parts])
    assert x.shape[1:] == model.start.shape == (4, 4, 4) and model.image_shape == (1, 8, 8)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(x.std((0, 2, 3), unbiased=False), torch.ones(4), rtol=1e-3, atol=0)
    z = model.space.frozen.encode(parts[2]).mean
    assert torch.equal(model.space.decode(x[-7:]), model.space.frozen.decode(z))


@pytest.mark.parametrize("name", ["vwd", "ddpm", "bansal", "rissanen"])
def test_hot_and_cold_models_live_in_latents(latent, name):
    model, _ = latent(
        f"model={name}", *(["T=3", "sampler.steps=null"] if name == "ddpm" else ["T=3"]), "prior=independent"
    )
    assert not any(p.requires_grad for p in model.space.parameters())
    decoded = model.space.decode(model.sample(numbers()).x0)
    assert decoded.shape == (3, 1, 8, 8) and decoded.dtype == torch.uint8


def test_the_checkpoint_holds_the_autoencoder_and_its_scale(latent, tmp_path):
    model, cfg = latent("model=vwd", "degradation=black", "prior=independent")
    model.space.fit([images(50)])
    torch.save({checkpoints.CONFIG: OmegaConf.to_container(cfg, resolve=True), checkpoints.VERSION: __version__,
                "state_dict": model.state_dict(), "global_step": 1}, tmp_path / "both.ckpt")  # fmt: skip
    (tmp_path / "ae.ckpt").unlink()
    alone, _ = checkpoints.load(tmp_path / "both.ckpt")
    assert torch.equal(alone.space.decode(alone.sample(numbers()).x0), model.space.decode(model.sample(numbers()).x0))
    assert torch.equal(alone.space.encode(images(1) * 0), model.space.encode(images(1) * 0))


def test_bands_are_those_of_images(latent):
    model, _ = latent("model=vwd", "degradation=black", "prior=independent")
    found = spectra.measure(model, steering.draw(model, numbers()), steering.draw(model, numbers(seed=1)))
    assert found.power.shape == (3, 5)  # of 8 pixels, where x has 4


def test_what_has_no_latents_with_a_place_is_refused(compose, tmp_path):
    save(composed(compose, ["experiment=vae_digits", "network.unet.dim=8"]), tmp_path / "vae.ckpt")
    with pytest.raises(UserError, match="no place in the image"):
        stages.ready(composed(compose, [*LATENT, f"space.ckpt={tmp_path / 'vae.ckpt'}"]))
    with pytest.raises(UserError, match="say which autoencoder"):
        stages.ready(composed(compose, LATENT))


# --- the oracle -------------------------------------------------------------------------------------------------------


class Down(Posterior):
    """A linear encoder of 4x4 pixels to k numbers, without spread."""

    def __init__(self, k: int):
        super().__init__(latent=k, shape=(k, 1, 1))
        self.layer = nn.Linear(16, k)

    def forward(self, x_t, x_s, t, s):
        mean = self.layer(x_s.flatten(1))
        return Normal(mean, torch.full_like(mean, 1e-6))


class Across(nn.Module):
    def __init__(self, k: int):
        super().__init__()
        self.layer = nn.Linear(k, 16)

    def forward(self, x_t, t, s, condition):
        return self.layer(condition.z).reshape(x_t.shape)


def test_a_linear_autoencoder_is_pca():
    """The objective at beta=0, minimised over linear maps, leaves what PCA leaves (Baldi and Hornik 1989)."""
    k = 3
    x = torch.randn(200, 16) @ torch.diag(torch.linspace(1, 0.05, 16)) @ torch.linalg.qr(torch.randn(16, 16))[0]
    encoder, decoder = Down(k), Across(k)
    model = Plain(
        degradation=Fade(T=1, size=4, schedule=Cosine()), prediction=X0(), perturbation=Unperturbed(), network=decoder,
        encoder=encoder, prior=Independent(latent=k), beta=0.0, annealing=0, start=Black(channels=1, size=4),
        sampler=Naive(steps=1),
    )  # fmt: skip
    x0, one = x.reshape(-1, 1, 4, 4), torch.ones(200, dtype=torch.long)
    batch = Degraded(x0, one, one - 1, model.degradation(x0, one), x0, None, one)
    optimizer = torch.optim.LBFGS(
        [*encoder.parameters(), *decoder.parameters()], max_iter=400, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = model.losses(batch).total
        loss.backward()
        return loss

    optimizer.step(closure)
    pca = PCA(k).fit(x.numpy())
    again = torch.as_tensor(pca.inverse_transform(pca.transform(x.numpy())))
    left = (x - again).square().sum(1).mean().item()
    assert model.losses(batch).total.item() == pytest.approx(left, rel=1e-3)
    found = model.network.layer.weight.detach()
    inside = torch.as_tensor(pca.components_.T)
    torch.testing.assert_close(inside @ inside.T @ found, found, rtol=0, atol=2e-2)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_latents_by_command(command, tmp_path):
    """Autoencoder, warm diffusion in its latents, metrics with their floor, control and samples in pixels."""
    short = [o for o in SHORT if not o.startswith(("T=", "prior", "network"))]

    def run(verb, *arguments):
        done = command(verb, *arguments, cwd=tmp_path, VCD_DATA=str(tmp_path / "data"))
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1].split(maxsplit=1)[-1]

    ae = run("train", *short, "model=autoencoder", "network.unet.dim=8", "network.unet.mults=[1,2]")
    last = run("train", *SHORT, "model=vwd", "degradation=black", "space=autoencoder", f"space.ckpt={ae}")
    (tmp_path / ae).unlink()
    run("evaluate", f"ckpt={last}", "n=20", "metrics=[distribution]", "extractor.steps=5", "out=m.json")
    found = json.loads((tmp_path / "m.json").read_text())["metrics"]
    assert {"psnr_reconstructed", "fcd_20_reconstructed", "fcd_20_reconstructed_heldout", "fcd_20"} <= found.keys()
    run("control", "task=exchange", f"ckpt={last}", "n=2", "out=c")
    run("sample", f"ckpt={last}", "n=3", "out=s")
    assert np.load(tmp_path / "s" / "samples.npy").shape == (3, 8, 8, 1)

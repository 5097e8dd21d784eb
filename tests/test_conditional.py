"""p(z_t | x_t, t) in the bound: a density, N(0, I) at first, learned with the model, and unseen by runs without it."""

import math

import pytest
import torch
from conftest import TINY, scramble
from omegaconf import open_dict
from torch.distributions import Normal

from vcd import identity, steering, training
from vcd.batch import Degraded
from vcd.errors import UserError
from vcd.networks.conditional import Conditional
from vcd.priors import Independent
from vcd.randomness import PerImage

pytestmark = pytest.mark.usefixtures("seed")


def conditional(latent: int = 4, **changes) -> Conditional:
    return Conditional(**{"latent": latent, "channels": 1, "size": 8, "T": 3, "hidden": 16} | changes)


def posterior(n: int, latent: int = 4) -> Normal:
    return Normal(torch.randn(n, latent), torch.rand(n, latent) + 0.1, validate_args=False)


def test_it_begins_as_the_standard_normal():
    q, x, t = posterior(9), torch.randn(9, 1, 8, 8), torch.arange(9) % 3 + 1
    torch.testing.assert_close(conditional().kl(q, x, t), Independent(latent=4).kl(q, x, t), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_it_is_a_density_of_its_own_at_every_state_and_level():
    p = scramble(conditional(latent=2), 0.3)
    z = 3 * torch.randn(200_000, 2)
    proposed = Normal(0.0, 3.0).log_prob(z).sum(1)
    found = []
    for x, t in ((torch.zeros(1, 1, 8, 8), 1), (torch.ones(1, 1, 8, 8), 1), (torch.zeros(1, 1, 8, 8), 3)):
        log_p = p.log_prob(z, x.expand(len(z), -1, -1, -1), torch.full((len(z),), t)) - math.log(2 * math.pi)
        assert (log_p - proposed).exp().mean().item() == pytest.approx(1.0, abs=0.04)
        found.append(log_p)
    assert all((a - b).abs().mean() > 0.05 for a, b in ((found[0], found[1]), (found[0], found[2])))


def test_what_x_t_tells_of_z_costs_nothing_once_it_is_learned():
    """q = N(m, 0.5^2) with m a pixel of the state: KL to N(0, I) at least 0.32 + E m^2 / 2 a unit, to p(z | x) about 0."""
    p = conditional(latent=2, hidden=32, couplings=2)
    optimizer = torch.optim.Adam(p.parameters(), 1e-2)

    def asked(n: int) -> tuple[Normal, torch.Tensor, torch.Tensor]:
        x = torch.randn(n, 1, 8, 8)
        return Normal(x[:, 0, 0, :2], 0.5, validate_args=False), x, torch.ones(n, dtype=torch.long)

    for _ in range(200):
        optimizer.zero_grad()
        p.kl(*asked(128)).mean().backward()
        optimizer.step()
    q, x, t = asked(2000)
    learned, standard = p.kl(q, x, t).mean().item(), Independent(latent=2).kl(q, x, t).mean().item()
    assert standard > 1.2 and -0.05 < learned < 0.4 * standard


@pytest.mark.parametrize("size", [8, 28, 33])
def test_large_states_are_seen_coarsely(size):
    p = conditional(size=size, channels=3)
    x = torch.randn(2, 3, size, size)
    assert p.log_prob(torch.randn(2, 4), x, torch.tensor([1, 3])).shape == (2,)
    assert p.state[0].in_features <= 3 * 16**2


def test_the_bound_trains_it_and_the_encoder_by_one_loss(compose):
    cfg = compose(*TINY, "model=vwd", "degradation=black_blur", "conditional=flow")
    model = scramble(training.build(cfg), 0.1).train()
    x0, D = torch.rand(12, 1, 8, 8) * 2 - 1, model.degradation
    t = torch.arange(12) % D.T + 1
    batch = Degraded(x0, t, t - 1, D(x0, t, None), D(x0, t - 1, None), None, torch.zeros(12, dtype=torch.long))
    model.losses(batch).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.conditional.parameters())
    assert all(p.grad is not None for p in model.encoder.parameters())


@torch.no_grad()
def test_the_kl_of_given_images_is_their_own_and_draws_nothing_of_torch(compose):
    model = scramble(training.build(compose(*TINY, "conditional=flow")), 0.1).eval()
    x0 = torch.rand(3, 1, 8, 8) * 2 - 1
    state = torch.get_rng_state()
    path, kl = steering.encode(model, x0, PerImage(0, range(3)))
    assert torch.equal(torch.get_rng_state(), state)
    alone_path, alone = steering.encode(model, x0[1:2], PerImage(0, [1]))
    torch.testing.assert_close(alone[:, 0], kl[:, 1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alone_path.z[:, 0], path.z[:, 1], rtol=1e-4, atol=1e-5)


def test_a_run_without_it_is_the_run_that_it_was_and_one_with_it_is_another(compose):
    cfg, with_it = compose("model=vcd"), compose("model=vcd", "conditional=flow")
    before = cfg.copy()  # not resolved: the folder of a run is asked of Hydra
    with open_dict(before):
        del before.model.conditional
    assert identity.digest(before) == identity.digest(cfg) != identity.digest(with_it)


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="conditional.couplings=0"):
        conditional(couplings=0)

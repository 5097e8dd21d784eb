"""What the KL of training is taken to: p(z_t | x_t, t), learned with the model."""

from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from vcd.errors import UserError
from vcd.levels import Levels
from vcd.networks.blocks import LevelEmbedding, zero

SIDE = 16  # of the states it sees, at most: larger ones are averaged
STEEPEST = 1.5  # ln of what a coupling stretches or shrinks by, at most


class Coupling(nn.Module):
    """Shifts and scales half of z by what the other half and the state say (Dinh et al. 2017, arXiv:1605.08803)."""

    order: Tensor

    def __init__(self, *, latent: int, seen: int, hidden: int, seed: int):
        super().__init__()
        self.kept = latent // 2
        order = torch.randperm(latent, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("order", order, persistent=False)
        self.net = nn.Sequential(
            nn.Linear(self.kept + seen, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            zero(nn.Linear(hidden, 2 * (latent - self.kept))),
        )  # fmt: skip

    def forward(
        self, z: Float[Tensor, "b d"], seen: Float[Tensor, "b e"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, " b"]]:
        """Towards u, in another order; and ln |du/dz|."""
        kept, rest = z[:, self.order].split([self.kept, z.shape[1] - self.kept], 1)
        shift, scale = self.net(torch.cat([kept, seen], 1)).float().chunk(2, 1)
        scale = STEEPEST * torch.tanh(scale / STEEPEST)
        return torch.cat([kept, (rest - shift) * torch.exp(-scale)], 1), -scale.sum(1)


@final
class Conditional(nn.Module):
    """p(z_t | x_t, t), a flow of couplings: N(0, I) where training begins (Kingma et al. 2016, arXiv:1606.04934, for priors
    that are learned; Sohn et al. 2015 for those that see what the decoder sees).

    One Gaussian whose mean and width depend on x_t would be nothing new: network and encoder see x_t, and could shift and
    scale z themselves. Latents are not sampled from it, but from the model's prior, which knows all steps together.
    hidden: width; couplings: how many.
    """

    def __init__(self, *, latent: int, channels: int, size: int, T: int, hidden: int = 128, couplings: int = 4):
        super().__init__()
        if couplings < 1 or hidden < 1:
            raise UserError(f"conditional.couplings={couplings} and conditional.hidden={hidden} must be at least 1")
        self.pool = -(-size // SIDE)
        self.level = LevelEmbedding(T=T, dim=16, width=hidden)
        pixels = channels * (-(-size // self.pool)) ** 2
        self.state = nn.Sequential(nn.Linear(pixels, 2 * hidden), nn.SiLU(), nn.Linear(2 * hidden, hidden))
        self.couplings = nn.ModuleList(
            Coupling(latent=latent, seen=hidden, hidden=hidden, seed=i) for i in range(couplings)
        )

    def kl(
        self, q: Normal, x_t: Float[Tensor, "b c h w"], t: Levels, z: Float[Tensor, "b d"] | None = None
    ) -> Float[Tensor, " b"]:
        """An estimate of KL(q || p) in nats: KL(q || N(0, I)), and ln N(z; 0, I) - ln p(z | x_t, t) at one z of q.

        Without bias; it can be below 0. z: a sample of q; None: drawn here.
        """
        z = q.rsample() if z is None else z
        standard = Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean), validate_args=False)
        return kl_divergence(q, standard).sum(1) + (self.log_standard(z) - self.log_prob(z, x_t, t))

    def log_prob(self, z: Float[Tensor, "b d"], x_t: Float[Tensor, "b c h w"], t: Levels) -> Float[Tensor, " b"]:
        """ln p(z | x_t, t), up to the constant of N(0, I)."""
        x = F.avg_pool2d(x_t, self.pool, ceil_mode=True) if self.pool > 1 else x_t
        seen = F.silu(self.state(x.flatten(1)) + self.level(t))
        volume = torch.zeros_like(z[:, 0])
        for coupling in self.couplings:
            z, change = coupling(z, seen)
            volume = volume + change
        return self.log_standard(z) + volume

    @staticmethod
    def log_standard(z: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """ln N(z; 0, I), up to its constant."""
        return -z.square().sum(1) / 2

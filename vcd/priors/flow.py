"""A flow-matching network over the latents of all steps."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from vcd import compat
from vcd.errors import UserError
from vcd.priors.fitted import Directions, Fitted
from vcd.priors.mixture import choose
from vcd.randomness import PerImage

log = logging.getLogger(__name__)
LAYERS = 4  # of the network: three hidden ones, and the last
FREQUENCIES = 8  # of its time embedding
LOOK = 100  # steps between two looks at the held-out images
PATIENCE = 10  # looks without a better one, after which training ends
DECAY = 0.995  # of the averaged weights

MIXTURE = {"mixture_weights": 1, "mixture_means": 2, "mixture_variances": 2, "mixture_axes": 3}  # and their dimensions

Layers = list[tuple[Tensor, Tensor]]  # weight and bias of each
Mend = Callable[[Tensor], Tensor]  # an end of the flow, with what is known of it put right


@final
class Flow(Fitted):
    """Flow matching in the directions that tell the images apart (Lipman et al. 2022, arXiv:2210.02747); else a Gaussian.

    A multilayer perceptron v(w, u) moves w from N(0, I) at u = 0 to the latents at u = 1, in coordinates that have
    covariance I. Its output is added to the velocity that is exact for a Gaussian mixture in the leading directions, and
    is zero at first: training begins at that mixture, ends where held-out images say so, and what is kept is never worse
    on them.

    components: of the mixture, at most. hidden: width; steps: of training, at most; batch: latents per step; lr: the
    highest rate; heun: steps of sampling.
    Given its start the flow is deterministic: image i depends on its own randomness alone.
    """

    centre: Tensor
    basis: Tensor
    mixture_means: Tensor

    def __init__(
        self, *, latent: int, images: int, passes: int = 4, components: int = 40, hidden: int = 512, steps: int = 4000,
        batch: int = 256, lr: float = 2e-3, heun: int = 40,
    ):  # fmt: skip
        super().__init__(latent=latent, images=images, passes=passes)
        counts = dict(components=components, hidden=hidden, steps=steps, batch=batch, heun=heun)
        for name, value in counts.items():
            if value < 1:
                raise UserError(f"prior.{name}={value} must be at least 1")
        self.components, self.hidden, self.steps, self.batch = components, hidden, steps, batch
        self.lr, self.heun = lr, heun
        self.register_buffer("centre", torch.zeros(0))
        self.register_buffer("basis", torch.zeros(0, 0))
        for name, dims in MIXTURE.items():
            self.register_buffer(name, torch.zeros([0] * dims))
        for i in range(LAYERS):  # buffers: nothing that trains or averages the model's parameters looks at them
            self.register_buffer(f"weight{i}", torch.zeros(0, 0))
            self.register_buffer(f"bias{i}", torch.zeros(0))

    @property
    def layers(self) -> Layers:
        return [(self.get_buffer(f"weight{i}"), self.get_buffer(f"bias{i}")) for i in range(LAYERS)]

    def begin(self, w: Float[Tensor, "n r"], u: Float[Tensor, "n 1"]) -> Float[Tensor, "n r"]:
        """The velocity that the network's is added to."""
        r = self.mixture_means.shape[1]
        first = mixture(w[:, :r], u, *(self.get_buffer(name) for name in MIXTURE))
        return torch.cat([first, gaussian(w[:, r:], u)], 1)

    def learn(self, directions: Directions, fitted: Float[Tensor, "n D"], held_out: Float[Tensor, "m D"]) -> str:
        device, rank = self.units.device, directions.rank
        chosen, gain = choose(fitted, held_out, rank, self.components)
        K, r = chosen.means_.shape if len(chosen.means_) > 1 else (0, 0)  # one Gaussian is N(0, I) in these directions
        variances, axes = torch.linalg.eigh(torch.from_numpy(chosen.covariances_[:K, :r, :r]))
        found = (torch.from_numpy(chosen.weights_[:K]), torch.from_numpy(chosen.means_[:K, :r]), variances, axes)
        for name, value in zip(MIXTURE, found, strict=True):
            setattr(self, name, value.float().to(device))
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers, first, last = self._train(
                fitted[:, :rank].float().to(device), held_out[:, :rank].float().to(device)
            )
        self.centre, self.basis = directions.centre.float().to(device), directions.basis.float().to(device)
        for i, (weight, bias) in enumerate(layers):
            setattr(self, f"weight{i}", weight)
            setattr(self, f"bias{i}", bias)
        begun = f"a mixture of {K} in {r}, {gain:.2f} nats per image better than one" if K else "one"
        return (f"a flow in {rank} of {len(self.basis)} directions, held-out loss {last:.4f} ({first:.4f} where it begins: "
                f"{begun} Gaussian)")  # fmt: skip

    def _train(self, w: Float[Tensor, "n r"], held_out: Float[Tensor, "m r"]) -> tuple[Layers, float, float]:
        """The averaged weights that are best on held-out latents, and the loss there at first and with them."""
        widths = [w.shape[1] + 2 * FREQUENCIES, *[self.hidden] * (LAYERS - 1), w.shape[1]]
        made = [nn.Linear(a, b, device=w.device) for a, b in zip(widths, widths[1:], strict=False)]
        for layer in made:  # torch's own initialisation leaves so little of w that hardly anything is learned
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(made[-1].weight)
        parameters = [p for layer in made for p in (layer.weight, layer.bias)]
        averaged = [p.detach().clone() for p in parameters]
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        times = -(-4096 // len(held_out))  # every held-out latent from several starts
        test = held_out.repeat(times, 1)
        start, u = torch.randn_like(test), torch.rand(len(test), 1, device=w.device)
        first = best = self._loss(_paired(averaged), test, start, u).item()
        kept, since, began = [p.clone() for p in averaged], 0, time.monotonic()
        bar = tqdm(range(1, self.steps + 1), desc="fitting the flow", unit=" steps", disable=None)
        for step in bar:
            x = w[torch.randint(len(w), (self.batch,), device=w.device)]
            optimizer.zero_grad()
            spread = (torch.arange(len(x), device=w.device)[:, None] + torch.rand((), device=w.device)) / len(x)
            self._loss(_paired(list(parameters)), x, torch.randn_like(x), spread).backward()
            optimizer.step()
            schedule.step()
            compat.lerp_(averaged, [p.detach() for p in parameters], 1 - min(DECAY, (1 + step) / (10 + step)))
            if step % LOOK and step < self.steps:
                continue
            now, since = self._loss(_paired(averaged), test, start, u).item(), since + 1
            bar.set_postfix(held_out=f"{now:.4f}")
            if step % (10 * LOOK) == 0:
                log.info(
                    "flow: step %d of %d, held-out loss %.4f, %.0f s", step, self.steps, now, time.monotonic() - began
                )
            if now < best:
                best, kept, since = now, [p.clone() for p in averaged], 0
            elif since >= PATIENCE:
                break
        bar.close()
        return _paired(kept), first, best

    def sample(self, T: int, randomness: PerImage, temperature: float = 1.0) -> Float[Tensor, "T n d"]:
        z = temperature * randomness.normal(T * self.latent)
        if len(self.units):
            z[:, self.units] = self.centre + self._flow(z[:, self.units]) @ self.basis.mT
        return z.unflatten(1, (T, self.latent)).transpose(0, 1)

    def resample(
        self, z: Float[Tensor, "T n d"], levels: Sequence[int], randomness: PerImage
    ) -> Float[Tensor, "T n d"]:
        """By inpainting: at every step, the end that the flow is heading for is put right in the latents that are kept.

        With as little change as possible, in coordinates that have covariance I: so it is exact where latents are
        Gaussian, and approximate elsewhere (Wang et al. 2022, arXiv:2212.00490, for diffusion).
        """
        new = super().resample(z, levels, randomness)
        drawn = torch.isin(self.units // self.latent + 1, torch.tensor(list(levels), device=z.device))
        if not drawn.any() or drawn.all():
            return new  # nothing fitted is drawn, or nothing fitted is kept
        flat = new.transpose(0, 1).flatten(1)
        known = (flat[:, self.units] - self.centre)[:, ~drawn]
        rows = self.basis[~drawn]
        least = torch.linalg.pinv(rows.double()).to(
            rows.dtype
        )  # the least change of w that changes the kept by so much
        w = self._flow(randomness.normal(len(self.units)), lambda end: end + (known - end @ rows.mT) @ least.mT)
        flat[:, self.units[drawn]] = (self.centre + w @ self.basis.mT)[:, drawn]
        return flat.unflatten(1, (len(z), self.latent)).transpose(0, 1)

    def _loss(
        self, layers: Layers, end: Float[Tensor, "n r"], start: Float[Tensor, "n r"], u: Float[Tensor, "n 1"]
    ) -> Float[Tensor, ""]:
        """The mean square error of the velocity at u, on straight lines from start to end."""
        w = torch.lerp(start, end, u)
        return (self.begin(w, u) + network(layers, w, u) - (end - start)).square().mean()

    @torch.no_grad()
    def _flow(self, w: Float[Tensor, "n D"], mend: Mend | None = None) -> Float[Tensor, "n D"]:
        """From the start at u = 0 to u = 1 by Heun's method."""
        layers = self.layers
        rank = len(layers[-1][1])

        def velocity(w: Tensor, u: float) -> Tensor:
            at = w.new_full((len(w), 1), u)
            v = self.begin(w, at)
            v[:, :rank] += network(layers, w[:, :rank], at)
            if mend is None or u == 1:
                return v
            end = w + (1 - u) * v
            return v + (mend(end) - end) / (1 - u)

        h = 1 / self.heun
        for i in range(self.heun):
            first = velocity(w, i / self.heun)
            w = w + h / 2 * (first + velocity(w + h * first, (i + 1) / self.heun))
        return w


def network(layers: Layers, w: Float[Tensor, "n r"], u: Float[Tensor, "n 1"]) -> Float[Tensor, "n r"]:
    """The perceptron: SiLU between the layers, waves of u beside w."""
    angle = math.pi * u * torch.arange(1, FREQUENCIES + 1, device=w.device)
    h = torch.cat([w, angle.cos(), angle.sin()], 1)
    for weight, bias in layers[:-1]:
        h = F.silu(F.linear(h, weight, bias))
    return F.linear(h, *layers[-1])


def gaussian(w: Float[Tensor, "n r"], u: Float[Tensor, "n 1"]) -> Float[Tensor, "n r"]:
    """E[w_1 - w_0 | w_u = (1 - u) w_0 + u w_1], both N(0, I)."""
    return (2 * u - 1) / (u**2 + (1 - u) ** 2) * w


def mixture(
    w: Float[Tensor, "n r"], u: Float[Tensor, "n 1"], weights: Float[Tensor, " K"], means: Float[Tensor, "K r"],
    variances: Float[Tensor, "K r"], axes: Float[Tensor, "K r r"],
) -> Float[Tensor, "n r"]:  # fmt: skip
    """E[w_1 - w_0 | w_u] for w_0 of N(0, I) and w_1 of a mixture, the covariances by their eigenvalues and axes.

    In component k it is linear: m + (u C - (1 - u) I) ((1 - u)^2 I + u^2 C)^-1 (w_u - u m); they are weighted by how
    probable w_u makes k.
    """
    u = u[:, :, None]
    along = torch.einsum("nkr,krs->nks", w[:, None] - u * means, axes)
    spread = (1 - u) ** 2 + u**2 * variances
    density = weights.log() - (along.square() / spread + spread.log()).sum(2) / 2
    each = means + torch.einsum("nks,krs->nkr", (u * variances - (1 - u)) / spread * along, axes)
    return torch.einsum("nk,nkr->nr", density.softmax(1), each)


def _paired(flat: list[Tensor]) -> Layers:
    return list(zip(flat[::2], flat[1::2], strict=True))

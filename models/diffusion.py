"""Diffusion as a hierarchical variational autoencoder: noise is taken away in many small learned steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from ingle.models.likelihoods import Likelihood
from ingle.models.networks import Activation, mlp

__all__ = ["Denoiser", "Diffusion", "GaussianDenoiser", "RandomSteps", "Schedule", "Variance", "Weighting"]

Schedule = Literal["cosine", "linear"]
Variance = Literal["forward", "posterior"]
Weighting = Literal["bound", "simple"]

_LEFT = 1e-4  # alpha_bar at the last step of "cosine"


class Diffusion(nn.Module):
    r"""Data from noise through T learned denoising steps, with latents x_T … x_1 as large as the data.

        x_T ~ Normal(0, I),   x_{t-1} ~ Normal(mean(x_t, t), sigma_t^2 I) for t = T … 2,   x ~ Normal(mean(x_1, 1), …),
        mean(x_t, t) = (x_t - beta_t / sqrt(1 - alpha_bar_t) denoiser(x_t, t)) / sqrt(1 - beta_t).

    The guide adds noise in fixed steps, x_t ~ Normal(sqrt(1 - beta_t) x_{t-1}, beta_t I), alpha_bar_t being the product
    of all 1 - beta up to t; the denoiser learns to tell which noise, E[eps | x_t] for
    x_t = sqrt(alpha_bar_t) x + sqrt(1 - alpha_bar_t) eps. The bound is the sum over steps of a divergence each, and a
    call is the whole chain, 2 T sites: for T up to 50 or so. `RandomSteps(model)` estimates the same bound from one
    step a datum, for any T, and trains the same denoiser.

    Data should have about unit scale: pixels from -1 to 1, columns standardised. Bits a dimension are those of a
    density. For pixels of K levels k, dequantised x = 2 (k + u) / K - 1 with u uniform from 0 to 1, the levels
    themselves cost at most log2(K / 2) bits a dimension more than x.

    By step t, shape (T + 1,), with no noise at 0: `beta`, `alpha_bar`, `noise_var` (1 - alpha_bar) and `sigma`.

    The denoiser is drawn at random when the model is made, `torch.manual_seed` before, and is trained in place. Another
    network may be put in its place, `model.denoiser = network`, called with x of shape (…, *data_shape) and integers t
    of shape (…), from 1 to T, for the noise, of x's shape.

    Args:
        data_shape: shape of a datum: D for columns, (channels, height, width) for images.
        num_steps: T, 2 or more.
        hidden: widths of the denoiser's hidden layers.
        schedule: "cosine", alpha_bar falling as a squared cosine to 1e-4; "linear", beta growing linearly along the
            chain, from 0.1 / T to 20 / T, which leaves alpha_bar_T = 4e-5. Both are made for any T.
        variance: sigma_t^2; "forward" is beta_t, right in the limit for data with a density, so that the bound of the
            best denoiser tends to log p(x) as 1 / T; "posterior" is beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t),
            right for data that are a single point, which loses 0.29 nats a dimension (half of Euler's constant) as T
            grows where data have a density. sigma_1^2 is beta_1 with either.
        activation: between layers of the denoiser.

    Raises:
        ValueError: T below 2, a size below 1, or a choice that is not among those told.

    References:
        Sohl-Dickstein, Weiss, Maheswaranathan and Ganguli (2015), Deep Unsupervised Learning using Nonequilibrium
        Thermodynamics.
        Ho, Jain and Abbeel (2020), Denoising Diffusion Probabilistic Models (denoiser, both variances).
        Nichol and Dhariwal (2021), Improved Denoising Diffusion Probabilistic Models (cosine).
        Kingma, Salimans, Poole and Ho (2021), Variational Diffusion Models (the bound as T grows, spread steps).
    """

    beta: Tensor
    alpha_bar: Tensor
    noise_var: Tensor
    sigma: Tensor

    def __init__(
        self,
        data_shape: int | Sequence[int],
        num_steps: int = 100,
        hidden: Sequence[int] = (128, 128),
        *,
        schedule: Schedule = "cosine",
        variance: Variance = "forward",
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        self.data_shape = (data_shape,) if isinstance(data_shape, int) else tuple(data_shape)
        for size in self.data_shape or ("nothing",):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"data_shape must be whole numbers of 1 or more, got {size!r}")
        if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 2:
            raise ValueError(
                f"num_steps must be 2 or more, got {num_steps!r}: one step would have no latent between noise and data"
            )
        _one_of("schedule", schedule, get_args(Schedule))
        _one_of("variance", variance, get_args(Variance))
        self.num_steps, self.schedule, self.variance = num_steps, schedule, variance
        beta, alpha_bar, noise_var = _levels(schedule, num_steps)
        # Of step 1, where x_0 is known to the guide, "posterior" would be 0.
        between = torch.cat([beta[:2], beta[2:] * noise_var[1:-1] / noise_var[2:]])
        variances = beta if variance == "forward" else between
        levels = {"beta": beta, "alpha_bar": alpha_bar, "noise_var": noise_var, "sigma": variances.sqrt()}
        for name, values in levels.items():
            self.register_buffer(name, values, persistent=False)
        self.denoiser: nn.Module = Denoiser(self.data_shape, noise_var, hidden, activation)

    def forward(self, x: Tensor) -> None:
        """One run of the whole chain.

        Args:
            x: data, shape (N, *data_shape).

        Raises:
            ValueError: data of another shape, NaN or infinite.
        """
        pyro.module("denoiser", self.denoiser)
        self.check(x)
        with pyro.plate("data", len(x)) as i:
            z = pyro.sample(f"x_{self.num_steps}", self.prior())
            for t in range(self.num_steps, 0, -1):
                step, observed = self.reverse(z, self.at(t, z)), t == 1
                z = pyro.sample("x" if observed else f"x_{t - 1}", step, obs=x[i] if observed else None)

    def check(self, x: Tensor) -> None:
        """Raises ValueError for data of another shape or kind, and, where Pyro validates, for NaN or infinite ones."""
        if not x.is_floating_point():
            raise ValueError(
                f"x must be floating, since it is given a density, got {x.dtype}: for pixels k of K levels give "
                "2 (k + u) / K - 1 with u uniform from 0 to 1"
            )
        Likelihood("normal").check(x, self.data_shape)

    def at(self, t: int, z: Tensor) -> Tensor:
        """The same step for each datum: integers, shape (…), for z of shape (…, *data_shape)."""
        return torch.full(z.shape[: z.dim() - len(self.data_shape)], t, device=z.device)

    def prior(self) -> dist.TorchDistribution:
        """The distribution of x_T, standard normal, event shape `data_shape`."""
        like = next(self.denoiser.parameters(), self.beta)
        return self.normal(like.new_zeros(self.data_shape), like.new_ones(()))

    def noised(self, x: Tensor, t: Tensor) -> dist.TorchDistribution:
        """q(x_t | x), all noise up to step t at once.

        Args:
            x: data, shape (…, *data_shape).
            t: steps from 1 to T, integers, shape (…).

        Returns:
            Batch shape (…), event shape `data_shape`.
        """
        return self.normal(self.spread(self.alpha_bar, t, x).sqrt() * x, self.spread(self.noise_var, t, x).sqrt())

    def reverse(self, x_t: Tensor, t: Tensor) -> dist.TorchDistribution:
        """p(x_{t-1} | x_t), what is left after one denoising step; data themselves at t = 1.

        Args:
            x_t: shape (…, *data_shape).
            t: steps from 1 to T, integers, shape (…).

        Returns:
            Batch shape (…), event shape `data_shape`.
        """
        beta, noise_var, sigma = (self.spread(value, t, x_t) for value in (self.beta, self.noise_var, self.sigma))
        loc = (x_t - beta / noise_var.sqrt() * self.denoiser(x_t, t)) / (1.0 - beta).sqrt()
        return self.normal(loc, sigma)

    def normal(self, loc: Tensor, scale: Tensor) -> dist.TorchDistribution:
        """Independent normals over the numbers of a datum."""
        found: dist.TorchDistribution = dist.Normal(loc, scale).to_event(len(self.data_shape))
        return found

    def spread(self, values: Tensor, t: Tensor, x: Tensor) -> Tensor:
        """A number of each step, shape (T + 1,), at steps of shape (…), as it multiplies data x: (…, 1, …, 1)."""
        return values[t].to(x).reshape(*t.shape, *[1] * len(self.data_shape))

    def sample(self, num: int, *, path: bool = False, last_noise: bool = True) -> Tensor:
        """Draws from the model, step by step from noise, at torch's random state, on the model's device.

        Args:
            num: how many.
            path: all of x_0 … x_T and not x_0 alone.
            last_noise: add the noise of the last step, which the model has; pictures look better without.

        Returns:
            Shape (num, *data_shape), or (T + 1, num, *data_shape) by step with `path`.
        """
        with torch.no_grad():
            found = [self.prior().sample((num,))]
            for t in range(self.num_steps, 0, -1):
                step = self.reverse(found[-1], self.at(t, found[-1]))
                found.append(step.sample() if t > 1 or last_noise else step.mean)
                if not path:
                    del found[0]
            return torch.stack(found[::-1]) if path else found[0]


@dataclass(frozen=True)
class RandomSteps:
    """The bound of a `Diffusion` estimated from one step of each datum, drawn at random, and counted T times.

        time ~ Uniform(0, 1),   t_k = 1 + floor(T ((time + k / B) mod 1)) for the k-th of B rows,
        x_t ~ q(x_t | x),   x_before ~ p(x_{t-1} | x_t) where t > 1, and x ~ p(x | x_1) where t = 1.

    `time` and `x_t` have the same distribution in model and guide, and add nothing. Each row's step is uniform, so that
    the bound is right on average, whichever rows a step has; that the rows share one draw spreads them evenly over
    the chain, which takes much of the noise away. More steps of each datum are more particles of the objective.
    `objective=TraceMeanField_ELBO()` takes each step's divergence by its formula: its gradient is the mean, given x_t,
    of that of `Trace_ELBO`, whose noise grows with T. One run evaluates the denoiser once, whatever T. It is a program
    to train with: draws, predictions and evidence are asked of the whole chain, which shares the denoiser.

    Args:
        diffusion: the model whose denoiser is trained.
        weighting: "bound" for the evidence lower bound; "simple" weighs each step's divergence by
            2 sigma_t^2 (1 - beta_t) (1 - alpha_bar_t) / beta_t^2, which makes it the squared error of the noise,
            |eps - denoiser(x_t, t)|^2, and a constant. Samples are better as a rule, and the fit's loss is then
            no bound; `DiffusionGuide(diffusion).bits_per_dim(x)` tells that.

    Raises:
        ValueError: another weighting.

    References:
        Ho, Jain and Abbeel (2020), Denoising Diffusion Probabilistic Models, equations 12 to 14 ("simple").
        Kingma, Salimans, Poole and Ho (2021), Variational Diffusion Models, appendix I.1 (steps spread evenly).
    """

    diffusion: Diffusion
    weighting: Weighting = "bound"

    def __post_init__(self) -> None:
        _one_of("weighting", self.weighting, get_args(Weighting))

    def __call__(self, x: Tensor) -> None:
        """One run of the program.

        Args:
            x: data, shape (N, *data_shape).

        Raises:
            ValueError: data of another shape, NaN or infinite.
        """
        chain = self.diffusion
        pyro.module("denoiser", chain.denoiser)
        chain.check(x)
        time = pyro.sample("time", self.time())
        with pyro.plate("data", len(x)) as i:
            row = x[i]
            t = self.steps(time, len(row))
            pyro.sample(f"x_{chain.num_steps}", chain.prior())
            x_t = pyro.sample("x_t", chain.noised(row, t).mask(False))
            step = chain.reverse(x_t, t)
            with poutine.scale(scale=self.weight(t)):
                pyro.sample("x_before", step.mask(t > 1))
                pyro.sample("x", step.mask(t == 1), obs=row)

    def weight(self, t: Tensor) -> Tensor | float:
        """What the term of a step counts, of t's shape; T for the bound."""
        chain = self.diffusion
        if self.weighting == "bound":
            return float(chain.num_steps)
        beta = chain.beta[t]
        squared_error = 2.0 * chain.sigma[t].square() * (1.0 - beta) * chain.noise_var[t] / beta.square()
        return chain.num_steps * squared_error

    def time(self) -> dist.TorchDistribution:
        """What the steps of all rows are found from, a uniform number that counts nothing."""
        number: dist.TorchDistribution = dist.Uniform(self.diffusion.beta.new_zeros(()), 1.0).mask(False)
        return number

    def steps(self, time: Tensor, rows: int) -> Tensor:
        """The step of each row: a number from 0 to 1 of shape (…) gives integers from 1 to T, shape (…, rows)."""
        place = (time + torch.arange(rows, device=time.device) / rows) % 1.0
        # A number just below 1 may be rounded up.
        return (place * self.diffusion.num_steps).long().clamp(max=self.diffusion.num_steps - 1) + 1


class Denoiser(nn.Module):
    """A perceptron over a noisy datum and sines and cosines of its step, for the noise in it.

        noise = sqrt(1 - alpha_bar_t) x_t + sqrt(alpha_bar_t) network(x_t, t)

    The first part is the best guess for standard normal data, and the network, whose last layer starts at 0, is what
    the data differ from that.

    Args:
        shape: of one datum.
        noise_var: 1 - alpha_bar by step, shape (T + 1,).
        hidden: widths of the layers between.
        activation: between layers.
        waves: sines, and as many cosines, of the step; their periods go from 6e-3 to about 6 chains.

    References:
        Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser and Polosukhin (2017), Attention Is All You Need
        (sines and cosines of a place).
        Salimans and Ho (2022), Progressive Distillation for Fast Sampling of Diffusion Models (the network's part is
        their v).
    """

    frequency: Tensor
    share: Tensor

    def __init__(
        self, shape: Sequence[int], noise_var: Tensor, hidden: Sequence[int], activation: Activation, waves: int = 16
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        size = math.prod(self.shape)
        self.network = mlp(size + 2 * waves, hidden, size, activation)
        for parameter in self.network[-1].parameters():
            nn.init.zeros_(parameter)
        self.register_buffer("share", torch.stack([noise_var.sqrt(), (1.0 - noise_var).sqrt()]), persistent=False)
        self.register_buffer("frequency", 1_000.0 ** torch.linspace(0.0, 1.0, waves), persistent=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Noisy data, shape (…, *shape), and steps from 1 to T, integers of shape (…), give noise, (…, *shape)."""
        flat = x.flatten(-len(self.shape))
        angle = (t / (self.share.shape[1] - 1)).to(x).unsqueeze(-1) * self.frequency
        v: Tensor = self.network(torch.cat([flat, angle.sin(), angle.cos()], dim=-1))
        of_x, of_v = self.share[:, t].to(x).unsqueeze(-1)
        out: Tensor = of_x * flat + of_v * v
        return out.reshape(x.shape)


class GaussianDenoiser(nn.Module):
    """The best denoiser there is for data from Normal(loc, covariance), which is linear.

    E[eps | x_t] = sqrt(1 - a) (a covariance + (1 - a) I)^-1 (x_t - sqrt(a) loc), a being alpha_bar_t.

    Args:
        model: whose noise it tells, with data of shape (D,), to be put there as `model.denoiser`.
        loc: mean of the data, shape (D,).
        covariance: of the data, positive definite, shape (D, D).

    Raises:
        ValueError: data or moments of other shapes.
    """

    loc: Tensor
    variances: Tensor
    axes: Tensor
    alpha_bar: Tensor
    noise_var: Tensor

    def __init__(self, model: Diffusion, loc: Tensor, covariance: Tensor) -> None:
        super().__init__()
        shapes, size = (tuple(loc.shape), tuple(covariance.shape)), math.prod(model.data_shape)
        if model.data_shape != (size,) or shapes != ((size,), (size, size)):
            raise ValueError(
                f"for data of shape {model.data_shape} loc must have shape ({size},) and covariance ({size}, {size}), "
                f"and data_shape must be a number of columns; got {shapes[0]} and {shapes[1]}"
            )
        variances, axes = torch.linalg.eigh(covariance)
        found = {"loc": loc, "variances": variances, "axes": axes}
        for name, value in (found | {"alpha_bar": model.alpha_bar, "noise_var": model.noise_var}).items():
            self.register_buffer(name, value.clone(), persistent=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Noisy data, shape (…, D), and steps of shape (…) give the expected noise, shape (…, D)."""
        kept, noise = self.alpha_bar[t].unsqueeze(-1).to(x), self.noise_var[t].unsqueeze(-1).to(x)
        loc, variances, axes = self.loc.to(x), self.variances.to(x), self.axes.to(x)
        along = (x - kept.sqrt() * loc) @ axes
        return noise.sqrt() * (along / (kept * variances + noise)) @ axes.T


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")


def _levels(schedule: Schedule, num_steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """beta, alpha_bar and 1 - alpha_bar by step, shape (T + 1,) each, of no noise at step 0."""
    share = torch.linspace(0.0, 1.0, num_steps + 1, dtype=torch.float64)
    # Differences from 1 by formulas of their own, since the first are near 0.
    if schedule == "linear":
        log = -(0.1 * share + 0.5 * (20.0 - 0.1) * share**2)
        beta, noise_var = -torch.expm1(log.diff()), -torch.expm1(log)
        alpha_bar = log.exp()
    else:
        first = 0.008 / 1.008 * math.pi / 2.0
        angle = first + (math.acos(math.sqrt(_LEFT) * math.cos(first)) - first) * share
        beta = _sine_drop(angle[:-1], angle[1:])
        alpha_bar, noise_var = (angle.cos() / math.cos(first)) ** 2, _sine_drop(angle[:1], angle)
    return torch.cat([beta.new_zeros(1), beta]), alpha_bar, noise_var


def _sine_drop(start: Tensor, end: Tensor) -> Tensor:
    """1 - cos(end)^2 / cos(start)^2."""
    return (end - start).sin() * (end + start).sin() / start.cos() ** 2

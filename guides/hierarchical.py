"""Guides for the hierarchical models: mean-field, and structured, where the groups' effects follow the globals.

A structured guide draws the global latents in unconstrained space from one normal with a full covariance, written as
a chain of regressions: each is normal with a mean linear in those before it. A scale is a softplus of its normal times
a learned number, which lies between a log-normal and a normal cut at 0: group scales of few groups are skewed less
than the first. Given the globals, the effect of a group has its prior times a learned normal factor that stands for
the group's data, as in conjugate models the posterior has. So an effect is drawn to its prior as the group scale goes
to 0, which no independent normal follows, and a group without data learns a wide factor. Under a normal likelihood
with one effect a group, nothing is lost by it but the factor's sd not following that of the noise.

References:
    Hoffman and Blei (2015), Structured Stochastic Variational Inference.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.transforms import AffineTransform, ComposeTransform, SigmoidTransform, SoftplusTransform
from torch import Tensor

__all__ = [
    "eight_schools_centred_guide",
    "eight_schools_centred_structured_guide",
    "eight_schools_guide",
    "eight_schools_structured_guide",
    "hierarchical_logistic_guide",
    "radon_uranium_guide",
    "radon_varying_intercepts_guide",
    "radon_varying_intercepts_structured_guide",
    "radon_varying_slopes_guide",
]


def eight_schools_guide(sigma: Tensor, y: Tensor | None = None) -> None:
    """Independent: mu and eta_j Normal, tau LogNormal.

    Args:
        sigma: standard errors, shape (J,).
        y: not used.
    """
    _normal("mu", torch.zeros(()))
    _log_normal("tau")
    with pyro.plate("school", len(sigma)):
        _normal("eta", torch.zeros(len(sigma)))


def eight_schools_centred_guide(sigma: Tensor, y: Tensor | None = None) -> None:
    """Independent: mu and theta_j Normal, tau LogNormal.

    Args:
        sigma: standard errors, shape (J,).
        y: not used.
    """
    _normal("mu", torch.zeros(()))
    _log_normal("tau")
    with pyro.plate("school", len(sigma)):
        _normal("theta", torch.zeros(len(sigma)))


def radon_varying_intercepts_guide(
    county: Tensor, floor: Tensor, log_radon: Tensor | None = None, num_counties: int | None = None
) -> None:
    """Independent: mu_alpha, alpha_c and beta Normal, the two scales LogNormal.

    Args:
        county: index of each house's county, integer, shape (N,).
        floor: not used.
        log_radon: not used.
        num_counties: C; the largest index and one where None.
    """
    counties = int(county.max()) + 1 if num_counties is None else num_counties
    _normal("mu_alpha", torch.zeros(()))
    _log_normal("sigma_alpha")
    with pyro.plate("county", counties):
        _normal("alpha", torch.zeros(counties))
    _normal("beta", torch.zeros(()))
    _log_normal("sigma")


def eight_schools_structured_guide(sigma: Tensor, y: Tensor | None = None) -> None:
    """Structured: mu and tau, unconstrained, jointly normal, eta_j normal given both.

    Args:
        sigma: standard errors, shape (J,).
        y: not used.
    """
    before = torch.zeros(0)
    mu, before = _real("mu", before)
    tau, before = _positive("tau", before)
    with pyro.plate("school", len(sigma)):
        _standardised_effect("eta", mu, tau, before, sigma)


def eight_schools_centred_structured_guide(sigma: Tensor, y: Tensor | None = None) -> None:
    """Structured: mu and tau, unconstrained, jointly normal, theta_j normal given both.

    Args:
        sigma: standard errors, shape (J,).
        y: not used.
    """
    before = torch.zeros(0)
    mu, before = _real("mu", before)
    tau, before = _positive("tau", before)
    with pyro.plate("school", len(sigma)):
        _effect("theta", mu, tau, before, sigma)


def radon_varying_intercepts_structured_guide(
    county: Tensor, floor: Tensor, log_radon: Tensor | None = None, num_counties: int | None = None
) -> None:
    """Structured: mu_alpha, beta and the two scales, unconstrained, jointly normal, alpha_c normal given them.

    Args:
        county: index of each house's county, integer, shape (N,).
        floor: not used.
        log_radon: not used.
        num_counties: C; the largest index and one where None.
    """
    counties = int(county.max()) + 1 if num_counties is None else num_counties
    before = torch.zeros(0)
    mu_alpha, before = _real("mu_alpha", before)
    _, before = _real("beta", before)
    _, before = _positive("sigma", before)
    sigma_alpha, before = _positive("sigma_alpha", before)
    with pyro.plate("county", counties):
        _effect("alpha", mu_alpha, sigma_alpha, before, torch.full((counties,), 0.1))


def radon_uranium_guide(
    county: Tensor,
    floor: Tensor,
    log_uranium: Tensor,
    log_radon: Tensor | None = None,
    num_counties: int | None = None,
) -> None:
    """Structured: the line, beta and the two scales, unconstrained, jointly normal, eta_c normal given them.

    Args:
        county: not used.
        floor: not used.
        log_uranium: natural log of uranium in ppm, one value a county, shape (C,).
        log_radon: not used.
        num_counties: not used.
    """
    before = torch.zeros(0)
    mu_alpha, before = _real("mu_alpha", before)
    gamma, before = _real("gamma", before)
    _, before = _real("beta", before)
    _, before = _positive("sigma", before)
    sigma_alpha, before = _positive("sigma_alpha", before)
    with pyro.plate("county", len(log_uranium)):
        line = mu_alpha + gamma * log_uranium
        _standardised_effect("eta", line, sigma_alpha, before, torch.full_like(log_uranium, 0.1))


def radon_varying_slopes_guide(
    county: Tensor,
    floor: Tensor,
    log_uranium: Tensor,
    log_radon: Tensor | None = None,
    num_counties: int | None = None,
) -> None:
    """Structured: all globals, unconstrained, jointly normal; then the intercept of a county, then its slope, normal.

    Args:
        county: not used.
        floor: not used.
        log_uranium: natural log of uranium in ppm, one value a county, shape (C,).
        log_radon: not used.
        num_counties: not used.
    """
    start = torch.full_like(log_uranium, 0.1)
    before = torch.zeros(0)
    mu_alpha, before = _real("mu_alpha", before)
    gamma, before = _real("gamma", before)
    mu_beta, before = _real("mu_beta", before)
    _, before = _positive("sigma", before)
    rho_unit, before = _unit("rho_unit", before)
    sigma_alpha, before = _positive("sigma_alpha", before)
    sigma_beta, before = _positive("sigma_beta", before)
    with pyro.plate("county", len(log_uranium)):
        line = mu_alpha + gamma * log_uranium
        alpha, eta_alpha = _standardised_effect("eta_alpha", line, sigma_alpha, before, start)
        # The prior of the slope given the intercept, and the intercept among what the slope's data depend on.
        mean = mu_beta + sigma_beta * (2 * rho_unit - 1) * eta_alpha
        sd = sigma_beta * 2 * (rho_unit * (1 - rho_unit)).sqrt()
        _standardised_effect("eta_beta", mean, sd, before, start, also=alpha - line)


def hierarchical_logistic_guide(
    group: Tensor, x: Tensor, y: Tensor | None = None, num_groups: int | None = None
) -> None:
    """Structured: beta, mu_alpha and sigma_alpha, unconstrained, jointly normal, eta_g normal given them.

    Args:
        group: index of each row's group, integer, shape (N,).
        x: covariates, shape (N, P).
        y: not used.
        num_groups: G; the largest index and one where None.
    """
    groups = int(group.max()) + 1 if num_groups is None else num_groups
    loc = pyro.param("beta_loc", torch.zeros(x.shape[1]))
    tril = pyro.param("beta_scale", 0.1 * torch.eye(x.shape[1]), constraint=constraints.softplus_lower_cholesky)
    beta = pyro.sample("beta", dist.MultivariateNormal(loc, scale_tril=tril))
    before = beta - loc
    mu_alpha, before = _real("mu_alpha", before)
    sigma_alpha, before = _positive("sigma_alpha", before)
    with pyro.plate("group", groups):
        _standardised_effect("eta", mu_alpha, sigma_alpha, before, torch.full((groups,), 0.1))


def _normal(name: str, loc: Tensor) -> None:
    mean = pyro.param(f"{name}_loc", loc, event_dim=0)
    scale = pyro.param(
        f"{name}_scale", torch.full_like(loc, 0.1), constraint=constraints.softplus_positive, event_dim=0
    )
    pyro.sample(name, dist.Normal(mean, scale))


def _log_normal(name: str) -> None:
    mean = pyro.param(f"{name}_loc", torch.zeros(()))
    scale = pyro.param(f"{name}_scale", torch.full((), 0.1), constraint=constraints.softplus_positive)
    pyro.sample(name, dist.LogNormal(mean, scale))


def _given(name: str, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A mean linear in the globals before, as deviations from their own means; that at their means, and the sd."""
    centre = pyro.param(f"{name}_loc", torch.zeros(()))
    scale = pyro.param(f"{name}_scale", torch.full((), 0.1), constraint=constraints.softplus_positive)
    if before.shape[-1] == 0:
        return centre, centre, scale
    slope = pyro.param(f"{name}_slope", torch.zeros(before.shape[-1]))
    return centre + (before * slope).sum(-1), centre, scale


def _real(name: str, before: Tensor) -> tuple[Tensor, Tensor]:
    mean, centre, scale = _given(name, before)
    value = pyro.sample(name, dist.Normal(mean, scale))
    return value, _append(before, value - centre)


def _positive(name: str, before: Tensor) -> tuple[Tensor, Tensor]:
    mean, centre, scale = _given(name, before)
    knee = pyro.param(f"{name}_knee", torch.ones(()), constraint=constraints.softplus_positive)
    to_scale = ComposeTransform([SoftplusTransform(), _Multiply(0.0, knee)])
    value = pyro.sample(name, dist.TransformedDistribution(dist.Normal(mean, scale), to_scale))
    return value, _append(before, to_scale.inv(value) - centre)


class _Multiply(AffineTransform):
    """By a positive number, which torch's own does not say keeps positive numbers positive."""

    domain = constraints.positive
    codomain = constraints.positive


def _unit(name: str, before: Tensor) -> tuple[Tensor, Tensor]:
    mean, centre, scale = _given(name, before)
    value = pyro.sample(name, dist.TransformedDistribution(dist.Normal(mean, scale), SigmoidTransform()))
    return value, _append(before, value.logit() - centre)


def _append(before: Tensor, value: Tensor) -> Tensor:
    return torch.cat([before.expand(value.shape + before.shape[-1:]), value.unsqueeze(-1)], -1)


def _effect(name: str, prior_mean: Tensor, prior_sd: Tensor, before: Tensor, start: Tensor) -> Tensor:
    """Draws effects from their prior times the factor of the data."""
    mean, sd = _factor(name, before, start)
    weight = prior_sd**2 / (prior_sd**2 + sd**2)
    loc = prior_mean + weight * (mean - prior_mean)
    value: Tensor = pyro.sample(name, dist.Normal(loc, prior_sd * (1 - weight).sqrt()))
    return value


def _standardised_effect(
    name: str, prior_mean: Tensor, prior_sd: Tensor, before: Tensor, start: Tensor, also: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same where the latent is the effect less its prior mean, in prior sds; returns the effect and the latent."""
    mean, sd = _factor(name, before, start, also)
    weight = prior_sd**2 / (prior_sd**2 + sd**2)
    loc = weight * (mean - prior_mean) / prior_sd
    value = pyro.sample(name, dist.Normal(loc, (1 - weight).sqrt()))
    return prior_mean + prior_sd * value, value


def _factor(name: str, before: Tensor, start: Tensor, also: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What the data of each group say of its effect: a mean, linear in the globals, and an sd, at first `start`."""
    # The sd starts small: where it starts wide and the group scale small, neither has a gradient worth following.
    sd = pyro.param(f"{name}_scale", start, constraint=constraints.positive)
    loc = pyro.param(f"{name}_loc", torch.zeros(len(start)))
    slope = pyro.param(f"{name}_slope", torch.zeros(len(start), before.shape[-1]))
    mean = loc + (before * slope).sum(-1)
    if also is not None:
        mean = mean + pyro.param(f"{name}_also_slope", torch.zeros(len(start))) * also
    return mean, sd

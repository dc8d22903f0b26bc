"""Hierarchical models: eight schools, centred and not, and radon with varying intercepts."""

import pyro
import pyro.distributions as dist
from torch import Tensor

__all__ = ["eight_schools", "eight_schools_centred", "radon_varying_intercepts"]


def eight_schools(sigma: Tensor, y: Tensor | None = None) -> Tensor:
    """Effects of coaching in eight schools, non-centred.

    mu ~ Normal(0, 5), tau ~ HalfCauchy(5), eta_j ~ Normal(0, 1), theta_j = mu + tau eta_j,
    y_j ~ Normal(theta_j, sigma_j).

    Args:
        sigma: standard errors of the estimated effects, shape (J,), positive.
        y: estimated effects, shape (J,); None draws them.

    Returns:
        theta, shape (J,); also a deterministic site.

    References:
        Rubin (1981), Estimation in parallel randomized experiments.
    """
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(sigma)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta: Tensor = pyro.deterministic("theta", mu + tau * eta, event_dim=0)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)
    return theta


def eight_schools_centred(sigma: Tensor, y: Tensor | None = None) -> Tensor:
    """The same model centred: theta_j ~ Normal(mu, tau) is itself the latent, which is hard on a mean-field guide.

    Args:
        sigma: standard errors of the estimated effects, shape (J,), positive.
        y: estimated effects, shape (J,); None draws them.

    Returns:
        theta, shape (J,).

    References:
        Betancourt and Girolami (2015), Hamiltonian Monte Carlo for hierarchical models.
    """
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(sigma)):
        theta: Tensor = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)
    return theta


def radon_varying_intercepts(
    county: Tensor, floor: Tensor, log_radon: Tensor | None = None, num_counties: int | None = None
) -> Tensor:
    """Log radon in houses, an intercept for each county and one slope for the floor of the measurement.

    mu_alpha ~ Normal(0, 10), sigma_alpha ~ HalfNormal(1), alpha_c ~ Normal(mu_alpha, sigma_alpha),
    beta ~ Normal(0, 10), sigma ~ HalfNormal(1), log_radon_i ~ Normal(alpha_county[i] + beta floor_i, sigma).

    Args:
        county: index of each house's county, integer, shape (N,), from 0.
        floor: 0 for the basement, 1 for the first floor, shape (N,).
        log_radon: natural log of radon in pCi/L, shape (N,); None draws it.
        num_counties: C; the largest index and one where None.

    Returns:
        alpha, shape (C,).

    References:
        Gelman and Hill (2007), Data Analysis Using Regression and Multilevel/Hierarchical Models, chapter 12.
    """
    counties = int(county.max()) + 1 if num_counties is None else num_counties
    mu_alpha = pyro.sample("mu_alpha", dist.Normal(0.0, 10.0))
    sigma_alpha = pyro.sample("sigma_alpha", dist.HalfNormal(1.0))
    with pyro.plate("county", counties):
        alpha: Tensor = pyro.sample("alpha", dist.Normal(mu_alpha, sigma_alpha))
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("house", len(county)) as house:
        mean = alpha[..., county[house]] + beta * floor[house]
        pyro.sample("log_radon", dist.Normal(mean, sigma), obs=None if log_radon is None else log_radon[house])
    return alpha

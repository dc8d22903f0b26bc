"""Hierarchical models: eight schools, radon with intercepts and slopes of counties, logistic regression in groups.

Where an effect is centred, it is itself the latent; where it is not, the latent is a standard normal that the model
shifts and scales. Not centred is easier for samplers and independent guides where groups have few data, as most
counties of the radon data have: half of them five houses or fewer, and three in ten none measured on the first floor.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = [
    "eight_schools",
    "eight_schools_centred",
    "hierarchical_logistic",
    "radon_uranium",
    "radon_varying_intercepts",
    "radon_varying_slopes",
]


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
        county: index of each house's county, integer, shape (N,), from 0. A county without houses keeps its prior
            given mu_alpha and sigma_alpha.
        floor: 0 for the basement, 1 for the first floor, shape (N,).
        log_radon: natural log of radon in pCi/L, shape (N,); None draws it.
        num_counties: C; the largest index and one where None.

    Returns:
        alpha, shape (C,).

    Raises:
        ValueError: an index is no integer, is negative, or is C or more.

    References:
        Gelman and Hill (2007), Data Analysis Using Regression and Multilevel/Hierarchical Models, chapter 12.
    """
    counties = _count("county", county, "num_counties", num_counties)
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


def radon_uranium(
    county: Tensor,
    floor: Tensor,
    log_uranium: Tensor,
    log_radon: Tensor | None = None,
    num_counties: int | None = None,
) -> Tensor:
    """Log radon in houses, where the uranium in a county's soil predicts its intercept; not centred.

    mu_alpha, gamma, beta ~ Normal(0, 10), sigma_alpha, sigma ~ HalfNormal(1), eta_c ~ Normal(0, 1),
    alpha_c = mu_alpha + gamma log_uranium_c + sigma_alpha eta_c,
    log_radon_i ~ Normal(alpha_county[i] + beta floor_i, sigma).

    Args:
        county: index of each house's county, integer, shape (N,), from 0. A county without houses keeps its prior
            given the line and sigma_alpha.
        floor: 0 for the basement, 1 for the first floor, shape (N,).
        log_uranium: natural log of uranium in ppm, one value a county, shape (C,).
        log_radon: natural log of radon in pCi/L, shape (N,); None draws it.
        num_counties: C; the largest index and one where None.

    Returns:
        alpha, shape (C,); also a deterministic site.

    Raises:
        ValueError: an index is no integer, is negative, or is C or more; log_uranium has another shape than (C,).

    References:
        Gelman and Hill (2007), Data Analysis Using Regression and Multilevel/Hierarchical Models, section 12.6.
    """
    counties = _count("county", county, "num_counties", num_counties)
    _each_county(log_uranium, counties)
    mu_alpha = pyro.sample("mu_alpha", dist.Normal(0.0, 10.0))
    gamma = pyro.sample("gamma", dist.Normal(0.0, 10.0))
    sigma_alpha = pyro.sample("sigma_alpha", dist.HalfNormal(1.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("county", counties):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        line = mu_alpha + gamma * log_uranium
        alpha: Tensor = pyro.deterministic("alpha", line + sigma_alpha * eta, event_dim=0)
    with pyro.plate("house", len(county)) as house:
        mean = alpha[..., county[house]] + beta * floor[house]
        pyro.sample("log_radon", dist.Normal(mean, sigma), obs=None if log_radon is None else log_radon[house])
    return alpha


def radon_varying_slopes(
    county: Tensor,
    floor: Tensor,
    log_uranium: Tensor,
    log_radon: Tensor | None = None,
    num_counties: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log radon in houses, an intercept and a slope for each county, correlated; uranium predicts the intercept.

    mu_alpha, gamma, mu_beta ~ Normal(0, 10), sigma_alpha, sigma_beta, sigma ~ HalfNormal(1),
    (1 + rho) / 2 ~ Beta(2, 2), eta_alpha_c, eta_beta_c ~ Normal(0, 1),
    alpha_c = mu_alpha + gamma log_uranium_c + sigma_alpha eta_alpha_c,
    beta_c = mu_beta + sigma_beta (rho eta_alpha_c + sqrt(1 - rho^2) eta_beta_c),
    log_radon_i ~ Normal(alpha_county[i] + beta_county[i] floor_i, sigma).

    That is a bivariate normal for the intercept and slope of a county, with correlation rho, not centred. In two
    dimensions the LKJ prior with concentration 2 is this Beta, with one number to learn instead of a matrix.

    Args:
        county: index of each house's county, integer, shape (N,), from 0. A county without houses keeps its prior
            given the global latents.
        floor: 0 for the basement, 1 for the first floor, shape (N,).
        log_uranium: natural log of uranium in ppm, one value a county, shape (C,).
        log_radon: natural log of radon in pCi/L, shape (N,); None draws it.
        num_counties: C; the largest index and one where None.

    Returns:
        alpha and beta, each of shape (C,); deterministic sites, as is rho.

    Raises:
        ValueError: an index is no integer, is negative, or is C or more; log_uranium has another shape than (C,).

    References:
        Gelman and Hill (2007), Data Analysis Using Regression and Multilevel/Hierarchical Models, chapter 13.
        Lewandowski, Kurowicka and Joe (2009), Generating random correlation matrices.
    """
    counties = _count("county", county, "num_counties", num_counties)
    _each_county(log_uranium, counties)
    mu_alpha = pyro.sample("mu_alpha", dist.Normal(0.0, 10.0))
    gamma = pyro.sample("gamma", dist.Normal(0.0, 10.0))
    mu_beta = pyro.sample("mu_beta", dist.Normal(0.0, 10.0))
    sigma_alpha = pyro.sample("sigma_alpha", dist.HalfNormal(1.0))
    sigma_beta = pyro.sample("sigma_beta", dist.HalfNormal(1.0))
    rho_unit = pyro.sample("rho_unit", dist.Beta(2.0, 2.0))
    rho = pyro.deterministic("rho", 2 * rho_unit - 1, event_dim=0)
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("county", counties):
        eta_alpha = pyro.sample("eta_alpha", dist.Normal(0.0, 1.0))
        eta_beta = pyro.sample("eta_beta", dist.Normal(0.0, 1.0))
        line = mu_alpha + gamma * log_uranium
        alpha: Tensor = pyro.deterministic("alpha", line + sigma_alpha * eta_alpha, event_dim=0)
        # sqrt(1 - rho^2) from rho_unit loses no digits where rho is near 1.
        standard = rho * eta_alpha + 2 * (rho_unit * (1 - rho_unit)).sqrt() * eta_beta
        beta: Tensor = pyro.deterministic("beta", mu_beta + sigma_beta * standard, event_dim=0)
    with pyro.plate("house", len(county)) as house:
        mean = alpha[..., county[house]] + beta[..., county[house]] * floor[house]
        pyro.sample("log_radon", dist.Normal(mean, sigma), obs=None if log_radon is None else log_radon[house])
    return alpha, beta


def hierarchical_logistic(group: Tensor, x: Tensor, y: Tensor | None = None, num_groups: int | None = None) -> Tensor:
    """Logistic regression with an intercept for each group, not centred.

    mu_alpha ~ Normal(0, 2.5), sigma_alpha ~ HalfNormal(1), beta_p ~ Normal(0, 2.5), eta_g ~ Normal(0, 1),
    alpha_g = mu_alpha + sigma_alpha eta_g, y_i ~ Bernoulli(logit = alpha_group[i] + x_i beta).

    The priors suit covariates that are 0 or 1 or have a standard deviation near 1. A covariate of groups, such as
    the uranium of a county, is a column of x with the same value in each row of the group.

    Args:
        group: index of each row's group, integer, shape (N,), from 0. A group without rows keeps its prior given
            mu_alpha and sigma_alpha.
        x: covariates without a column of ones, shape (N, P).
        y: labels, 0 or 1, shape (N,); None draws them.
        num_groups: G; the largest index and one where None.

    Returns:
        alpha, shape (G,), in logits; also a deterministic site.

    Raises:
        ValueError: an index is no integer, is negative, or is G or more; x is no matrix of N rows; a label is
            neither 0 nor 1.

    References:
        Gelman and Hill (2007), Data Analysis Using Regression and Multilevel/Hierarchical Models, chapter 14.
    """
    groups = _count("group", group, "num_groups", num_groups)
    if x.dim() != 2 or len(x) != len(group):
        raise ValueError(
            f"x must be a matrix with a row for each of the {len(group)} entries of group, got shape {tuple(x.shape)}; "
            "one covariate is x[:, None]"
        )
    if y is not None and not bool(((y == 0) | (y == 1)).all()):
        raise ValueError(f"y must be 0 or 1 everywhere, got values from {float(y.min()):g} to {float(y.max()):g}")
    mu_alpha = pyro.sample("mu_alpha", dist.Normal(0.0, 2.5))
    sigma_alpha = pyro.sample("sigma_alpha", dist.HalfNormal(1.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 2.5).expand([x.shape[1]]).to_event(1))
    with pyro.plate("group", groups):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        alpha: Tensor = pyro.deterministic("alpha", mu_alpha + sigma_alpha * eta, event_dim=0)
    with pyro.plate("row", len(group)) as row:
        logits = alpha[..., group[row]] + (x[row] * beta).sum(-1)
        observed = None if y is None else y[row].to(logits.dtype)
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=observed)
    return alpha


def _count(name: str, index: Tensor, size_name: str, size: int | None) -> int:
    """How many groups there are, after a look at the index of each row."""
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool or index.dim() != 1:
        raise ValueError(
            f"{name} must be one integer a row, an index from 0, got dtype {index.dtype} and shape "
            f"{tuple(index.shape)}; {name}.long() makes integers, and pandas.factorize makes them from names"
        )
    if len(index) == 0:
        raise ValueError(f"{name} must have at least one row, got none")
    least, most = int(index.min()), int(index.max())
    count = most + 1 if size is None else size
    if least < 0:
        raise ValueError(f"{name} must be an index from 0, got {least}; pandas.factorize makes one from names")
    if most >= count:
        raise ValueError(
            f"{name} must lie below {size_name}, {count}, got {most}; give {size_name}={most + 1} or more, and take 1 "
            "off an index that begins at 1"
        )
    return count


def _each_county(log_uranium: Tensor, counties: int) -> None:
    if log_uranium.shape != (counties,):
        raise ValueError(
            f"log_uranium must have one value a county, {counties} of them (num_counties, or the largest index and "
            f"one), got shape {tuple(log_uranium.shape)}; take one of each county, in the order of the index, and "
            "give num_counties where the last counties have no houses"
        )

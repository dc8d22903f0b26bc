"""Mean-field guides for the hierarchical models."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

__all__ = ["eight_schools_centred_guide", "eight_schools_guide", "radon_varying_intercepts_guide"]


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

"""Guides for the Gaussian mixture: from K points that lie far apart, or from clusters that are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ingle.models.mixture import Clusters, GaussianMixture, plate_of_starts

__all__ = ["GaussianMixtureGuide", "maximum_likelihood_guide"]


@dataclass(frozen=True)
class GaussianMixtureGuide:
    """Independent factors: weights Dirichlet, locations Normal, scales LogNormal; assignments left out or Categorical.

    With full covariances the columns of a location depend on one another, MultivariateNormal; the squares of the
    Bartlett factor's diagonal are LogNormal, and the entries before it Normal around multiples of it, since the data
    tell the ratios of a row well, and its size less well.

    The Dirichlet is a total times shares. The total starts at N, where the posterior's lies for components well
    apart, because its own gradient is faint. Labels begin in the order of the first column of the locations, and stay
    in that order where components are well apart.

    Args:
        model: the mixture that this is a guide for.
        start: where its components begin, of the model's shape; `Clusters.far_apart` of the points where None.
        assignments: "summed out" leaves `component` to be summed out exactly; "sampled" draws it from a Categorical
            with parameters for each point, which has a score-function gradient.
        seed: of the starts that are drawn, where the model has several.

    Raises:
        ValueError: at the first call, fewer different points than components and no start; a start of other shapes;
            a constant column, whose variance no data can tell from 0.

    References:
        Bishop (2006), Pattern Recognition and Machine Learning, section 10.2 (the factors).
    """

    model: GaussianMixture
    start: Clusters | None = None
    assignments: Literal["summed out", "sampled"] = "summed out"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.assignments not in ("summed out", "sampled"):
            raise ValueError(f"assignments must be 'summed out' or 'sampled', got {self.assignments!r}")

    def __call__(self, x: Tensor) -> None:
        """One run of the guide.

        Args:
            x: points, shape (N, D).
        """
        model = self.model
        k = model.num_components
        with plate_of_starts(model.starts):
            place = (model.starts, 1) if model.starts > 1 else ()
            total = torch.full((*place, 1), float(len(x)))
            total = pyro.param("weights_total", total, constraint=constraints.softplus_positive)
            share = pyro.param(
                "weights_share", lambda: self._begin(x).weights.reshape(*place, k), constraint=constraints.simplex
            )
            pyro.sample("weights", dist.Dirichlet(total * share))
            with pyro.plate("component_k", k):
                if model.covariance == "full":
                    self._location_of_many(x)
                    self._bartlett_factor(x)
                else:
                    _normal("loc", lambda: self._begin(x).loc, 1)
                    _log_normal("scale", lambda: self._begin(x).scale, int(model.covariance == "diagonal"))
            if self.assignments == "sampled":
                logits = pyro.param("component_logits", lambda: self._begin(x).log_joint(x).log_softmax(-1))
                with pyro.plate("point", len(x)) as i:
                    pyro.sample("component", dist.Categorical(logits=logits[..., i, :]))

    def best(self, x: Tensor, num_samples: int = 100) -> tuple[Clusters, Tensor]:
        """The best of several fitted starts by its ELBO; to be called inside `with fit.active():`.

        Args:
            x: points, shape (N, D), in the dtype and on the device of the fit.
            num_samples: draws that the ELBOs are taken from.

        Returns:
            Its clusters, at the mean of the guide, labels canonical, which a fit of one mixture can start from; and
            the ELBO of every start with assignments summed out, in nats, shape (starts,).
        """
        starts = self.model.starts
        found, elbos = [], []
        with torch.no_grad():
            for _ in range(num_samples):
                drawn = poutine.trace(self).get_trace(x)
                prior = poutine.trace(poutine.replay(self._prior, trace=drawn)).get_trace(x.shape[1])
                clusters: Clusters = prior.nodes["_RETURN"]["value"]  # type: ignore[assignment]
                found.append(clusters._replace(weights=clusters.weights.reshape(clusters.loc.shape[:-1])))
                elbo = found[-1].log_density(x).sum(-1).reshape(starts)
                drawn.compute_log_prob()
                prior.compute_log_prob()
                for name, site in prior.iter_stochastic_nodes():
                    if not site_is_subsample(site):
                        difference = site["log_prob"] - drawn.nodes[name]["log_prob"]
                        elbo = elbo + difference.reshape(starts, -1).sum(-1)
                elbos.append(elbo)
        mean = Clusters(*(torch.stack(values).mean(0) for values in zip(*found, strict=True)))
        elbo = torch.stack(elbos).mean(0)
        if starts > 1:
            mean = Clusters(*(value[int(elbo.argmax())] for value in mean))
        return mean.ordered(), elbo

    def _prior(self, columns: int) -> Clusters:
        with plate_of_starts(self.model.starts):
            return self.model.prior(columns)

    def _begin(self, x: Tensor) -> Clusters:
        model = self.model
        if self.start is None:
            return Clusters.far_apart(x, model.num_components, model.covariance, model.starts, self.seed)
        return self.start.to_start(x, model.num_components, model.covariance, model.starts)

    def _bartlett_factor(self, x: Tensor) -> None:
        columns = x.shape[1]
        rows, before = torch.tril_indices(columns, columns, -1)

        def start() -> Tensor:
            scale = self._begin(x).scale
            identity = torch.eye(columns).expand(scale.shape)
            inverse: Tensor = torch.linalg.solve_triangular(scale, identity, upper=False)
            return self.model.typical_sd * inverse

        def ratios() -> Tensor:
            factor = start()
            return (factor / factor.diagonal(dim1=-2, dim2=-1).unsqueeze(-1))[..., rows, before]

        square = _log_normal("factor_square", lambda: start().diagonal(dim1=-2, dim2=-1).square(), 1)
        ratio = pyro.param("factor_below_ratio", ratios)
        scale = pyro.param("factor_below_scale", torch.full(ratio.shape, 0.1), constraint=constraints.softplus_positive)
        pyro.sample("factor_below", dist.Normal(ratio * square.sqrt()[..., rows], scale).to_event(1))

    def _location_of_many(self, x: Tensor) -> None:
        loc = pyro.param("loc_loc", lambda: self._begin(x).loc)
        small = torch.diag_embed(torch.full(loc.shape, 0.1))
        tril = pyro.param("loc_scale_tril", small, constraint=constraints.lower_cholesky)
        pyro.sample("loc", dist.MultivariateNormal(loc, scale_tril=tril))


def maximum_likelihood_guide(x: Tensor) -> None:
    """The guide of `MaximumLikelihoodMixture`: nothing, so that the assignments are summed out."""


def _normal(name: str, start: Callable[[], Tensor], event_dim: int) -> None:
    loc = pyro.param(f"{name}_loc", start)
    scale = pyro.param(f"{name}_scale", torch.full(loc.shape, 0.1), constraint=constraints.softplus_positive)
    pyro.sample(name, dist.Normal(loc, scale).to_event(event_dim))


def _log_normal(name: str, start: Callable[[], Tensor], event_dim: int) -> Tensor:
    loc = pyro.param(f"{name}_loc", lambda: start().log())
    scale = pyro.param(f"{name}_scale", torch.full(loc.shape, 0.1), constraint=constraints.softplus_positive)
    value: Tensor = pyro.sample(name, dist.LogNormal(loc, scale).to_event(event_dim))
    return value

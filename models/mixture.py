"""Gaussian mixtures: spherical, diagonal or full covariances, with priors or by maximum likelihood."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.ops.indexing import Vindex
from torch import Tensor

__all__ = ["Clusters", "Covariance", "GaussianMixture", "MaximumLikelihoodMixture", "plate_of_starts"]

Covariance = Literal["spherical", "diagonal", "full"]


class Clusters(NamedTuple):
    """The parameters of one mixture, or of many: of several starts, or of the draws from a posterior.

    p(x) = sum_k weights_k Normal(x; loc_k, covariance_k).

    Attributes:
        weights: shape (…, K), of sum 1.
        loc: shape (…, K, D), in the units of the data.
        scale: standard deviations, shape (…, K) for spherical and (…, K, D) for diagonal covariances; lower Cholesky
            factors of the covariances, shape (…, K, D, D), for full ones.
    """

    weights: Tensor
    loc: Tensor
    scale: Tensor

    def log_joint(self, x: Tensor) -> Tensor:
        """The log of p(component, x) for each point: x of shape (N, D) gives shape (…, N, K), in nats."""
        behind = self.scale.dim() - self.loc.dim() + 2  # axes of a scale from its component on
        points = _gaussian(self.loc.unsqueeze(-3), self.scale.unsqueeze(-behind - 1))
        log_joint: Tensor = self.weights.log().unsqueeze(-2) + points.log_prob(x.unsqueeze(-2))
        return log_joint

    def log_density(self, x: Tensor) -> Tensor:
        """The log of p(x) for each point, its component summed out: x of shape (N, D) gives shape (…, N), in nats.

        For the posterior predictive density of draws, `logsumexp(0) - log(draws)` of it.
        """
        return self.log_joint(x).logsumexp(-1)

    def responsibilities(self, x: Tensor) -> Tensor:
        """p(component | x), the soft clusters: x of shape (N, D) gives shape (…, N, K), of sum 1."""
        return self.log_joint(x).softmax(-1)

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """Ancestral draws, the component first and the point given it, with the global random state.

        Returns:
            Components, integer, shape (…, n), and points, shape (…, n, D).
        """
        component = dist.Categorical(self.weights.unsqueeze(-2)).expand((*self.weights.shape[:-1], n)).sample()
        return component, _point(self, component).sample()

    def ordered(self, *, together: bool = False) -> Clusters:
        """The same mixtures with their labels made canonical: the first column of `loc` ascends.

        Args:
            together: the same order for all of them, that of their mean, as for draws from a guide, whose labels mean
                the same in every draw; otherwise each in its own, as for draws of NUTS, where labels switch.
        """
        first = self.loc[..., 0]
        if together:
            first = first.reshape(-1, first.shape[-1]).mean(0).expand(first.shape)
        return self._take(first.argsort(-1))

    def to_start(self, x: Tensor, num_components: int, covariance: Covariance, starts: int = 1) -> Clusters:
        """Where a fit to x starts from these clusters: the same numbers, in the dtype and on the device of x.

        Raises:
            ValueError: clusters of other shapes than the mixture has; a constant column of x.
        """
        _check_start(x)
        k, columns = num_components, x.shape[1]
        one: dict[str, tuple[int, ...]] = {"spherical": (), "diagonal": (columns,), "full": (columns, columns)}
        front = (starts, k) if starts > 1 else (k,)
        wanted = (front, (*front, columns), (*front, *one[covariance]))
        found = tuple(tuple(value.shape) for value in self)
        if found != wanted:
            raise ValueError(
                f"the start has weights, loc and scale of shapes {', '.join(map(str, found))}, and {k} components of "
                f"{columns} columns with {covariance} covariances need {', '.join(map(str, wanted))}"
            )
        return Clusters(*(value.to(x) for value in self))

    def _take(self, order: Tensor) -> Clusters:
        """Components by `order`, shape (…, K)."""
        taken = []
        for value, behind in zip(self, (0, 1, self.scale.dim() - self.loc.dim() + 1), strict=True):
            index = order.reshape(*order.shape, *[1] * behind).expand(value.shape)
            taken.append(value.gather(-1 - behind, index))
        return Clusters(*taken)

    @classmethod
    def far_apart(
        cls, x: Tensor, num_components: int, covariance: Covariance = "diagonal", starts: int = 1, seed: int = 0
    ) -> Clusters:
        """Where a fit may start: locations at K different points of the data, equal weights, equal scales.

        The first start takes the point nearest the mean and then always the one farthest from those taken. The others
        draw their points with probabilities proportional to the squared distance from those taken. Labels are
        canonical. The scale is that of a column over K^(1/D), as if the components shared the volume.

        Args:
            x: points, shape (N, D).
            num_components: K.
            covariance: which shape the scales have.
            starts: how many; the results have it as first axis where it is not 1.
            seed: of the drawn points; the global random state is not touched.

        Raises:
            ValueError: fewer than K different points; a constant column, whose variance no data can tell from 0.

        References:
            Gonzalez (1985), Clustering to minimize the maximum intercluster distance.
            Arthur and Vassilvitskii (2007), k-means++: the advantages of careful seeding.
        """
        _check_start(x)
        different = len(x.unique(dim=0))
        if different < num_components:
            raise ValueError(
                f"{num_components} components for {different} different points ({len(x)} rows): each component starts "
                "at a point of its own, so take fewer components, or give a start"
            )
        generator = torch.Generator().manual_seed(seed)
        loc = torch.stack([x[_far_points(x, num_components, generator if s else None)] for s in range(starts)])
        columns = x.std(0, correction=0) / num_components ** (1 / x.shape[1])
        shapes: dict[str, Tensor] = {"spherical": columns.mean(), "diagonal": columns, "full": torch.diag(columns)}
        one = shapes[covariance]
        scale = one.expand(starts, num_components, *one.shape).clone()
        clusters = cls(loc.new_full((starts, num_components), 1 / num_components), loc, scale).ordered()
        return clusters if starts > 1 else cls(*(value[0] for value in clusters))


@dataclass(frozen=True)
class GaussianMixture:
    """Points from K Gaussian components, K given.

    weights ~ Dirichlet(concentration, …), loc_k ~ Normal(centre, spread), component_i ~ Categorical(weights),
    x_i ~ Normal(loc_component[i], covariance_component[i]), where the covariance is

    - "spherical": scale_k^2 I, "diagonal": scale_k^2 for each column, scale ~ LogNormal(log(spread / K), 1);
    - "full": inverse Wishart of mean (spread / 2K)^2 I with D + 2 degrees of freedom. Its latents are entries of
      the Bartlett factor F_k, lower triangular, squares of the diagonal chi-squared with 3, …, D + 2 degrees of
      freedom, standard normal below: covariance_k = (spread / 2K)^2 (F_k' F_k)^-1.

    `centre` and `spread` are given, since a prior that looks at the data would count them twice; standardised
    columns go well with the defaults. A guide that leaves `component` out has it summed out. Components are marked
    exchangeable, so that their evidence counts every order of the labels, whichever one a guide has found.

    Args:
        num_components: K.
        covariance: "spherical", "diagonal" or "full".
        concentration: of the Dirichlet prior on the weights, positive.
        centre: of the prior on the locations, in the units of the data.
        spread: scale of the prior on the locations, in the units of the data.
        starts: how many mixtures are fitted to the same points at once, each for itself, in a plate "start"; the loss
            of such a fit is the sum of theirs. `GaussianMixtureGuide.best` takes the best of them.

    Raises:
        ValueError: a covariance that does not exist, fewer than one component or start; at the call, points that are
            no table, or integers.

    References:
        Bishop (2006), Pattern Recognition and Machine Learning, sections 9.2 and 10.2.
        Smith and Hocking (1972), Algorithm AS 53: Wishart variate generator (the Bartlett factor).
    """

    num_components: int
    covariance: Covariance = "diagonal"
    concentration: float = 1.0
    centre: float = 0.0
    spread: float = 2.0
    starts: int = 1

    def __post_init__(self) -> None:
        _check_options(self.num_components, self.covariance, self.starts)

    def __call__(self, x: Tensor | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """One run of the model.

        Args:
            x: points, shape (N, D); None draws them.
            size: N and D, where the points are drawn.

        Returns:
            The points, shape (N, D).
        """
        n, columns = _size(x, size)
        with plate_of_starts(self.starts):
            return _points(self.prior(columns), x, n)

    def prior(self, columns: int) -> Clusters:
        """The latents of the components, drawn from their priors, as `Clusters` of `columns` columns.

        Sites: `weights`; in a plate "component_k": `loc` and `scale`, or `loc`, `factor_square` (squares of the
        diagonal of F, shape (K, D)) and `factor_below` (entries below it, row by row, shape (K, D (D - 1) / 2)).
        """
        k = self.num_components
        # The prior does not tell components apart: the posterior has K! modes, which `ingle.log_evidence` must know.
        flat: Any = {"exchangeable": -1}
        rows: Any = {"exchangeable": -2}
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((k,), self.concentration)), infer=flat)
        with pyro.plate("component_k", k):
            normal = dist.Normal(self.centre, self.spread).expand([columns]).to_event(1)
            loc = pyro.sample("loc", normal, infer=rows)
            if self.covariance == "full":
                freedom = torch.arange(3.0, columns + 3.0)
                square = pyro.sample("factor_square", dist.Chi2(freedom).to_event(1), infer=rows)
                normal = dist.Normal(0.0, 1.0).expand([columns * (columns - 1) // 2]).to_event(1)
                below = pyro.sample("factor_below", normal, infer=rows)
                return Clusters(weights, loc, self.cholesky(square, below))
            log_normal: Any = dist.LogNormal(math.log(self.spread / k), 1.0)
            if self.covariance == "spherical":
                return Clusters(weights, loc, pyro.sample("scale", log_normal, infer=flat))
            log_normal = log_normal.expand([columns]).to_event(1)
            return Clusters(weights, loc, pyro.sample("scale", log_normal, infer=rows))

    @property
    def typical_sd(self) -> float:
        """The root of the prior mean of a variance, where covariances are full."""
        return self.spread / (2 * self.num_components)

    def cholesky(self, square: Tensor, below: Tensor) -> Tensor:
        """Cholesky factors of full covariances, shape (…, D, D), from the entries of F as its sites have them."""
        columns = square.shape[-1]
        # Written into place by a product: no index, so that the step stays one graph of plain arithmetic.
        places = torch.tril_indices(columns, columns, -1)
        into = torch.nn.functional.one_hot(places[0] * columns + places[1], columns**2).to(below)
        factor = torch.diag_embed(square.sqrt()) + (below @ into).unflatten(-1, (columns, columns))
        identity = torch.eye(columns).expand(factor.shape)
        inverse: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
        return self.typical_sd * inverse

    def clusters(self, draws: Mapping[str, Tensor]) -> Clusters:
        """Draws by site, as `Fit.draws` and NUTS give them, as `Clusters` with the draws as first axis."""
        if self.covariance == "full":
            scale = self.cholesky(draws["factor_square"], draws["factor_below"])
        else:
            scale = draws["scale"]
        return Clusters(draws["weights"].reshape(*scale.shape[: draws["loc"].dim() - 1]), draws["loc"], scale)


@dataclass(frozen=True)
class MaximumLikelihoodMixture:
    """The same mixture without priors: its parameters are `pyro.param`s, as the EM algorithm fits them.

    Component assignments are the only latent, to be summed out by an empty guide. The likelihood has no maximum where
    a component can shrink to a point; standard deviations stay above 0.001 in the units of the data here, but for full
    covariances.

    Args:
        num_components: K.
        covariance: "spherical", "diagonal" or "full".
        start: where the parameters start; `Clusters.far_apart` of the points where None.
        starts: how many mixtures are fitted at once, in a plate "start".

    Raises:
        ValueError: as for `GaussianMixture`.

    References:
        Dempster, Laird and Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm.
    """

    num_components: int
    covariance: Covariance = "diagonal"
    start: Clusters | None = None
    starts: int = 1

    def __post_init__(self) -> None:
        _check_options(self.num_components, self.covariance, self.starts)

    def __call__(self, x: Tensor) -> Tensor:
        """One run of the model: x are points, shape (N, D)."""
        n, _ = _size(x, None)
        with plate_of_starts(self.starts):
            clusters = self.clusters(x)
            if self.starts > 1:  # a place for the points
                clusters = clusters._replace(weights=clusters.weights.unsqueeze(-2))
            return _points(clusters, x, n)

    def clusters(self, x: Tensor) -> Clusters:
        """The parameters, as `Clusters`; with `starts` as first axis where there are several."""

        def start() -> Clusters:
            if self.start is None:
                return Clusters.far_apart(x, self.num_components, self.covariance, self.starts)
            return self.start.to_start(x, self.num_components, self.covariance, self.starts)

        full = self.covariance == "full"
        kind = constraints.lower_cholesky if full else constraints.greater_than(1e-3)
        return Clusters(
            pyro.param("weights", lambda: start().weights, constraint=constraints.simplex),
            pyro.param("loc", lambda: start().loc),
            pyro.param("scale", lambda: start().scale, constraint=kind),
        )


def _check_options(num_components: int, covariance: str, starts: int) -> None:
    if covariance not in get_args(Covariance):
        raise ValueError(f"covariance must be 'spherical', 'diagonal' or 'full', got {covariance!r}")
    for name, value in (("num_components", num_components), ("starts", starts)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _size(x: Tensor | None, size: tuple[int, int] | None) -> tuple[int, int]:
    if x is None:
        if size is None:
            raise ValueError("neither points nor a size: give x of shape (N, D), or size=(N, D) to draw points")
        return size
    _check_points(x)
    return len(x), x.shape[1]


def _check_points(x: Tensor) -> None:
    if x.dim() != 2:
        raise ValueError(f"x must have shape (N, D), a row a point, got {tuple(x.shape)}: for one column, x[:, None]")
    if not x.is_floating_point():
        raise ValueError(f"x must hold floating-point numbers, got {x.dtype}: x.double(), or array.astype(float)")


def _check_start(x: Tensor) -> None:
    _check_points(x)
    # Only where a fit begins: a few new points that are alike are no reason to refuse a prediction.
    constant = (x == x[:1]).all(0).nonzero().flatten().tolist()
    if constant:
        raise ValueError(
            f"column {', '.join(map(str, constant))} of x has the same value in all {len(x)} rows: its variance cannot "
            "be told from 0, and the density has no bound; leave it out"
        )


def plate_of_starts(starts: int) -> AbstractContextManager[Any]:
    """The plate of mixtures that are fitted at once; nothing for a single one."""
    return pyro.plate("start", starts, dim=-2) if starts > 1 else nullcontext()


def _points(clusters: Clusters, x: Tensor | None, n: int) -> Tensor:
    with pyro.plate("point", n) as i:
        labels: Any = {"exchangeable": "value"}
        component = pyro.sample("component", dist.Categorical(clusters.weights), infer=labels)
        points: Tensor = pyro.sample("x", _point(clusters, component), obs=None if x is None else x[i])
    return points


def _point(clusters: Clusters, component: Tensor) -> dist.TorchDistribution:
    """The distribution of points given their components, shape (…, N)."""
    # A place for the points left of K and D, so that what stands in front of it stays in front.
    behind = clusters.scale.dim() - clusters.loc.dim() + 2
    loc = Vindex(clusters.loc.unsqueeze(-3))[..., component, :]
    scale = Vindex(clusters.scale.unsqueeze(-behind - 1))[(..., component, *[slice(None)] * (behind - 1))]
    return _gaussian(loc, scale)


def _gaussian(loc: Tensor, scale: Tensor) -> dist.TorchDistribution:
    """In D columns: scale has an axis less than loc (spherical), as many (diagonal) or one more (a Cholesky factor)."""
    more = scale.dim() - loc.dim()
    gaussian: dist.TorchDistribution
    if more == 1:
        gaussian = dist.MultivariateNormal(loc, scale_tril=scale)
    else:
        gaussian = dist.Normal(loc, scale.unsqueeze(-1) if more == -1 else scale).to_event(1)
    return gaussian


def _far_points(x: Tensor, k: int, generator: torch.Generator | None) -> list[int]:
    """Rows of k points far from one another: always the farthest, or drawn where there is a generator."""
    if generator is None:
        chosen = [int((x - x.mean(0)).norm(dim=-1).argmin())]
    else:
        chosen = [int(torch.randint(len(x), (), generator=generator, device="cpu"))]
    while len(chosen) < k:
        nearest = torch.cdist(x, x[chosen]).min(dim=-1).values
        if generator is None:
            chosen.append(int(nearest.argmax()))
        else:
            chosen.append(int(torch.multinomial((nearest**2).cpu(), 1, generator=generator)))
    return chosen

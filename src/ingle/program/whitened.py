"""Automatic guides whose parameters are moved in units of a curvature that is known beforehand.

A step of an optimiser has one length for all parameters. In `loc = centre + factor @ shift`, with a Cholesky factor of
about the posterior's covariance, a step of 0.02 in `shift` is one of 0.02 posterior sds in every direction, whatever
the scales of the latents and however they are tied together. The family of distributions is that of Pyro's guide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer import autoguide
from pyro.nn import PyroParam
from pyro.ops.hessian import hessian
from torch import Tensor
from torch.distributions import biject_to

from ingle.program.affine import Triangular, times

__all__ = ["WHITENED", "Whitening", "new_whitening"]

# Attributes that Pyro's guides set are properties here, which a checker of types would have none of.
_AutoNormal: Any = autoguide.AutoNormal
_AutoMultivariateNormal: Any = autoguide.AutoMultivariateNormal
_AutoLowRankMultivariateNormal: Any = autoguide.AutoLowRankMultivariateNormal
_AutoLaplaceApproximation: Any = autoguide.AutoLaplaceApproximation
_AutoDelta: Any = autoguide.AutoDelta
_AutoNormalizingFlow: Any = autoguide.AutoNormalizingFlow

_SMALL = 0.03  # of an sd


@dataclass(frozen=True)
class Whitening:
    """Where a guide starts, and the units in which it is moved, over all latents unconstrained, in their order.

    Attributes:
        centre: shape (D,).
        factor: lower Cholesky factor of a covariance, shape (D, D); or the sds alone, shape (D,).
        scale: sds that a guide without correlations starts from, shape (D,).
        values: the latents at the centre, as the model has them, by name.
    """

    centre: Tensor
    factor: Tensor
    scale: Tensor
    values: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, like: Tensor) -> Whitening:
        """The same in the dtype and on the device of a tensor."""
        return Whitening(self.centre.to(like), self.factor.to(like), self.scale.to(like), self.values)


def new_whitening(size: int, *, dense: bool) -> Whitening:
    """One of the right shapes, whose numbers come from a file."""
    ones = torch.ones(size)
    return Whitening(torch.zeros(size), torch.eye(size) if dense else ones, ones)


class _Whitened(autoguide.AutoGuide):
    """What the guides of this file share: the buffers, the location, and the sites as parts of one vector."""

    centre: Tensor
    factor: Tensor
    shift: Tensor
    stretch: Any
    rank: Any
    _create_plates: Any

    def __init__(self, parent: type, model: Any, whitening: Whitening, **options: Any) -> None:
        self.__dict__["_whitening"] = whitening  # before torch lets a module have attributes
        parent.__init__(self, model, **options)  # type: ignore[misc]
        self._pyro_name = parent.__name__

    def _whiten(self) -> None:
        """Called once the prototype is there."""
        values = [site["value"] for _, site in self._stochastic()]
        given = self._whitening.to(values[0])
        size = sum(self._unconstrained(site).numel() for _, site in self._stochastic())
        if given.centre.shape != (size,):
            raise ValueError(f"the guide has {size} numbers, and the curvature is of {len(given.centre)}")
        self.register_buffer("centre", given.centre.clone())
        self.register_buffer("factor", given.factor.clone())
        self.shift = torch.nn.Parameter(torch.zeros_like(given.centre))

    def _stochastic(self) -> Iterator[tuple[str, Any]]:
        prototype: Any = self.prototype_trace
        yield from prototype.iter_stochastic_nodes()

    @staticmethod
    def _unconstrained(site: Any) -> Tensor:
        found: Tensor = biject_to(site["fn"].support).inv(site["value"].detach())
        return found

    def _located(self) -> Tensor:
        located: Tensor = self.centre + times(self.factor, self.shift)
        return located


class WhitenedNormal(_Whitened, _AutoNormal):  # type: ignore[misc]
    """`AutoNormal` with `loc = centre + factor @ shift` and `scale = base * stretch`.

    Attributes:
        locs, scales: of each site, computed; they are not set.
    """

    def __init__(self, model: Any, *, whitening: Whitening, **options: Any) -> None:
        super().__init__(autoguide.AutoNormal, model, whitening, **options)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        autoguide.AutoGuide._setup_prototype(self, *args, **kwargs)
        self._event_dims: dict[str, int] = {}
        self._parts: dict[str, tuple[slice, torch.Size]] = {}
        self._now: tuple[Tensor, Tensor] | None = None
        start = 0
        for name, site in self._stochastic():
            value = self._unconstrained(site)
            self._event_dims[name] = site["fn"].event_dim + value.dim() - site["value"].dim()
            self._parts[name] = slice(start, start + value.numel()), value.shape
            start += value.numel()
        self._whiten()
        scale = self._whitening.to(self.centre).scale
        self.register_buffer("base", scale.clone())
        self.stretch = PyroParam(torch.ones_like(scale), constraints.positive, event_dim=1)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """One draw of each latent."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        self._now = self._located(), self.base * self.stretch
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._now = None

    def _get_loc_and_scale(self, name: str) -> tuple[Tensor, Tensor]:
        loc, scale = self._now or (self._located(), self.base * self.stretch)
        part, shape = self._parts[name]
        return loc[part].reshape(shape), scale[part].reshape(shape)

    @property
    def locs(self) -> SimpleNamespace:
        """Locations by site, unconstrained."""
        return self._by_site(0)

    @property
    def scales(self) -> SimpleNamespace:
        """Sds by site, unconstrained."""
        return self._by_site(1)

    def _by_site(self, which: int) -> SimpleNamespace:
        found = SimpleNamespace()
        for name in self._parts:
            *folders, last = name.split(".")
            place = found
            for folder in folders:
                if not hasattr(place, folder):
                    setattr(place, folder, SimpleNamespace())
                place = getattr(place, folder)
            setattr(place, last, self._get_loc_and_scale(name)[which])
        return found


class WhitenedMultivariateNormal(_Whitened, _AutoMultivariateNormal):  # type: ignore[misc]
    """`AutoMultivariateNormal` with `loc = centre + factor @ shift` and a Cholesky factor `factor @ m`.

    m is lower triangular, with diagonal `stretch` and `shear` / sqrt(D) below it, and starts as the identity. There are
    D^2 / 2 numbers in `shear`, which one step moves all at once: divided so, they are not what moves the guide most.
    """

    def __init__(self, model: Any, *, whitening: Whitening, **options: Any) -> None:
        super().__init__(autoguide.AutoMultivariateNormal, model, whitening, **options)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        autoguide.AutoContinuous._setup_prototype(self, *args, **kwargs)
        self._whiten()
        self.stretch = PyroParam(torch.ones_like(self.centre), constraints.positive, event_dim=1)
        self.shear = torch.nn.Parameter(self.centre.new_zeros(self.latent_dim, self.latent_dim))

    @property
    def loc(self) -> Tensor:
        """The mean, shape (D,)."""
        return self._located()

    @property
    def scale(self) -> Tensor:
        """The diagonal of the Cholesky factor, shape (D,)."""
        factor = self.factor if self.factor.dim() == 1 else self.factor.diagonal()
        scale: Tensor = factor * self.stretch
        return scale

    @property
    def scale_tril(self) -> Tensor:
        """The Cholesky factor with its rows divided by `scale`, as Pyro's guide has it, shape (D, D)."""
        inner = self._sheared().tril(-1) + torch.diag_embed(self.stretch)
        whole = self.factor.unsqueeze(-1) * inner if self.factor.dim() == 1 else self.factor @ inner
        scaled: Tensor = whole / self.scale.unsqueeze(-1)
        return scaled

    def get_transform(self, *args: Any, **kwargs: Any) -> Any:
        """From standard normals to the latents."""
        return Triangular(self._located(), self.factor, self.stretch, self._sheared())

    def _sheared(self) -> Tensor:
        sheared: Tensor = self.shear * self.latent_dim**-0.5
        return sheared

    def sample_latent(self, *args: Any, **kwargs: Any) -> Any:
        """One draw of all latents; its density needs no triangular system solved."""
        noise = self.get_base_dist()
        drawn = dist.TransformedDistribution(noise, self.get_transform(*args, **kwargs))
        return pyro.sample(f"_{self._pyro_name}_latent", drawn, infer={"is_auxiliary": True})


class WhitenedLowRank(_Whitened, _AutoLowRankMultivariateNormal):  # type: ignore[misc]
    """`AutoLowRankMultivariateNormal` with `loc = centre + factor @ shift` and `scale = base * stretch`."""

    def __init__(self, model: Any, *, whitening: Whitening, **options: Any) -> None:
        super().__init__(autoguide.AutoLowRankMultivariateNormal, model, whitening, **options)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        autoguide.AutoContinuous._setup_prototype(self, *args, **kwargs)
        self._whiten()
        self.rank = self.rank or round(self.latent_dim**0.5)
        base, cov_factor = _low_rank(self._whitening, self.rank)
        self.register_buffer("base", base.to(self.centre))
        self.stretch = PyroParam(torch.ones_like(self.centre), constraints.positive, event_dim=1)
        self.cov_factor = torch.nn.Parameter(cov_factor.to(self.centre))

    @property
    def loc(self) -> Tensor:
        """The mean, shape (D,)."""
        return self._located()

    @property
    def scale(self) -> Tensor:
        """Sds of what is independent, shape (D,)."""
        scale: Tensor = self.base * self.stretch
        return scale


class WhitenedLaplace(_Whitened, _AutoLaplaceApproximation):  # type: ignore[misc]
    """`AutoLaplaceApproximation` with `loc = centre + factor @ shift`."""

    def __init__(self, model: Any, *, whitening: Whitening, **options: Any) -> None:
        super().__init__(autoguide.AutoLaplaceApproximation, model, whitening, **options)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        autoguide.AutoContinuous._setup_prototype(self, *args, **kwargs)
        self._whiten()

    @property
    def loc(self) -> Tensor:
        """The point, shape (D,)."""
        return self._located()

    def laplace_approximation(self, *args: Any, **kwargs: Any) -> Any:
        """The multivariate normal of the curvature at the point, found in units in which it is near the identity."""
        guide_trace = pyro.poutine.trace(self).get_trace(*args, **kwargs)
        model_trace = pyro.poutine.trace(pyro.poutine.replay(self.model, trace=guide_trace)).get_trace(*args, **kwargs)
        loss = guide_trace.log_prob_sum() - model_trace.log_prob_sum()
        inner = torch.linalg.cholesky(hessian(loss, self.shift).inverse()).detach()
        with torch.no_grad():
            whole = self.factor.unsqueeze(-1) * inner if self.factor.dim() == 1 else self.factor @ inner
            scale = whole.square().sum(-1).sqrt()
            made: Any = autoguide.AutoMultivariateNormal(self.model)
            made._setup_prototype(*args, **kwargs)
            del made.loc, made.scale, made.scale_tril
            made.register_buffer("loc", self._located())
            made.register_buffer("scale", scale)
            made.register_buffer("scale_tril", whole / scale.unsqueeze(-1))
        return made


class WhitenedDelta(_Whitened, _AutoDelta):  # type: ignore[misc]
    """`AutoDelta` at the latents that belong to `centre + factor @ shift`."""

    def __init__(self, model: Any, *, whitening: Whitening, **options: Any) -> None:
        super().__init__(autoguide.AutoDelta, model, whitening, **options)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        autoguide.AutoGuide._setup_prototype(self, *args, **kwargs)
        self._whiten()

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The point, by latent."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        located, start, result = self._located(), 0, {}
        for name, site in self._stochastic():
            shape = self._unconstrained(site).shape
            part = located[start : start + shape.numel()].reshape(shape)
            start += shape.numel()
            point = dist.Delta(biject_to(site["fn"].support)(part), event_dim=site["fn"].event_dim)
            with ExitStack() as stack:
                for frame in site["cond_indep_stack"]:
                    stack.enter_context(plates[frame.name])
                result[name] = pyro.sample(name, point)
        return result


class WhitenedFlow(_Whitened, _AutoNormalizingFlow):  # type: ignore[misc]
    """`AutoNormalizingFlow` whose layers are followed by `centre + factor @ x`; nothing of that is trained."""

    def __init__(self, model: Any, *, whitening: Whitening, **options: Any) -> None:
        super().__init__(autoguide.AutoNormalizingFlow, model, whitening, **options)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        autoguide.AutoContinuous._setup_prototype(self, *args, **kwargs)
        self._whiten()
        del self.shift

    def get_transform(self, *args: Any, **kwargs: Any) -> Any:
        """From standard normals to the latents."""
        ones = torch.ones_like(self.centre)
        return dist.transforms.ComposeTransform([self.transform, Triangular(self.centre, self.factor, ones, None)])


WHITENED: dict[type, Any] = {
    autoguide.AutoNormal: WhitenedNormal,
    autoguide.AutoMultivariateNormal: WhitenedMultivariateNormal,
    autoguide.AutoLowRankMultivariateNormal: WhitenedLowRank,
    autoguide.AutoLaplaceApproximation: WhitenedLaplace,
    autoguide.AutoDelta: WhitenedDelta,
    autoguide.AutoNormalizingFlow: WhitenedFlow,
}


def _low_rank(whitening: Whitening, rank: int) -> tuple[Tensor, Tensor]:
    """Sds s and a matrix F of some columns, so that diag(s) (F F' + 1) diag(s) is near the covariance.

    s are the sds of a guide without correlations, which nowhere is wider than the posterior; F adds what is missing in
    the directions where that is most.
    """
    factor, scale = whitening.factor.double(), whitening.scale.double()
    rows = torch.diag(factor) if factor.dim() == 1 else factor
    rows = rows / scale.unsqueeze(-1)
    values, vectors = torch.linalg.eigh(rows @ rows.mT - torch.eye(len(scale)).to(rows))
    most = min(rank, len(scale))
    loading = vectors[:, -most:] * values[-most:].clamp(min=0.0).sqrt()
    generator = torch.Generator(device="cpu").manual_seed(0)
    small = torch.randn(len(scale), rank, generator=generator, dtype=torch.float64, device="cpu").to(rows)
    small = _SMALL * small / rank**0.5  # since a column of zeros has no gradient
    return scale, torch.cat([loading, torch.zeros_like(small[:, most:])], -1) + small

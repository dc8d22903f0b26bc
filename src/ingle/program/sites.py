"""What one run of a program shows: its sites, its plates, and how each of them looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pyro.poutine.util import site_is_subsample

from ingle.program.distributions import family, layers

__all__ = ["Plate", "Site", "is_data", "read_sites"]


@dataclass(frozen=True)
class Plate:
    """One plate around a site.

    Attributes:
        name: of the plate.
        size: rows in this run, B under a minibatch.
        full_size: rows in all, N.
        dim: the batch dimension it takes, negative; None for a plate that is looped over.
    """

    name: str
    size: int
    full_size: int
    dim: int | None


@dataclass(frozen=True)
class Site:
    """One sample site of a program, as one run showed it.

    Attributes:
        name: of the site.
        kind: what the site is for: latent, observed, deterministic, or auxiliary (in the guide alone).
        distribution: the name of its distribution's class.
        batch_shape, event_shape: of its distribution, under the rows of the run.
        value_shape: of its value; the two together, except that a value may broadcast.
        plates: around it, outermost last, as Pyro keeps them.
        discrete: its support is discrete.
        enumerable: its support is finite and can be summed over.
        reparameterised: its distribution has a pathwise gradient.
        marked: it carries an `infer={"enumerate": …}` of the user's.
        support: the values that an enumerable latent can take, their places where a value is no number.
    """

    name: str
    kind: Literal["latent", "observed", "deterministic", "auxiliary"]
    distribution: str
    batch_shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    value_shape: tuple[int, ...]
    plates: tuple[Plate, ...]
    discrete: bool
    enumerable: bool
    reparameterised: bool
    marked: bool
    support: tuple[float, ...] = ()


def read_sites(trace: Any) -> tuple[Site, ...]:
    """The sample sites of a Pyro trace in the order of the program, without the plates' own."""
    return tuple(
        _read(node) for node in trace.nodes.values() if node["type"] == "sample" and not site_is_subsample(node)
    )


def _read(node: Any) -> Site:
    fn, infer = node["fn"], node["infer"]
    discrete = _is_discrete(fn)
    kind: Literal["latent", "observed", "deterministic", "auxiliary"] = "latent"
    if infer.get("_deterministic") or _is_computed(node):
        kind = "deterministic"
    elif node["is_observed"]:
        kind = "observed"
    elif infer.get("is_auxiliary"):
        kind = "auxiliary"
    enumerable = discrete and bool(getattr(fn, "has_enumerate_support", False))
    return Site(
        name=node["name"],
        kind=kind,
        distribution=family(fn),
        batch_shape=tuple(fn.batch_shape),
        event_shape=tuple(fn.event_shape),
        value_shape=tuple(getattr(node["value"], "shape", ())),
        plates=tuple(
            Plate(frame.name, int(frame.size), int(frame.full_size or frame.size), frame.dim)
            for frame in node["cond_indep_stack"]
        ),
        discrete=discrete,
        enumerable=enumerable,
        reparameterised=bool(getattr(fn, "has_rsample", False)),
        marked=bool(infer.get("enumerate")),
        support=_support(fn) if enumerable and kind == "latent" else (),
    )


def is_data(node: Any) -> bool:
    """Whether a sample statement holds data: observed, and no `pyro.factor`, deterministic or reparameterised site."""
    return bool(node["is_observed"]) and family(node["fn"]) not in ("Unit", "Delta")


def _is_computed(node: Any) -> bool:
    """Whether a site is what `poutine.reparam` leaves in the place of a latent: its value, observed and masked."""
    fn = node["fn"]
    return bool(node["is_observed"]) and family(fn) == "Delta" and any(_mask(layer) is False for layer in layers(fn))


def _mask(fn: Any) -> Any:
    return getattr(fn, "_mask", None)


def _support(fn: Any) -> tuple[float, ...]:
    try:
        values = fn.enumerate_support(expand=False)
    except NotImplementedError:  # a Binomial whose rows have other totals
        return ()
    return tuple(range(len(values))) if fn.event_shape else tuple(values.reshape(-1).tolist())


def _is_discrete(fn: Any) -> bool:
    try:
        return bool(fn.support.is_discrete)
    except (AttributeError, NotImplementedError):  # a distribution need not say what its support is
        return False

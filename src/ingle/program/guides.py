"""Guides by name, by AutoGuide class or partial, by instance, by function: all become one callable."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import pyro
from pyro import poutine
from pyro.infer import autoguide
from pyro.infer.autoguide.initialization import init_to_value
from pyro.poutine.guide import GuideMessenger
from torch import Tensor

from ingle.errors import IngleError, OptionError
from ingle.program.affine import autoregressive_flow
from ingle.program.finding import Finding, as_error
from ingle.program.sites import Plate, Site
from ingle.program.typical import typical_value
from ingle.program.whitened import WHITENED, Whitening

__all__ = ["GuideName", "GuideRecipe", "resolve_guide"]

GuideName = Literal["normal", "multivariate_normal", "low_rank", "delta", "laplace", "flow"]

INIT_SCALE = 0.1  # of every named guide, in unconstrained space

_CLASSES: dict[str, type[autoguide.AutoGuide]] = {
    "normal": autoguide.AutoNormal,
    "multivariate_normal": autoguide.AutoMultivariateNormal,
    "low_rank": autoguide.AutoLowRankMultivariateNormal,
    "delta": autoguide.AutoDelta,
    "laplace": autoguide.AutoLaplaceApproximation,
    "flow": autoguide.AutoNormalizingFlow,
}
# One vector over all latents, or blocks that keep the size of the first run: neither can follow a minibatch.
_JOINT = (autoguide.AutoContinuous, autoguide.AutoGaussian, autoguide.AutoStructured)


@dataclass(frozen=True)
class GuideRecipe:
    """How the guide of a fit is made.

    Attributes:
        description: for the card: the name and the class.
        make: builds the guide, from a start for each latent where the recipe takes one.
        takes_start: whether `make` uses the start.
        name: of a guide by name.
        whiten: builds the same guide so that it starts from a curvature, and moves in units of it; None where the guide
            is the user's own.
        finish: what replaces the guide once it is trained, given the arguments of the model; None for nothing.
    """

    description: str
    make: Callable[[Mapping[str, Tensor] | None], Callable[..., Any]]
    takes_start: bool = False
    name: GuideName | None = None
    whiten: Callable[[Whitening], Callable[..., Any]] | None = None
    finish: Callable[[Any, tuple[Any, ...], dict[str, Any]], Callable[..., Any]] | None = None


def resolve_guide(
    guide: object, model: Callable[..., Any], sites: Sequence[Site], batched: Sequence[str]
) -> GuideRecipe:
    """The recipe for whatever the user gave as guide.

    Args:
        guide: a name, an AutoGuide class or a partial of one, or anything that can be called.
        model: that an automatic guide is made for.
        sites: of the model.
        batched: names of the plates whose rows are drawn from outside.

    Raises:
        OptionError: for a name that does not exist, something that cannot be called, or a joint guide over
            latents inside a plate that takes a few rows at a time.
    """
    if isinstance(guide, str):
        if guide not in _CLASSES:
            names = ", ".join(repr(name) for name in get_args(GuideName))
            raise OptionError(f"guide {guide!r} does not exist; a guide by name is one of {names}")
        return _automatic(_CLASSES[guide], cast(GuideName, guide), model, sites, batched)
    cls: Any = guide.func if isinstance(guide, functools.partial) else guide
    if isinstance(cls, type) and issubclass(cls, (autoguide.AutoGuide, GuideMessenger)):
        return _automatic(guide, None, model, sites, batched)
    if isinstance(guide, type) or not callable(guide):
        raise OptionError(
            f"guide must be a name, an AutoGuide class, or a callable with Pyro statements, got {guide!r}"
            + ("; it is a class: did you mean an instance of it?" if isinstance(guide, type) else "")
        )
    ready: Callable[..., Any] = guide
    if isinstance(ready, autoguide.AutoGuide):
        _prepare(ready, sites, batched)
        return GuideRecipe(f"{type(ready).__name__} instance", lambda start: ready, finish=_finish(type(ready)))
    return GuideRecipe(getattr(ready, "__name__", type(ready).__name__), lambda start: ready)


def _automatic(
    factory: Any, name: GuideName | None, model: Callable[..., Any], sites: Sequence[Site], batched: Sequence[str]
) -> GuideRecipe:
    cls: Any = factory.func if isinstance(factory, functools.partial) else factory
    latents = [site for site in sites if site.kind == "latent"]
    if not latents:
        raise _unreachable(
            None,
            "the model has no latent sample site, so there is nothing for an automatic guide to do",
            "for maximum likelihood of pyro.param statements give an empty guide, `def guide(*args, **kwargs): pass`",
        )
    hidden = [] if issubclass(cls, autoguide.AutoDiscreteParallel) else [site for site in latents if site.discrete]
    endless = [site for site in hidden if not site.enumerable]
    if endless:
        raise _unreachable(
            endless[0],
            f"{', '.join(f'{site.name!r} ({site.distribution})' for site in endless)} is discrete without a finite "
            f"support, so {cls.__name__} cannot reach it and it cannot be summed out",
            "write a guide that samples it",
        )
    if len(hidden) == len(latents):
        raise _unreachable(
            hidden[0],
            f"every latent of the model is discrete ({', '.join(site.name for site in hidden)}) and would be summed "
            "out, so an automatic guide has nothing left",
            "give an empty guide, `def guide(*args, **kwargs): pass`",
        )
    visible: Callable[..., Any] = poutine.block(model, hide=[site.name for site in hidden]) if hidden else model

    def made_by(factory: Any, options: Mapping[str, Any]) -> Callable[..., Any]:
        try:
            made: Any = factory(visible, **options)
        except (TypeError, ValueError, AssertionError) as error:
            raise OptionError(f"{cls.__name__} cannot be made with these options: {error}") from error
        _prepare(made, sites, batched)
        return made  # type: ignore[no-any-return]

    def whiten(whitening: Whitening) -> Callable[..., Any]:
        options = {**_options(name, whitening.values), "whitening": whitening}
        return made_by(WHITENED[cls], options)

    return GuideRecipe(
        cls.__name__ if name is None else f"{name!r} ({cls.__name__})",
        lambda start: made_by(factory, _options(name, start)),
        takes_start=name is not None and name != "flow",
        name=name,
        whiten=None if name is None else whiten,
        finish=_finish(cls),
    )


def _options(name: GuideName | None, start: Mapping[str, Tensor] | None) -> dict[str, Any]:
    if name is None:
        return {}
    if name == "flow":
        return {"init_transform_fn": autoregressive_flow}
    options: dict[str, Any] = {"init_loc_fn": init_to_value(values=dict(start or {}), fallback=typical_value)}
    if name in ("normal", "multivariate_normal", "low_rank"):
        options["init_scale"] = INIT_SCALE
    return options


def _finish(cls: type) -> Any:
    return _laplace if issubclass(cls, autoguide.AutoLaplaceApproximation) else None


def _laplace(guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
    return guide.laplace_approximation(*args, **kwargs)  # type: ignore[no-any-return]


def _prepare(guide: Any, sites: Sequence[Site], batched: Sequence[str]) -> None:
    """Make an automatic guide follow rows that are drawn from outside, or refuse it."""
    local = [
        (site, plate)
        for site in sites
        if site.kind == "latent" and not site.discrete
        for plate in site.plates
        if plate.name in batched or plate.size < plate.full_size
    ]
    if not local:
        return
    joint = [part for part in guide.modules() if isinstance(part, _JOINT)]
    if joint:
        names = sorted({site.name for site, _ in local})
        plates = sorted({plate.name for _, plate in local})
        raise _unreachable(
            local[0][0],
            f"{type(joint[0]).__name__} is one joint distribution over all latents, and {', '.join(names)} "
            f"{'has' if len(names) == 1 else 'have'} a row for each datum of plate {', '.join(plates)}: Pyro would "
            "build it for one minibatch alone",
            "use 'normal' or 'delta', a guide of your own, or no minibatches",
        )
    drawn: dict[str, Plate] = {plate.name: plate for _, plate in local if plate.name in batched}
    if isinstance(guide, autoguide.AutoGuide) and drawn and isinstance(guide.create_plates, (_FullPlates, type(None))):
        # Without this an AutoGuide draws rows of its own, other than the model's (pyro issue 3468).
        guide.create_plates = _FullPlates(tuple(drawn.values()))


def _unreachable(site: Site | None, message: str, fix: str) -> IngleError:
    """A guide that cannot be used with this model."""
    name = None if site is None else site.name
    return as_error(Finding("unreachable", "error", name, message, fix, OptionError))


@dataclass(frozen=True)
class _FullPlates:
    """Plates of full size for an automatic guide; those of an earlier fit are replaced by the next one's."""

    plates: tuple[Plate, ...]

    def __call__(self, *args: Any, **kwargs: Any) -> list[Any]:
        return [pyro.plate(plate.name, plate.full_size, dim=plate.dim) for plate in self.plates]

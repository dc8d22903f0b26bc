"""The distributions that an amortised guide gives its local latents, with parameters of its own for each datum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import transform_to

from ingle.evidence.elements import Elements
from ingle.evidence.proposal import Proposal
from ingle.program import Program, amortised, layers, reached

__all__ = ["Local", "Unsplit", "free"]

_TOLERANCE = 1e-3  # nats, by which a distribution that was made anew may differ through rounding
_ONE_OF = {"covariance_matrix": "scale_tril", "precision_matrix": "scale_tril", "probs": "logits"}


class Unsplit(Exception):
    """A guide whose local distributions cannot be freed; says why."""


@dataclass(frozen=True)
class _Family:
    """What a latent's distribution is made of.

    Attributes:
        cls: of the distribution of one element of an event.
        events: how many batch dimensions belong to the event.
        held: parameters that nothing trains, constrained.
        leaves: the others, unconstrained, each of the full batch shape.
        constraints: of the others.
    """

    cls: Any
    events: int
    held: Mapping[str, Tensor]
    leaves: Mapping[str, Tensor]
    constraints: Mapping[str, Any]

    def made(self, *, detached: bool) -> Any:
        free = {
            name: transform_to(self.constraints[name])(leaf.detach() if detached else leaf)
            for name, leaf in self.leaves.items()
        }
        return self.cls(**self.held, **free, validate_args=False).to_event(self.events)


class Local:
    """Distributions of local latents, independent of each other, with free parameters.

    Args:
        families: by latent.
    """

    def __init__(self, families: Mapping[str, _Family]) -> None:
        self._families = families

    @property
    def leaves(self) -> list[Tensor]:
        """The free parameters, unconstrained."""
        return [leaf for family in self._families.values() for leaf in family.leaves.values()]

    def draws(self) -> dict[str, Tensor]:
        """One draw of each latent, with a pathwise gradient."""
        return {name: family.made(detached=False).rsample() for name, family in self._families.items()}

    def proposal(self, elements: Elements, masks: Mapping[str, Tensor]) -> Proposal:
        """The same as a proposal, with parameters as they are now and no gradient with respect to them."""
        made = {name: family.made(detached=True) for name, family in self._families.items()}

        def run() -> None:
            with pyro.plate(str(elements.plate), elements.size, dim=elements.dim):
                for name, fn in made.items():
                    pyro.sample(name, fn)

        return Proposal(
            "the refined guide",
            lambda: poutine.trace(run).get_trace(),
            latents=tuple(made),
            elements=elements,
            given={},
            left_out=(),
            masks=masks,
            behind=lambda values: values,
        )


def free(program: Program, elements: Elements) -> Local:
    """The local distributions of an amortised guide, freed from its network: one set of parameters for each datum.

    They start where the network puts them. What nothing trains, such as a scale that the guide holds at 1, is of the
    family and stays.

    Args:
        program: the fitted one, inside a scope of its runtime.
        elements: of the plate of the data.

    Raises:
        Unsplit: the guide is not amortised, one of its distributions depends on another draw, has no pathwise gradient,
            or cannot be made from its parameters.
    """
    if elements.plate is None:
        raise Unsplit("the latents do not lie in one plate, row by row")
    drawn = [site.name for site in program.latents if site.name not in program.enumerated]
    if not drawn:
        raise Unsplit("the guide draws nothing")
    own = [name for name in drawn if name not in amortised(program, frozenset({elements.plate}))]
    if own:
        raise Unsplit(
            f"the guide of {', '.join(own)} is not amortised over plate {elements.plate!r}: it keeps parameters for "
            "each row, or that it is a function of the row's data cannot be told"
        )
    beside = [site.name for site in program.guide_sites if site.kind in ("auxiliary", "observed")]
    if beside:
        raise Unsplit(f"the guide has sites beside the latents: {', '.join(beside)}")
    with torch.no_grad(), program.at_rest(), program.explained("guide"), reached(drawn) as draws:
        trace: Any = program.trace_guide()
    behind = {name: sorted(draws.behind(trace.nodes[name]) - {name}) for name in drawn}
    for name, names in behind.items():
        if names:
            raise Unsplit(f"the guide's distribution of {name} depends on its draw of {', '.join(names)}")
    with torch.enable_grad(), program.at_rest(), program.explained("guide"):
        trace = program.trace_guide()
    return Local({name: _freed(trace.nodes[name]) for name in drawn})


def _freed(node: Any) -> _Family:
    name, fn = node["name"], node["fn"]
    parts = list(layers(fn))
    inner = next(part for part in parts if type(part).__name__ not in ("Independent", "ExpandedDistribution"))
    said = f"the guide's {type(inner).__name__} of {name}"
    if not inner.has_rsample:
        raise Unsplit(f"{said} has no pathwise gradient")
    events = fn.event_dim - inner.event_dim
    batch = fn.batch_shape + fn.event_shape[:events]
    constraints = {
        parameter: constraint
        for parameter, constraint in inner.arg_constraints.items()
        if _ONE_OF.get(parameter) not in inner.arg_constraints
    }
    held, leaves = {}, {}
    try:
        for parameter, constraint in constraints.items():
            value = getattr(inner, parameter)
            full = value.detach().expand(batch + _tail(value, len(inner.batch_shape), constraint)).clone()
            if value.requires_grad:
                leaves[parameter] = transform_to(constraint).inv(full).detach().requires_grad_()
            else:
                held[parameter] = full
        family = _Family(type(inner), events, held, leaves, {parameter: constraints[parameter] for parameter in leaves})
        ours, theirs = family.made(detached=True).log_prob(node["value"].detach()), fn.log_prob(node["value"]).detach()
        same = ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=_TOLERANCE, atol=_TOLERANCE)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise Unsplit(f"{said} cannot be made from its parameters: {error}".split("\n")[0]) from error
    if not leaves:
        raise Unsplit(f"{said} has no parameter that was trained")
    if not same:
        raise Unsplit(f"{said} is another one when it is made from its parameters")
    return family


def _tail(value: Tensor, batch_dims: int, constraint: Any) -> Sequence[int]:
    """The shape of one parameter of one element."""
    dims = max(getattr(constraint, "event_dim", 0), value.dim() - batch_dims)
    return value.shape[value.dim() - dims :] if dims else ()

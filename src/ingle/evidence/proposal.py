"""Where draws come from: the guide or the prior, with the density of what they drew and of what others drew."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero
from pyro.infer import autoguide
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ingle.errors import OptionError
from ingle.evidence.elements import Elements
from ingle.evidence.joint import log_prob, supported
from ingle.program import Given, Program, Site, family, reached, read_sites, sample_nodes, to_support

__all__ = [
    "IMPROPER",
    "Proposal",
    "drawn_by_guide",
    "drawn_wrongly",
    "from_guide",
    "from_prior",
    "left_out",
    "prior_alone",
]


IMPROPER = ("Flat", "HalfFlat", "ImproperUniform")
_OF_ITS_OWN = "_unconstrained"  # what AutoNormal calls the draw behind a latent


class Proposal:
    """A distribution of the latents that can be drawn from.

    Args:
        name: in words.
        run: one run of it, as a Pyro trace.
        latents: names of those that it draws.
        elements: each with a density of its own.
        given: latents held at a value.
        left_out: sites whose density is not counted: those latents, and what the guide computes them from.
        masks: what hides elements of a latent in the model, by name: there it has no density in the model, and so none
            here.
        behind: from values of the latents to values of the sites that they are computed from.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[], Any],
        *,
        latents: Collection[str],
        elements: Elements,
        given: Mapping[str, Tensor],
        left_out: Collection[str],
        masks: Mapping[str, Tensor],
        behind: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    ) -> None:
        self.name = name
        self.latents = tuple(latents)
        self._run = run
        self._elements = elements
        self._given = given
        self._left_out = frozenset(left_out)
        self._masks = masks
        self._behind = behind

    def draw(self) -> dict[str, Any]:
        """One draw: `values` by name, and `log_q`, float64, of the shape of the elements."""
        with Given(self._given):
            trace = self._run()
        values = {name: trace.nodes[name]["value"] for name in self.latents}
        return {"values": values, "log_q": self._density(sample_nodes(trace))}

    def density(self, values: Mapping[str, Tensor]) -> Tensor:
        """Log q of values that need not be its own, float64, of the shape of the elements.

        Raises:
            OptionError: a guide whose density is known at its own draws alone.
        """
        with Given({**self._behind(values), **self._given}):
            trace = self._run()
        return self._density(sample_nodes(trace))

    def _density(self, nodes: Iterable[Any]) -> Tensor:
        total = torch.zeros(self._elements.shape, dtype=torch.float64)
        for node in nodes:
            if node["name"] in self._left_out:
                continue
            latent = node["name"].removesuffix(_OF_ITS_OWN)
            term = log_prob(node, mask=self._masks.get(latent, self._masks.get(node["name"])))
            if not is_identically_zero(term):
                total = total + self._elements.summed(supported(node, term), node["cond_indep_stack"])
        return total


def from_guide(
    program: Program, elements: Elements, given: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> Proposal:
    """The guide of a program, all that it draws.

    Raises:
        OptionError: a guide that computes a given latent and another from one draw.
    """
    latents = [site.name for site in program.latents if site.name not in {*program.enumerated, *given}]
    auxiliary = [site.name for site in drawn_by_guide(program) if site.kind == "auxiliary"]
    return Proposal(
        "the guide",
        program.trace_guide,
        latents=latents,
        elements=elements,
        given=given,
        left_out=left_out(program, given),
        masks=masks,
        behind=lambda values: _behind(program, values, auxiliary),
    )


def from_prior(program: Program, elements: Elements, given: Mapping[str, Tensor]) -> Proposal:
    """The prior of the latents of a program. Its draws raise `OptionError` where it cannot be drawn."""
    latents = [site.name for site in program.latents if site.name not in {*program.enumerated, *given}]
    improper = [site.name for site in program.latents if site.name in latents and site.distribution in IMPROPER]

    def run() -> Any:
        if improper:
            raise _nothing_to_draw(improper)
        trace: Any = poutine.trace(program.model).get_trace(*program.data.args, **program.data.kwargs)
        for name in [node["name"] for node in sample_nodes(trace) if node["name"] not in latents]:
            trace.remove_node(name)
        return trace

    return Proposal(
        "the prior",
        run,
        latents=latents,
        elements=elements,
        given=given,
        left_out=given,
        masks={},
        behind=lambda values: values,
    )


def drawn_by_guide(program: Program) -> tuple[Site, ...]:
    """The sites of the guide as it is now: Laplace's is another one than was trained."""
    with program.explained("guide"):
        return read_sites(program.trace_guide())


def left_out(program: Program, given: Collection[str]) -> frozenset[str]:
    """Sites of the guide whose density is not counted where these latents are given: they, and what lies behind.

    Raises:
        OptionError: a draw of the guide lies behind a given latent and behind another.
    """
    auxiliary = [site.name for site in drawn_by_guide(program) if site.kind == "auxiliary"] if given else []
    if not auxiliary:
        return frozenset(given)
    with program.explained("guide"), reached(auxiliary) as draws:
        nodes = program.trace_guide().nodes
    behind = {site.name: draws.behind(nodes[site.name]) for site in program.latents if site.name in nodes}
    held = frozenset().union(*(behind.get(name, frozenset()) for name in given))
    others = {latent: held & names for latent, names in behind.items() if latent not in given and held & names}
    if others:
        latent, names = next(iter(others.items()))
        raise OptionError(
            f"given: the guide computes {', '.join(map(repr, given))} and {latent!r} from one draw, "
            f"{', '.join(map(repr, sorted(names)))}, so what it says of {latent!r} alone is not known. Use a guide "
            "that draws each latent by itself, such as 'normal', or proposal='prior'"
        )
    return held.union(given)


def _nothing_to_draw(latents: Collection[str]) -> OptionError:
    return OptionError(
        f"the prior of {', '.join(map(repr, latents))} is improper: it has no density that sums to one, so the prior "
        "cannot be drawn from"
    )


def drawn_wrongly(program: Program, latents: Collection[str]) -> list[str]:
    """What to note of latents whose prior torch does not draw as its density says."""
    names = [
        site.name
        for site in program.latents
        if site.name in latents and site.distribution == "LKJCholesky" and site.event_shape[-1] > 2
    ]
    if not names:
        return []
    return [
        f"the prior of {', '.join(names)} is LKJCholesky, whose draws in torch do not follow its density from three "
        "dimensions on: estimates from draws of the prior are off by some percent of Z; those of a guide are not"
    ]


def prior_alone(model: Callable[..., Any]) -> Callable[..., Any]:
    """A guide that draws what a model draws, discrete latents of finite support left out, to be summed over."""

    def hidden(msg: Any) -> bool:
        if msg["type"] != "sample" or site_is_subsample(msg):
            return False
        if not msg["is_observed"] and family(msg["fn"]) in IMPROPER:
            raise _nothing_to_draw([msg["name"]])
        return bool(msg["is_observed"] or getattr(msg["fn"], "has_enumerate_support", False))

    def prior(*args: Any, **kwargs: Any) -> None:
        with poutine.block(hide_fn=hidden):
            model(*args, **kwargs)

    return prior


def _behind(program: Program, values: Mapping[str, Tensor], auxiliary: Collection[str]) -> dict[str, Tensor]:
    """What a guide has to draw for its latents to have these values."""
    if not auxiliary:
        return dict(values)
    found = _of_automatic(poutine.unwrap(program.guide), values, auxiliary)
    if found is None:
        drawn = ", ".join(map(repr, list(auxiliary)[:3]))
        raise OptionError(
            f"defensive: the density of guide {program.recipe.description} is not known at draws of the prior, since "
            f"it computes its latents from {drawn}. Leave defensive out, or use a guide with a pyro.sample statement "
            "for each latent, or 'normal', 'multivariate_normal', 'low_rank' or 'flow'"
        )
    return found


def _of_automatic(guide: Any, values: Mapping[str, Tensor], auxiliary: Collection[str]) -> dict[str, Tensor] | None:
    """The unconstrained draws behind latents of an automatic guide; None for one of another kind."""
    if isinstance(guide, autoguide.AutoGuideList):
        parts = [_of_automatic(part, values, auxiliary) for part in guide]
        return None if None in parts else {name: value for part in parts if part for name, value in part.items()}
    if not isinstance(guide, (autoguide.AutoNormal, autoguide.AutoContinuous)):
        return None
    prototype: Any = guide.prototype_trace
    sites = dict(prototype.iter_stochastic_nodes())
    back = {name: to_support(site["fn"]).inv(values[name]) for name, site in sites.items() if name in values}
    if isinstance(guide, autoguide.AutoNormal):
        return {f"{name}{_OF_ITS_OWN}": value for name, value in back.items()}
    own = f"_{guide._pyro_name}_latent"
    if own not in auxiliary or len(back) < len(sites):
        return None
    return {own: torch.cat([value.reshape(-1) for value in back.values()])}

"""A model, a guide and their data as one program that can be run, traced and stepped."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.guide import GuideMessenger
from torch import Tensor
from torch.distributions import transform_to

from ingle.data import Data
from ingle.program.discrete import Summed
from ingle.program.explain import check_call, explained
from ingle.program.guides import GuideRecipe
from ingle.program.handlers import Given, Leaves, Rows, Unobserve
from ingle.program.memory import Memory
from ingle.program.modules import at_rest, buffers_of, find_modules
from ingle.program.sites import Site, read_sites
from ingle.program.typical import drawn_value
from ingle.program.whitened import Whitening
from ingle.runtime import validation

__all__ = ["Program", "set_guide"]

_SHORT = 90  # letters, one line of a card


@dataclass
class Program:
    """A model and a guide, bound to data, with what one run of each showed.

    Attributes:
        model: as the user wrote it; enumerated sites are marked.
        guide: the guide, ready to be called like the model.
        recipe: how the guide was made.
        data: the arguments of both.
        rows: the handler that sets the rows of a minibatch.
        probe: the rows of the first run, B of each named plate.
        batch_sizes: for each plate whose rows come from outside, its full size N and its batch size B.
        model_sites, guide_sites: as one run showed them, with the first B rows of each named plate.
        enumerated: the discrete latents that the guide leaves out, which the objective sums over.
        model_leaves, guide_leaves: every parameter that each side has read, by name, unconstrained.
        hidden: the deterministic sites whose value depends on a latent that is summed out.
        memory: what the objective that trains it remembers from step to step.
        followed: for plates that were asked for, the latents whose guide follows new rows of them.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    recipe: GuideRecipe
    data: Data
    rows: Rows
    probe: Rows
    batch_sizes: dict[str, tuple[int, int]]
    model_sites: tuple[Site, ...]
    guide_sites: tuple[Site, ...]
    enumerated: tuple[str, ...]
    model_leaves: Leaves
    guide_leaves: Leaves
    hidden: frozenset[str] = frozenset()
    memory: Memory = field(default_factory=Memory, repr=False)
    followed: dict[frozenset[str], frozenset[str]] = field(default_factory=dict, repr=False)
    _sides: tuple[tuple[int, int], dict[str, Tensor], dict[str, Tensor]] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """What the user calls the model: a function's name, or what an instance prints as where that is short."""
        inner: Any = poutine.unwrap(self.model)
        inner = getattr(inner, "func", inner)
        if hasattr(inner, "__name__"):
            return str(inner.__name__)
        told = repr(inner)
        return told if len(told) <= _SHORT and told.startswith(type(inner).__name__) else type(inner).__name__

    @property
    def latents(self) -> tuple[Site, ...]:
        """The latent sites of the model, in its order."""
        return tuple(site for site in self.model_sites if site.kind == "latent")

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype that it runs in."""
        return self.model_leaves.dtype

    @property
    def device(self) -> torch.device:
        """The device that it runs on."""
        return self.model_leaves.device

    def partial(self, site: Site) -> bool:
        """Whether the site is inside a plate that draws rows by itself, so that each run shows others of them."""
        return any(plate.size < plate.full_size and plate.name not in self.batch_sizes for plate in site.plates)

    @property
    def max_plate_nesting(self) -> int:
        """How many batch dimensions the plates of model and guide take."""
        return max(
            (
                -plate.dim
                for site in self.model_sites + self.guide_sites
                for plate in site.plates
                if plate.dim is not None
            ),
            default=0,
        )

    @property
    def observing_model(self) -> Callable[..., Any]:
        """The model, its parameters noted while it runs."""
        return self.model_leaves(self.model)

    @property
    def observing_guide(self) -> Callable[..., Any]:
        """The guide, its parameters noted while it runs."""
        return self.guide_leaves(self.guide)

    def explained(self, role: str) -> AbstractContextManager[None]:
        """Errors inside are told with the data of the program."""
        return explained(role, self.data, batched=tuple(self.batch_sizes))

    def modules(self) -> tuple[torch.nn.Module, ...]:
        """The modules behind model and guide."""
        return find_modules(self.model, self.guide)

    def buffers(self) -> list[Tensor]:
        """What a step changes in place beside the parameters, each once."""
        return buffers_of([*self.modules(), self.memory])

    def at_rest(self) -> AbstractContextManager[None]:
        """Its modules in evaluation mode inside; afterwards as they were, running statistics too."""
        return at_rest(self.modules())

    def trace_guide(self) -> Any:
        """One run of the guide, as a Pyro trace."""
        args, kwargs = self.data.args, self.data.kwargs
        messenger = poutine.unwrap(self.guide)
        if isinstance(messenger, GuideMessenger):  # one that runs the model itself, its own sites apart
            self.observing_guide(*args, **kwargs)
            return messenger.get_traces()[1]
        return poutine.trace(self.observing_guide).get_trace(*args, **kwargs)

    def trace_model(self, given: Mapping[str, Tensor], *, anew: bool = False) -> Any:
        """One run of the model, as a Pyro trace, with latents given; with `anew`, nothing observed."""
        model = Unobserve()(self.model) if anew else self.model
        with Given(given):
            return poutine.trace(model).get_trace(*self.data.args, **self.data.kwargs)

    def summed(self, given: Mapping[str, Tensor]) -> Summed:
        """One run of the model with its discrete latents at all their values, given one draw of the others."""
        with Given(given):
            return Summed(self.model, self.data.args, self.data.kwargs, first_dim=-1 - self.max_plate_nesting)

    def sides(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Parameters of the model and of the guide by name, unconstrained, each tensor once.

        One that both read goes with the guide; with the model where the guide is a messenger, which runs the
        model itself and so reads all of the model's.
        """
        versions = (self.model_leaves.version, self.guide_leaves.version)
        if self._sides is None or self._sides[0] != versions:
            model, guide = self.model_leaves.by_name, self.guide_leaves.by_name
            if isinstance(poutine.unwrap(self.guide), GuideMessenger):
                guide = _without(guide, model)
            self._sides = versions, _without(model, guide), dict(guide)
        return self._sides[1], self._sides[2]

    def leaves(self) -> dict[str, Tensor]:
        """Every parameter of the program by name, unconstrained, each tensor once."""
        model, guide = self.sides()
        return {**model, **guide}

    def keep_leaves(self, names: Collection[str]) -> None:
        """Forget every parameter but these, in Pyro's store too; it is made anew where it is next read."""
        store = pyro.get_param_store()
        for name in [name for name in self.leaves() if name not in names and name in store]:
            del store[name]
        self.model_leaves.keep(names)
        self.guide_leaves.keep(names)

    def parameters(self) -> dict[str, Tensor]:
        """Every parameter by name, constrained, a detached copy. Runs where the fit's parameter store is Pyro's."""
        stored = dict(pyro.get_param_store().items())
        declared = {**self.model_leaves.constraints, **self.guide_leaves.constraints}
        values = {}
        for name, leaf in self.leaves().items():
            # A statement need not repeat the constraint that the store knows, and with Pyro's module_local_params the
            # store does not know the one that the statement gives.
            in_store = name in stored and declared[name] is constraints.real
            value = stored[name] if in_store else transform_to(declared[name])(leaf)
            values[name] = value.detach().clone()
        return values

    def prior_draw(self) -> dict[str, Tensor]:
        """One draw of every continuous latent from the prior, those inside a minibatched plate left out."""
        with torch.no_grad(), self.probe, InitMessenger(drawn_value), self.explained("model"):
            trace = self.trace_model({})
        return {
            site.name: trace.nodes[site.name]["value"].detach()
            for site in self.latents
            if not site.discrete and not any(plate.name in self.batch_sizes for plate in site.plates)
        }


def set_guide(
    program: Program,
    start: Mapping[str, Tensor] | None = None,
    *,
    whitening: Whitening | None = None,
    check: bool = True,
) -> None:
    """Make the guide from its recipe, from `start` where the recipe takes one, or from a curvature, and run it once."""
    if whitening is not None and program.recipe.whiten is not None:
        program.guide = program.recipe.whiten(whitening)
    else:
        program.guide = program.recipe.make(start)
    if check:
        check_call("guide", program.guide, program.data)
    with validation(check), torch.no_grad(), program.probe, program.explained("guide"):
        trace: Any = program.trace_guide()
        trace.compute_log_prob()
    program.guide_sites = read_sites(trace)


def _without(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    taken = {id(leaf) for leaf in theirs.values()}
    return {name: leaf for name, leaf in ours.items() if id(leaf) not in taken}

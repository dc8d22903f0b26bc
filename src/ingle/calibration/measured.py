"""What is ranked of one draw beside its latents: deterministic sites, and the log likelihood of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ingle.data import Data
from ingle.errors import OptionError
from ingle.program import Program, is_data, repeat, sample_nodes
from ingle.results import deterministic_sites, drawn_latents

__all__ = ["LOG_LIKELIHOOD", "Measured", "quantities_of"]

LOG_LIKELIHOOD = "log_likelihood"


class Measured:
    """Reads a program at draws of its latents.

    Args:
        program: fitted or not.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.latents = tuple(site.name for site in drawn_latents(program))
        self.deterministic = tuple(site.name for site in deterministic_sites(program, discrete_too=False))

    def draws(self, data: Data, count: int) -> dict[str, Tensor]:
        """`count` draws of the guide, with all that is read at each, shape (count, *shape)."""
        program = replace(self.program, data=data)

        def run(_: Any) -> dict[str, Tensor]:
            trace = program.trace_guide()
            values = {name: trace.nodes[name]["value"] for name in self.latents}
            return {**values, **self._read(program, values)}

        return repeat(run, count, chunk=count)  # type: ignore[no-any-return]

    def at(self, data: Data, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is read at one draw of all the latents that the guide draws."""
        return self._read(replace(self.program, data=data), values)

    def _read(self, program: Program, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        trace = program.trace_model(values)
        trace.compute_log_prob()
        terms: list[Any] = []
        inside: frozenset[str] = frozenset()
        if program.enumerated:
            whole = program.summed(values)
            inside = whole.names
            terms += [term.sum() for term in whole.log_likelihood().values()]
        terms += [node["log_prob_sum"] for node in sample_nodes(trace) if is_data(node) and node["name"] not in inside]
        total: Any = sum((torch.as_tensor(term) for term in terms), torch.zeros(()))
        found = {name: trace.nodes[name]["value"] for name in self.deterministic}
        if LOG_LIKELIHOOD not in trace.nodes:
            found[LOG_LIKELIHOOD] = total
        return found


def quantities_of(
    quantities: Callable[[dict[str, Tensor]], Mapping[str, Any]], values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The user's quantities at each of n draws, shape (n, *shape).

    Args:
        quantities: from the values of one draw by name to further ones by name.
        values: shape (n, *shape) each.

    Raises:
        OptionError: it raised, or returned something else.
    """
    n = len(next(iter(values.values())))

    def run(one: Any) -> dict[str, Tensor]:
        found = quantities(dict(one))
        if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
            raise OptionError(f"quantities returns a mapping from names to numbers, got {type(found).__name__}")
        return {name: torch.as_tensor(value) for name, value in found.items()}

    try:
        with torch.no_grad():
            return repeat(run, n, chunk=n, given=values)  # type: ignore[no-any-return]
    except OptionError:
        raise
    except Exception as error:
        raise OptionError(f"quantities raised {type(error).__name__}: {error}") from error

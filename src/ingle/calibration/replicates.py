"""Replicates to calibrate on: parameters and data, drawn from the model itself or by a simulator of the user's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from ingle.calibration.refuse import refuse_model, refuse_names, refuse_reading_guide, refuse_reading_prior
from ingle.data import Data, read
from ingle.errors import DataError, IngleError, ProgramError
from ingle.program import Program, Unobserve, check_call
from ingle.results import drawn_from
from ingle.runtime import Runtime

__all__ = ["Replicates", "check_truths", "from_model", "from_simulator", "simulator_seed", "with_arguments"]

_STREAM = 2718  # apart from the seeds of fits and draws


@dataclass
class Replicates:
    """Parameters and data, R of each.

    Attributes:
        truths: for each site that was drawn, shape (R, *site shape).
        data: the arguments of model and guide, one for each replicate.
        observed: values that stand in the place of observed ones by a handler, since no argument is the observed
            value, shape (R, *site shape) each.
        source: where they come from, in words.
    """

    truths: dict[str, Tensor]
    data: list[Data]
    observed: dict[str, Tensor]
    source: str

    def __len__(self) -> int:
        return len(self.data)

    def seen(self, place: int) -> dict[str, Tensor]:
        """What a handler puts in the place of observed values, for one replicate."""
        return {name: value[place] for name, value in self.observed.items()}

    def stacked(self) -> dict[str, Tensor]:
        """The arguments that differ from replicate to replicate, by their place, shape (R, …)."""
        columns = [[value for _, value in data.items()] for data in self.data]
        found = {}
        for place, first in enumerate(columns[0]):
            if isinstance(first, Tensor) and not all(_same(first, column[place]) for column in columns[1:]):
                found[str(place)] = torch.stack([column[place] for column in columns])
        return found

    def why_apart(self) -> str | None:
        """Why the replicates cannot go through the program together, in words; None where nothing is in the way."""
        first = self.data[0]
        for data in self.data[1:]:
            for (name, ours), (other, theirs) in zip(first.items(), data.items(), strict=True):
                if name != other or isinstance(ours, Tensor) != isinstance(theirs, Tensor):
                    return f"{name} is not of one kind in every data set"
                if isinstance(ours, Tensor):
                    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
                        return f"{name} has other shapes from data set to data set"
                elif not _equal(ours, theirs):
                    return f"{name} differs from data set to data set and is no tensor"
        return None


def with_arguments(data: Data, values: Mapping[str, Any]) -> Data:
    """The data with other arguments at some places, named as `Replicates.stacked` names them."""
    count = len(data.args)
    args = tuple(values.get(str(place), value) for place, value in enumerate(data.args))
    kwargs = {name: values.get(str(count + place), value) for place, (name, value) in enumerate(data.kwargs.items())}
    return replace(data, args=args, kwargs=kwargs)


def from_model(program: Program, fits: int) -> Replicates:
    """Draws of the model with nothing observed, each put in the place of what it observed. Runs inside the scope.

    Raises:
        ProgramError: the prior cannot be drawn, or the model is no generative one.
        OptionError: the guide reads an argument that the simulated values cannot be put into.
    """
    data, sites = program.data, program.model_sites
    refuse_model(program)
    try:
        with torch.no_grad(), program.at_rest(), program.explained("model"):
            drawn, wrong = drawn_from(Unobserve()(program.model), data.args, data.kwargs, fits, sites=sites)
    except ProgramError as error:
        raise ProgramError(
            f"the model cannot be drawn from its prior, so there is nothing to calibrate on: {error}\n"
            "  give simulate=, which draws parameters and data"
        ) from error
    if wrong is not None:
        raise ProgramError(f"the model cannot be drawn from its prior: {wrong}")
    seen = [site.name for site in sites if site.kind == "observed" and site.distribution not in ("Unit", "Delta")]
    for site in (*program.latents, *(site for site in sites if site.name in seen)):
        bad = ~drawn[site.name].isfinite().reshape(fits, -1).all(1) if drawn[site.name].is_floating_point() else None
        if bad is not None and bool(bad.any()):
            raise ProgramError(
                f"site {site.name!r} is not finite in {int(bad.sum()):,} of {fits:,} draws from the model: its prior "
                "is too wide for the dtype, or the model overflows; use a narrower prior or dtype=torch.float64"
            )
    places = _arguments_of(program, {name: drawn[name][0] for name in seen})
    refuse_reading_guide(program, [name for name in seen if name not in places])
    arguments = []
    values = list(data.items())
    for replicate in range(fits):
        placed = {place: drawn[name][replicate].to(values[int(place)][1].dtype) for name, place in places.items()}
        arguments.append(with_arguments(data, placed))
    refuse_reading_prior(program, {site.name: drawn[site.name][0] for site in program.latents}, arguments[0])
    truths = {name: value for name, value in drawn.items() if name not in seen}
    observed = {name: drawn[name] for name in seen if name not in places}
    return Replicates(truths, arguments, observed, "the model itself")


def _arguments_of(program: Program, drawn: Mapping[str, Tensor]) -> dict[str, str]:
    """For observed sites the argument whose value they are, by its place: another value there is observed there."""
    trace = _run(program, program.data)
    found: dict[str, str] = {}
    for name, value in drawn.items():
        ours = trace.nodes[name]["value"]
        for place, (_, given) in enumerate(program.data.items()):
            alike = isinstance(given, Tensor) and given.shape == ours.shape and str(place) not in found.values()
            if (
                not alike
                or not _same(given.to(ours.dtype), ours)
                or not _same(value.to(given.dtype).to(value.dtype), value)
            ):
                continue
            try:
                again = _run(program, with_arguments(program.data, {str(place): value.to(given.dtype)}))
            except IngleError:  # the model refuses other values there, which are then put in by a handler
                continue
            if _same(again.nodes[name]["value"].to(value.dtype), value):
                found[name] = str(place)
                break
    return found


def _run(program: Program, data: Data) -> Any:
    with torch.no_grad(), program.at_rest(), program.explained("model"):
        return poutine.trace(program.model).get_trace(*data.args, **data.kwargs)


def simulator_seed(seed: int, replicate: int) -> int:
    """What a simulator is called with for one replicate."""
    return int(np.random.SeedSequence([seed, _STREAM, replicate]).generate_state(1, np.uint32)[0])


def from_simulator(
    simulate: Callable[[int], Any], model: Callable[..., Any], fits: int, runtime: Runtime
) -> Replicates:
    """What a simulator of the user's gives at as many seeds. Runs inside the scope.

    Raises:
        DataError: it returned something else than latents and data, or numbers that are not finite.
    """
    truths: list[dict[str, Tensor]] = []
    arguments: list[Data] = []
    for replicate in range(fits):
        seed = simulator_seed(runtime.seed, replicate)
        runtime.reseed(seed)
        try:
            given = simulate(seed)
        except IngleError:
            raise
        except Exception as error:
            raise ProgramError(f"simulate({seed}) raised {type(error).__name__}: {error}") from error
        if not isinstance(given, tuple) or len(given) != 2 or not isinstance(given[0], Mapping):
            told = f"a tuple of {len(given)}" if isinstance(given, tuple) else type(given).__name__
            raise DataError(
                "simulate returns (latents, data): a mapping from names of latent sites to their true values, and the "
                f"arguments of the model as for ingle.fit; simulate({seed}) returned {told}"
            )
        latents = {name: _value(value, name, seed, runtime) for name, value in given[0].items()}
        try:
            data = check_call("model", model, read(given[1]).to(runtime.dtype, runtime.device))
        except DataError as error:
            raise DataError(f"of what simulate({seed}) gave: {error}") from error
        for name, value in data.items():
            if isinstance(value, Tensor) and value.is_floating_point() and bool(value.isinf().any()):
                raise DataError(f"simulate({seed}) gave argument {name!r} with infinite values")
        if truths and set(latents) != set(truths[0]):
            other = sorted(set(latents) ^ set(truths[0]))
            raise DataError(f"simulate({seed}) gave other latents than the first call: {', '.join(map(repr, other))}")
        truths.append(latents)
        arguments.append(data)
    for name, first in truths[0].items():
        for latents in truths:
            if latents[name].shape != first.shape:
                raise DataError(
                    f"simulate gave latent {name!r} shapes {tuple(first.shape)} and {tuple(latents[name].shape)}: "
                    "ranks compare the same quantity from data set to data set, so leave it out of the latents"
                )
    stacked = {name: torch.stack([latents[name] for latents in truths]) for name in truths[0]}
    return Replicates(stacked, arguments, {}, "the simulator given")


def _value(value: Any, name: object, seed: int, runtime: Runtime) -> Tensor:
    if not isinstance(name, str):
        raise DataError(f"simulate({seed}) gave latents by {name!r}, which is no name of a site")
    try:
        tensor = torch.as_tensor(np.asarray(value) if not isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"simulate({seed}) gave latent {name!r} as {type(value).__name__}, which is no number"
        ) from error
    kind = runtime.dtype if tensor.is_floating_point() else tensor.dtype
    tensor = tensor.detach().to(device=runtime.device, dtype=kind)
    if not bool(tensor.isfinite().all()):
        raise DataError(f"simulate({seed}) gave latent {name!r} with values that are not finite")
    return tensor


def check_truths(replicates: Replicates, program: Program) -> None:
    """Raises `DataError` where a simulator's latents are not those of the model, or all the same."""
    refuse_names(tuple(replicates.truths), program)
    shapes = {site.name: site.value_shape for site in program.model_sites}
    for name, value in replicates.truths.items():
        if tuple(value.shape[1:]) != shapes[name] and math.prod(value.shape[1:]) == 1 == math.prod(shapes[name]):
            replicates.truths[name] = value.reshape(len(value), *shapes[name])
        elif tuple(value.shape[1:]) != shapes[name]:
            raise DataError(
                f"simulate gave latent {name!r} the shape {tuple(value.shape[1:])}, and the model has {shapes[name]}"
            )
    still = all(_same(value, value[:1].expand_as(value)) for value in replicates.truths.values())
    if len(replicates) > 1 and still and replicates.why_apart() is None and not replicates.stacked():
        raise DataError(
            "simulate gave the same latents and data for every seed: draw from a generator seeded with its argument, "
            "and seed none with a number of its own"
        )


def _same(one: Tensor, other: Tensor) -> bool:
    if one is other:
        return True
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    equal = one == other
    return bool((equal | (one.isnan() & other.isnan()) if one.is_floating_point() else equal).all())


def _equal(one: Any, other: Any) -> bool:
    try:
        return one is other or bool(one == other)
    except (TypeError, ValueError, RuntimeError):
        return False

"""All replicates fitted in one run: parameters, data and noise stacked, one optimiser for all."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.guide import GuideMessenger
from torch import Tensor

from ingle.calibration.replicates import Replicates, with_arguments
from ingle.data import Data
from ingle.engine import (
    BatchDraws,
    Compile,
    CompiledFunction,
    GivenDraws,
    Noise,
    OwnDraws,
    Untraceable,
    resolve_optimisers,
)
from ingle.errors import IngleError, OptionError, ProgramError
from ingle.objectives import Choice, Estimator
from ingle.program import Observed, Program, apart, is_out_of_memory, repeat, set_guide
from ingle.progress import Progress
from ingle.runtime import Runtime, private_parameters

__all__ = ["Apart", "Batch"]

_STARTS = 20  # prior draws beside the prior median, as for a fit
_START_LOSSES = 2  # draws of the ELBO for each start
_TAIL = 4  # the last quarter of the steps is averaged
_WORTH = 10_000  # statements of the program that run eagerly in about the time that a graph takes to compile
_LOOK = 50  # steps between two moves of the bar
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}  # of losses and gradients of a replicate, together and alone


class Apart(IngleError):
    """The replicates cannot be fitted in one run, and why, in words that can follow "because"."""


class Batch:
    """R fits of one program, on data of their own.

    Each replicate has its row of a matrix of parameters, its row of noise, and its place in every argument that
    differs. `torch.vmap` takes the loss of all rows at once; the gradient of their sum has in each row what the fit
    alone would have, and an elementwise optimiser moves it as it would there.

    Args:
        program: of the first replicate, its guide not made yet.
        choice: of the objective.
        replicates: their data.
        runtime: of the fits.

    Attributes:
        flat: the parameters, unconstrained, shape (R, P).
        losses: of the steps so far, shape (steps, R).
        compiled: the steps ran as one compiled graph.

    Raises:
        Apart: they cannot be fitted together.
    """

    def __init__(self, program: Program, choice: Choice, replicates: Replicates, runtime: Runtime) -> None:
        self.program = program
        self.count = len(replicates)
        self.compiled = False
        self._runtime = runtime
        told = replicates.why_apart()
        if told is not None:
            raise Apart(told)
        self._data = replicates.data[0]
        self.given = {"data": replicates.stacked(), "observed": dict(replicates.observed)}
        starts = self._read_starts()
        self.objective = choice.prepared(program).objective
        _refuse(program, self.objective)
        self._owners = self._find_owners()
        self._count_noise(starts[0])
        self.flat = starts[0].expand(self.count, -1).clone()
        self._check()
        if len(starts) > 1:
            self.flat = self._best(starts)
        self.losses = torch.empty(0, self.count)

    def fit(self, steps: int, optim: object, compile: Compile, bar: Progress) -> None:
        """Take the steps, and leave the average of the last quarter in `flat`.

        Raises:
            OptionError: compile="full" where nothing can compile.
        """
        if not self._sizes:  # a guide that is a function of the data alone
            with torch.no_grad():
                self.losses = self._losses(self.flat, self.given, self.noise())[None]
            return
        optimisers = resolve_optimisers(optim, guide_steps=1, steps=steps)
        leaf = self.flat.clone().requires_grad_()
        differentiate = self._step(leaf, steps, compile)
        self.losses = torch.empty(steps, self.count)
        tail = torch.zeros_like(self.flat)
        averaged = max(1, steps // _TAIL)
        self._runtime.reseed()
        for step in range(steps):
            losses, gradient = differentiate(leaf, self.noise())
            leaf.grad = gradient
            optimisers.step({}, {"parameters": leaf})
            self.losses[step] = losses
            if step >= steps - averaged:
                tail += leaf.detach() / averaged
            if (step + 1) % _LOOK == 0 or step + 1 == steps:
                bar.advance(self.losses[step - step % _LOOK : step + 1].nanmean(1).tolist())
        self.flat = tail

    def noise(self) -> dict[str, Tensor]:
        """Normals and uniforms of one step, a row for each replicate."""
        return {"normals": torch.randn(self.count, self._normals), "uniforms": torch.rand(self.count, self._uniforms)}

    def alone(self, place: int, flat: Tensor, noise: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Loss and gradient of one replicate, by itself, with its row of the noise."""
        leaf = flat[place].detach().clone().requires_grad_()
        with Noise(GivenDraws(noise["normals"][place], noise["uniforms"][place])):
            loss = self._loss({"flat": leaf, **_at(place, self.given)})
        return loss.detach(), _gradient(loss, leaf)

    def together(self, flat: Tensor, noise: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Loss, shape (R,), and gradient, shape (R, P), of all replicates."""
        losses = self._losses(flat, self.given, noise)
        return losses.detach(), _gradient(losses.sum(), flat)

    def draw(self, run: Callable[[Data, Any], Any], *, truth: Mapping[str, Tensor], chunk: int) -> Any:
        """What `run` gives for each replicate at its parameters, stacked; without gradients, modules at rest.

        Args:
            run: from arguments, and from what is given by kind, "truth" among it.
            truth: shape (R, *site shape) each.
            chunk: how many replicates at a time.
        """

        def one(given: Any) -> Any:
            with self.placed(given) as arguments:
                return run(arguments, given)

        with torch.no_grad(), self.program.at_rest():
            given = {"flat": self.flat, "truth": dict(truth), **self.given}
            return repeat(one, self.count, chunk=chunk, given=given)

    @contextmanager
    def placed(self, given: Mapping[str, Any]) -> Iterator[Any]:
        """Inside, parameters and observed values are those of one replicate; gives its arguments."""
        parts = given["flat"].split(self._sizes, -1)
        leaves = {name: part.reshape(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}
        state = {"params": dict(self._state["params"]), "constraints": dict(self._state["constraints"])}
        state["params"].update({name: leaves[leaf] for name, leaf in self._in_store.items()})
        held = [(holder, name, holder[name], leaves[leaf]) for holder, name, leaf in self._owners]
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            # Under vmap a network's parameter does not say that it has a gradient; it is in the network all the same.
            warnings.filterwarnings("ignore", ".* was not registered in the param store", UserWarning)
            stack.enter_context(private_parameters(state))
            for holder, name, before, leaf in held:
                stack.callback(holder.__setitem__, name, before)
                holder[name] = leaf
            if given["observed"]:
                stack.enter_context(Observed(given["observed"]))
            yield with_arguments(self._data, given["data"])

    def _loss(self, given: Mapping[str, Any]) -> Tensor:
        with self.placed(given) as data:
            total: Any = torch.zeros(())
            for loss, surrogate in self.objective.particles(
                self.program.model, self.program.guide, *data.args, **data.kwargs
            ):
                total = total + loss + (surrogate - surrogate.detach())
        return total  # type: ignore[no-any-return]

    def _losses(self, flat: Tensor, given: Mapping[str, Any], noise: Mapping[str, Tensor]) -> Tensor:
        with Noise(BatchDraws(noise["normals"], noise["uniforms"])):
            return apart(self._loss, {"flat": flat, **given})  # type: ignore[no-any-return]

    def _read_starts(self) -> list[Tensor]:
        """Vectors of parameters that the guide may start from, the first one being its own start."""
        program, found = self.program, []
        for place in range(1 + _STARTS * program.recipe.takes_start):
            try:
                with self._runtime.trial():
                    set_guide(program, None if place == 0 else program.prior_draw(), check=place == 0)
                    if place == 0:
                        self._shapes = {name: tuple(leaf.shape) for name, leaf in program.leaves().items()}
                    found.append(self._vector())
            except ProgramError:  # a draw so far out that the program refuses it is no start
                if place == 0:
                    raise
        set_guide(program)  # once, since a module that is made anew finds the parameters of the old one in the store
        self._sizes = [leaf.numel() for leaf in program.leaves().values()]
        own = self._vector()  # networks start from numbers of their own each time
        return [own, *(start for start in found[1:] if bool(start.isfinite().all()))]

    def _vector(self) -> Tensor:
        leaves = self.program.leaves()
        if {name: tuple(leaf.shape) for name, leaf in leaves.items()} != self._shapes:
            raise Apart("its parameters are not the same from start to start")
        if any(leaf.dtype != self._runtime.dtype for leaf in leaves.values()):
            raise Apart("its parameters have different dtypes")
        return torch.cat([torch.zeros(0), *(leaf.detach().reshape(-1) for leaf in leaves.values())])

    def _find_owners(self) -> list[tuple[dict[str, Any], str, str]]:
        """Where modules hold the leaves; notes where Pyro's store does."""
        names = {id(leaf): name for name, leaf in self.program.leaves().items()}
        self._state: Any = pyro.get_param_store().get_state()
        self._in_store = {name: names[id(leaf)] for name, leaf in self._state["params"].items() if id(leaf) in names}
        parts = {id(part): part for module in self.program.modules() for part in module.modules()}
        owners: list[tuple[dict[str, Any], str, str]] = []
        for part in parts.values():
            held: dict[str, Any] = part._parameters
            owners += [(held, key, names[id(leaf)]) for key, leaf in held.items() if id(leaf) in names]
        lost = set(names.values()) - set(self._in_store.values()) - {name for *_, name in owners}
        if lost:
            raise Apart(f"parameter {min(lost)!r} is in no module and not in Pyro's store")
        return owners

    def _count_noise(self, start: Tensor) -> None:
        """How many normals and uniforms a step takes of one replicate."""
        draws = OwnDraws()
        noise = Noise(draws)
        with torch.no_grad(), noise, self.program.explained("model or guide"):
            self._loss_without_gradient({"flat": start, **_at(0, self.given)})
        if noise.left:
            raise Apart(f"the program draws by {noise.left[0]}, whose noise cannot be handed to it")
        self._normals, self._uniforms = draws.normals, draws.uniforms

    def _loss_without_gradient(self, given: Mapping[str, Any]) -> None:
        with self.placed(given) as data:
            self.objective.loss(self.program.model, self.program.guide, *data.args, **data.kwargs)

    def _check(self) -> None:
        """Two replicates at once have the losses and gradients that they have alone, or they are fitted alone."""
        noise = self.noise()
        flat = self.flat.clone().requires_grad_()
        try:
            with self._runtime.trial():
                losses, gradient = self.together(flat, noise)
        except Exception as error:  # whatever stops vmap, the loop decides whether the program itself is at fault
            if is_out_of_memory(error):
                raise Apart("there is not memory enough for all at once") from error
            told = f"{type(error).__name__}: {error}".split("\n")[0]
            raise Apart(told[:200]) from error
        for place in dict.fromkeys((0, self.count - 1)):
            loss, row = self.alone(place, flat, noise)
            near = _TOLERANCE.get(self._runtime.dtype, 0.05)
            size = float(row.abs().max(0).values) if row.numel() and bool(row.isfinite().all()) else 1.0
            same = torch.allclose(losses[place], loss, rtol=near, atol=near, equal_nan=True)
            if not same or not torch.allclose(gradient[place], row, rtol=near, atol=near * (1 + size), equal_nan=True):
                raise Apart("together the replicates have not the gradients that they have alone")

    def _best(self, starts: Sequence[Tensor]) -> Tensor:
        """For each replicate the start at which its loss is lowest."""
        total = torch.zeros(len(starts), self.count, dtype=torch.float64)
        for _ in range(_START_LOSSES):
            noise = self.noise()
            for place, start in enumerate(starts):
                with torch.no_grad():
                    total[place] += self._losses(start.expand(self.count, -1).clone(), self.given, noise)
        total = torch.where(total.isfinite(), total, torch.inf)
        return torch.stack(list(starts))[total.argmin(0)]

    def _step(self, leaf: Tensor, steps: int, compile: Compile) -> Any:
        """The function that gives losses and gradient of a step."""
        program = self.program
        statements = len(program.model_sites) + len(program.guide_sites) + len(self._sizes)
        if compile == "off" or (compile == "auto" and statements * steps < _WORTH):
            return self.together
        names = {kind: list(values) for kind, values in self.given.items()}
        inputs = [self.given[kind][name] for kind in names for name in names[kind]]

        def run(flat: Tensor, normals: Tensor, uniforms: Tensor, *tensors: Tensor) -> Tensor:
            values = iter(tensors)
            given = {kind: {name: next(values) for name in names[kind]} for kind in names}
            with torch.enable_grad():
                # A tensor of its own: autograd must not go back into what the graph is recorded from.
                at = flat.detach().requires_grad_()
                losses = self._losses(at, given, {"normals": normals, "uniforms": uniforms})
                gradient = _gradient(losses.sum(), at)
            return torch.cat([losses.detach()[:, None], gradient], 1)

        try:
            noise = self.noise()
            function = CompiledFunction(run, [leaf.detach().clone(), noise["normals"], noise["uniforms"], *inputs])
        except Untraceable as error:
            if compile == "full":
                raise OptionError(f"compile='full': the steps of all fits cannot become a graph: {error}") from error
            return self.together
        self.compiled = True

        def differentiate(flat: Tensor, noise: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            both = function(flat.detach(), noise["normals"], noise["uniforms"], *inputs)
            return both[:, 0], both[:, 1:].contiguous()

        return differentiate


def _refuse(program: Program, objective: Any) -> None:
    """Raises `Apart` where the program or its objective is not for many fits at once."""
    if isinstance(poutine.unwrap(program.guide), GuideMessenger):
        raise Apart("the guide runs the model itself")
    if program.recipe.finish is not None:
        raise Apart(f"guide {program.recipe.description} is replaced once it is trained")
    if not isinstance(objective, Estimator):
        raise Apart(f"{type(objective).__name__} is not one of the objectives of ingle")
    if objective.memory.capture():
        raise Apart(f"{type(objective).__name__} remembers something from step to step")


def _gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    if not loss.requires_grad:
        return torch.zeros_like(leaf)
    gradient = torch.autograd.grad(loss, leaf, allow_unused=True)[0]
    return torch.zeros_like(leaf) if gradient is None else gradient


def _at(place: int, given: Mapping[str, Any]) -> dict[str, Any]:
    return {kind: {name: value[place] for name, value in values.items()} for kind, values in given.items()}

"""`calibrate`: does a guide, fitted to data whose parameters are known, say of them what it should?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ingle.calibration.alone import fit_alone
from ingle.calibration.batched import Apart, Batch
from ingle.calibration.elementwise import why_not_elementwise
from ingle.calibration.measured import LOG_LIKELIHOOD, Measured, quantities_of
from ingle.calibration.refuse import ranked_sites, refuse_point_mass
from ingle.calibration.replicates import Replicates, check_truths, from_model, from_simulator
from ingle.calibration.result import Calibration, judged
from ingle.data import Data, read, resolve_batch_size
from ingle.engine import Compile, resolve_compile, resolve_optimisers
from ingle.errors import NonFiniteError, OptionError
from ingle.objectives import choose
from ingle.options import positive_integer
from ingle.program import GuideName, Program, build_program, find_modules, modules_kept, set_guide, to_support
from ingle.progress import Progress
from ingle.runtime import Runtime

__all__ = ["calibrate"]

_FEWEST = 20  # fits, below which nothing but a gross fault can show
_NUMBERS = 2**24  # of latents that are drawn together
_TIES = 1618  # a stream of its own


def calibrate(
    model: Callable[..., Any],
    guide: GuideName | Callable[..., Any] | type,
    data: Any = None,
    *,
    simulate: Callable[[int], tuple[Mapping[str, Any], Any]] | None = None,
    fits: int = 100,
    draws: int = 199,
    steps: int = 2_000,
    quantities: Callable[[dict[str, Tensor]], Mapping[str, Any]] | None = None,
    objective: Any = None,
    optim: Any = None,
    batch_size: Mapping[str, int] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    compile: Compile = "auto",
    together: bool = True,
    progress: bool | None = None,
) -> Calibration:
    """Simulation-based calibration: fit to many data sets whose parameters are known, and rank these among the draws.

    Parameters theta and data y are drawn, the guide q is fitted to each y, and the rank of theta among L draws of q is
    noted. If q is the posterior of a program that is right, every rank 0, …, L is as likely as any other.

    Where parameters and data come from the model itself, only faults of the guide and of its fit can show. Where
    `simulate` draws them, written apart from the model, a fault of the program shows too: a plate without its scale, a
    sign error in a mean.

    All fits run together, each with data, noise and start of its own, where the program and the optimiser allow it, and
    one by one where not; the card says which, and why.

    Args:
        model, guide: as for `ingle.fit`.
        data: arguments of the model, as for `ingle.fit`: covariates and sizes. What is observed in them is replaced by
            draws of the model. None where `simulate` gives the data.
        simulate: from a seed, an integer, to `(latents, data)`: the true values by name of the site, some or all of
            them, and the arguments of the model. None draws both from the model.
        fits: how many data sets, at least 20. What is off by b sds on average shows from about (4 / b)^2 fits on.
        draws: L, of each guide; ranks lie among 0, …, L.
        steps: of each fit. Together the learning rate falls to a twentieth, and the last quarter is averaged.
        quantities: from the values of one draw, {name: tensor of the site's shape}, to further quantities by name.
        objective, optim, device, dtype, compile: as for `ingle.fit`. An optimiser that does not move each number by
            itself has the fits run one by one.
        batch_size: as for `ingle.fit`; the fits then run one by one.
        seed: 0 to 2**32 - 1, of parameters, data, fits and draws.
        together: False fits one by one.
        progress: True or False; None shows a bar where standard error is a terminal.

    Returns:
        A `Calibration`: ranks, p-values, and in words what is too high or low, too narrow or too wide. Beside the
        latents it ranks deterministic sites, and the log likelihood of the data, which shows what ranks of parameters
        alone cannot: a guide that has not looked at the data.

    Raises:
        DataError, OptionError: something was handed over that cannot be used.
        ProgramError: model, guide or simulator raised, or the prior cannot be drawn.
        NonFiniteError: no fit at all came to an end.

    References:
        Talts, Betancourt, Simpson, Vehtari and Gelman (2018), Validating Bayesian Inference Algorithms with
        Simulation-Based Calibration.
        Yao, Vehtari, Simpson and Gelman (2018), Yes, but Did It Work?: Evaluating Variational Inference.
        Modrák et al. (2023), Simulation-Based Calibration Checking for Bayesian Computation: The Choice of Test
        Quantities Shapes Sensitivity.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, ingle
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> calibration = ingle.calibrate(model, "normal", torch.zeros(3), fits=20, steps=100, compile="off")
        >>> calibration.ranks["mu"].shape
        (20,)
    """
    for name, value in {"fits": fits, "draws": draws, "steps": steps}.items():
        positive_integer(name, value)
    if fits < _FEWEST:
        raise OptionError(f"fits must be {_FEWEST} or more, since fewer ranks cannot show anything; got {fits}")
    if simulate is not None and (not callable(simulate) or isinstance(simulate, type)):
        raise OptionError(f"simulate must be a callable from a seed to (latents, data), got {simulate!r}")
    if quantities is not None and not callable(quantities):
        raise OptionError(f"quantities must be a callable from draws by name to numbers by name, got {quantities!r}")
    if not isinstance(together, bool):
        raise OptionError(f"together must be True or False, got {together!r}")
    if progress is not None and not isinstance(progress, bool):
        raise OptionError(f"progress must be True, False or None, got {progress!r}")
    if data is None and simulate is None:
        raise OptionError(
            "give data, the arguments of the model, whose observed values are replaced; or simulate=, which draws them"
        )
    if data is not None and simulate is not None:
        raise OptionError("simulate gives the data of each fit, so leave out data")
    resolve_compile(compile)
    resolve_optimisers(optim, guide_steps=1, steps=steps)
    rows = resolve_batch_size(batch_size)
    arguments = None if data is None else read(data)
    runtime = Runtime.resolved(dtype, device, seed, default=None if arguments is None else arguments.device())
    run = _Run(model, guide, runtime, rows, fits=fits, draws=draws, steps=steps, objective=objective, optim=optim)
    began = time.perf_counter()
    with runtime.scope(), modules_kept(find_modules(model, guide)):
        run.simulated(arguments, simulate)
        runtime.reseed()
        with Progress(steps if together else fits, progress) as bar:
            run.fitted(compile, together, bar)
        return run.judged(quantities, began)


class _Run:
    """One calibration on its way: replicates, then draws, then ranks. Runs inside the scope."""

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Any,
        runtime: Runtime,
        rows: Mapping[str, int],
        *,
        fits: int,
        draws: int,
        steps: int,
        objective: Any,
        optim: Any,
    ) -> None:
        self.model, self.guide, self.runtime, self.rows = model, guide, runtime, rows
        self.fits, self.count, self.steps, self.objective, self.optim = fits, draws, steps, objective, optim
        self.notes: list[str] = []

    def simulated(self, arguments: Data | None, simulate: Any) -> None:
        """Draw the replicates, and build the program of the first."""
        runtime = self.runtime
        replicates: Replicates | None = None
        if simulate is not None:
            if not callable(self.model):
                raise OptionError(f"model must be a callable with Pyro statements, got {self.model!r}")
            replicates = from_simulator(simulate, self.model, self.fits, runtime)
        first = arguments.to(runtime.dtype, runtime.device) if arguments is not None else replicates.data[0]  # type: ignore[union-attr]
        runtime.reseed()
        program = build_program(self.model, self.guide, first, batch_size=self.rows, runtime=runtime)
        self.description = program.name, program.recipe.description
        with runtime.trial():
            set_guide(program)
            refuse_point_mass(program)
            if program.model_leaves.by_name:
                self.notes.append("the model has parameters of its own, which each fit moves")
            runtime.reseed()
            if replicates is None:
                replicates = from_model(program, self.fits)
        check_truths(replicates, program)
        self.program, self.replicates = program, replicates
        self.ranked = [name for name in ranked_sites(program) if name in replicates.truths]

    def fitted(self, compile: Compile, together: bool, bar: Progress) -> None:
        """Fit and draw: together where that can be, else one by one."""
        why = why_not_elementwise(self.optim)
        if not together:
            why = "as asked for"
        elif self.rows:
            why = "they take minibatches"
        if why is None:
            try:
                self._together(compile, bar)
                return
            except Apart as error:
                why = str(error)
        self.how = f"one by one: {why}"
        options = {"steps": self.steps, "objective": self.objective, "optim": self.optim, "compile": compile}
        found, truths, losses, self.told = fit_alone(
            self.model,
            self.guide,
            self.replicates,
            self.runtime,
            draws=self.count,
            bar=bar,
            options={**options, **({"batch_size": dict(self.rows)} if self.rows else {})},
        )
        good = [place for place, drawn in enumerate(found) if drawn is not None]
        kept = [drawn for drawn in found if drawn is not None]
        if not good:
            raise NonFiniteError(f"none of the {self.fits} fits came to its end: {self.told}")
        self.good = np.array(good)
        self.drawn = {name: torch.stack([drawn[name] for drawn in kept]) for name in kept[0]}
        self.truth = {name: torch.stack([truths[place][name] for place in good]) for name in truths[good[0]]}
        self.losses = np.stack([losses[place] for place in good], 1)

    def _together(self, compile: Compile, bar: Progress) -> None:
        program, runtime, replicates = self.program, self.runtime, self.replicates
        with program.explained("model or guide"):
            runtime.reseed()
            batch = Batch(program, choose(self.objective, program), replicates, runtime)
            batch.fit(self.steps, self.optim, compile, bar)
        self.how = f"in one {'compiled ' if batch.compiled else ''}run"
        self.told = "its loss or a parameter is not finite"
        measured = Measured(program)
        whole = set(measured.latents) <= set(replicates.truths)
        numbers = self.count * (1 + sum(int(np.prod(site.value_shape)) for site in program.model_sites))
        true = {name: replicates.truths[name] for name in measured.latents} if whole else {}

        def run(arguments: Data, given: Any) -> dict[str, Any]:
            found: dict[str, Any] = {"drawn": measured.draws(arguments, self.count)}
            if whole:
                found["truth"] = measured.at(arguments, given["truth"])
            return found

        runtime.reseed()
        with program.explained("model or guide"):
            found = batch.draw(run, truth=true, chunk=max(1, _NUMBERS // numbers))
        finite = batch.flat.isfinite().all(1) & batch.losses[-1].isfinite()
        for value in found["drawn"].values():
            if value.is_floating_point():
                finite &= value.isfinite().reshape(len(value), -1).all(1)
        self.good = finite.nonzero().reshape(-1).cpu().numpy()
        if not len(self.good):
            raise NonFiniteError(f"none of the {self.fits} fits came to its end: {self.told}")
        keep = torch.as_tensor(self.good)
        self.drawn = {name: value[keep] for name, value in found["drawn"].items()}
        self.truth = {name: value[keep] for name, value in found.get("truth", {}).items()}
        self.losses = batch.losses[:, keep].cpu().numpy().astype(np.float64)

    def judged(self, quantities: Any, began: float) -> Calibration:
        """Ranks of the truth among the draws, and what they say."""
        keep = torch.as_tensor(self.good)
        true = {name: value[keep] for name, value in self.replicates.truths.items()} | self.truth
        names = [*self.ranked, *(name for name in self.truth if name not in self.ranked)]
        drawn = {name: self.drawn[name] for name in names}
        if quantities is not None:
            drawn, true, further = self._with_quantities(quantities, drawn, true)
            names += further
        return judged(
            {name: drawn[name] for name in names},
            {name: true[name] for name in names},
            to_the_line=_to_the_line(self.program),
            seed=int(np.random.SeedSequence([self.runtime.seed, _TIES]).generate_state(1, np.uint32)[0]),
            draws=self.count,
            about={
                "model": self.description[0],
                "guide": self.description[1],
                "source": self.replicates.source,
                "how": self.how,
                "fits": self.fits,
                "failed": tuple(sorted(set(range(self.fits)) - set(self.good.tolist()))),
                "told": self.told,
                "steps": self.steps,
                "seed": self.runtime.seed,
                "losses": self.losses,
                "notes": tuple(self.notes),
                "seconds": time.perf_counter() - began,
            },
        )

    def _with_quantities(
        self, quantities: Any, drawn: dict[str, Tensor], true: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
        latents = [name for name in drawn if name != LOG_LIKELIHOOD]
        flat = {name: drawn[name].flatten(0, 1) for name in latents}
        ours = quantities_of(quantities, {name: true[name] for name in latents})
        theirs = quantities_of(quantities, flat)
        taken = sorted(set(ours) & set(drawn))
        if taken:
            raise OptionError(
                f"quantities gives {', '.join(map(repr, taken))}, which is ranked already: name it otherwise"
            )
        fits = len(self.good)
        drawn |= {name: value.unflatten(0, (fits, self.count)) for name, value in theirs.items()}
        return drawn, true | ours, list(ours)


def _to_the_line(program: Program) -> dict[str, Any]:
    """By latent the map from its support to unbounded numbers, for those that are mapped number by number."""
    with torch.no_grad(), program.probe, program.explained("model"):
        trace = program.trace_model({})
    found = {}
    for site in program.latents:
        try:
            transform: Any = to_support(trace.nodes[site.name]["fn"])
        except NotImplementedError:
            continue
        inner = transform
        while isinstance(inner, torch.distributions.transforms.IndependentTransform):
            inner = inner.base_transform
        if transform.bijective and inner.domain.event_dim == inner.codomain.event_dim == 0:
            found[site.name] = transform.inv
    return found

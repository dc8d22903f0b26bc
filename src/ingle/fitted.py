"""`Fit`: a fitted guide, and the ways on from it. It only delegates."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ingle import results, saved
from ingle.data import read
from ingle.engine import Compile
from ingle.errors import IngleError, IngleWarning, OptionError, warn
from ingle.evidence import Chunk, ElboGap, Evidence, ProposalName, estimate, gap_of
from ingle.options import boolean, positive_integer
from ingle.program import Program, check_call
from ingle.results import GroupName
from ingle.runtime import Runtime, resolve_seed
from ingle.training import Stopped, Training
from ingle.trust import Course, GradientReport, Verdict, judge, placed, report_on

__all__ = ["Fit", "carry_on"]


@dataclass(frozen=True, repr=False, eq=False)
class Fit:
    """A fitted guide: what came out, why it stopped, and the ways on from here.

    Attributes:
        losses: the loss (negative ELBO) of each step, in nats, float64, shape (steps,).
        stopped: "steps" (all that were asked for), "settled" (by itself), "budget" (the most that a fit takes by
            itself), "interrupted" (Ctrl-C) or "failed" (found on the error that says why).
        reason: the same in words.
        steps: how many were taken.
        seconds: of wall-clock time that the steps took.
        model: as it was given.
        guide: the trained guide; call it inside `with fit.active():`.
        objective, objective_reason, optimiser, engine, dtype, device, seed: what ran.
        start: where the guide was started, and how that was found.
        notes: what else should be known, for the card.
    """

    losses: NDArray[np.float64]
    stopped: Stopped
    reason: str
    steps: int
    seconds: float
    model: Callable[..., Any]
    guide: Callable[..., Any]
    objective: str
    objective_reason: str
    optimiser: str
    engine: str
    dtype: torch.dtype
    device: torch.device
    seed: int
    start: str
    notes: tuple[str, ...]
    _program: Program = field(repr=False)
    _runtime: Runtime = field(repr=False)
    _training: Training | None = field(repr=False, default=None)
    _content: Mapping[str, Any] | None = field(repr=False, default=None)  # of the file that it was loaded from
    _kept: dict[str, Verdict] = field(repr=False, default_factory=dict)  # once it was asked for

    @property
    def params(self) -> dict[str, Tensor]:
        """The trained parameters by name, constrained, detached copies: of a fit that settled, averages over steps."""
        self._warn_of_newer()
        with self._runtime.numerics():
            return self._program.parameters()

    @property
    def last(self) -> dict[str, Tensor]:
        """The parameters after the last step, as in `params`, whatever average the fit ended with."""
        state = (self._content or {})["values"] if self._training is None else self._training.state.values
        with self._runtime.numerics(), placed(self._program, state["leaves"]):
            return self._program.parameters()

    @property
    def elbo(self) -> tuple[float, float, int]:
        """Mean ELBO of the last steps in nats, its standard error, and how many steps: a tenth, at least 100.

        NaN, NaN and 0 where no step was taken.
        """
        tail = self.losses[-max(len(self.losses) // 10, 100) :]
        if not len(tail):
            return math.nan, math.nan, 0
        se = float(tail.std(ddof=1)) / math.sqrt(len(tail)) if len(tail) > 1 else math.nan
        return -float(tail.mean()), se, len(tail)

    @property
    def verdict(self) -> Verdict:
        """Whether this fit can be believed, why, and what to try next; made when first asked for, and then kept.

        It costs some hundreds of evaluations of the model, many points at a time, and moves nothing of the fit.
        """
        if "verdict" not in self._kept:
            with self._seeded(None) as runtime:
                steady, objective = (None, None) if self._training is None else self._training.evidence()
                course = Course(self.losses, self.stopped, steady, objective)
                self._kept["verdict"] = judge(self._program, runtime, course)
        return self._kept["verdict"]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, Pyro's parameter store, default dtype and device are those of the fit.

        Any function of the user's then sees the fitted parameters; outside, everything is as it was. The random
        state is the user's, inside as outside. What is done to the store inside is forgotten on the way out.
        """
        with self._runtime.numerics(forget=True):
            yield

    def resume(self, steps: int | None = None) -> Fit:
        """Go on from the last step of the fit: after all its steps, once it settled, Ctrl-C, or an error's `fit`.

        With a learning rate of the user's, `fit(…, steps=100).resume(100)` has the bits of `fit(…, steps=200)` on the
        CPU. A learning rate of Ingle's keeps to its plan: after the steps that were asked for it stays at its last
        value, until `resume()` begins anew with the first. A checkpoint goes on being written.

        The parameters are trained on in place, so this `Fit` sees them too: its draws change, with a warning, while
        its losses stay. Resuming or saving this one again goes on from the newest step.

        Args:
            steps: how many more, the last of them the result. None goes on until the fit settles.

        Returns:
            A `Fit` with the losses of all steps.

        Raises:
            OptionError: steps below 1; or the fit was loaded, so that its objective and optimiser are not known.
            ProgramError, NonFiniteError, FileError: as from `fit`.
        """
        if steps is not None:
            steps = positive_integer("steps", steps)
        training = self._training
        if training is None:
            raise OptionError(
                "this fit was loaded, and its objective and optimiser are not in the file, since they are functions: "
                "call ingle.fit with them and with checkpoint= the path of the file, which goes on from it"
            )
        with self._runtime.scope():
            training.go_back()
            total = None if steps is None else len(training.losses) + steps
            return carry_on(self.model, training, lambda: training.go(total))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fit to a file, at once: whatever happens, the file is whole, the old one or the new.

        It holds numbers, strings and tensors; `ingle.load` gives the fit back, and `ingle.fit(…, checkpoint=path)`
        goes on with it. Model, guide and data are not in it.

        Raises:
            OptionError: the optimiser holds what a file cannot hold.
            FileError: the file cannot be written.
        """
        target = saved.resolve_path("path", path)
        if self._training is None:
            saved.write(target, {**(self._content or {}), **self._told()})
            return
        with self._runtime.numerics():
            content = self._training.content(self._training.stopped) | self._told()
        stamp = saved.write(target, content)
        if self._training.checkpoint is not None:
            self._training.checkpoint.wrote(target, stamp)

    def draws(
        self, n: int = 1_000, *, discrete: bool = False, weighted: bool = False, seed: int | None = None
    ) -> dict[str, Tensor]:
        """Independent draws from the guide, by site, deterministic sites of the model included.

        Args:
            n: number of draws.
            discrete: also draw the latents that were summed out, from their exact posterior given the others,
                and give the deterministic sites that depend on them.
            weighted: resample them by smoothed importance weights, so that they stand for the posterior and not for
                the guide; some then come more than once. A warning says where the weights cannot do it.
            seed: of the draws; None gives the same draws at every call.

        Returns:
            For each site a tensor of shape (n, *site shape), in the dtype and on the device of the fit, with all
            rows of every plate. Modules run in evaluation mode: no dropout, running statistics as they are. Draws go
            through the program together, so that its own Python (a counter, a generator of numpy's) runs once for many.

        Raises:
            OptionError: n below 1, or more draws than memory can hold; weights of a guide that has none.
        """
        positive_integer("n", n)
        boolean("discrete", discrete)
        boolean("weighted", weighted)
        with self._scope(seed):
            drawn = results.weighted_draws(self._program, n) if weighted else None
            return results.posterior(self._program, n, discrete_too=discrete, drawn=drawn)

    def _told(self) -> dict[str, Any]:
        """The verdict as a file holds it, where it is known and of the newest step."""
        known = "verdict" in self._kept and not self._newer
        return {"verdict": saved.plain(self._kept["verdict"].to_file(), "the verdict")} if known else {}

    @property
    def _own_verdict(self) -> Verdict | None:
        """The verdict; None where it was not asked for before the fit was gone on with."""
        return self.verdict if "verdict" in self._kept or not self._newer else None

    @property
    def _newer(self) -> bool:
        return self._training is not None and len(self._training.losses) != self.steps

    def _warn_of_newer(self) -> None:
        if self._newer and self._training is not None:
            newest = len(self._training.losses)
            warn(
                f"this fit was gone on with to {newest:,} steps, and its parameters are those now; use the Fit that "
                "resume returned",
                IngleWarning,
            )

    def _scope(self, seed: int | None) -> AbstractContextManager[None]:
        self._warn_of_newer()
        return self._runtime.scope(None if seed is None else resolve_seed(seed))

    @contextmanager
    def _seeded(self, seed: int | None) -> Iterator[Runtime]:
        with self._scope(seed):
            yield self._runtime if seed is None else replace(self._runtime, seed=resolve_seed(seed))

    def predict(
        self, data: Any = None, n: int = 1_000, new: str | Collection[str] = (), *, seed: int | None = None
    ) -> dict[str, Tensor]:
        """Draws of every site of the model with nothing observed, at draws of the fitted latents.

        Args:
            data: arguments of the model, as for `ingle.fit`: other covariates, or new rows. None for those of the
                fit. What the model observes need not be there if the model has a default for it, and is not used
                but by a guide that encodes it.
            n: number of draws.
            new: names of plates whose rows are new. Each latent inside comes from the guide where that is
                amortised, a function of the row's data without a parameter of its own for each row, and from the
                model given the other latents otherwise. Latents elsewhere keep their posterior, so rows that are
                new but as many, and not named here, are taken for the old ones.
            seed: of the draws; None gives the same draws at every call.

        Returns:
            For each site, latent, deterministic and observed, a tensor as from `draws`.

        Raises:
            DataError: the data do not fit the call of the model.
            OptionError: n below 1 or more than memory can hold, a plate of another size that `new` does not name,
                names that are no plates, or a guide that does not follow the new rows.
            ProgramError: model or guide raised on the data.
        """
        positive_integer("n", n)
        plates = results.resolve_new(new)
        arguments = None if data is None else check_call("model", self.model, read(data)).to(self.dtype, self.device)
        with self._scope(seed):
            return results.predict(self._program, arguments, n, new=plates)

    def log_evidence(
        self,
        num_samples: int = 10_000,
        *,
        per: str | None = None,
        proposal: ProposalName = "guide",
        defensive: float = 0.0,
        given: Mapping[str, Any] | None = None,
        chunk: Chunk = "auto",
        seed: int | None = None,
    ) -> Evidence:
        """Estimate log p(x) at the fitted parameters, and say how far to trust it.

        All rows of every plate are used, also after a fit in minibatches.

        Args:
            num_samples, per, proposal, defensive, given, chunk: as for `ingle.log_evidence`.
            seed: of the draws; None gives the same estimate at every call.

        Raises:
            OptionError, ProgramError: as there.
        """
        with self._seeded(seed) as runtime:
            return estimate(
                self._program,
                runtime,
                num_samples=num_samples,
                per=per,
                proposal=proposal,
                defensive=defensive,
                given=given,
                chunk=chunk,
            )

    def elbo_gap(
        self, num_samples: int = 10_000, *, per: str | None = None, refine: int | None = None, seed: int | None = None
    ) -> ElboGap:
        """What the ELBO lacks to log p(x), and how much of it an encoder lost: as `ingle.elbo_gap`."""
        with self._seeded(seed) as runtime:
            return gap_of(self._program, runtime, num_samples=num_samples, per=per, refine=refine)

    def to_arviz(
        self,
        draws: int = 1_000,
        *,
        coords: Mapping[str, Sequence[Any]] | None = None,
        dims: Mapping[str, Sequence[str]] | None = None,
        groups: Collection[GroupName] | None = None,
        weighted: bool = False,
        seed: int | None = None,
    ) -> Any:
        """The fit as ArviZ holds it: one chain of `draws` draws, and the data.

        Groups:
            posterior: latents from the guide, latents that were summed out from their exact posterior, and for
                each of those `name_prob`, the posterior probability of its values; deterministic sites.
            posterior_predictive: observed sites drawn anew given the same draws.
            prior, prior_predictive: the same sites with nothing observed, parameters as fitted. Left out where a
                prior cannot be drawn; the attribute `no_prior` then says why.
            log_likelihood: of each datum given the draw, in nats, summed-out latents summed out, without the N/B scale
                of a plate; of all data that such latents tie together, whose sites are named "x+y". 0 where masked.
            sample_stats: `log_p` (model and data), `log_q` (guide) and `log_weight`, their difference, in nats. The
                attribute `no_log_weight` says why where there are none: a point mass, or auxiliary sites of the guide.
            observed_data, constant_data: values of observed sites, NaN where a mask hides one, and the other
                arguments that are tensors.

        Args:
            draws: number of draws.
            coords, dims: labels for a dimension, which has its plate's name; and names in place of those found.
            groups: the groups to make, in place of all; the predictive ones can be large.
            weighted: resample the draws by smoothed importance weights, so that they stand for the posterior and
                not for the guide; `khat` and `ess` among the attributes, and a warning, say how well.
            seed: of the draws; None gives the same draws at every call.

        Returns:
            `arviz.InferenceData` with ArviZ 0.23, `xarray.DataTree` with 1.x. Attributes of every group tell
            versions, objective, steps, why the fit stopped, the seed, and the verdict with its reasons and figures.

        Raises:
            OptionError: draws below 1 or more than memory can hold, labels of another length, names that are not
                there, weights of a guide that is a point mass.

        Warns:
            IngleWarning: the log likelihood is given a latent of each datum's own, which voids leave-one-out
                (`az.loo`), or counts masked data; or weights are too uneven to be trusted.

        References:
            Vehtari et al. (2024), Pareto Smoothed Importance Sampling (`weighted`).
        """
        positive_integer("draws", draws)
        boolean("weighted", weighted)
        chosen = results.resolve_groups(groups)
        with self._scope(seed):
            found, told = results.collect(self._program, draws, groups=chosen, weighted=weighted)
        attributes = {**results.attributes(self, self._program, self._own_verdict), **told}
        return results.to_arviz(found, coords=coords, dims=dims, attributes=attributes)

    def summary(self, draws: int = 1_000, *, seed: int | None = None) -> Any:
        """Mean, sd and interval of every latent and deterministic site, as a DataFrame made by ArviZ."""
        positive_integer("draws", draws)
        with self._scope(seed):
            found, _ = results.collect(self._program, draws, groups=["posterior"], weighted=False)
        return results.summary(results.to_arviz(found, coords=None, dims=None, attributes={}))

    def gradient_report(
        self, objectives: Any, num_samples: int = 1_000, *, compile: Compile = "auto", seed: int | None = None
    ) -> GradientReport:
        """Gradients of several objectives at the parameters of this fit, side by side; see `ingle.gradient_report`.

        Args:
            objectives, num_samples, compile: as there.
            seed: of the draws; None gives the same report at every call.

        Raises:
            OptionError, ProgramError: as there.
        """
        with self._seeded(seed) as runtime:
            return report_on(self._program, runtime, objectives, num_samples, compile=compile)

    def __repr__(self) -> str:
        return results.card(self, self._program, self._own_verdict)


def carry_on(model: Callable[..., Any], training: Training, work: Callable[[], None]) -> Fit:
    """Do some work of `training`, inside a scope of its runtime; an error has the fit up to then."""
    try:
        work()
    except IngleError as error:
        error.fit = _result(model, training)
        error.step = error.fit.steps if error.step is None else error.step
        raise
    return _result(model, training)


def _result(model: Callable[..., Any], training: Training) -> Fit:
    return Fit(
        **training.outcome(), model=model, _program=training.program, _runtime=training.runtime, _training=training
    )

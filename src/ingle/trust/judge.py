"""`judge`: the evidence on a fit, gathered in turn, and what it amounts to.

What each number is for, and why it is what it is:

- Means are to be within 0.3 posterior sd and sds within 30%: then intervals cover nearly what they say. `_MEAN`, `_SD`.
- A shift counts once it lies beyond that by its own standard error (`_CLEAR` = 1): with errors of 0.02 to 0.05 the band
  in which chance decides is narrow, and the largest of 50 shifts that are all 0.1 stays well below 0.3.
- Far off is 1 sd, or half or twice the sd (`_FAR_MEAN`, `_FAR_SD`), beyond two standard errors: failed, not doubtful.
- A shift whose error is above 0.15 (`_NOISY`) and which with two errors reaches the limit is not known: doubtful.
- Weights of normal guides have k = 1 - (guide sd / posterior sd)^2 in the limit, so that an sd 30% too small has k of
  0.5: at 0.5 (`_KHAT`), not at 0.7, is where the corrected sd begins to lag behind the posterior's. Above it chains are
  asked. Below, weights still make shifts too small where the tail is not light (by a third at k of 0.4), so that from
  0.2 (`_KHAT_SURE`) on chains are asked too where a shift is more than half its limit. Above 0.7 (`_KHAT_MOST`)
  weights are asked no more, even where there are no chains.
- Chains are believed once ends and beginnings have a correlation of at most 0.35 over 256 chains (`_HELD`: chance gives
  0.06, and 0.2 for the largest of a thousand), since a shift seen by chains that keep a third of their way is two
  thirds of the true one at the least; and once their halves differ by no more than 0.15 sd beyond chance (`_DRIFT`).
- Of many rows with latents of their own, up to 5% may be off (`_ROWS`), as a few hundred rows always have some.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ingle.errors import IngleError, OptionError
from ingle.evidence import (
    Elements,
    Sampler,
    Space,
    Survey,
    drawn_by_guide,
    from_guide,
    khat_threshold,
    point_masses,
    psis,
    refuse_shared,
    resolve_per,
    why_no_evidence,
    why_no_weights,
)
from ingle.program import Program
from ingle.runtime import Runtime
from ingle.trust.chains import run_chains
from ingle.trust.log_joint import Refused
from ingle.trust.modes import Mode, find_modes, smoothed_mean
from ingle.trust.plateau import trend
from ingle.trust.shift import Shifts, by_chains, by_weights
from ingle.trust.stop import Steady
from ingle.trust.verdict import Status, Verdict, Worst

__all__ = ["Course", "judge"]

_MEAN, _SD = 0.3, 0.3
_CLEAR = 1.0
_FAR_MEAN, _FAR_SD = 1.0, 2.0
_NOISY = 0.15
_KHAT, _KHAT_SURE, _KHAT_MOST = 0.5, 0.2, 0.7
_FEWEST = 200  # effective draws, below which an sd is not known to 5%
_HELD, _DRIFT, _ACCEPTED = 0.35, 0.15, 0.4
_ROWS, _MANY_ROWS = 0.05, 40

_DRAWS = (400, 4_000)  # of the guide
_NUMBERS = 2**23  # of latents in all draws
_WRITTEN = 2**31  # bytes that all draws may write
_CHAINS = (64, 256)
_CHEAP = 2**24  # bytes that all chains write at a step, up to which more of them cost little
_POINTS = 2**18  # numbers of all chains
_GRADIENTS = (80, 240)  # of all chains at once; a twentieth of the steps in between
_LOOK = 77  # a stream of random numbers of its own


@dataclass(frozen=True)
class Course:
    """How a fit went.

    Attributes:
        losses: of its steps, in nats.
        stopped: why it stopped, as `Fit.stopped`.
        steady: how settled the parameters were, where that is known.
        guide: what its guide is called: a name, or a description.
    """

    losses: NDArray[np.float64]
    stopped: str
    steady: Steady | None


@dataclass
class _Case:
    """What speaks against a fit, and what is known of it."""

    status: Status = "ok"
    reasons: list[tuple[int, str]] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    not_looked: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def against(self, status: Status, reason: str, advice: str | None = None) -> None:
        if status == "failed" or self.status == "ok":
            self.status = status
        self.reasons.append((0 if status == "failed" else 1, reason))
        if advice is not None and advice not in self.advice:
            self.advice.append(advice)

    def unseen(self, what: str, *, doubtful: bool) -> None:
        self.not_looked.append(what)
        if doubtful:
            self.against("doubtful", f"not looked at: {what}")
        else:
            self.reasons.append((2, f"not looked at: {what}"))

    def verdict(self, good: str) -> Verdict:
        reasons = [told for _, told in sorted(self.reasons, key=lambda each: each[0])]
        if self.status == "ok":
            reasons.insert(0, good)
        return Verdict(
            self.status, tuple(reasons), tuple(self.advice), not_looked=tuple(self.not_looked), **self.figures
        )


def judge(program: Program, runtime: Runtime, course: Course) -> Verdict:
    """The verdict on a fit, inside a scope of its runtime; nothing of the fit is moved.

    Args:
        program: with its fitted parameters.
        runtime: of the fit.
        course: how it went.
    """
    case = _Case()
    with runtime.trial(), program.at_rest():
        unsettled = _settling(case, course, program)
        looked = False
        try:
            with torch.no_grad():
                looked = _Look(program, runtime, case, course, unsettled).done()
        except Exception as error:  # the program is the user's, and may raise anything: that ends a look, not a card
            case.unseen(f"means and sds: {type(error).__name__}: {error}".split("\n")[0], doubtful=True)
    good = "means, sds and modes are as they should be" if case.figures.get("paths") else "means and sds hold"
    return case.verdict(good if looked else "the steps have settled")


class _Look:
    """A look at the draws of a guide, by weights, by chains, and beyond."""

    def __init__(self, program: Program, runtime: Runtime, case: _Case, course: Course, unsettled: str | None) -> None:
        self.program, self.runtime, self.case, self.course = program, runtime, case, course
        self.unsettled = unsettled
        self.sites = [
            site for site in program.latents if site.name not in program.enumerated and not program.partial(site)
        ]
        self.kind = _kind(program)

    def done(self) -> bool:
        """Whether means and sds were compared."""
        case, program = self.case, self.program
        if not self.sites:
            case.reasons.append((2, "the guide draws nothing: there is no posterior to compare with"))
            return False
        masses = point_masses(program)
        if masses:
            case.against(
                "doubtful",
                f"a point mass claims no uncertainty of {', '.join(masses[:3])}{', …' if len(masses) > 3 else ''}: its "
                "sds are not the posterior's",
                'fit "normal", or "laplace" for the curvature at the mode',
            )
            return False
        why = why_no_evidence(program)
        if why is not None:
            case.unseen(f"means and sds: {why}", doubtful=True)
            return False
        self._draw()
        believed = self._weigh()
        shifts = self.weighed
        if not believed:
            moved = self._move()
            shifts = moved if moved is not None else shifts
        if shifts is not None:
            self._compare(shifts, believed=believed)
        self._modes()
        return shifts is not None

    def _draw(self) -> None:
        program, runtime = self.program, self.runtime
        elements = self._elements()
        self.sampler = Sampler(program, runtime, elements, {}, None)
        self.survey = Survey(self.sampler)
        self.proposal = from_guide(program, elements, {}, self.survey.masks)
        numbers = sum(math.prod(site.value_shape) for site in self.sites)
        values, n = self.sampler.first(self.proposal)
        self.sampler.log_p(values, n)  # which tells what one run writes
        written = max(1, self.sampler.written)
        n = max(_DRAWS[0], min(_DRAWS[1], _NUMBERS // max(1, numbers), _WRITTEN // written))
        parts = list(self.sampler.blocks(self.proposal, n, stream=_LOOK))
        self.values = {name: torch.cat([drawn[name] for drawn, _ in parts]) for name in self.proposal.latents}
        self.log_q = torch.cat([log_q for _, log_q in parts])
        self.n = n
        self.case.figures["num_samples"] = n

    def _elements(self) -> Elements:
        """Weights by row, where every latent is of single rows that share nothing."""
        common = set.intersection(*({plate.name for plate in site.plates} for site in self.sites))
        sizes = {plate.name: plate.full_size for plate in self.sites[0].plates if plate.name in common}
        for name in sorted(sizes, key=lambda name: -sizes[name]):
            try:
                elements = resolve_per(name, self.program, (), drawn_by_guide(self.program))
                sampler = Sampler(self.program, self.runtime, elements, {}, None)
                survey = Survey(sampler)
                refuse_shared(sampler, from_guide(self.program, elements, {}, survey.masks))
            except OptionError:
                continue
            self.case.figures["per"] = name
            return elements
        return Elements()

    def _weigh(self) -> bool:
        """Shifts by weights, and whether these are to be believed without more ado."""
        self.weighed: Shifts | None = None
        self.log_mass = math.nan
        why = why_no_weights(self.program)
        if why is not None:
            self.case.not_looked.append(f"importance weights: {why}")
            return False
        log_p = self.sampler.log_p(self.values, self.n)
        log_weights = log_p - self.log_q
        bad = ~log_weights.isfinite()
        share = float(bad.double().mean())
        if share > 0.01:
            self.case.against(
                "doubtful" if share < 0.5 else "failed",
                f"the model has no density at {share:.0%} of the guide's draws (a support that is cut, or overflow)",
                "run ingle.check(model, guide, data)",
            )
        log_weights = log_weights.masked_fill(bad, -math.inf)
        if bool((log_weights == -math.inf).all(0).any()):
            return False
        whole = log_weights.flatten(1).sum(1) if log_weights.dim() > 1 else log_weights
        whole = whole[whole.isfinite()]
        self.case.figures |= {
            "elbo": float(whole.mean()),
            "elbo_se": float(whole.std()) / math.sqrt(max(1, len(whole))),
        }
        smoothed, khat = psis(log_weights)
        ess = 1 / smoothed.exp().square().sum(0)
        flat = ess > 0.99 * self.n  # all weights alike: there is no tail to have a shape
        khat = torch.where(flat, khat.nan_to_num(posinf=0.0).clamp(max=0.0), khat)
        self.log_mass = smoothed_mean(whole) if len(whole) > 50 else math.nan
        self.weighed = by_weights(self.sites, self.sampler.elements, self.values, smoothed)
        limit = min(_KHAT, khat_threshold(self.n))
        self.case.figures |= {
            "khat": float(khat.median()),
            "khat_threshold": limit,
            "ess": float(ess.median()),
        }
        near = torch.from_numpy(_near(self.weighed, elements_of=khat.numel())).to(khat.device).reshape(khat.shape)
        good = (khat < limit) & (ess > _FEWEST) & ((khat < _KHAT_SURE) | ~near)
        self.khat, self.believed_rows = khat.reshape(-1).cpu().numpy(), good.reshape(-1).cpu().numpy()
        return float(good.double().mean()) >= (1.0 if good.dim() == 0 else 1.0 - _ROWS / 2)

    def _move(self) -> Shifts | None:
        """Shifts by chains, where these can run."""
        case, elements = self.case, self.sampler.elements
        discrete = [site.name for site in self.sites if site.discrete]
        if discrete:
            case.not_looked.append(f"chains: {', '.join(discrete)} cannot be moved, being discrete")
            return None
        if self.sampler.alone is not None:
            case.not_looked.append(f"chains: points go through the model one by one ({self.sampler.alone})")
            return None
        try:
            names = [site.name for site in self.sites]
            space = Space(self.sampler, names, *self.sampler.first(self.proposal))
            points = space.size * math.prod(elements.shape)
            fewest = max(_CHAINS[0], min(_CHAINS[1], 2 * space.size + 28))  # the metric needs as many
            cheap = max(fewest, _CHEAP // max(1, self.sampler.written))
            chains = max(_CHAINS[0], min(_CHAINS[1], self.n, _POINTS // points, cheap))
            began = {name: value[:chains] for name, value in self.values.items()}
            starts = space.points(began, chains)
            most = max(_GRADIENTS[0], min(_GRADIENTS[1], len(self.course.losses) // 20))
            self.runtime.reseed(int(np.random.SeedSequence([self.runtime.seed, _LOOK]).generate_state(1)[0]))
            found = run_chains(self.sampler, space, starts, most)
        except (IngleError, RuntimeError, NotImplementedError, ValueError) as error:
            case.not_looked.append(f"chains: {type(error).__name__}: {error}".split("\n")[0])
            return None
        case.figures["evaluations"] = case.figures.get("evaluations", 0) + found.evaluations
        shifts = by_chains(self.sites, elements, self.values, found.values, began)
        held = float(np.abs(shifts.held).max())
        chance = math.sqrt(2 * math.log(len(shifts))) + 1 if len(shifts) > 1 else 2.0
        drift = float((np.abs(shifts.drift) - chance * shifts.drift_se).max())
        self.still = (
            f"they came through {'too few trajectories' if not found.finished else 'few that were accepted'}"
            if not found.finished or found.accepted < _ACCEPTED
            else f"ends and beginnings still have a correlation of {held:.2f}"
            if held > _HELD
            else f"their halves are {drift:.2f} sd apart"
            if drift > _DRIFT
            else ""
        )
        return shifts

    def _compare(self, shifts: Shifts, *, believed: bool) -> None:
        """What shifts say."""
        case = self.case
        case.figures |= {"comparison": shifts.by, "_shifts": shifts}
        mean_off, sd_off = np.abs(shifts.shift), np.abs(shifts.ratio - 1.0)
        clear_mean = mean_off - _CLEAR * shifts.shift_se > _MEAN
        clear_sd = sd_off - _CLEAR * shifts.ratio_se > _SD
        off = clear_mean | clear_sd
        far = (mean_off - 2 * shifts.shift_se > _FAR_MEAN) | (
            np.abs(np.log(np.maximum(shifts.ratio, 1e-12))) - 2 * shifts.ratio_se / np.maximum(shifts.ratio, 1e-12)
            > math.log(_FAR_SD)
        )
        worst_mean = int((mean_off - _CLEAR * shifts.shift_se).argmax())
        worst_sd = int((np.abs(np.log(np.maximum(shifts.ratio, 1e-12))) - shifts.ratio_se).argmax())
        case.figures |= {
            "shift_mean": _worst(shifts, worst_mean, shifts.shift, shifts.shift_se),
            "shift_sd": _worst(shifts, worst_sd, shifts.ratio, shifts.ratio_se),
        }
        rows = int(shifts.row.max()) + 1
        many = rows >= _MANY_ROWS
        allowed = _ROWS if many else 0.0
        share_off, share_far = (_of_rows(each, shifts.row, rows) if many else each.mean() for each in (off, far))
        case.figures["share"] = 1.0 - float(share_off)
        if share_off > allowed:
            self._told(shifts, clear_mean, clear_sd, far_off=bool(share_far > (0.5 if many else 0.0)), rows=rows)
            return
        noisy = ((shifts.shift_se > _NOISY) & (mean_off + 2 * shifts.shift_se > _MEAN)) | (
            (shifts.ratio_se > _NOISY) & (sd_off + 2 * shifts.ratio_se > _SD)
        )
        if shifts.by == "chains":
            if self.still:
                case.against(
                    "doubtful",
                    "the posterior could not be reached: chains from the guide's draws are still moving "
                    f"({self.still})",
                    self._wider(),
                )
        elif not believed and not np.all(self.khat[self.khat == self.khat] < _KHAT_MOST):
            case.against(
                "doubtful",
                f"weights cannot say how far off the guide is (k-hat {case.figures['khat']:.2f}), and chains could "
                "not be run",
                self._wider(),
            )
        elif (_of_rows(noisy, shifts.row, rows) if many else noisy.mean()) > allowed:
            case.against("doubtful", "means and sds of the posterior are not known well enough to compare with")

    def _told(
        self, shifts: Shifts, mean: NDArray[np.bool_], sd: NDArray[np.bool_], *, far_off: bool, rows: int
    ) -> None:
        case = self.case
        status: Status = "failed" if far_off else "doubtful"
        told = []
        if sd.any():
            score = np.where(sd, np.abs(np.log(np.maximum(shifts.ratio, 1e-12))), -1.0)
            place = int(score.argmax())
            value, se = shifts.ratio[place], shifts.ratio_se[place]
            if value < 1:
                words = f"{1 - value:.0%} ± {max(se, 0.005):.0%} too small".replace("% ±", " ±")
            elif value < 2:
                words = f"{value - 1:.0%} ± {max(se, 0.005):.0%} too large".replace("% ±", " ±")
            else:
                words = f"{value:.1f} ± {max(se, 0.05):.1f} times too large"
            told.append(f"the sd of {shifts.name(place)!r} is {words}{_others(int(sd.sum()), len(sd))}")
        if mean.any():
            place = int(np.where(mean, np.abs(shifts.shift), -1.0).argmax())
            side = "high" if shifts.shift[place] > 0 else "low"
            told.append(
                f"the mean of {shifts.name(place)!r} is {abs(shifts.shift[place]):.2f} ± "
                f"{max(shifts.shift_se[place], 0.005):.2f} sd too {side}{_others(int(mean.sum()), len(mean))}"
            )
        if rows >= _MANY_ROWS:
            told[0] = f"{1 - case.figures['share']:.0%} of the rows are off: at the worst {told[0]}"
        small = bool(sd.any()) and bool((shifts.ratio[sd] < 1).mean() > 0.5)
        for each in told:
            case.against(status, each)
        if self.unsettled is not None:
            case.advice.append(self.unsettled)
        elif self.course.stopped == "settled" or (small and not mean.any()):
            case.advice.append(self._wider())
        else:
            case.advice += [self._steps(), self._wider()]

    def _modes(self) -> None:
        case = self.case
        if math.isnan(self.log_mass):
            case.unseen("missed modes: the mass that the guide reaches is not known", doubtful=False)
            return
        few = {name: value[:1_000] for name, value in self.values.items()}
        try:
            if case.figures.get("per") is not None and self.program.batch_sizes:
                raise Refused("latents are of single rows")
            found, paths = find_modes(self.program, self.runtime, few, self.log_mass)
        except (Refused, IngleError) as error:
            case.unseen(f"missed modes: {error}".split("\n")[0], doubtful=False)
            return
        case.figures |= {"modes": tuple(found), "paths": paths}
        if found:
            self._tell_of(found)

    def _tell_of(self, found: Sequence[Mode]) -> None:
        first = found[0]
        share = sum(mode.share for mode in found)
        name, where = _farthest(first.where, self.values)
        several = f"{len(found)} modes are" if len(found) > 1 else "a mode is"
        self.case.against(
            "failed" if share > 0.2 else "doubtful",
            f"{several} missed, with about {share:.0%} of the posterior ({name} near {where:.3g}), and predictions "
            "there differ",
            "two modes or more: a mixture of guides, one fitted from each start, or a model that tells them apart",
        )

    def _wider(self) -> str:
        if self.kind == "normal":
            return 'fit "multivariate_normal": "normal" has no correlations, and its sds shrink where there are some'
        if self.kind in ("multivariate_normal", "low_rank", "laplace"):
            return 'fit "flow", or write the model so that its latents are less skewed and tied (non-centred, logs)'
        if self.kind == "flow":
            return "write the model so that its latents are less skewed and tied (non-centred, logs), or run NUTS"
        return 'a guide with correlations and free scales for every latent, such as "multivariate_normal"'

    def _steps(self) -> str:
        return "give it more steps (fit.resume()), or leave steps and optim out, so that it stops by itself"


def _settling(case: _Case, course: Course, program: Program) -> str | None:
    """What the course of the fit says; what to do about it where it had not settled."""
    losses, steady = course.losses, course.steady
    more = "give it more steps: fit.resume(), or leave steps out"
    if steady is not None:
        case.figures |= {"rhat": steady.rhat, "mcse": steady.mcse}
    if course.stopped in ("interrupted", "failed"):
        what = "was interrupted" if course.stopped == "interrupted" else "broke"
        case.against("doubtful", f"the fit {what} before its end", more)
        return more
    if len(losses) == 0:
        case.against("doubtful", "no step was taken", more)
        return more
    last = trend(losses[-max(len(losses) // 5, 40) :])
    numbers = sum(math.prod(site.value_shape) for site in program.latents)
    if math.isnan(last.se):
        case.against("doubtful", f"{len(losses)} steps are too few to tell whether they have settled", more)
        return more
    if last.fall > max(3 * last.se, _rise(numbers)):
        status: Status = "failed" if last.fall > 10 * _rise(numbers) else "doubtful"
        case.against(status, f"the ELBO still rose by {last.fall:.2g} nats within the last fifth of the steps", more)
        return more
    return None


def _rise(numbers: int) -> float:
    """Nats of the ELBO that a mean 0.3 sd off costs, 0.3^2 / 2, for one latent, and a tenth of it for each more."""
    return 0.045 * (1.0 + 0.1 * max(0, numbers - 1))


def _near(shifts: Shifts, *, elements_of: int) -> NDArray[np.bool_]:
    """Of each set of weights, whether some shift is near its limit on the good side."""
    mean, sd = np.abs(shifts.shift) / _MEAN, np.abs(shifts.ratio - 1.0) / _SD
    worst = np.zeros(elements_of)
    np.maximum.at(worst, shifts.row, np.maximum(mean - _CLEAR * shifts.shift_se / _MEAN, 0.0))
    np.maximum.at(worst, shifts.row, np.maximum(sd - _CLEAR * shifts.ratio_se / _SD, 0.0))
    return (worst > 0.5) & (worst <= 1.0)


def _worst(shifts: Shifts, place: int, values: NDArray[np.float64], errors: NDArray[np.float64]) -> Worst:
    return Worst(shifts.name(place), float(values[place]), float(errors[place]))


def _of_rows(bad: NDArray[np.bool_], row: NDArray[np.int64], rows: int) -> float:
    """The share of rows that have a bad coordinate."""
    return float((np.bincount(row[bad], minlength=rows) > 0).mean())


def _others(count: int, of: int) -> str:
    return f" ({count:,} of {of:,} are off)" if of > 1 and count > 1 else ""


def _farthest(where: Mapping[str, Tensor], drawn: Mapping[str, Tensor]) -> tuple[str, float]:
    """The coordinate of a mode that lies farthest from the guide's draws, in their sds, and where it is."""
    best: tuple[float, str, float] = (-1.0, "", math.nan)
    for name, value in where.items():
        ours = drawn[name].double()
        away = ((value - ours.mean(0)).abs() / ours.std(0).clamp(min=1e-12)).reshape(-1)
        place = int(away.argmax())
        if float(away[place]) > best[0]:
            index = np.unravel_index(place, tuple(value.shape))
            label = f"{name}[{', '.join(str(int(each)) for each in index)}]" if value.dim() else name
            best = float(away[place]), repr(label), float(value.reshape(-1)[place])
    return best[1], best[2]


def _kind(program: Program) -> str:
    """The guide's name, or "own"."""
    return program.recipe.name or "own"

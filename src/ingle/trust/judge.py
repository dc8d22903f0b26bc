"""`judge`: the evidence on a fit, gathered in turn, and what it amounts to.

What is asked of a fit, and what errors of the answer are allowed for (what is believed of weights and chains is in
`look.py`, and of the limits in `shift.py`):

- Far off is 1 sd, or half or twice the sd (`_FAR_MEAN`, `_FAR_SD`), beyond two standard errors: failed, not doubtful.
- A shift whose error is above 0.15 (`_NOISY`) and which with two errors reaches the limit is not known: doubtful.
- Of many rows with latents of their own, up to 5% may be off (`_ROWS`), as a few hundred rows always have some.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.infer import ELBO
from pyro.infer.autoguide.initialization import InitMessenger

from ingle.errors import IngleError
from ingle.evidence import point_masses, uncounted, why_no_evidence
from ingle.program import Program, sample_nodes, typical_value
from ingle.runtime import Runtime
from ingle.trust.case import Case
from ingle.trust.log_joint import Refused
from ingle.trust.look import Seen, look
from ingle.trust.modes import find_modes
from ingle.trust.plateau import FEWEST, trend
from ingle.trust.shift import MEAN, SD, Shifts, off_limits
from ingle.trust.signal import signal_to_noise
from ingle.trust.stop import Steady
from ingle.trust.verdict import Status, Verdict, Worst
from ingle.trust.words import MORE_STEPS, mean_off, modes_missed, point_masses_told, sd_off, wider

__all__ = ["Course", "judge"]

_FAR_MEAN, _FAR_SD = 1.0, 2.0
_NOISY = 0.15
_ROWS, _MANY_ROWS = 0.05, 40
_GRADIENTS = (4, 32)  # whose signal to noise is looked at; a fiftieth of the steps in between
_LARGE = 0.2  # of the posterior, a missed mode that makes a fit fail


@dataclass(frozen=True)
class Course:
    """How a fit went.

    Attributes:
        losses: of its steps, in nats.
        stopped: why it stopped, as `Fit.stopped`.
        steady: how settled the parameters were, where that is known.
        objective: what was trained, prepared for the program; None where that is not known.
    """

    losses: NDArray[np.float64]
    stopped: str
    steady: Steady | None
    objective: ELBO | None


def judge(program: Program, runtime: Runtime, course: Course) -> Verdict:
    """The verdict on a fit, inside a scope of its runtime; nothing of the fit is moved.

    Args:
        program: with its fitted parameters.
        runtime: of the fit.
        course: how it went.
    """
    case = Case()
    with runtime.trial(), program.at_rest():
        settled = _settling(case, course, program)
        compared = False
        try:
            if course.objective is not None and len(course.losses):
                samples = max(_GRADIENTS[0], min(_GRADIENTS[1], len(course.losses) // 50))
                case.figures["snr"] = signal_to_noise(program, runtime, course.objective, samples)
            if _comparable(case, program):
                with torch.no_grad():
                    seen = look(program, runtime, case, len(course.losses))
                    compared = seen.shifts is not None
                    _compare(case, program, course, seen, settled=settled)
                    _modes(case, program, runtime, seen)
        except Exception as error:  # the program is the user's, and may raise anything: that ends a look, not a card
            case.unseen(f"means and sds: {type(error).__name__}: {error}".split("\n")[0], doubtful=True)
    good = "means, sds and modes are as they should be" if case.figures.get("paths") else "means and sds hold"
    return case.verdict(good if compared else "the steps have settled")


def _settling(case: Case, course: Course, program: Program) -> bool:
    """What the course of the fit says: whether it had settled."""
    losses, steady = course.losses, course.steady
    if steady is not None:
        case.figures |= {"rhat": steady.rhat, "mcse": steady.mcse}
    if course.stopped in ("interrupted", "failed"):
        what = "was interrupted" if course.stopped == "interrupted" else "broke"
        case.against("doubtful", f"the fit {what} before its end", MORE_STEPS)
        return False
    if len(losses) == 0:
        case.against("doubtful", "no step was taken", MORE_STEPS)
        return False
    last = trend(losses[-max(len(losses) // 5, FEWEST) :])
    numbers = sum(math.prod(site.value_shape) for site in program.latents)
    if math.isnan(last.se):
        few = "1 step is" if len(losses) == 1 else f"{len(losses)} steps are"
        case.against("doubtful", f"{few} too few to tell whether the fit has settled", MORE_STEPS)
        return False
    if last.fall > max(3 * last.se, _rise(numbers)):
        status: Status = "failed" if last.fall > 10 * _rise(numbers) else "doubtful"
        told = f"the ELBO still rose by {last.fall:.2g} nats within the last fifth of the steps"
        case.against(status, told, MORE_STEPS)
        return False
    return True


def _rise(numbers: int) -> float:
    """Nats of the ELBO that a mean 0.3 sd off costs, 0.3^2 / 2, for one latent, and a tenth of it for each more."""
    return 0.045 * (1.0 + 0.1 * max(0, numbers - 1))


def _comparable(case: Case, program: Program) -> bool:
    """Whether the guide has means and sds that can be compared with the posterior's."""
    if all(site.name in program.enumerated for site in program.latents):
        case.reasons.append((2, "the guide draws nothing: there is no posterior to compare with"))
        return False
    masses = point_masses(program)
    if masses:
        advice = 'fit "normal", or "laplace" for the curvature at the mode'
        case.against("doubtful", point_masses_told(masses), advice)
        return False
    why = why_no_evidence(program)
    if why is not None:
        case.unseen(f"means and sds: {why}", doubtful=True)
        return False
    scaled = _scaled(program)
    if scaled:
        named = ", ".join(map(repr, scaled[:3])) + (", …" if len(scaled) > 3 else "")
        case.unseen(
            f"means and sds: poutine.scale around {named} makes of the loss no ELBO of this model", doubtful=True
        )
        case.advise("leave poutine.scale out around latents: Adam's steps do not depend on the size of the loss")
        return False
    return True


def _scaled(program: Program) -> list[str]:
    """The latents whose density the user has scaled, in the model or in the guide."""
    with torch.no_grad(), program.explained("model or guide"):
        nodes = sample_nodes(program.trace_guide())
        with InitMessenger(typical_value):
            nodes += sample_nodes(program.trace_model({}))
    return sorted(uncounted(nodes))


def _compare(case: Case, program: Program, course: Course, seen: Seen, *, settled: bool) -> None:
    """What shifts say."""
    shifts = seen.shifts
    if shifts is None:
        if seen.doubt:
            case.against("doubtful", seen.doubt, wider(program, rows=case.figures.get("per") is not None))
        return
    mean, sd = off_limits(shifts)
    shift, ratio, log_ratio = np.abs(shifts.shift), np.abs(shifts.ratio - 1.0), np.abs(_log(shifts.ratio))
    case.figures |= {
        "comparison": shifts.by,
        "_shifts": shifts,
        "shift_mean": _worst(shifts, int((shift - shifts.shift_se).argmax()), shifts.shift, shifts.shift_se),
        "shift_sd": _worst(shifts, int((log_ratio - shifts.ratio_se).argmax()), shifts.ratio, shifts.ratio_se),
    }
    rows = int(shifts.row.max()) + 1
    share, allowed = _share_of_rows(shifts, mean | sd), _ROWS if rows >= _MANY_ROWS else 0.0
    case.figures["share"] = 1.0 - (_share_by_row(shifts, mean | sd) if rows > 1 else share)
    noisy = ((shifts.shift_se > _NOISY) & (shift + 2 * shifts.shift_se > MEAN)) | (
        (shifts.ratio_se > _NOISY) & (ratio + 2 * shifts.ratio_se > SD)
    )
    if share > allowed:
        far = (shift - 2 * shifts.shift_se > _FAR_MEAN) | (
            log_ratio - 2 * shifts.ratio_se / np.maximum(shifts.ratio, 1e-12) > math.log(_FAR_SD)
        )
        failed = _share_of_rows(shifts, far) > (0.5 if rows >= _MANY_ROWS else 0.0)
        told = ([sd_off(shifts, sd)] if sd.any() else []) + ([mean_off(shifts, mean)] if mean.any() else [])
        if rows >= _MANY_ROWS:
            which = "the rows" if shifts.rows is None else f"{rows} rows, drawn from all,"
            told[0] = f"{share:.0%} of {which} are off: at the worst {told[0]}"
        for each in told:
            case.against("failed" if failed else "doubtful", each)
        narrow = bool(sd.any()) and bool((shifts.ratio[sd] < 1).mean() > 0.5) and not mean.any()
        if not settled:
            case.advise(MORE_STEPS)
        elif course.stopped == "settled" or narrow:
            case.advise(wider(program, rows=rows > 1))
        else:
            case.advise(MORE_STEPS, wider(program, rows=rows > 1))
    elif seen.doubt:
        case.against("doubtful", seen.doubt, wider(program, rows=case.figures.get("per") is not None))
    elif _share_of_rows(shifts, noisy) > allowed:
        case.against("doubtful", "means and sds of the posterior are not known well enough to compare with")


def _modes(case: Case, program: Program, runtime: Runtime, seen: Seen) -> None:
    if seen.part:
        case.unseen("missed modes: a few rows were looked at for all", doubtful=False)
        return
    if math.isnan(seen.log_mass):
        case.unseen("missed modes: the mass that the guide reaches is not known", doubtful=False)
        return
    few = {name: value[:1_000] for name, value in seen.values.items()}
    try:
        if case.figures.get("per") is not None and program.batch_sizes:
            raise Refused("latents are of single rows")
        if seen.alone is not None:
            raise Refused(f"points go through the model one by one ({seen.alone})")
        found, paths = find_modes(program, runtime, few, seen.log_mass)
    except (Refused, IngleError) as error:
        case.unseen(f"missed modes: {error}".split("\n")[0], doubtful=False)
        return
    case.figures |= {"modes": tuple(found), "paths": paths}
    if found:
        case.against(
            "failed" if sum(mode.share for mode in found) > _LARGE else "doubtful",
            modes_missed(found, seen.values),
            "two modes or more: a mixture of guides, one fitted from each start, or a model that tells them apart",
        )


def _worst(shifts: Shifts, place: int, values: NDArray[np.float64], errors: NDArray[np.float64]) -> Worst:
    return Worst(shifts.name(place), float(values[place]), float(errors[place]))


def _share_of_rows(shifts: Shifts, bad: NDArray[np.bool_]) -> float:
    """The share of coordinates that are bad; of many rows, that of rows which have one."""
    rows = int(shifts.row.max()) + 1
    if rows < _MANY_ROWS:
        return float(bad.mean())
    return _share_by_row(shifts, bad)


def _share_by_row(shifts: Shifts, bad: NDArray[np.bool_]) -> float:
    return float((np.bincount(shifts.row[bad], minlength=int(shifts.row.max()) + 1) > 0).mean())


def _log(ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.log(np.maximum(ratio, 1e-12))
    return found

"""Where the posterior lies beside the guide: the guide's draws, weighted, or Hamiltonian chains begun at them.

Which of the two is asked, and when it is believed:

- Weights of normal guides have k = 1 - (guide sd / posterior sd)^2 in the limit, so that an sd 30% too small has k of
  0.5: at 0.5 (`_KHAT`), not at 0.7, is where the corrected sd begins to lag behind the posterior's. Above it chains are
  asked. Below, weights still make shifts too small where the tail is not light (by a third at k of 0.4), so that from
  0.2 (`_KHAT_SURE`) on chains are asked too where a shift is more than half its limit. Above 0.7 (`_KHAT_MOST`)
  weights are asked no more, even where there are no chains.
- Chains are believed once ends and beginnings have a correlation of at most 0.35 over 256 chains (`_HELD`: chance gives
  0.06, and 0.2 for the largest of a thousand), since a shift seen by chains that keep a third of their way is two
  thirds of the true one at the least; and once their halves differ by no more than 0.15 sd beyond chance (`_DRIFT`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
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
    psis,
    refuse_shared,
    resolve_per,
    why_no_weights,
)
from ingle.program import Program, Site
from ingle.runtime import Runtime
from ingle.trust.case import Case
from ingle.trust.chains import Chains, run_chains
from ingle.trust.modes import smoothed_mean
from ingle.trust.plateau import FEWEST
from ingle.trust.rows import some_rows
from ingle.trust.shift import Shifts, by_chains, by_weights, near_limits, row_axes

__all__ = ["Seen", "drawn_sites", "look"]

_KHAT, _KHAT_SURE, _KHAT_MOST = 0.5, 0.2, 0.7
_FEWEST = 200  # effective draws, below which an sd is not known to 5%
_ROWS = 0.025  # of many rows, whose weights may be beyond belief
_HELD, _DRIFT, _ACCEPTED = 0.35, 0.15, 0.4
_CLAMPED = 0.02  # of the draws, where more are one and the same number
_EMPTY = 0.01  # of the draws, where the model may have no density

_DRAWS = (400, 4_000)  # of the guide
_NUMBERS = 2**23  # of latents in all draws
_WRITTEN = 2**30  # bytes that all draws may write
_MOVED = 2**32  # that chains on all rows of a plate may write before some rows stand for all
_FEWEST_ROWS = 100
_MOST_WRITTEN = 2**34  # that draws or chains may write at all, unless the fit wrote more
_CHAINS = (64, 256)
_CHEAP = 2**24  # bytes that all chains write at a step, up to which more of them cost little
_POINTS = 2**18  # numbers of all chains
_GRADIENTS = (80, 240)  # of all chains at once; a twentieth of the steps in between
_GRADIENT = 3  # times what a density writes
_STREAM = 77  # of random numbers, of its own


@dataclass(frozen=True)
class Seen:
    """What a look at the guide's draws found.

    Attributes:
        values: the draws by site, shape (n, *site shape).
        log_mass: log of the mass that they reach, in nats; NaN where it is not known.
        shifts: of means and sds from guide to posterior; None where nothing could be compared.
        part: a few rows of the plate were looked at for all of them.
        alone: why points go through the program one by one; None where they go together.
        doubt: why the shifts may be smaller than they seem; empty where there is no reason.
    """

    values: Mapping[str, Tensor]
    log_mass: float
    shifts: Shifts | None
    part: bool
    alone: str | None
    doubt: str


def look(program: Program, runtime: Runtime, case: Case, steps: int) -> Seen:
    """Compare the guide's draws with the posterior; figures, and draws without density, go to the case.

    Args:
        program, runtime: of the fit, inside a scope of it.
        case: to add to.
        steps: of the fit, which what is spent here keeps to.
    """
    return _Look(program, runtime, case, steps).seen()


def drawn_sites(program: Program) -> list[Site]:
    """The latents that the guide draws, whole."""
    return [site for site in program.latents if site.name not in program.enumerated and not program.partial(site)]


class _Look:
    def __init__(self, program: Program, runtime: Runtime, case: Case, steps: int) -> None:
        self.program, self.runtime, self.case, self.steps = program, runtime, case, steps
        self.rows: Tensor | None = None  # that are looked at, where not all of them are
        self.values: Mapping[str, Tensor] = {}
        self.no_chains = ""  # why there are none
        self.sites = drawn_sites(program)
        self.elements = self._elements()
        self._prepare()
        # What an eager fit writes, which took gradients of a batch at each step.
        share = math.prod(batch / full for full, batch in program.batch_sizes.values())
        self.most = max(_MOST_WRITTEN, int(steps * _GRADIENT * self.sampler.written * share))
        moved = self._moved_by(_CHAINS[0], _GRADIENTS[0])
        if self.elements.plate is not None and moved > _MOVED:
            self._take_rows(max(_FEWEST_ROWS, int(self.elements.size * _MOVED / moved)))

    def _prepare(self) -> None:
        """What draws and weighs them; two draws tell what one of them writes."""
        self.sampler = Sampler(self.program, self.runtime, self.elements, {}, None)
        survey = Survey(self.sampler)
        self.proposal = from_guide(self.program, self.elements, {}, survey.masks)
        self.sampler.log_p(*self.sampler.first(self.proposal))

    def _take_rows(self, count: int) -> None:
        """A few rows for all, where there are more and they can be taken out."""
        plate, size = self.elements.plate, self.elements.size
        found = None
        if plate is not None and count < size:
            found = some_rows(self.program, plate, count, seed=self.runtime.seed)
        if found is not None:
            self.program, self.rows = found.program, found.rows
            self.sites = drawn_sites(self.program)
            self.elements = replace(self.elements, size=count)
            self._prepare()
            self.case.figures["rows"] = (count, size)

    def _moved_by(self, chains: int, gradients: int) -> int:
        """Bytes that chains write."""
        return chains * gradients * _GRADIENT * self.sampler.written

    def seen(self) -> Seen:
        if _DRAWS[0] * self.sampler.written > self.most:
            why = self._too_much(_DRAWS[0] * self.sampler.written)
            self.case.not_looked.append(f"means and sds: {why}")
            return self._seen(None, math.nan, f"means and sds were not looked at: {why}")
        self._draw()
        weighed, log_mass, doubt = self._weigh()
        if self.steps < FEWEST:  # which is told, and enough to be in doubt
            self.case.not_looked.append("means and sds: the fit has had too few steps")
            return self._seen(None, log_mass, "")
        if self.rows is not None:
            log_mass = math.nan
        if doubt:
            moved = self._move()
            if moved is not None:
                shifts, still = moved
                return self._seen(shifts, log_mass, still)
            if self.usable:
                doubt = ""
            elif self.worthless:
                weighed, doubt = None, f"{doubt}{self.no_chains}"
        return self._seen(weighed, log_mass, doubt)

    def _seen(self, shifts: Shifts | None, log_mass: float, doubt: str) -> Seen:
        if shifts is not None and self.rows is not None:
            shifts = replace(shifts, rows=self.rows.numpy(), axes=row_axes(self.sites, self.elements))
        return Seen(self.values, log_mass, shifts, self.rows is not None, self.sampler.alone, doubt)

    def _too_much(self, written: int) -> str:
        return f"that would write {written / 2**30:.3g} GiB in the model, and the fit wrote less"

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

    def _draw(self) -> None:
        numbers = sum(math.prod(site.value_shape) for site in self.sites)
        written = max(1, self.sampler.written)
        n = max(_DRAWS[0], min(_DRAWS[1], _NUMBERS // max(1, numbers), _WRITTEN // written))
        if self.steps < FEWEST:
            n = _DRAWS[0] // 4
        if self.sampler.alone is not None:  # each draw then costs as much as a step
            n = max(_DRAWS[0], min(n, self.steps // 2))
        parts = list(self.sampler.blocks(self.proposal, n, stream=_STREAM))
        self.values = {name: torch.cat([drawn[name] for drawn, _ in parts]) for name in self.proposal.latents}
        self.log_q = torch.cat([log_q for _, log_q in parts])
        self.n = n
        self.case.figures["num_samples"] = n
        self._clamped()

    def _clamped(self) -> None:
        """Draws that rounding has put on one number, as exp(-200) on 0: the same smallest or largest, many times."""
        for site in self.sites:
            x = self.values[site.name].reshape(self.n, -1)
            if site.discrete or not x.is_floating_point():
                continue
            low, high = x.amin(0), x.amax(0)
            share = torch.maximum((x == low).double().mean(0), (x == high).double().mean(0)).masked_fill(low == high, 0)
            place = int(share.argmax())
            if float(share[place]) > _CLAMPED:
                end = low if bool((x[:, place] == low[place]).double().mean() >= share[place]) else high
                self.case.against(
                    "doubtful",
                    f"{float(share[place]):.0%} of the draws of {site.name!r} are clamped or rounded to "
                    f"{float(end[place]):.6g}",
                    f"bring {site.name!r} to a scale near 1, or fit with dtype=torch.float64",
                )

    def _weigh(self) -> tuple[Shifts | None, float, str]:
        """Shifts by weights, the log mass, and why these are not to be believed without more ado."""
        self.usable, self.worthless = False, True
        why = why_no_weights(self.program)
        if why is not None:
            self.case.not_looked.append(f"importance weights: {why}")
            return None, math.nan, f"the guide has no importance weights ({why}), and chains could not be run"
        log_weights = self.sampler.log_p(self.values, self.n) - self.log_q
        bad = ~log_weights.isfinite()
        share = float(bad.double().mean())
        if share > _EMPTY:
            self.case.against(
                "doubtful" if share < 0.5 else "failed",
                f"the model has no density at {share:.0%} of the guide's draws (a support that is cut, or overflow)",
                "run ingle.check(model, guide, data)",
            )
        log_weights = log_weights.masked_fill(bad, -math.inf)
        if bool((log_weights == -math.inf).all(0).any()):
            return None, math.nan, "the model has no density where the guide draws"
        whole = log_weights.flatten(1).sum(1) if log_weights.dim() > 1 else log_weights
        whole = whole[whole.isfinite()]
        if self.rows is None:
            self.case.figures |= {
                "elbo": float(whole.mean()),
                "elbo_se": float(whole.std()) / math.sqrt(max(1, len(whole))),
            }
        log_mass = smoothed_mean(whole) if len(whole) > 50 else math.nan
        smoothed, khat = psis(log_weights)
        ess = 1 / smoothed.exp().square().sum(0)
        flat = ess > 0.99 * self.n  # all weights alike: there is no tail to have a shape
        khat = torch.where(flat, khat.nan_to_num(posinf=0.0).clamp(max=0.0), khat)
        limit = min(_KHAT, khat_threshold(self.n))
        middle = float(khat.median())
        self.case.figures |= {"khat": middle, "khat_threshold": limit, "ess": float(ess.median())}
        shifts = by_weights(self.sites, self.elements, self.values, smoothed)
        near = torch.from_numpy(near_limits(shifts, elements_of=khat.numel())).to(khat.device).reshape(khat.shape)
        good = (khat < limit) & (ess > _FEWEST) & ((khat < _KHAT_SURE) | ~near)
        beyond = ((khat >= _KHAT_MOST) | (ess < _FEWEST)).double()
        self.usable, self.worthless = not bool(beyond.any()), float(beyond.mean()) > 0.5
        if float(good.double().mean()) >= (1.0 if good.dim() == 0 else 1.0 - _ROWS):
            return shifts, log_mass, ""
        told = f"k-hat {middle:.2f}" if middle >= limit else f"{float(ess.min()):,.0f} effective draws at the least"
        doubt = f"weights cannot say how far off the guide is ({told}), and chains could not be run"
        return shifts, log_mass, doubt

    def _move(self) -> tuple[Shifts, str] | None:
        """Shifts by chains, and why these are not to be believed; None where chains cannot run."""
        discrete = [site.name for site in self.sites if site.discrete]
        if discrete:
            self._without_chains(f"{', '.join(discrete)} cannot be moved, being discrete")
            return None
        if self.sampler.alone is not None:
            self._without_chains(f"points go through the model one by one ({self.sampler.alone})")
            return None
        least = self._moved_by(_CHAINS[0], _GRADIENTS[0])
        if least > self.most:
            self._without_chains(self._too_much(least))
            return None
        try:
            names = [site.name for site in self.sites]
            space = Space(self.sampler, names, *self.sampler.first(self.proposal))
            count = self._chains(space.size)
            began = {name: value[:count] for name, value in self.values.items()}
            starts = space.points(began, count)
            most = max(_GRADIENTS[0], min(_GRADIENTS[1], self.steps // 20))
            self.runtime.reseed(int(np.random.SeedSequence([self.runtime.seed, _STREAM]).generate_state(1)[0]))
            found = run_chains(self.sampler, space, starts, most)
        except (IngleError, RuntimeError, NotImplementedError, ValueError) as error:
            self._without_chains(f"{type(error).__name__}: {error}".split("\n")[0])
            return None
        self.case.figures["evaluations"] = self.case.figures.get("evaluations", 0) + found.evaluations
        shifts = by_chains(self.sites, self.elements, self.values, found.values, began)
        return shifts, _still(found, shifts)

    def _without_chains(self, why: str) -> None:
        self.no_chains = f": {why}"
        self.case.not_looked.append(f"chains: {why}")

    def _chains(self, size: int) -> int:
        """How many, for points of a size."""
        fewest = max(_CHAINS[0], min(_CHAINS[1], 2 * size + 28))  # the metric needs as many
        cheap = max(fewest, _CHEAP // max(1, self.sampler.written))
        numbers = size * math.prod(self.elements.shape)
        return max(_CHAINS[0], min(_CHAINS[1], self.n, _POINTS // numbers, cheap))


def _still(found: Chains, shifts: Shifts) -> str:
    """Why chains have not been far enough; empty where they have."""
    held = float(np.abs(shifts.held).max())
    chance = math.sqrt(2 * math.log(len(shifts))) + 1 if len(shifts) > 1 else 2.0
    drift = float((np.abs(shifts.drift) - chance * shifts.drift_se).max())
    if not found.finished:
        why = "they came through too few trajectories"
    elif found.accepted < _ACCEPTED:
        why = "they came through few trajectories that were accepted"
    elif held > _HELD:
        why = f"ends and beginnings still have a correlation of {held:.2f}"
    elif drift > _DRIFT:
        why = f"their halves are {drift:.2f} sd apart"
    else:
        return ""
    return f"the posterior could not be reached: chains from the guide's draws are still moving ({why})"

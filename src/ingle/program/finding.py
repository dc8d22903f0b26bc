"""One thing that is wrong with a model, a guide and their data: told by `check`, raised by `fit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ingle.errors import IngleError, ProgramError

__all__ = ["Finding", "Kind", "Severity", "as_error", "errors_among"]

Severity = Literal["error", "warning"]

Kind = Literal[
    "argument",  # an argument of a distribution left its range
    "batch size",  # batch_size and the model do not belong together
    "broadcast",  # an observed value is repeated to fill the shape of its site
    "call",  # the data do not fit the call of the model or the guide
    "control flow",  # the sites change from run to run
    "device",  # tensors on two devices meet
    "dtype",  # a tensor of another dtype than the fit's
    "extra site",  # the guide samples what the model does not
    "log_prob shape",  # a log_prob has batch dimensions that no plate declares
    "missing site",  # the model samples what the guide does not
    "not finite",  # NaN or infinity in data, arguments or a log_prob
    "nothing observed",  # the model has no observed site
    "nothing to train",  # there is no parameter that a fit could move
    "observed site",  # a site is observed on one side and sampled on the other, or an obs= was forgotten
    "outside support",  # an observed value that its distribution cannot have
    "parameter",  # a parameter that is not finite, or that two modules share by name alone
    "plate",  # a plate differs between model and guide
    "raised",  # the model or the guide raised
    "scale",  # a latent misses the N/B scale of a minibatched plate
    "shape",  # a latent has another shape in model and guide
    "support",  # the guide draws values that the model's distribution cannot have
    "unreachable",  # a latent that this guide cannot reach
    "untrained",  # a module that the loss depends on and that no fit would train
]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or looks wrong.

    Attributes:
        kind: what it is about.
        severity: "error" where a fit raises or gives wrong results, "warning" where it may be meant.
        site: the site at which it shows, where there is one.
        message: what was found, with the shapes.
        fix: what to change, most likely; empty where that is not known.
        error: what `fit` raises for it.
        cause: the error of Pyro or torch behind it, where there was one.
    """

    kind: Kind
    severity: Severity
    site: str | None
    message: str
    fix: str = ""
    error: type[IngleError] = field(default=ProgramError, repr=False)
    cause: Exception | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return self.message + (f"\n  likely fix: {self.fix}" if self.fix else "")

    def without_cause(self) -> Finding:
        """The same, to be kept: a cause holds every tensor of the run that raised it."""
        return replace(self, cause=None)


def errors_among(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Those that a fit raises for."""
    return tuple(finding for finding in findings if finding.severity == "error")


def as_error(*findings: Finding) -> IngleError:
    """One error that tells all findings, to be raised; its cause is that of the first."""
    kinds = {finding.error for finding in findings}
    told = [str(finding) for finding in findings]
    text = told[0]
    if len(told) > 1:
        text = f"{len(told)} faults were found:\n" + "\n".join(f"{i}. {one}" for i, one in enumerate(told, start=1))
    error = (kinds.pop() if len(kinds) == 1 else ProgramError)(text)
    error.findings = tuple(finding.without_cause() for finding in findings)
    error.__cause__ = findings[0].cause
    return error

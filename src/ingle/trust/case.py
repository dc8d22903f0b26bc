"""What speaks against a fit, gathered in turn, and the verdict that it amounts to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ingle.trust.verdict import Status, Verdict

__all__ = ["Case"]


@dataclass
class Case:
    """What speaks against a fit, and what is known of it."""

    status: Status = "ok"
    reasons: list[tuple[int, str]] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    not_looked: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def against(self, status: Status, reason: str, advice: str | None = None) -> None:
        """Something speaks against it."""
        if status == "failed" or self.status == "ok":
            self.status = status
        self.reasons.append((0 if status == "failed" else 1, reason))
        if advice is not None:
            self.advise(advice)

    def advise(self, *advice: str) -> None:
        """What to try next."""
        self.advice += [each for each in advice if each not in self.advice]

    def unseen(self, what: str, *, doubtful: bool) -> None:
        """What was not looked at, and whether that alone makes the fit doubtful."""
        self.not_looked.append(what)
        if doubtful:
            self.against("doubtful", f"not looked at: {what}")
        else:
            self.reasons.append((2, f"not looked at: {what}"))

    def verdict(self, good: str) -> Verdict:
        """What it amounts to; `good` is what is said where nothing speaks against it."""
        reasons = [told for _, told in sorted(self.reasons, key=lambda each: each[0])]
        if self.status == "ok":
            reasons.insert(0, good)
        return Verdict(
            self.status, tuple(reasons), tuple(self.advice), not_looked=tuple(self.not_looked), **self.figures
        )

"""The tables of RESULTS.md from records: shares with Clopper-Pearson intervals, by family and half."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy.stats import beta
from trust.families import FAMILIES, HELD_OUT, TUNED
from trust.families.errors import is_right

from benchmarks.trust import calibrated, cost, faults, use
from benchmarks.trust.results import Record, Results

__all__ = ["interval", "tables"]


def interval(count: int, of: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson: the shares that do not make `count` or more, nor as many or fewer, rare.

    References:
        Clopper and Pearson (1934), The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial.
    """
    tail = (1 - level) / 2
    low = 0.0 if count == 0 else float(beta.ppf(tail, count, of - count + 1))
    high = 1.0 if count == of else float(beta.ppf(1 - tail, count + 1, of - count))
    return low, high


def tables(results: Results) -> str:
    """All tables that there are records for, in Markdown."""
    used = results.part(use.PART)
    found = [_use(used), _edges(used), _default(used), _faults(results.part(faults.PART))]
    found += [_cost(results.part(cost.PART)), calibrated.table(results.part(calibrated.PART))]
    return "\n\n".join(table for table in found if table)


def _use(records: list[Record]) -> str:
    judged = [record for record in records if record["status"] in ("ok", "doubtful", "failed")]
    if not judged:
        return ""
    head = (
        "| families | guide | fits | representable | right of these | ok of those right | ok of representable | "
        "ok in all | ok but wrong |"
    )
    rows = []
    for name, chosen in _groups(judged):
        for guide in (*use.GUIDES, "both"):
            part = [record for record in chosen if guide in (record["guide"], "both")]
            if guide == "both" and name in FAMILIES:
                continue
            able = [record for record in part if record["representable"]]
            right = [record for record in able if _right(record)]
            ok = [record for record in part if record["status"] == "ok"]
            cells = [
                len(part),
                len(able),
                _share(right, able, long=name not in FAMILIES),
                _share(_ok(right), right, long=name not in FAMILIES),
                _share(_ok(right), able, long=name not in FAMILIES),
                len(ok),
                _share([record for record in ok if not _right(record)], ok, long=name not in FAMILIES),
            ]
            rows.append(_row(name, guide, *cells))
    return "\n".join([head, _rule(head), *rows])


def _edges(records: list[Record]) -> str:
    """The verdict by how far off a fit is: its largest error, of a mean in sds or of an sd in ratio."""
    judged = [record for record in records if record["status"] in _STATUSES[1:] and record["mean_error"] is not None]
    if not judged:
        return ""
    head = "| largest error | fits | ok | doubtful | failed |"
    rows = []
    for low, high in itertools.pairwise((0.0, 0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.6, 1.0, math.inf)):
        part = [record for record in judged if low <= max(record["mean_error"], record["sd_error"]) < high]
        counts = [sum(record["status"] == status for record in part) for status in _STATUSES[1:]]
        rows.append(_row(f"{low:g} to {high:g}", len(part), *counts))
    return "\n".join([head, _rule(head), *rows])


def _default(records: list[Record]) -> str:
    """Errors and costs of the default, by family, whatever the verdict."""
    records = [record for record in records if record["mean_error"] is not None]
    if not records:
        return ""
    head = (
        "| family | guide | fits | representable | right of these | mean off by, sds: median, worst | sd off by | "
        "nats below the best Gaussian | evaluations | seconds | of the verdict, % |"
    )
    rows = []
    for family in FAMILIES:
        for guide in use.GUIDES:
            part = [record for record in records if record["family"] == family and record["guide"] == guide]
            able = [record for record in part if record["representable"]] or part
            if not part:
                continue
            means, sds = ([record[key] for record in able] for key in ("mean_error", "sd_error"))
            lost = [record["best_elbo"] - record["elbo"] for record in able]
            share = [100 * record["verdict_seconds"] / record["seconds"] for record in part]
            rows.append(
                _row(
                    family,
                    guide,
                    len(part),
                    sum(record["representable"] for record in part),
                    sum(_right(record) for record in part if record["representable"]),
                    *(f"{np.median(values):.2f}, {max(values):.2f}" for values in (means, sds)),
                    f"{np.median(lost):.2f}, {max(lost):.2f}",
                    f"{np.median([record['evaluations'] for record in part]):,.0f}",
                    f"{np.median([record['seconds'] for record in part]):.1f}",
                    f"{np.median(share):.0f}",
                )
            )
    return "\n".join([head, _rule(head), *rows])


def _faults(records: list[Record]) -> str:
    if not records:
        return ""
    head = "| fault | half | runs | did harm | doubtful or failed of these | failed | raised |"
    rows = []
    for fault in faults.FAULTS:
        mine = [record for record in records if record["fault"] == fault and record["status"] in _STATUSES]
        for half, families in (("tuned on", TUNED), ("held out", HELD_OUT), ("all", (*TUNED, *HELD_OUT))):
            part = [record for record in mine if record["family"] in families]
            harm = [record for record in part if faults.harmful(record)]
            told = [record for record in harm if record["status"] in ("doubtful", "failed")]
            if part:
                failed = sum(record["status"] == "failed" for record in harm)
                raised = sum(record["raised"] for record in harm)
                rows.append(_row(fault, half, len(part), len(harm), _share(told, harm, long=True), failed, raised))
    return "\n".join([head, _rule(head), *rows])


def _cost(records: list[Record]) -> str:
    if not records:
        return ""
    head = "| family | guide | cases | default, evaluations | Adam and cosine, steps | ratio: median, worst | rate |"
    rows = []
    for family in FAMILIES:
        for guide in use.GUIDES:
            part = [record for record in records if record["family"] == family and record["guide"] == guide]
            if not part:
                continue
            there = [record for record in part if record["steps"] is not None]
            ratios = [record["evaluations"] / record["steps"] for record in there]
            steps = f"{np.median([record['steps'] for record in there]):,.0f}" if there else "never"
            if there and len(there) < len(part):
                steps += f", never in {len(part) - len(there)}"
            rates = sorted({f"{record['rate']:g}" for record in there})
            rows.append(
                _row(
                    family,
                    guide,
                    len(part),
                    f"{np.median([record['evaluations'] for record in part]):,.0f}",
                    steps,
                    f"{np.median(ratios):.2g}, {max(ratios):.2g}" if ratios else "",
                    ", ".join(rates),
                )
            )
    ratios = [record["evaluations"] / (record["steps"] or math.inf) for record in records]
    rows.append(_row("all", "", len(records), "", "", f"{np.median(ratios):.2g}, {max(ratios):.2g}", ""))
    return "\n".join([head, _rule(head), *rows])


_STATUSES = (None, "ok", "doubtful", "failed")


def _right(record: Record) -> bool:
    return record["mean_error"] is not None and is_right(record["mean_error"], record["sd_error"])


def _ok(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record["status"] == "ok"]


def _groups(records: list[Record]) -> list[tuple[str, list[Record]]]:
    def of(families: Sequence[str]) -> list[Record]:
        return [record for record in records if record["family"] in families]

    singles = [(family, of([family])) for family in (*TUNED, *HELD_OUT) if of([family])]
    return [*singles, ("tuned on", of(TUNED)), ("held out", of(HELD_OUT)), ("all", records)]


def _share(part: list[Record], whole: list[Record], *, long: bool) -> str:
    if not whole:
        return ""
    count, of = len(part), len(whole)
    if not long:
        return f"{count}/{of}"
    low, high = interval(count, of)
    return f"{count}/{of}: {count / of:.1%} ({low:.1%} to {high:.1%})"


def _row(*cells: Any) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _rule(head: str) -> str:
    return "| " + " | ".join(["---"] * (head.count("|") - 1)) + " |"

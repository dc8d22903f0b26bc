"""What `check` found, as a page: the verdict, one table of the sites, and each finding with its fix."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from ingle.program.finding import Finding
from ingle.program.sites import Plate, Site

__all__ = ["page"]

_WIDTH = 100
_MOST = 40  # sites in the table
_MARKS = {"error": "x", "warning": "!"}
_HEAD = ("site", "kind", "side", "distribution", "batch", "event", "value", "plates")


def page(title: str, findings: Sequence[Finding], model_sites: Sequence[Site], guide_sites: Sequence[Site]) -> str:
    """The page, without a newline at its end."""
    parts = [f"Check of {title}: {_verdict(findings)}"]
    if model_sites or guide_sites:
        parts.append(_table(findings, model_sites, guide_sites))
    parts.extend(_told(finding) for finding in findings)
    return "\n\n".join(parts)


def _verdict(findings: Sequence[Finding]) -> str:
    if not findings:
        return "nothing found"
    counts = {severity: sum(finding.severity == severity for finding in findings) for severity in _MARKS}
    return ", ".join(f"{n} {severity}{'s' if n > 1 else ''}" for severity, n in counts.items() if n)


def _table(findings: Sequence[Finding], model_sites: Sequence[Site], guide_sites: Sequence[Site]) -> str:
    """The sites in the order of the model, each with its line in the guide below; those of the guide alone last."""
    marks = {finding.site: _MARKS[finding.severity] for finding in reversed(findings)}
    in_guide = {site.name: site for site in guide_sites}
    in_model = {site.name for site in model_sites}
    blocks = [
        [("model", site), *([("guide", in_guide[site.name])] if site.name in in_guide else [])] for site in model_sites
    ]
    blocks += [[("guide", site)] for site in guide_sites if site.name not in in_model]
    hidden = len(blocks) - _MOST
    if hidden > 0:  # those with a finding stay
        blocks.sort(key=lambda block: block[0][1].name not in marks)
        blocks = blocks[:_MOST]
    rows: list[tuple[str, ...]] = [("", *_HEAD)]
    for block in blocks:
        for line, (side, site) in enumerate(block):
            mark = marks.get(site.name, "") if line == 0 else ""
            rows.append((mark, *map(_shorter, _row(site, side, first=line == 0))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[0] = 1
    lines = [
        " ".join(
            f"{cell:<{width + (column > 0)}}" for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    if hidden > 0:
        lines.append(f"  … and {hidden} more sites")
    return "\n".join(line.rstrip() for line in lines)


def _row(site: Site, side: str, *, first: bool) -> tuple[str, ...]:
    return (
        site.name if first else "",
        site.kind if first else "",
        side,
        site.distribution,
        _shape(site.batch_shape),
        _shape(site.event_shape),
        _shape(site.value_shape),
        ", ".join(map(_plate, site.plates)),
    )


def _shape(shape: tuple[int, ...]) -> str:
    return str(shape).replace(" ", "")


def _plate(plate: Plate) -> str:
    rows = str(plate.size) if plate.size == plate.full_size else f"{plate.size} of {plate.full_size}"
    return f"{plate.name} {rows}{'' if plate.dim is not None else ' (loop)'}"


def _shorter(cell: str, most: int = 24) -> str:
    return cell if len(cell) <= most else cell[: most - 1] + "…"


def _told(finding: Finding) -> str:
    head = f"{_MARKS[finding.severity]} {finding.kind}" + (f" at {finding.site!r}" if finding.site else "")
    lines = [line for line in finding.message.splitlines() if line.strip()]
    if finding.fix:
        lines.append(f"likely fix: {finding.fix}")
    return "\n".join([head, *(_wrapped(line.strip()) for line in lines)])


def _wrapped(line: str) -> str:
    indent = " " * 4
    return textwrap.fill(
        line, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )

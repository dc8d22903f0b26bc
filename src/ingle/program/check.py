"""`check`: what is wrong with a model, a guide and their data, before any step is spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ingle.data import read, resolve_batch_size
from ingle.program.build import examine
from ingle.program.finding import Finding
from ingle.program.guides import GuideName
from ingle.program.modules import find_modules, modules_kept
from ingle.program.page import page
from ingle.program.rehearse import rehearse
from ingle.program.sites import Site
from ingle.runtime import Runtime

__all__ = ["Check", "check"]


@dataclass(frozen=True, repr=False)
class Check:
    """What was found; printed, it is a page with one table of the sites.

    Attributes:
        findings: what is wrong, or looks wrong, errors first; empty where nothing is.
        model_sites, guide_sites: every sample site with kind, distribution, shapes and plates, as far as the runs
            went, with the first B rows of each plate that `batch_size` names.
        title: the names of model and guide.
    """

    findings: tuple[Finding, ...]
    model_sites: tuple[Site, ...] = ()
    guide_sites: tuple[Site, ...] = ()
    title: str = ""

    @property
    def ok(self) -> bool:
        """Whether a fit can start: there is no finding of severity "error"."""
        return not any(finding.severity == "error" for finding in self.findings)

    def __repr__(self) -> str:
        return page(self.title, self.findings, self.model_sites, self.guide_sites)


def check(
    model: Callable[..., Any],
    guide: GuideName | Callable[..., Any] | type,
    data: Any,
    *,
    batch_size: Mapping[str, int] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Check:
    """Look for what is wrong with a model, a guide and their data, before any step is spent.

    Model and guide are run a few times and held against each other: sites, shapes, supports, plates and their
    scales, observed values, dtypes. Whatever is found is told, never raised. Nothing is trained, and nothing global
    is changed; modules are afterwards what they were.

    Args:
        model, guide, data: as for `fit`.
        batch_size: as for `fit`: rows of named plates, as in `{"data": 100}`.
        seed: of the runs, 0 to 2**32 - 1.
        device: None is the device of the first tensor in the data.
        dtype: of the fit that is meant, floating.

    Returns:
        A `Check`: print it. `check(…).ok` says whether a fit can start, `check(…).findings` what is wrong.

    Raises:
        DataError, OptionError: something was handed over that cannot be used, whatever the program.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, ingle
        >>> def model(y):
        ...     scale = pyro.sample("scale", dist.HalfNormal(1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(0.0, scale), obs=y)
        >>> def guide(y):
        ...     pyro.sample("scale", dist.Normal(pyro.param("loc", torch.tensor(1.0)), 0.1))
        >>> [(finding.kind, finding.site) for finding in ingle.check(model, guide, torch.zeros(3)).findings]
        [('support', 'scale')]
    """
    arguments = read(data)
    runtime = Runtime.resolved(dtype, device, seed, default=arguments.device())
    rows = resolve_batch_size(batch_size)
    with runtime.scope(), modules_kept(find_modules(model, guide)):
        arguments = arguments.to(runtime.dtype, runtime.device)
        examination = examine(model, guide, arguments, batch_size=rows, runtime=runtime)
        if examination.program is not None:
            examination.add(*rehearse(examination.program, runtime))
    findings = sorted(examination.findings, key=lambda finding: finding.severity)
    return Check(
        tuple(finding.without_cause() for finding in findings),
        examination.model_sites,
        examination.guide_sites,
        f"{_name(model)} with {_name(guide)}",
    )


def _name(thing: Any) -> str:
    if isinstance(thing, str):
        return repr(thing)
    inner = getattr(thing, "func", thing)
    return str(getattr(inner, "__name__", type(inner).__name__))

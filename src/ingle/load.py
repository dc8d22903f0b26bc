"""`load`: from a file to a `Fit`, with the model, the guide and the data that it was fitted with."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ingle import saved
from ingle.data import read
from ingle.errors import FileError, IngleWarning, OptionError, warn
from ingle.fitted import Fit
from ingle.program import (
    GuideName,
    Program,
    Values,
    build_program,
    changed_arguments,
    describe,
    difference,
    digests,
    find_modules,
    modules_kept,
)
from ingle.runtime import Runtime, resolve_device
from ingle.trained import note_trained, warn_of_trained
from ingle.training import finish, told_end
from ingle.trust import Verdict, start_from_file

__all__ = ["load"]


def load(
    path: str | os.PathLike[str],
    model: Callable[..., Any],
    guide: GuideName | Callable[..., Any] | type,
    data: Any,
    *,
    device: str | torch.device | None = None,
) -> Fit:
    """The fit that `Fit.save`, or `fit` with `checkpoint=`, wrote to a file.

    The file holds numbers, strings and tensors, and nothing in it is run. What else a fit is made of is given again,
    as it was given to `fit`; parameters and buffers are then put in, in place where a module has them. The same seed
    gives the same draws as before.

    Args:
        path: of the file.
        model, guide: as they were given to `fit`; modules may be built anew, with any weights.
        data: as it was given to `fit`. Other data of the same shapes earn a warning.
        device: None is the device of the fit where it is there, the CPU where it is not.

    Returns:
        A `Fit`. `resume` is not possible, since objective and optimiser are not in the file: call `fit` with
        `checkpoint=path`.

    Raises:
        FileError: the file cannot be read, is not of Ingle's, is damaged or of a newer format, or is of another model
            or guide.
        DataError, OptionError, ProgramError: as from `fit`.

    Example:
        >>> import os, tempfile, pyro, pyro.distributions as dist, torch, ingle
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> y = torch.tensor([1.0, 2.0, 3.0])
        >>> fit = ingle.fit(model, "normal", y, steps=100)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fit.save(os.path.join(folder, "normal.fit"))
        ...     again = ingle.load(os.path.join(folder, "normal.fit"), model, "normal", y)
        >>> bool((again.draws(100)["mu"] == fit.draws(100)["mu"]).all())
        True
    """
    source = saved.resolve_path("path", path)
    content = saved.read(source)
    about = content["about"]
    arguments = read(data)
    runtime = Runtime(getattr(torch, about["dtype"]), _device(device, about["device"]), about["seed"])
    with runtime.scope(), modules_kept(find_modules(model, guide)) as refused:
        arguments = arguments.to(runtime.dtype, runtime.device)
        try:
            program = build_program(model, guide, arguments, batch_size=about["batch_size"], runtime=runtime)
        except OptionError as error:
            if not about["batch_size"]:
                raise
            raise FileError(f"{source} was fitted in minibatches, which do not go with this model: {error}") from error
        start = start_from_file(program, about.get("start"))
        other_data = _put_in(program, content, source)
        refused.pop_all()
        note = finish(program, content["rule"]["average"])
    stopped, reason = told_end(content)
    verdict = {"verdict": Verdict.from_file(content["verdict"])} if "verdict" in content and not other_data else {}
    return Fit(
        losses=content["losses"].numpy().copy(),
        stopped=stopped,
        reason=reason,
        steps=len(content["losses"]),
        seconds=content["seconds"],
        model=model,
        guide=program.guide,
        objective=about["objective"],
        objective_reason=about["objective reason"],
        optimiser=about["optimiser described"],
        engine=about["engine"],
        dtype=runtime.dtype,
        device=runtime.device,
        seed=runtime.seed,
        start=start.description,
        notes=(*(() if note is None else (note,)), *about["engine notes"]),
        _program=program,
        _runtime=runtime,
        _content={name: part for name, part in content.items() if name != "verdict"},
        _kept=verdict,
    )


def _put_in(program: Program, content: dict[str, Any], path: Path) -> bool:
    """Parameters and buffers of a file, once it is seen to be of this program; whether the data are others."""
    values = Values(program)
    told = difference(describe(program, values), content["program"])
    if told is not None:
        raise FileError(
            f"{path} is of another fit: {told}. Load it with the model and the guide that it was fitted with, and with "
            "data of the same shapes"
        )
    changed = changed_arguments(digests(program.data), content["data"])
    if changed:
        warn(
            f"{', '.join(changed)} in data is not what {path} was fitted to; the parameters belong to the other data",
            IngleWarning,
        )
    warn_of_trained(values.overwritten(content["values"]), f"overwritten from {path}")
    values.from_file(content["values"])
    note_trained(program.leaves())
    return bool(changed)


def _device(device: str | torch.device | None, saved_on: str) -> torch.device:
    if device is not None:
        return resolve_device(device)
    try:
        return resolve_device(saved_on)
    except OptionError:
        return torch.device("cpu")

"""The effect handlers that Ingle puts around a model and a guide."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pyro
import torch
from pyro.distributions import constraints
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ingle.errors import IngleError, OptionError
from ingle.program.finding import Finding, as_error
from ingle.program.sites import is_data

__all__ = ["Given", "Leaves", "Observed", "ProbeRows", "Rows", "Unobserve", "Watch"]


class Rows(Messenger):
    """Sets the rows of named plates from outside, the same for model and guide.

    The plate's size and its N/B scale follow, because Pyro derives both from the rows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            rows = self.choose(msg["name"], msg["fn"])
            if rows is not None:
                msg["value"], msg["done"] = rows, True

    def choose(self, name: str, subsample: Any) -> Tensor | None:
        """The rows of one plate; None leaves the plate alone."""
        return self.rows.get(name)


class ProbeRows(Rows):
    """Gives each named plate its first B rows, and notes the full size of every plate on the way."""

    def __init__(self, batch_size: Mapping[str, int]) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.sizes: dict[str, int] = {}

    def choose(self, name: str, subsample: Any) -> Tensor | None:
        """The first B rows of a plate that `batch_size` names."""
        self.sizes[name] = int(subsample.size)
        batch = self.batch_size.get(name)
        if batch is None:
            return None
        if batch > subsample.size:
            raise _refused(f"batch_size[{name!r}] is {batch}, but plate {name!r} has only {int(subsample.size)} rows")
        if subsample.subsample_size is not None and subsample.subsample_size != subsample.size:
            raise _refused(
                f"plate {name!r} draws {subsample.subsample_size} rows by itself, and batch_size[{name!r}] would "
                f"draw {batch} again",
                f"take subsample_size out of the plate, or {name!r} out of batch_size",
            )
        return torch.arange(batch)


def _refused(message: str, fix: str = "") -> IngleError:
    return as_error(Finding("batch size", "error", None, message, fix, OptionError))


class Given(Messenger):
    """Gives latents their values, as a replay does, without a trace."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True


class Observed(Messenger):
    """Observed sites have other values than the data hold for them."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and is_data(msg):
            msg["value"] = self.values[msg["name"]]


class Unobserve(Messenger):
    """Draws observed sites anew, whatever the data hold for them."""

    def _pyro_sample(self, msg: Any) -> None:
        if is_data(msg):
            msg["value"], msg["is_observed"], msg["done"] = None, False, False


class Leaves(Messenger):
    """Notes every parameter that is read, as its unconstrained leaf, by the first name that it is read under.

    A new parameter that starts from a tensor of the user's starts from a copy, since Pyro would train the
    user's own tensor, and the next fit would start where this one ended. Parameters of modules are trained in
    place, as in torch; they are moved to the dtype and device of the fit.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.dtype, self.device = dtype, device
        self.by_name: dict[str, Tensor] = {}
        self.constraints: dict[str, Any] = {}
        self.version = 0  # grows when `by_name` changes
        self._names: dict[int, str] = {}

    def _pyro_param(self, msg: Any) -> None:
        if len(msg["args"]) < 2 or msg["name"] in pyro.get_param_store():
            return
        name, start, *rest = msg["args"]
        if isinstance(start, torch.nn.Parameter):
            if start.is_floating_point():
                start.data = start.data.to(dtype=self.dtype, device=self.device)
        elif isinstance(start, Tensor):
            msg["args"] = (name, self._copy(start), *rest)
        elif callable(start):
            msg["args"] = (name, lambda: self._copy(start()), *rest)

    def _copy(self, start: Any) -> Any:
        if not isinstance(start, Tensor) or isinstance(start, torch.nn.Parameter):
            return start
        dtype = self.dtype if start.is_floating_point() else start.dtype
        return start.detach().to(dtype=dtype, device=self.device, copy=True)

    def _pyro_post_param(self, msg: Any) -> None:
        value = msg["value"]
        leaf: Any = getattr(value, "_pyro_unconstrained_param", None)  # inside a subsampled plate
        if leaf is None:  # a module's own parameter is its own leaf under Pyro's module_local_params
            leaf = value.unconstrained() if hasattr(value, "unconstrained") else value
        self.constraints[msg["name"]] = msg["kwargs"].get("constraint", constraints.real)
        name = self._names.get(id(leaf), msg["name"])  # a module inside a module is read under both names
        if self.by_name.get(name) is not leaf:
            name = msg["name"]
            self._names[id(leaf)], self.by_name[name] = name, leaf
            self.version += 1

    def keep(self, names: Collection[str]) -> None:
        """Forget every parameter but these."""
        self.by_name = {name: leaf for name, leaf in self.by_name.items() if name in names}
        self._names = {id(leaf): name for name, leaf in self.by_name.items()}
        self.version += 1


class Watch(Messenger):
    """Remembers the last sample statement that was reached, for the message of an error."""

    def __init__(self) -> None:
        super().__init__()
        self.last: str | None = None
        self.entered: str | None = None

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg):
            self.entered = msg["name"]

    def _pyro_post_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg):
            self.last, self.entered = msg["name"], None

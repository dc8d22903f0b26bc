"""Programs that tests of paths and of starts share, and exact posteriors of regressions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ingle.data import read
from ingle.program import Program, build_program
from ingle.runtime import Runtime


@contextmanager
def prepared(
    model: Callable[..., Any],
    guide: Any,
    data: Any,
    where: dict[str, Any],
    *,
    seed: int = 0,
    batch_size: dict[str, int] | None = None,
) -> Iterator[tuple[Program, Runtime]]:
    runtime = Runtime(where["dtype"], torch.empty(0, device=where["device"]).device, seed)
    with runtime.scope():
        arguments = read(data).to(runtime.dtype, runtime.device)
        yield build_program(model, guide, arguments, batch_size=batch_size or {}, runtime=runtime), runtime


def regression(x: Tensor, y: Tensor) -> None:
    weights = pyro.sample("weights", dist.Normal(0.0, 100.0).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ weights, 0.5), obs=y)


def not_centred(n: int = 60) -> tuple[Tensor, Tensor]:
    """A slope of 0.5 beside an intercept of 80, over years."""
    generator = torch.Generator().manual_seed(3)
    year = 2000 + 20 * torch.rand(n, dtype=torch.float64, generator=generator)
    noise = torch.randn(n, dtype=torch.float64, generator=generator)
    return torch.stack([torch.ones(n, dtype=torch.float64), year], -1), 80 + 0.5 * (year - 2010) + 0.5 * noise


def ill_conditioned(n: int = 80, columns: int = 5) -> tuple[Tensor, Tensor]:
    """A design of condition number 1e5, none of it along an axis."""
    generator = torch.Generator().manual_seed(4)
    left, _ = torch.linalg.qr(torch.randn(n, columns, dtype=torch.float64, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(columns, columns, dtype=torch.float64, generator=generator))
    x = left @ torch.diag(torch.logspace(3, -2, columns, dtype=torch.float64)) @ right
    weights = torch.randn(columns, dtype=torch.float64, generator=generator)
    return x, x @ weights + 0.5 * torch.randn(n, dtype=torch.float64, generator=generator)


def posterior(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Its mean, and a square root R of its precision, by a QR decomposition, which squares no condition number."""
    prior = torch.eye(x.shape[-1], dtype=torch.float64) / 100.0
    q, r = torch.linalg.qr(torch.cat([x / 0.5, prior]))
    target = torch.cat([y / 0.5, torch.zeros(x.shape[-1], dtype=torch.float64)])
    return torch.linalg.solve_triangular(r, (q.mT @ target).unsqueeze(-1), upper=True).squeeze(-1), r


def two_modes(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu.abs(), 1.0), obs=y)


def local(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)) as rows:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])


def with_parameter(y: Tensor) -> None:
    sd = pyro.param("sd", torch.tensor(1.0), constraint=dist.constraints.positive)
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu, sd).expand([3]).to_event(1), obs=y)

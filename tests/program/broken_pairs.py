"""Right pairs with one fault put into each, and what `check` should say of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import autoguide
from pyro.nn import PyroModule
from torch import Tensor, nn

from ingle.program.finding import Kind

__all__ = ["BROKEN", "Broken"]


@dataclass(frozen=True)
class Broken:
    """A pair with one fault.

    Attributes:
        model, guide, data, options: of `check`.
        kind, site: of the one finding.
        said: a pattern in its message.
        fix: a pattern in its fix.
        fit_raises: `fit` raises it, in the same words; not where it is a warning, or takes runs that fit does not make.
    """

    model: Any
    guide: Any
    data: Any
    kind: Kind
    site: str | None
    said: str
    fix: str
    options: dict[str, Any] = field(default_factory=dict)
    fit_raises: bool = True
    severity: str = "error"


POSITIVE = constraints.positive
N = 6
Y = torch.linspace(-1.0, 1.0, N)
X = torch.stack([Y, Y**2, Y**3], -1)
NAN, INF = float("nan"), float("inf")


def put(value: float, *place: int, into: Tensor = Y) -> Tensor:
    changed = into.clone()
    changed[place] = value
    return changed


def scalar(name: str, family: Any = dist.Normal, **constraint: Any) -> Any:
    return pyro.sample(name, family(pyro.param(f"{name}_loc", torch.tensor(0.5), **constraint), 0.1))


# One model of a mean and a scale, and its guide.


def model(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("data", len(y)) as i:
        pyro.sample("y", dist.Normal(mu, 0.1 + tau), obs=y[i])


def guide(y: Tensor) -> None:
    scalar("mu")
    scalar("tau", dist.LogNormal)


def guide_with(name: str, fn: Any, *, drop: str = "") -> Any:
    """The guide of `model` with a statement more, or one in place of another."""

    def changed(y: Tensor) -> None:
        poutine.block(guide, hide=[drop or name])(y) if (drop or name) in ("mu", "tau") else guide(y)
        pyro.sample(name, fn())

    return changed


def observes(observed: Any, fn: Any = None, *, latent: Any = None) -> Any:
    """A model of one latent whose observed statement is what is given."""

    def changed(y: Tensor) -> None:
        mu = pyro.sample("mu", latent() if latent else dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", fn(mu) if fn else dist.Normal(mu, 1.0), obs=observed(y))

    return changed


def of_mu(y: Tensor) -> None:
    scalar("mu")


def of_positive_mu(y: Tensor) -> None:
    scalar("mu", dist.LogNormal)


def forgot_obs(x: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(b * x, 1.0))
        pyro.sample("z", dist.Normal(b, 1.0), obs=x)


def forgot_obs_guide(x: Tensor, y: Tensor) -> None:
    scalar("b")


def default_none(x: Tensor, y: Tensor | None = None) -> None:
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    pyro.factor("prior", -(b**2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(b * x, 1.0), obs=y)


def default_none_guide(x: Tensor, y: Tensor | None = None) -> None:
    scalar("b")


# A support each.


def one_latent(prior: Any) -> Any:
    def made(y: Tensor) -> None:
        value = pyro.sample("theta", prior())
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(value.sum(), 1.0), obs=y)

    return made


def one_guide(posterior: Any) -> Any:
    def made(y: Tensor) -> None:
        pyro.param("somewhere", torch.tensor(0.0))
        pyro.sample("theta", posterior())

    return made


def moving(y: Tensor) -> None:
    top = pyro.sample("top", dist.LogNormal(0.0, 0.1))
    theta = pyro.sample("theta", dist.Uniform(0.0, top))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def moving_guide(y: Tensor) -> None:
    scalar("top", dist.LogNormal)
    pyro.sample("theta", dist.LogNormal(1.0, 0.1))


# Local latents in plates.


def local(y: Tensor, **plate: Any) -> None:
    with pyro.plate("data", len(y), **plate) as i:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])


def own_rows(y: Tensor) -> None:
    local(y, subsample_size=3)


def in_plate(rows: Any, **plate: Any) -> Any:
    def made(y: Tensor) -> None:
        locs = pyro.param("locs", torch.zeros(N))
        size = rows(y) if callable(rows) else rows
        with pyro.plate("data", size, **plate) as i:
            pyro.sample("z", dist.Normal(locs[i % N], 1.0))

    return made


def no_plate(rows: int = N, event: int = 1) -> Any:
    def made(y: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("locs", torch.zeros(rows)), 1.0).to_event(event))

    return made


def event_in_model(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=y)


def plate_in_guide(y: Tensor) -> None:
    with pyro.plate("rows", 6, subsample_size=3):
        pyro.sample("z", dist.Normal(pyro.param("locs", torch.zeros(3)), 1.0))


def two_plates(dims: tuple[int, int]) -> Any:
    def made(y: Tensor) -> None:
        rows, columns = (pyro.plate(name, 3, dim=dim) for name, dim in zip(("rows", "columns"), dims, strict=True))
        with rows, columns:
            z = pyro.sample("z", dist.Normal(pyro.param("locs", torch.zeros(3, 3)), 1.0))
        if dims == (-2, -1):
            pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=y[0])

    return made


# Shapes of a log_prob.


def regression(x: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(b * x, 1.0), obs=y)


def of_b(x: Tensor, y: Tensor) -> None:
    scalar("b")


def columns(x: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(b * x, 1.0).to_event(1), obs=y)


def no_columns(x: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(b * x, 1.0).to_event(2), obs=y[None, :, None])


def no_plate_at_all(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


# Tensors from elsewhere.

_WIDE = torch.full((N,), 0.5, dtype=torch.float64)
_ELSEWHERE = torch.zeros(N, device="meta")


def closes_over(tensor: Tensor) -> Any:
    def made(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu + tensor, 1.0), obs=y)

    return made


def wide_guide(y: Tensor) -> None:
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)) + _WIDE.mean(), 1.0))


# Modules and parameters.


class Named(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.0))

    def forward(self, y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(self.loc, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


class NamedAlike(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.0))

    def forward(self, y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(self.loc, 1.0))


_encoder = nn.Linear(N, 1)


def unregistered(y: Tensor) -> None:
    pyro.sample("mu", dist.Normal(_encoder(y).squeeze(-1), 1.0))


def not_a_number(y: Tensor) -> None:
    pyro.sample("mu", dist.Normal(pyro.param("mu_loc", torch.tensor(NAN)), 1.0))


def constant_guide(y: Tensor) -> None:
    pyro.sample("mu", dist.Normal(0.0, 1.0))


# Arguments, flow and numbers.


def negative_scale(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, torch.linspace(-0.5, 1.0, len(y))), obs=y)


def scale_of_the_wrong_sign(y: Tensor) -> None:
    pyro.sample("mu", dist.Normal(0.0, pyro.param("mu_scale", torch.tensor(-1.0))))


def covariate(x: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(b * x, 1.0), obs=y)


_coin = iter([False, True] * 1_000)


def wanders(y: Tensor) -> None:
    model(y)
    if next(_coin):
        pyro.sample("sometimes", dist.Normal(0.0, 1.0), obs=y[0])


def prior_only(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(mu, 1.0))


def cliff(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.factor("cliff", -(1e30 ** (1 + mu)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def far_away(y: Tensor) -> None:
    pyro.sample("mu", dist.Normal(pyro.param("mu_loc", torch.tensor(5.0)), 0.1))


def switch(y: Tensor) -> None:
    k = pyro.sample("k", dist.Bernoulli(0.5))
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu + k, 1.0), obs=y)


def counts(y: Tensor) -> None:
    n = pyro.sample("n", dist.Poisson(3.0))
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu + n, 1.0), obs=y)


def all_rows(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def some_rows(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)) as i:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[i])


def looped(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", len(y)):
        pyro.sample(f"y{i}", dist.Normal(mu, 1.0), obs=y[i])


def raises(y: Tensor) -> None:
    pyro.sample("mu", dist.Normal(0.0, 1.0))
    raise KeyError("beta")


def masked(how: str) -> Any:
    def made(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.LogNormal(0.0, 1.0))
        keep = torch.arange(N) != 2
        with pyro.plate("data", len(y)):
            if how == "obs_mask":
                pyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=keep)
            elif how == "poutine":
                with poutine.mask(mask=keep):
                    pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
            else:
                pyro.sample("y", dist.Exponential(mu).mask(keep.float() if how == "floats" else keep), obs=y)

    return made


def batch(**sizes: int) -> dict[str, Any]:
    return {"batch_size": sizes}


def lognormal() -> Any:
    return dist.LogNormal(0.0, 0.1)


def normal(*shape: int) -> Any:
    return lambda: dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape))


def simplex() -> Any:
    return dist.Dirichlet(torch.ones(3))


_warning = {"severity": "warning", "fit_raises": False}
_positive = Y.abs() + 0.1

BROKEN: dict[str, Broken] = {
    # Names.
    "latent left out": Broken(
        model, of_mu, Y, "missing site", "tau", r"lacks 'tau' \(HalfNormal\)", "pyro.sample statement of the same name",
    ),
    "misspelt": Broken(
        model, guide_with("taus", lognormal, drop="tau"), Y, "missing site", "tau",
        "lacks 'tau'.*samples 'taus'.*misspelling", "call it 'tau' in both",
    ),
    "guide samples more": Broken(
        model, guide_with("nu", normal()), Y, "extra site", "nu", "samples 'nu', which the model does not", "is_auxil",
    ),
    "obs forgotten": Broken(
        forgot_obs, forgot_obs_guide, {"x": Y, "y": Y}, "observed site", "y", "argument of that name", "obs=y",
    ),
    "obs left at None": Broken(
        default_none, default_none_guide, {"x": Y}, "observed site", "y", "argument of that name", "value is None",
    ),
    "obs forgotten, guide by name": Broken(
        forgot_obs, "normal", {"x": Y, "y": Y}, "observed site", "y", r"\(6,\) is latent, though", "obs=y", **_warning,
    ),
    "guide samples the data": Broken(
        model, guide_with("y", normal(N)), Y, "observed site", "y", "which the model observes", "take it out",
    ),
    "guide observes": Broken(
        model, pyro.condition(guide, {"mu": torch.tensor(0.0)}), Y, "observed site", "mu", "the guide observes", "obs=",
    ),
    # Shapes.
    "shape": Broken(
        model, guide_with("mu", normal(2)), Y, "shape", "mu", r"\(\) in the model and \(2,\)", "the model's shape",
    ),
    "columns of a local latent": Broken(
        event_in_model, one_guide(normal(3)), Y, "missing site", "z", "samples 'theta'", "call it 'z'",
    ),
    "event for a plate": Broken(
        local, no_plate(), Y, "shape", "z", r"other event dimensions.*batch \(6,\).*event \(6,\)", "pyro.plate.'data'",
    ),
    "batch in the guide without a plate": Broken(
        local, no_plate(event=0), Y, "log_prob shape", "z", r"site 'z' of the guide.*\(6,\).*plates: none", "plate",
    ),
    "column against rows": Broken(
        regression, of_b, (Y, Y[:, None]), "log_prob shape", "y", r"\(6, 6\).*value \(6, 1\), batch \(6,\)", "squeeze",
    ),
    "column of a covariate": Broken(
        regression, of_b, (Y[:, None], Y), "log_prob shape", "y", r"\(6, 6\).*'data' 6 .dim -1.", "squeeze",
    ),
    "rows without a plate": Broken(
        no_plate_at_all, of_mu, Y, "log_prob shape", "y", r"\(6,\).*plates: none", "inside a pyro.plate",
    ),
    "one column for three": Broken(
        columns, of_b, (X, Y[:, None]), "broadcast", "y", r"value \(6, 1\).*event \(3,\)", r"ends in \(3\)",
    ),
    "no column for three": Broken(
        no_columns, of_b, (X, Y), "broadcast", "y", r"value \(1, 6, 1\).*event \(6, 3\)", r"ends in \(6, 3\)",
    ),
    "one number for all rows": Broken(
        observes(lambda y: y[0]), of_mu, Y, "broadcast", "y", r"shape \(\), one for all 6 rows of plate 'data'",
        "take the site out", **_warning,
    ),
    "one row for all rows": Broken(
        observes(lambda y: y[:1]), of_mu, Y, "broadcast", "y", r"shape \(1,\), one for all 6", "6 rows", **_warning,
    ),
    # Supports.
    "positive where the model is real": Broken(
        one_latent(lambda: dist.Normal(0.0, 1.0)), one_guide(lambda: dist.LogNormal(0.0, 1.0)), Y, "support", "theta",
        "cannot draw below 0, which the model's distribution can", "the model's support", **_warning,
    ),
    "below one where the model is positive": Broken(
        one_latent(lambda: dist.Gamma(2.0, 1.0)), one_guide(lambda: dist.Beta(2.0, 2.0)), Y, "support", "theta",
        "cannot draw above 1, which the model's distribution can", "the model's support", **_warning,
    ),
    "normal for a scale": Broken(
        model, guide_with("tau", lambda: dist.Normal(1.0, 0.1)), Y, "support", "tau",
        "can draw -0.5, .*HalfNormal, 0 or greater; guide: Normal, any real number", "LogNormal",
    ),
    "normal for a share": Broken(
        one_latent(lambda: dist.Beta(1.0, 1.0)), one_guide(lambda: dist.Normal(0.5, 1.0)), Y, "support", "theta",
        "guide drew .*between 0 and 1", "Beta",
    ),
    "narrow normal in a box": Broken(
        one_latent(lambda: dist.Uniform(-1e3, 1e3)), one_guide(lambda: dist.Normal(0.5, 0.1)), Y, "support", "theta",
        "tails that reach outside.*between -1000 and 1000; guide: Normal", r"keep it.*interval\(-1000, 1000\)",
        **_warning,
    ),
    "narrow lognormals in boxes": Broken(
        one_latent(lambda: dist.Uniform(torch.zeros(2), torch.tensor([9.0, 8.0])).to_event(1)),
        one_guide(lambda: dist.LogNormal(torch.zeros(2), 0.1).to_event(1)), Y, "support", "theta",
        r"tails that .*between 0 and 8 … 9.*shape \(2,\)", "low and high as in the model", **_warning,
    ),
    "normal beside a box": Broken(
        one_latent(lambda: dist.Uniform(-1e3, 1e3)), one_guide(lambda: dist.Normal(2e3, 0.1)), Y, "support", "theta",
        "guide drew 2000, .*between -1000 and 1000", r"interval\(-1000, 1000\)",
    ),
    "normal beyond one box of two": Broken(
        one_latent(lambda: dist.Uniform(torch.zeros(2), torch.tensor([9.0, 1.0])).to_event(1)),
        one_guide(lambda: dist.Normal(torch.full((2,), 0.9), 0.1).to_event(1)), Y, "support", "theta",
        "guide drew 1", "low and high as in the model",
    ),
    "lognormal for a share": Broken(
        one_latent(lambda: dist.Beta(1.0, 1.0)), one_guide(lognormal), Y, "support", "theta", "LogNormal", "Beta",
    ),
    "beta for a wider to a narrower": Broken(
        one_latent(lambda: dist.Uniform(0.2, 0.8)), one_guide(lambda: dist.Beta(2.0, 2.0)), Y, "support", "theta",
        "between 0.2 and 0.8; guide: Beta, between 0 and 1", r"interval\(0.2, 0.8\)",
    ),
    "lognormals for shares that sum": Broken(
        one_latent(simplex), one_guide(lambda: dist.LogNormal(torch.zeros(3), 1.0).to_event(1)), Y, "support",
        "theta", "sum 1", "Dirichlet",
    ),
    "normal for counts": Broken(
        one_latent(lambda: dist.Poisson(2.0)), one_guide(lambda: dist.Normal(2.0, 1.0)), Y, "support", "theta",
        "draws continuous values, but the model's distribution is discrete", "discrete distribution",
    ),
    "counts for a real": Broken(
        one_latent(lambda: dist.Normal(0.0, 2.0)), one_guide(lambda: dist.Poisson(2.0)), Y, "support", "theta",
        "draws discrete values, but the model's distribution is continuous", "own family",
    ),
    "more categories than the model's": Broken(
        one_latent(lambda: dist.Categorical(torch.ones(3))), one_guide(lambda: dist.Categorical(torch.ones(5))), Y,
        "support", "theta", "can draw 3, .*from 0 to 2; guide: Categorical, an integer from 0 to 4", "model's values",
    ),
    "endless for finite": Broken(
        one_latent(lambda: dist.Binomial(10, 0.5)), one_guide(lambda: dist.Poisson(2.0)), Y, "support", "theta",
        "can draw 1000, .*from 0 to 10", "model's values",
    ),
    "delta outside": Broken(
        one_latent(lambda: dist.HalfNormal(1.0)), one_guide(lambda: dist.Delta(torch.tensor(-0.5))), Y, "support",
        "theta", r"can draw -0.5, .*guide: Delta; shape", "constraint=constraints.positive",
    ),
    "outside a support that moves": Broken(
        moving, moving_guide, Y, "support", "theta", "between 0 and .*LogNormal", "low and high as in the model",
    ),
    # Plates.
    "plate of another size": Broken(
        local, in_plate(5), Y, "plate", "z", r"6 rows \(dim -1\) in the model and 5 rows", r"plate\('data', 6",
    ),
    "rows in the model alone": Broken(
        own_rows, in_plate(len), Y, "plate", "z", "3 of 6 rows .dim -1. in the model and 6 rows", "subsample_size",
    ),
    "rows in the guide alone": Broken(
        local, in_plate(len, subsample_size=3), Y, "plate", "z", "6 rows .* in the model and 3 of 6", "subsample_size",
    ),
    "plates crossed": Broken(
        two_plates((-2, -1)), two_plates((-1, -2)), Y, "plate", "z", "dim -2.*dim -1", "one dim",
    ),
    "latent misses the scale": Broken(
        own_rows, no_plate(3), Y, "scale", "z", r"in the model alone.*scaled by 6/3", "without .to_event",
    ),
    "latent misses the scale of batch_size": Broken(
        local, no_plate(2), Y, "scale", "z", r"in the model alone.*scaled by 6/2", "in the guide", batch(data=2),
    ),
    "scaled in the guide alone": Broken(
        event_in_model, plate_in_guide, Y, "scale", "z", r"in the guide alone.*scaled by 6/3", "in the model",
    ),
    # Devices and dtypes.
    "another device": Broken(
        closes_over(_ELSEWHERE), of_mu, Y, "device", "y", "broken_pairs.py line.*loc of its Normal is on meta",
        "pass it as data",
    ),
    "a wider dtype in the model": Broken(
        closes_over(_WIDE), of_mu, Y, "dtype", "y", "float64 in a fit of float32: loc of its Normal", "closes over",
        **_warning,
    ),
    "a wider dtype in the guide": Broken(
        all_rows, wide_guide, Y, "dtype", "mu", "'mu' of the guide.*float64", "dtype=torch.float64", **_warning,
    ),
    "observes a wider dtype": Broken(
        observes(lambda y: y.double()), of_mu, Y, "dtype", "y", "its value is float64", "as data", **_warning,
    ),
    # Numbers that are none.
    "NaN observed": Broken(
        all_rows, of_mu, put(NAN, 4), "not finite", "y", r"NaN.*in 1 of 6 places, first nan at \[4\]", "obs_mask",
    ),
    "infinity observed": Broken(
        all_rows, of_mu, put(-INF, 0), "not finite", "y", r"infinity in 1 of 6 places, first -inf at \[0\]", "leave it",
    ),
    "NaN behind obs_mask": Broken(
        masked("obs_mask"), "normal", put(NAN, 2), "not finite", "y_observed", "1 of 6", "from the gradient",
    ),
    "NaN behind a mask": Broken(
        masked("poutine"), of_positive_mu, put(NAN, 2), "not finite", "y", r"\[2\]", "torch.where",
    ),
    "NaN in a covariate": Broken(
        covariate, of_b, (put(NAN, 3), Y), "not finite", "y", r"loc of its Normal .*1 of 6 places, first nan at \[3\]",
        "x holds NaN",
    ),
    "parameter is NaN": Broken(
        all_rows, not_a_number, Y, "parameter", None, r"'mu_loc' \(NaN\) is not finite before", "start it from a num",
    ),
    "log_prob is not finite at the guide's draws": Broken(
        cliff, far_away, Y, "not finite", "cliff", "at 3 of 3 draws of the guide", "float64", fit_raises=False,
    ),
    # Values and arguments out of range.
    "halves for coins": Broken(
        observes(lambda y: y, lambda mu: dist.Bernoulli(torch.sigmoid(mu))), of_mu, put(0.5, 1, into=(Y > 0).float()),
        "outside support", "y", r"Bernoulli, which is 0 or 1, in 1 of 6 places, first 0.5 at \[1\]", "another family",
    ),
    "negative counts": Broken(
        observes(lambda y: y, lambda mu: dist.Poisson(mu.exp())), of_mu, torch.tensor([0.0, 1, -9, 2, 0, -9]),
        "outside support", "y", r"an integer of 0 or more, in 2 of 6 places, first -9 at \[2\]", "check the data",
    ),
    "negative times": Broken(
        observes(lambda y: y, dist.Exponential, latent=lognormal), of_positive_mu, put(-1, 5, into=_positive),
        "outside support", "y", r"first -1 at \[5\]", "check the data",
    ),
    "placeholder behind a mask": Broken(
        masked("inside"), of_positive_mu, put(-99, 2, into=_positive), "outside support", "y", "first -99", "where",
    ),
    "placeholder behind a mask of floats": Broken(
        masked("floats"), of_positive_mu, put(-99, 2, into=_positive), "outside support", "y", "first -99", "where",
    ),
    "placeholder beside a mask": Broken(
        masked("inside"), of_positive_mu, put(-99, 3, into=_positive), "outside support", "y", r"\[3\]", "check",
    ),
    "labels from 1": Broken(
        observes(lambda y: y, lambda mu: dist.Categorical(torch.stack([mu, mu]).exp())), of_mu,
        torch.tensor([1, 2, 1, 2, 1, 1]), "outside support", "y", r"an integer from 0 to 1, in 2 of 6",
        "labels count from 0",
    ),
    "negative scale": Broken(
        negative_scale, of_mu, Y, "argument", "y", r"scale of its Normal should be greater than 0.*first -0.5 at \[0\]",
        "softplus",
    ),
    "negative scale in the guide": Broken(
        all_rows, scale_of_the_wrong_sign, Y, "argument", "mu", "the guide raised.*scale of its Normal.*-1", "softplus",
    ),
    # Minibatches.
    "rows not taken": Broken(
        all_rows, of_mu, Y, "batch size", "y", "2 rows, but site 'y' has 6 of 6", r"x\[i\]", batch(data=2),
    ),
    "no such plate": Broken(
        some_rows, of_mu, Y, "batch size", None, "'rows', which the model does not have; its plates: data", "",
        batch(rows=2),
    ),
    "more rows than there are": Broken(
        some_rows, of_mu, Y, "batch size", None, "has only 6 rows", "", batch(data=9),
    ),
    "rows drawn twice": Broken(
        own_rows, "normal", Y, "batch size", None, "draws 3 rows by itself", "take subsample_size out", batch(data=2),
    ),
    "rows of a loop": Broken(looped, of_mu, Y, "batch size", "y0", "loops over", "with pyro.plate", batch(data=2)),
    "joint guide on rows": Broken(
        local, "multivariate_normal", Y, "unreachable", "z", "one joint distribution", "use 'normal'", batch(data=2),
    ),
    # Guides that cannot reach, parameters that nobody moves, programs that raise.
    "endless discrete by name": Broken(counts, "normal", Y, "unreachable", "n", "without a finite", "write a guide"),
    "curvature of what is summed out": Broken(
        switch, "laplace", Y, "unreachable", "k", "curvature of the log joint", "multivariate_normal",
    ),
    "modules of one name": Broken(Named(), NamedAlike(), Y, "parameter", None, "both have a parameter 'loc'", "name="),
    "module unknown to Pyro": Broken(
        all_rows, unregistered, Y, "untrained", None, "2 parameters of a module Linear, 'weight' first", "pyro.module",
        **_warning,
    ),
    "constant guide": Broken(
        all_rows, constant_guide, Y, "nothing to train", None, "trained for mu", "pyro.param", **_warning,
    ),
    "observes nothing": Broken(
        prior_only, autoguide.AutoNormal, Y, "nothing observed", None, "posterior is its prior", "obs=", **_warning,
    ),
    "sites come and go": Broken(wanders, guide, Y, "control flow", "sometimes", "in some runs", "where", **_warning),
    "raises": Broken(raises, of_mu, Y, "raised", None, "raised KeyError after site 'mu'", ""),
    "wrong names": Broken(model, guide, {"x": Y}, "call", None, "do not fit the call of the model", "names"),
}  # fmt: skip

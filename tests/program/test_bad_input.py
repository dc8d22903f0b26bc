"""What a new user gets wrong: one Ingle error each, that says what to change, and nothing global changed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from pyro.infer import autoguide
from pyro.infer.util import is_validation_enabled
from support import global_state
from torch import Tensor

import ingle

Y = torch.linspace(-1.0, 1.0, 6)


def model(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("data", 6) as i:
        pyro.sample("y", dist.Normal(mu, 0.1 + tau), obs=y[i])


def guide(y: Tensor) -> None:
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
    pyro.sample("tau", dist.LogNormal(0.0, 1.0))


def local(y: Tensor) -> None:
    with pyro.plate("data", 6) as i:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])


def all_rows(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 6):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def own_rows(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 6, subsample_size=3) as i:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[i])


def own_rows_local(y: Tensor) -> None:
    with pyro.plate("data", 6, subsample_size=3) as i:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])


def looped(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", 6):
        pyro.sample(f"y{i}", dist.Normal(mu, 1.0), obs=y[i])


def two_lengths(x: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(b * x, 1.0), obs=y)


def coins(y: Tensor) -> None:
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(p), obs=y)


def counts(y: Tensor) -> None:
    n = pyro.sample("n", dist.Poisson(3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(n, 1.0), obs=y)


def raises(error: Exception) -> Callable[[Tensor], None]:
    def broken(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        raise error

    return broken


def no_latents(y: Tensor) -> None:
    pyro.sample("y", dist.Normal(torch.zeros(6), 1.0).to_event(1), obs=y)


def without(name: str) -> Callable[[Tensor], None]:
    return pyro.poutine.block(guide, hide=[name])  # type: ignore[no-any-return]


def sites(*names: str, shape: tuple[int, ...] = ()) -> Callable[[Tensor], None]:
    def made(y: Tensor) -> None:
        for name in names:
            pyro.sample(name, dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape)))

    return made


def generator(y: Tensor) -> Any:
    yield y


BUILT = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
NAN = torch.tensor([0.0, float("nan"), 0.0, 0.0, 0.0, 0.0])
PARTIAL = functools.partial
DATA, OPTION, PROGRAM = ingle.DataError, ingle.OptionError, ingle.ProgramError

# model, guide, data, options, the error, what it says, whether it keeps a cause
CASES: dict[str, tuple[Any, Any, Any, dict[str, Any], type[Exception], str, bool]] = {
    "unknown guide": (model, "nomal", Y, {}, OPTION, "'nomal' does not exist.*'normal', 'multivar", False),
    "guide None": (model, None, Y, {}, OPTION, "guide must be a name", False),
    "guide class": (model, torch.nn.Linear, Y, {}, OPTION, "did you mean an instance", False),
    "guide options": (model, PARTIAL(autoguide.AutoNormal, init_scal=1.0), Y, {}, OPTION, "AutoNormal", True),
    "empty mapping": (model, "normal", {}, {}, DATA, r"data=\(\)", False),
    "object array": (model, "normal", np.array([1, None]), {}, DATA, "missing value", False),
    "strings": (model, "normal", np.array(["a"]), {}, DATA, "factorize", False),
    "masked": (model, "normal", np.ma.masked_array([1.0, 2.0], [0, 1]), {}, DATA, "obs_mask", False),
    "table": (model, "normal", pd.DataFrame({"y": [1.0]}), {}, DATA, "table", False),
    "wrong name": (model, "normal", {"x": Y}, {}, DATA, "missing a required argument: 'y'|unexpected", True),
    "too many": (model, "normal", (Y, Y), {}, DATA, "too many positional arguments", True),
    "lengths": (two_lengths, "normal", (Y[:5], Y), {}, PROGRAM, r"site y.*x \(5,\) float.*compare the shapes", True),
    "column": (two_lengths, "normal", (Y, Y[:, None]), {}, PROGRAM, "squeeze|rows", True),
    "missing": (model, "normal", NAN, {}, PROGRAM, "holds NaN, a missing value", True),
    "bools": (coins, "normal", Y > 0, {}, PROGRAM, "pass floats", True),
    "integers": (coins, "normal", (Y > 0).long(), {}, PROGRAM, "pass floats", True),
    "support": (coins, "normal", Y, {}, PROGRAM, "outside the support", True),
    "list": (coins, "normal", {"y": [0.0, 1.0]}, {}, PROGRAM, "pass it as an array", True),
    "raises": (raises(KeyError("k")), "normal", Y, {}, PROGRAM, "the model raised KeyError after site 'mu'", True),
    "asserts": (raises(AssertionError()), guide, Y, {}, PROGRAM, "AssertionError", True),
    "no latents": (no_latents, "normal", Y, {}, OPTION, "no latent sample site", False),
    "nothing to fit": (no_latents, lambda y: None, Y, {}, PROGRAM, "nothing to fit: 'y' is observed", False),
    "endless": (counts, "normal", Y, {}, OPTION, "'n' \\(Poisson\\).*write a guide", False),
    "endless left out": (counts, sites(), Y, {}, PROGRAM, "lacks 'n' \\(Poisson\\).*finite", False),
    "lacks a site": (model, without("tau"), Y, {}, PROGRAM, "the guide lacks 'tau' \\(HalfNormal\\)", False),
    "misspelt": (model, sites("mu", "taw"), Y, {}, PROGRAM, "lacks 'tau'.*'taw'.*misspelling", False),
    "extra site": (all_rows, sites("mu", "nu"), Y, {}, PROGRAM, "samples 'nu', which the model does not", False),
    "observed site": (all_rows, sites("mu", "y"), Y, {}, PROGRAM, "which the model observes", False),
    "other shape": (all_rows, sites("mu", shape=(2,)), Y, {}, PROGRAM, r"'mu' has shape \(\) in the", False),
    "generator": (generator, "normal", Y, {}, OPTION, "generator", False),
    "model class": (torch.nn.Linear, "normal", Y, {}, OPTION, "model must be a callable", False),
    "batch too large": (model, "normal", Y, {"batch_size": {"data": 7}}, OPTION, "has only 6 rows$", False),
    "no such plate": (model, "normal", Y, {"batch_size": {"rows": 2}}, OPTION, "its plates: data", False),
    "batch zero": (model, "normal", Y, {"batch_size": {"data": 0}}, OPTION, "positive integer", False),
    "rows ignored": (all_rows, "normal", Y, {"batch_size": {"data": 2}}, PROGRAM, r"x\[i\]", False),
    "rows ignored by one": (all_rows, "normal", Y, {"batch_size": {"data": 1}}, PROGRAM, r"x\[i\]", False),
    "own rows": (own_rows, "normal", Y, {"batch_size": {"data": 2}}, OPTION, "draws 3 rows by itself", False),
    "looped": (looped, "normal", Y, {"batch_size": {"data": 2}}, OPTION, "loops over", False),
    "joint": (local, "multivariate_normal", Y, {"batch_size": {"data": 2}}, OPTION, "one joint", False),
    "joint low rank": (local, "low_rank", Y, {"batch_size": {"data": 2}}, OPTION, "one joint", False),
    "joint flow": (local, "flow", Y, {"batch_size": {"data": 2}}, OPTION, "one joint", False),
    "joint own rows": (own_rows_local, "multivariate_normal", Y, {}, OPTION, "one joint", False),
    "steps negative": (model, "normal", Y, {"steps": -5}, OPTION, "steps must be a positive integer", False),
    "steps float": (model, "normal", Y, {"steps": 5.0}, OPTION, "steps must be a positive integer", False),
    "optimiser built": (model, "normal", Y, {"optim": BUILT}, OPTION, "partial\\(torch.optim.Adam", False),
    "optimiser options": (model, "normal", Y, {"optim": PARTIAL(torch.optim.Adam, lr=-1.0)}, OPTION, "rate", True),
    "pyro options": (model, "normal", Y, {"optim": pyro.optim.Adam({"lrr": 1.0})}, OPTION, "lrr", True),
    "pyro rate": (model, "normal", Y, {"optim": pyro.optim.Adam({"lr": -1.0})}, OPTION, "learning rate", True),
    "pyro bare": (model, "normal", Y, {"optim": pyro.optim.Adam}, OPTION, "without its options", False),
    "lbfgs": (model, "normal", Y, {"optim": torch.optim.LBFGS}, OPTION, "LBFGS", False),
    "sparse adam": (model, "normal", Y, {"optim": torch.optim.SparseAdam}, OPTION, "SparseAdam", True),
    "optimiser keys": (model, "normal", Y, {"optim": {"net": None}}, OPTION, '"model" and "guide"', False),
    "optimiser name": (model, "normal", Y, {"optim": "adam"}, OPTION, "optim must be a callable", False),
    "guide steps": (model, "normal", Y, {"guide_steps": 0}, OPTION, "guide_steps", False),
    "objective class": (model, "normal", Y, {"objective": pyro.infer.Trace_ELBO}, OPTION, "an instance", False),
    "no loss": (model, "normal", Y, {"objective": pyro.infer.TraceTailAdaptive_ELBO()}, OPTION, "ingle.SVI", False),
    "objective": (model, "normal", Y, {"objective": "elbo"}, OPTION, "pyro.infer.ELBO", False),
    "device": (model, "normal", Y, {"device": "banana"}, OPTION, "'banana' cannot be used", True),
    "meta": (model, "normal", Y, {"device": "meta"}, OPTION, "'meta' cannot be used", True),
    "dtype": (model, "normal", Y, {"dtype": torch.int64}, OPTION, "floating torch dtype", False),
    "compile": (model, "normal", Y, {"compile": "maybe"}, OPTION, "'auto', 'off', 'full'", False),
    "progress": (model, "normal", Y, {"progress": "yes"}, OPTION, "progress must be", False),
    "seed": (model, "normal", Y, {"seed": -1}, OPTION, "seed must be", False),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_error_that_says_what_to_change(case: str) -> None:
    program, guided, data, options, kind, said, has_cause = CASES[case]
    before = global_state()
    with pytest.raises(ingle.IngleError, match=r"(?s)" + said) as caught:
        ingle.fit(program, guided, data, **{"steps": 4, **options})
    assert type(caught.value) is kind
    assert isinstance(caught.value, ValueError)
    assert (caught.value.__cause__ is not None) == has_cause
    assert not isinstance(caught.value.__cause__, ingle.IngleError)
    assert global_state() == before


def test_left_out_discrete_needs_an_enumerating_objective() -> None:
    def switch(y: Tensor) -> None:
        k = pyro.sample("k", dist.Bernoulli(0.5))
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu + k, 1.0), obs=y)

    with pytest.raises(ingle.OptionError, match="leaves out k, which Trace_ELBO cannot sum out"):
        ingle.fit(switch, "normal", Y, objective=pyro.infer.Trace_ELBO())
    with pytest.raises(ingle.OptionError, match="curvature of the log joint"):
        ingle.fit(switch, "laplace", Y)


def test_modules_that_share_a_name_are_refused() -> None:
    class Part(pyro.nn.PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.loc = torch.nn.Parameter(torch.tensor(0.0))

        def forward(self, y: Tensor) -> None:
            pyro.sample("mu", dist.Normal(self.loc, 1.0))

    with pytest.raises(ingle.ProgramError, match="both have a parameter 'loc'"):
        ingle.fit(Part(), Part(), Y, steps=2)


def test_refused_fit_leaves_modules_as_they_were() -> None:
    net = torch.nn.Linear(1, 1)
    with pytest.raises(ingle.DataError):
        ingle.fit(net, "normal", {"wrong": Y}, dtype=torch.float64)
    assert net.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"draws": 0}, "draws must be a positive integer"),
        ({"coords": {"school": [1]}}, "'school', which is no dimension: data"),
        ({"coords": {"data": [1, 2]}}, "2 labels, but the dimension has 6 rows"),
        ({"coords": {"data": 6}}, r"coords\['data'\] must be a sequence"),
        ({"coords": ["data"]}, "coords must be a mapping"),
        ({"dims": {"nu": ["a"]}}, "'nu', which is not among the exported variables: mu, tau, y"),
        ({"dims": {"y": ["a", "b"]}}, r"2 names, but the variable has shape \(6,\)"),
        ({"dims": {"y": ["draw"]}}, "keeps the names"),
        ({"dims": {"y": [1]}}, "must be names, each once"),
        ({"coords": {"data": [[1, 2]] * 6}}, "must be single labels"),
        ({"coords": {"data": {1, 2, 3, 4, 5, 6}}}, r"coords\['data'\] must be a sequence"),
        ({"groups": ["posteriors"]}, "groups must be some of 'posterior'"),
        ({"groups": [["posterior"]]}, "groups must be some of"),
        ({"groups": "posterior"}, "groups must be some of"),
        ({"weighted": "no"}, "weighted must be True or False"),
        ({"weighted": True, "draws": 3}, "at least 25 weights"),
    ],
)
def test_to_arviz_refusals(options: dict[str, Any], said: str) -> None:
    fit = ingle.fit(model, "normal", Y, steps=2)
    with pytest.raises(ingle.OptionError, match=said):
        fit.to_arviz(**options)


@pytest.mark.parametrize("n", [0, -1, 2.0, True, None])
def test_draws_refusals(n: Any) -> None:
    fit = ingle.fit(model, "normal", Y, steps=2)
    with pytest.raises(ingle.OptionError, match="n must be a positive integer"):
        fit.draws(n)


def refuses(y: Tensor) -> None:
    pyro.param("weight", torch.ones(3))
    if is_validation_enabled() and y.min() < 0:  # as a program does that is to be compiled
        raise ValueError("y must be a count")


def test_what_a_program_refuses_by_itself_is_one_fault() -> None:
    """It is not told again for the guide, nor as what follows from it, nor with Pyro's table of shapes."""

    def counts(y: Tensor) -> None:
        refuses(y)
        with pyro.plate("data", 6) as i:
            pyro.sample("y", dist.Poisson(pyro.sample("rate", dist.Gamma(1.0, 1.0).expand([6]))), obs=y[i])

    with pytest.raises(ingle.ProgramError) as caught:
        ingle.fit(counts, refuses, Y)
    (finding,) = caught.value.findings
    assert str(finding).startswith("the model raised ValueError before any sample site, test_bad_input.py line ")
    assert str(finding).endswith(": y must be a count\n  data: y (6,) float32")

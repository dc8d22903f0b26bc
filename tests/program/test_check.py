"""What `check` finds in broken pairs, that it finds nothing in right ones, and that it changes nothing."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any, get_args

import pyro
import pyro.distributions as dist
import pytest
import torch
from program.broken_pairs import BROKEN, NAN, Y, guide, model, put
from program.right_pairs import RIGHT
from pyro import poutine
from pyro.infer import autoguide
from support import global_state
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import ingle
from ingle.program.finding import Kind
from ingle.program.values import _observed


@pytest.mark.parametrize("name", BROKEN)
def test_one_fault_is_found_once(name: str) -> None:
    case = BROKEN[name]
    before = global_state()
    found = ingle.check(case.model, case.guide, case.data, **case.options)
    assert global_state() == before
    assert [(finding.kind, finding.site, finding.severity) for finding in found.findings] == [
        (case.kind, case.site, case.severity)
    ]
    (finding,) = found.findings
    assert re.search(f"(?s){case.said}", finding.message)
    assert re.search(f"(?s){case.fix}", finding.fix)
    assert found.ok == (case.severity == "warning")
    assert finding.cause is None
    assert max(map(len, repr(found).splitlines())) <= 100


@pytest.mark.parametrize("name", [name for name, case in BROKEN.items() if case.fit_raises])
def test_fit_raises_in_the_same_words(name: str) -> None:
    case = BROKEN[name]
    (finding,) = ingle.check(case.model, case.guide, case.data, **case.options).findings
    with pytest.raises(ingle.IngleError) as caught:
        ingle.fit(case.model, case.guide, case.data, steps=2, **case.options)
    assert str(caught.value) == str(finding)
    assert caught.value.findings == (finding,)
    assert type(caught.value) is finding.error
    assert caught.value.fit is None


@pytest.mark.parametrize("name", RIGHT)
def test_right_pairs_have_no_finding(name: str) -> None:
    program, guided, data, options = RIGHT[name]
    found = ingle.check(program, guided, data, **options)
    assert found.findings == ()
    assert found.ok
    assert repr(found).splitlines()[0].endswith(": nothing found")


@pytest.mark.parametrize("name", RIGHT)
def test_right_pairs_are_right(name: str) -> None:
    """Otherwise the test before says nothing. After two steps there is no mode for a Laplace approximation."""
    program, guided, data, options = RIGHT[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ingle.IngleWarning)
        fit = ingle.fit(program, guided, data, steps=2, **options)
    assert torch.tensor(fit.losses).isfinite().all()


def test_every_kind_is_broken_once() -> None:
    assert {case.kind for case in BROKEN.values()} == set(get_args(Kind))


@pytest.mark.parametrize("name", ["coin", "logistic, rows", "autoencoder", "local, rows", "lda"])
def test_other_dtypes_and_seeds(name: str) -> None:
    program, guided, data, options = RIGHT[name]
    for seed in (1, 2):
        assert ingle.check(program, guided, data, dtype=torch.float64, seed=seed, **options).findings == ()


def test_wide_dtype_is_none_in_a_wide_fit() -> None:
    case = BROKEN["a wider dtype in the model"]
    assert ingle.check(case.model, case.guide, case.data, dtype=torch.float64).findings == ()


def test_several_faults_at_once_and_in_fit_too() -> None:
    def wrong(y: Tensor) -> None:
        pyro.sample("mo", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
        pyro.sample("tau", dist.Normal(1.0, 0.1))

    data = put(NAN, 3)
    found = ingle.check(model, wrong, data)
    assert [(finding.kind, finding.site) for finding in found.findings] == [
        ("not finite", "y"),
        ("missing site", "mu"),
        ("support", "tau"),
    ]
    with pytest.raises(
        ingle.ProgramError, match=r"(?s)^3 faults were found:\n1. the value.*\n2. the guide lacks.*\n3. "
    ):
        ingle.fit(model, wrong, data)


def test_a_warning_hides_no_error_at_its_site() -> None:
    def wide(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
        pyro.sample("tau", dist.Normal(torch.tensor(1.0, dtype=torch.float64), 0.1))

    found = ingle.check(model, wide, Y)
    assert [(finding.kind, finding.site) for finding in found.findings] == [("support", "tau"), ("dtype", "tau")]
    assert not found.ok


def test_columns_against_many_rows_need_no_memory() -> None:
    """N by N would take 40 GB."""
    case, rows = BROKEN["column against rows"], torch.zeros(100_000)
    (finding,) = ingle.check(case.model, case.guide, (rows, rows[:, None])).findings
    assert (finding.kind, finding.site) == ("log_prob shape", "y")
    assert "(100000, 100000)" in finding.message


def test_errors_come_before_warnings() -> None:
    def shared(y: Tensor) -> None:
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0.0, scale), obs=y[0])

    def normal(y: Tensor) -> None:
        pyro.sample("scale", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    found = ingle.check(shared, normal, Y)
    assert [(finding.kind, finding.severity) for finding in found.findings] == [
        ("support", "error"),
        ("broadcast", "warning"),
    ]


def test_the_page() -> None:
    def wrong(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.zeros(2)), 1.0).to_event(1))
        pyro.sample("tau", dist.Normal(1.0, 0.1))

    found = ingle.check(model, wrong, Y, batch_size={"data": 4})
    assert repr(found) == (
        """\
Check of model with wrong: 2 errors

  site  kind      side   distribution  batch  event  value  plates
x mu    latent    model  Normal        ()     ()     ()
                  guide  Normal        ()     (2,)   (2,)
x tau   latent    model  HalfNormal    ()     ()     ()
                  guide  Normal        ()     ()     ()
  y     observed  model  Normal        (4,)   ()     (4,)   data 4 of 6

x shape at 'mu'
    site 'mu' has shape () in the model and (2,) in the guide (model: batch (), event (); guide:
    batch (), event (2,))
    likely fix: give the guide's distribution the model's shape, .to_event(n) included

x support at 'tau'
    site 'tau': the guide can draw -0.5, which the model's distribution cannot have (model:
    HalfNormal, 0 or greater; guide: Normal, any real number; shape ())
    likely fix: sample it from dist.LogNormal or dist.Gamma, or give a Delta's parameter
    constraint=constraints.positive"""
    )
    assert str(found) == repr(found)


def test_the_page_of_many_sites_is_short() -> None:
    def many(y: Tensor) -> None:
        for i in pyro.plate("data", 200):
            pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(0.0, 1.0).expand([6]).to_event(1), obs=put(NAN, 1))

    def local(y: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        for i in pyro.plate("data", 200):
            pyro.sample(f"z_{i}", dist.Normal(loc, 1.0))

    lines = repr(ingle.check(many, local, Y)).splitlines()
    assert len(lines) < 100
    assert any(line.startswith("x y ") for line in lines)
    assert "  … and 161 more sites" in lines


class Net(nn.Module):
    """A model with running statistics, a counter of its runs and a list that it appends to."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        self.runs = 0
        self.seen: list[int] = []

    def forward(self, x: Tensor, y: Tensor) -> None:
        self.runs += 1
        self.seen.append(len(x))
        pyro.module("net", self)
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(self.layer(x).squeeze(-1), tau), obs=y)


@pytest.mark.filterwarnings("ignore:.*requires_grad:UserWarning")  # Pyro's, of a frozen parameter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_modules_are_left_as_they_were(dtype: torch.dtype) -> None:
    net = Net()
    net.layer[0].weight.requires_grad_(False)
    net.layer[0].bias.grad = torch.ones(3)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    held = dict(net.named_buffers()), dict(net.named_parameters())
    data = {"x": torch.randn(6, 2), "y": Y}
    assert ingle.check(net, "normal", data, dtype=dtype).findings == ()
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(after[name].dtype == value.dtype and torch.equal(after[name], value) for name, value in before.items())
    assert all(dict(net.named_buffers())[name] is value for name, value in held[0].items())
    assert all(dict(net.named_parameters())[name] is value for name, value in held[1].items())
    assert not net.layer[0].weight.requires_grad
    assert torch.equal(net.layer[0].bias.grad, torch.ones(3))
    assert (net.runs, net.seen) == (0, [])


def test_an_automatic_guide_is_left_as_it_was() -> None:
    """Its parameters are made by the first run, with the shapes of that run's data."""

    def plain(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    made = autoguide.AutoNormal(plain)
    assert ingle.check(plain, made, Y).findings == ()
    assert made.prototype_trace is None
    assert not list(made.parameters())
    assert ingle.check(plain, made, Y[:4]).findings == ()
    assert ingle.fit(plain, made, Y[:4], steps=2).draws(3)["z"].shape == (3, 4)


def test_parameters_and_data_of_the_user_are_left_alone() -> None:
    data = Y.double()
    with pyro.get_param_store().scope():
        pyro.param("mu_loc", torch.tensor(7.0))
        before = global_state()
        assert ingle.check(model, guide, data).ok
        assert global_state() == before
        assert pyro.param("mu_loc").item() == 7.0
    assert data.dtype == torch.float64


def test_a_fit_after_a_check_is_the_same_fit() -> None:
    plain = ingle.fit(model, guide, Y, steps=5)
    ingle.check(model, guide, Y)
    assert ingle.fit(model, guide, Y, steps=5).losses.tolist() == plain.losses.tolist()


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "said"),
    [
        ((model, guide, [1.0]), {}, ingle.DataError, "data must be a mapping"),
        ((model, guide, {}), {}, ingle.DataError, "empty mapping"),
        ((model, guide, Y), {"dtype": torch.int64}, ingle.OptionError, "floating torch dtype"),
        ((model, guide, Y), {"device": "banana"}, ingle.OptionError, "cannot be used"),
        ((model, guide, Y), {"seed": -1}, ingle.OptionError, "seed must be"),
        ((model, guide, Y), {"batch_size": {"data": 0}}, ingle.OptionError, "positive integer"),
        ((model, "nomal", Y), {}, ingle.OptionError, "'nomal' does not exist"),
        ((model, None, Y), {}, ingle.OptionError, "guide must be a name"),
        ((nn.Linear, guide, Y), {}, ingle.OptionError, "model must be a callable"),
    ],
)
def test_a_wrong_call_raises(arguments: Any, options: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        ingle.check(*arguments, **options)


def boxed(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Uniform(-1e3, 1e3))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def unboxed(y: Tensor) -> None:
    """`boxed` with another constant in the log joint, and a support that no guide leaves."""
    mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def narrow(y: Tensor) -> None:
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.1))


def test_draws_tried_against_a_box_leave_a_fit_as_it_is() -> None:
    """The same draws, step by step, as of a model where no draws are tried: only the constant differs."""
    (finding,) = ingle.check(boxed, narrow, Y).findings
    assert (finding.kind, finding.severity) == ("support", "warning")
    fits = [ingle.fit(program, narrow, Y, steps=5, seed=3) for program in (boxed, unboxed)]
    difference = torch.as_tensor(fits[0].losses) - torch.as_tensor(fits[1].losses)
    expected = torch.full_like(difference, math.log(2e3))
    torch.testing.assert_close(difference, expected, atol=1e-4, rtol=0.0)


class CountsCopies(TorchFunctionMode):
    """How many calls of torch made a tensor of a size or more."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.made = size, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.made += isinstance(result, Tensor) and result._base is None and result.numel() >= self.size
        return result


@pytest.mark.parametrize("large", [False, True])
def test_finite_data_are_looked_through_without_a_copy(large: bool) -> None:
    """Also where their sum overflows, they are finite."""
    y = torch.full((200, 50), torch.finfo(torch.float32).max if large else 1.0)
    run = poutine.trace(pyro.sample).get_trace("y", dist.Normal(0.0, 1.0).expand([200, 50]).to_event(2), obs=y)
    with CountsCopies(y.numel()) as copies:
        assert _observed(run.nodes["y"]) is None
    assert copies.made == (1 if large else 0)


def test_findings_are_plain_values() -> None:
    (finding,) = ingle.check(model, guide, put(NAN, 2)).findings
    assert isinstance(finding, ingle.Finding)
    assert finding == ingle.check(model, guide, put(NAN, 2)).findings[0]
    with pytest.raises(AttributeError):
        finding.site = "x"  # type: ignore[misc]
    assert str(finding).startswith(finding.message)
    assert str(finding).endswith(finding.fix)

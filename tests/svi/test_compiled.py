"""Steps that a graph takes, held against Pyro's own: the same to rounding, whatever changes between them."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import autoguide
from pyro.optim.clipped_adam import ClippedAdam
from svi.parity import DATA, SVI, Script, adam, normal_guide, normal_model, play, state_of
from torch import Tensor, nn

import ingle
from ingle import objectives
from ingle.engine.stepped import Stepped
from ingle.engine.stepper import Stepper

FULL: Any = partial(ingle.SVI, compile="full")
AUTO: Any = ingle.SVI


class Count:
    """How many steps graphs have taken, and how many graphs there are."""

    def __init__(self) -> None:
        self.steps = 0
        self.graphs: list[Stepped] = []


@pytest.fixture(autouse=True)
def count(monkeypatch: pytest.MonkeyPatch) -> Count:
    """Graphs run operation by operation, which takes no compiler, and are counted."""
    counted = Count()
    run, made = Stepped.run, Stepped.__init__

    def counting(self: Stepped, *args: Any) -> float:
        counted.steps += 1
        return run(self, *args)

    def making(self: Stepped, *args: Any) -> None:
        made(self, *args)
        counted.graphs.append(self)

    monkeypatch.setattr(Stepper, "using", "graph")
    monkeypatch.setattr(Stepped, "run", counting)
    monkeypatch.setattr(Stepped, "__init__", making)
    return counted


def _first(cells: dict[str, Any], *names: str) -> list[Any]:
    """The cells by name, those that are not among `names` in the long suite alone."""
    assert set(names) <= set(cells)
    return [name if name in names else pytest.param(name, marks=pytest.mark.long) for name in cells]


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_close(ours: Any, theirs: Any, rtol: float, where: str = "", same: bool = False) -> None:
    """Tensors and floats to a tolerance, anything else to the bit."""
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor) and ours.is_floating_point() and not same:
        assert ours.dtype == theirs.dtype, where
        assert ours.shape == theirs.shape, where
        assert torch.allclose(ours, theirs, rtol=rtol, atol=rtol, equal_nan=True), f"{where}: {ours} {theirs}"
    elif isinstance(ours, Tensor):
        assert torch.equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert set(ours) == set(theirs), where
        for key in ours:
            assert_close(ours[key], theirs[key], rtol, f"{where}/{key}", same or key == "random state")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), where
        for place, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_close(*pair, rtol, f"{where}/{place}", same)
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, rel=rtol, abs=rtol, nan_ok=True), where
    elif hasattr(ours, "tolist"):
        assert ours.tolist() == theirs.tolist(), where
    else:
        assert ours == theirs, where


def assert_follows(script: Script, ours: Any = FULL, *, rtol: float = 1e-4, state: bool = True) -> dict[str, Any]:
    """The script leaves the same behind with compiled steps, to rounding; the random state to the bit."""
    theirs = play(script, pyro.infer.SVI)
    left = play(script, ours)
    if not state:
        theirs.pop("random state"), left.pop("random state")
    assert_close(left, theirs, rtol)
    return left


def steps(svi: SVI, model: Any, guide: Any, *calls: Any, loss: Any = None, optim: Any = None, times: int = 1) -> Any:
    """Losses of a loop over the calls, and the optimiser's state after it."""
    optim = optim or adam()
    fit = svi(model, guide, optim, loss or pyro.infer.Trace_ELBO())
    return [[fit.step(*call) for _ in range(times) for call in calls], state_of(optim)]


def schools(sigma: Tensor, y: Tensor, beta: Any = 1.0) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(sigma)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        with poutine.scale(scale=beta):
            pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


def schools_data() -> tuple[Tensor, Tensor]:
    return torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18]), torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("loss", [pyro.infer.Trace_ELBO, pyro.infer.TraceMeanField_ELBO, pyro.infer.TraceGraph_ELBO])
@pytest.mark.parametrize("particles", [1, pytest.param(3, marks=pytest.mark.long)])
def test_a_hundred_steps(loss: Any, particles: int, count: Count) -> None:
    def script(svi: SVI) -> Any:
        guide = autoguide.AutoNormal(schools)
        return steps(
            svi, schools, guide, schools_data(), loss=loss(num_particles=particles), times=100 if particles == 1 else 20
        )

    assert_follows(script, rtol=1e-9)
    assert count.steps == (98 if particles == 1 else 18)
    assert len(count.graphs) == 1


def switched(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(mu + k, 0.7), obs=y)


def switched_guide(y: Tensor) -> None:
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.5))
    baseline = {"use_decaying_avg_baseline": True}
    with pyro.plate("data", len(y)):
        logits = pyro.param("logits", torch.zeros(len(y)))
        pyro.sample("k", dist.Bernoulli(logits=logits), infer={"baseline": baseline})


OURS: dict[str, Any] = {
    "RLOO": lambda: objectives.RLOO_ELBO(3),
    "averages": lambda: objectives.TraceGraph_ELBO(2),
    "VIMCO": lambda: objectives.VIMCO_ELBO(3),
    "Renyi": lambda: objectives.RenyiELBO(0.5, 3),
    "IWAE": lambda: objectives.IWAE_ELBO(3),
    "DReG": lambda: objectives.DReG_ELBO(2),
    "STL, annealed": lambda: objectives.STL_ELBO(kl_scale=objectives.Anneal(20)),
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", OURS)
def test_objectives_of_ours(name: str, count: Count) -> None:
    """What an objective remembers goes on from eager to compiled steps, and evaluating leaves it alone."""
    pathwise = name in ("IWAE", "DReG", "STL, annealed")

    def script(svi: SVI) -> Any:
        loss, optim = OURS[name](), adam()
        model, guide = (schools, autoguide.AutoNormal(schools)) if pathwise else (switched, switched_guide)
        data = schools_data() if pathwise else (torch.linspace(-1.0, 2.0, 8),)
        fit = svi(model, guide, optim, loss)
        losses = [fit.evaluate_loss(*data) if step == 15 else fit.step(*data) for step in range(26)]
        return [losses, state_of(optim), dict(loss.memory.named_buffers())]

    assert_follows(script, rtol=1e-9)
    assert count.steps == 23


def test_single_precision(count: Count) -> None:
    assert_follows(lambda svi: steps(svi, schools, autoguide.AutoNormal(schools), schools_data(), times=40), rtol=1e-3)
    assert count.steps == 38


@pytest.mark.long
@pytest.mark.usefixtures("double")
def test_inductor_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stepper, "using", "inductor")
    vectorised = pyro.infer.Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    for loss in (pyro.infer.Trace_ELBO(), vectorised):
        assert_follows(
            partial(_schools_by, loss=loss),  # type: ignore[arg-type]
            rtol=1e-9,
        )


def _schools_by(svi: SVI, loss: Any) -> Any:
    return steps(svi, schools, autoguide.AutoNormal(schools), schools_data(), loss=loss, times=100)


@pytest.mark.usefixtures("double")
def test_inductor(monkeypatch: pytest.MonkeyPatch, count: Count) -> None:
    monkeypatch.setattr(Stepper, "using", "inductor")

    def script(svi: SVI) -> Any:
        sigma, y = schools_data()
        calls = [(sigma + place, y - place, 0.1 + 0.1 * place) for place in range(5)]
        return steps(svi, schools, autoguide.AutoNormal(schools), *calls, times=20)

    assert_follows(script, rtol=1e-9)
    assert count.steps == 98
    assert len(count.graphs) == 1


def mixture(data: Tensor) -> None:
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    locs = pyro.sample("locs", dist.Normal(torch.tensor([-1.0, 1.0]), 2.0).to_event(1))
    with pyro.plate("data", len(data)):
        which = pyro.sample("which", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(locs[which], 0.5), obs=data)


@pytest.mark.usefixtures("double")
def test_enumerated(count: Count) -> None:
    def script(svi: SVI) -> Any:
        guide = autoguide.AutoNormal(poutine.block(mixture, hide=["which"]))
        loss = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
        return steps(svi, mixture, guide, (DATA.double(),), loss=loss, times=30)

    assert_follows(script, rtol=1e-9)
    assert count.steps == 28


class Encoder(nn.Module):
    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4)
        self.drop, self.last = nn.Dropout(dropout), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, scale = self.last(self.drop(torch.tanh(self.norm(self.first(x))))).unbind(-1)
        return loc, scale.exp()


def network(svi: SVI, times: int = 8, *, dropout: float = 0.0, switch: bool = False, handed: bool = False) -> Any:
    """An amortised guide, over minibatches of which the last of an epoch is smaller."""
    encoder, loading = Encoder(dropout=dropout), nn.Linear(1, 3)
    data = torch.randn(11, 3)

    def model(x: Tensor, _: Any = None) -> None:
        pyro.module("loading", loading)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(loading(z.unsqueeze(-1)), 1.0).to_event(1), obs=x)

    def guide(x: Tensor, given: Any = None) -> None:
        net = given or encoder
        pyro.module("encoder", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*net(x)))

    optim = adam(0.01)
    fit = svi(model, guide, optim, pyro.infer.Trace_ELBO())
    losses = []
    for epoch in range(times):
        if switch and epoch % 4 == 3:
            encoder.eval() if encoder.training else encoder.train()
        losses += [fit.step(batch, *([encoder] if handed else [])) for batch in data.split(4)]
    return [losses, state_of(optim), encoder.state_dict()]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("options", [{}, {"switch": True}, {"handed": True}], ids=["plain", "eval", "handed"])
def test_network(options: dict[str, Any], count: Count) -> None:
    assert_follows(partial(network, **options), rtol=1e-9)
    assert count.steps >= 8 * 3 - 4
    assert len(count.graphs) == (4 if options.get("switch") else 2)  # two sizes of a minibatch


def test_dropout(count: Count) -> None:
    """Its masks are Bernoulli, for which torch has a stream of its own: the same in distribution alone."""
    losses, *_ = play(partial(network, dropout=0.5, times=8), FULL)["returned"]
    assert count.steps >= 20
    assert len(set(losses)) == len(losses)


def test_subsampled(count: Count) -> None:
    """The rows are a permutation, which torch draws inside the graph."""

    def model(data: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(data), subsample_size=2) as rows:
            pyro.sample("x", dist.Normal(z, 0.5), obs=data[rows])

    losses, _ = play(lambda svi: steps(svi, model, normal_guide_alone, (DATA,), times=60), FULL)["returned"]
    assert count.steps == 58
    assert len(set(losses[2:])) == 58


def normal_guide_alone(*_: Any) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    pyro.sample("z", dist.Normal(loc, scale))


def lrs(name: str) -> dict[str, Any]:
    return {"lr": 0.1, "lrd": 0.99} if name == "loc" else {"lr": 0.01, "betas": (0.8, 0.99)}


def sgd(**schedule: Any) -> dict[str, Any]:
    return {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.02, "momentum": 0.5}, **schedule}


OPTIMISERS: dict[str, Callable[[], Any]] = {
    "Adam": lambda: pyro.optim.Adam({"lr": 0.05, "amsgrad": True}),
    "AdamW": lambda: pyro.optim.AdamW({"lr": 0.05, "weight_decay": 0.1}),
    "SGD": lambda: pyro.optim.SGD({"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    "plain SGD": lambda: pyro.optim.SGD({"lr": 0.01}, {"clip_norm": 0.5, "clip_value": 0.4}),
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.05, "clip_norm": 1.0, "lrd": 0.99}),
    "by name": lambda: pyro.optim.PyroOptim(
        ClippedAdam, lrs, lambda module, name: {"clip_norm": 0.1} if name == "loc" else {}
    ),
    "schedule": lambda: pyro.optim.ExponentialLR(sgd(gamma=0.9), {"clip_norm": 1.0}),
    "cycle": lambda: pyro.optim.OneCycleLR(sgd(max_lr=0.1, total_steps=100)),
    "RMSprop": lambda: pyro.optim.RMSprop({"lr": 0.01}),
    "clipped RMSprop": lambda: pyro.optim.RMSprop({"lr": 0.01}, {"clip_norm": 1.0}),
    "DCTAdam": lambda: pyro.optim.DCTAdam({"lr": 0.05}),
    "scheduled RMSprop": lambda: pyro.optim.StepLR(
        {"optimizer": torch.optim.RMSprop, "optim_args": {"lr": 0.02}, "step_size": 3, "gamma": 0.5}
    ),
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", _first(OPTIMISERS, "Adam", "SGD", "by name", "schedule", "RMSprop"))
def test_optimiser(name: str, count: Count) -> None:
    def script(svi: SVI) -> Any:
        optim = OPTIMISERS[name]()
        fit = svi(normal_model, normal_guide, optim, pyro.infer.Trace_ELBO())
        losses = []
        for _ in range(12):
            losses.append(fit.step(DATA.double()))
            if hasattr(optim, "pt_scheduler_constructor"):
                optim.step()
        return [losses, state_of(optim)]

    assert_follows(script, rtol=1e-9)
    assert count.steps == 10
    assert len(count.graphs) == 1


def drive(change: Callable[[int, Any, Any], None], calls: int = 14) -> Script:
    """Steps with something done before each: by the step's number, the SVI and its optimiser."""

    def script(svi: SVI) -> Sequence[Any]:
        optim = adam()
        fit = svi(normal_model, normal_guide, optim, pyro.infer.Trace_ELBO())
        losses = []
        for step in range(calls):
            change(step, fit, optim)
            losses.append(fit.step(DATA))
        return [*losses, state_of(optim)]

    return script


def _set(step: int, fit: Any, optim: Any) -> None:
    if step == 6:
        pyro.get_param_store()["loc"] = torch.tensor(-3.0)


def _delete(step: int, fit: Any, optim: Any) -> None:
    if step == 6:
        del pyro.get_param_store()["scale"]


def _in_place(step: int, fit: Any, optim: Any) -> None:
    if step % 3 == 2:
        with torch.no_grad():
            pyro.param("loc").unconstrained().add_(0.5)
            pyro.param("scale").unconstrained().data = torch.tensor(0.1)


def _rate(step: int, fit: Any, optim: Any) -> None:
    for each in optim.optim_objs.values():
        each.param_groups[0]["lr"] = 0.01 * (1 + step % 4)


def _one_rate(step: int, fit: Any, optim: Any) -> None:
    if step == 6:
        optim.optim_objs[pyro.param("loc").unconstrained()].param_groups[0]["lr"] = 0.3


def _betas(step: int, fit: Any, optim: Any) -> None:
    if step == 6:
        for each in optim.optim_objs.values():
            each.param_groups[0]["betas"] = (0.5, 0.9)


def _state(step: int, fit: Any, optim: Any) -> None:
    if step == 6:
        for each in optim.optim_objs.values():
            each.load_state_dict(each.state_dict())
    if step == 8:
        for each in optim.optim_objs.values():
            for state in each.state.values():
                state["step"] += 3


def _new_optim(step: int, fit: Any, optim: Any) -> None:
    if step == 6:
        fit.optim = pyro.optim.SGD({"lr": 0.01})


def _loss(step: int, fit: Any, optim: Any) -> None:
    if step == 6:
        fit.loss_and_grads = pyro.infer.Trace_ELBO(num_particles=3).loss_and_grads
    if step == 10:
        fit.loss_and_grads.__self__.num_particles = 2


def _evaluate(step: int, fit: Any, optim: Any) -> None:
    fit.evaluate_loss(DATA)
    torch.randn(3)


def _gradient(step: int, fit: Any, optim: Any) -> None:
    if step in (6, 8):
        (3.0 * pyro.param("scale") + 1.0 * pyro.param("loc")).backward()
    if step == 10:
        pyro.param("loc").unconstrained().grad = None


def _other_model(step: int, fit: Any, optim: Any) -> None:
    fit.model = normal_model if step % 8 < 4 else poutine.scale(normal_model, 0.5)


_ALL = [
    _set, _delete, _in_place, _rate, _one_rate, _betas, _state, _new_optim, _loss, _evaluate, _gradient, _other_model
]  # fmt: skip
CHANGES = {change.__name__.strip("_"): change for change in _ALL}


@pytest.mark.parametrize("name", _first(CHANGES, "set", "in_place", "one_rate", "state", "loss", "gradient"))
def test_changed_between_steps(name: str, count: Count) -> None:
    assert_follows(drive(CHANGES[name]))
    assert count.steps >= 4


def test_store_cleared(count: Count) -> None:
    def change(step: int, fit: Any, optim: Any) -> None:
        if step == 6:
            pyro.clear_param_store()

    def script(svi: SVI) -> Sequence[Any]:
        losses = drive(change)(svi)
        return losses[:-1]  # the optimiser's state then has names that Pyro has lost

    assert_follows(script)
    assert count.steps >= 8


def test_handlers_and_modes_are_not_ignored(count: Count) -> None:
    def script(svi: SVI) -> Sequence[Any]:
        fit = svi(normal_model, normal_guide, adam(), pyro.infer.Trace_ELBO())
        losses = [fit.step(DATA) for _ in range(5)]
        with poutine.scale(scale=0.1):
            losses.append(fit.step(DATA))
        with poutine.trace(param_only=True) as params:
            losses.append(fit.step(DATA))
        with poutine.seed(rng_seed=7):
            losses.append(fit.step(DATA))
        with torch.no_grad():
            losses.append(fit.step(DATA))
        with torch.autocast("cpu"):
            losses.append(fit.step(DATA))
        losses += [fit.step(DATA) for _ in range(5)]
        return [*losses, list(params.trace.nodes)]

    assert_follows(script)
    assert count.steps == 9  # seeding alone is no handler
    assert len(count.graphs) == 1


def test_default_dtype_changed(count: Count) -> None:
    def script(svi: SVI) -> Sequence[Any]:
        fit = svi(normal_model, normal_guide, adam(), pyro.infer.Trace_ELBO())
        losses = [fit.step(DATA) for _ in range(5)]
        torch.set_default_dtype(torch.float64)
        try:
            losses += [fit.step(DATA) for _ in range(5)]
        finally:
            torch.set_default_dtype(torch.float32)
        return losses

    assert_follows(script)
    assert count.steps >= 6


class Settings:
    """What models below read from outside their arguments."""

    beta = 1.0
    epoch = 0
    flag = False
    power = 1
    options: dict[str, Any] = {"beta": 1.0}  # noqa: RUF012
    tensor = torch.tensor(0.5)


@pytest.fixture(autouse=True)
def _settings(count: Count) -> Iterator[None]:
    yield
    Settings.beta, Settings.epoch, Settings.flag, Settings.power = 1.0, 0, False, 1
    Settings.options, Settings.tensor = {"beta": 1.0}, torch.tensor(0.5)


def reading(factor: Callable[..., Any]) -> Callable[[SVI, Callable[[int], Any]], Sequence[Any]]:
    """A script whose model has a factor, from its arguments or from elsewhere."""

    def script(svi: SVI, call: Callable[[int], Any], calls: int = 16) -> Sequence[Any]:
        def model(*args: Any, **kwargs: Any) -> None:
            with poutine.scale(scale=factor(*args, **kwargs)):
                z = pyro.sample("z", dist.Normal(0.0, 2.0))
            with pyro.plate("data", len(DATA)):
                pyro.sample("x", dist.Normal(z, 1.0), obs=DATA)

        def guide(*args: Any, **kwargs: Any) -> None:
            normal_guide_alone()

        fit = svi(model, guide, adam(), pyro.infer.Trace_ELBO())
        losses = []
        for step in range(calls):
            args = call(step)
            losses.append(fit.step(**args) if isinstance(args, dict) else fit.step(*(args or ())))
        return losses

    return script


def _put(name: str, value: Callable[[int], Any]) -> Callable[[int], None]:
    return lambda step: setattr(Settings, name, value(step))


def _put_option(step: int) -> None:
    Settings.options["beta"] = 0.1 + 0.1 * step


def _write(step: int) -> None:
    Settings.tensor.fill_(0.1 + 0.1 * step)


def _ramp(step: int) -> float:
    return 0.1 + 0.01 * step


LIFTED: dict[str, tuple[Callable[..., Any], Callable[[int], Any]]] = {
    "by position": (lambda beta: beta, lambda step: (_ramp(step),)),
    "by name": (lambda *, beta: 2 * beta, lambda step: {"beta": _ramp(step)}),
    "in a list": (lambda parts: parts[0]["beta"], lambda step: ([{"beta": _ramp(step)}],)),
    "an epoch": (lambda epoch: (epoch + 1) / 100, lambda step: (step // 2,)),
    "an attribute": (lambda: Settings.beta, _put("beta", _ramp)),
    "an integer": (lambda: (1.0 + Settings.epoch) / 100, _put("epoch", lambda step: step)),
    "in a dict": (lambda: Settings.options["beta"], _put_option),
    "a tensor": (lambda: Settings.tensor, _put("tensor", lambda step: torch.tensor(_ramp(step)))),
    "a tensor in place": (lambda: Settings.tensor, _write),
    "a tensor handed over": (lambda beta: beta * 1.0, lambda step: (torch.tensor(_ramp(step)),)),
}


@pytest.mark.parametrize("name", _first(LIFTED, "by name", "an epoch", "an attribute", "a tensor", "a tensor in place"))
def test_what_changes_becomes_an_input(name: str, count: Count) -> None:
    factor, call = LIFTED[name]
    assert_follows(partial(reading(factor), call=call))  # type: ignore[arg-type]
    assert count.steps >= 12
    assert len(count.graphs) <= 2


def _warmed(epoch: float) -> float:
    return 0.1 if epoch < 3 else 1.0


VALUES: dict[str, tuple[Callable[..., Any], Callable[[int], Any]]] = {
    "in control flow": (_warmed, lambda step: (step // 4,)),
    "min": (lambda beta: min(beta, 0.5), lambda step: (0.1 * (1 + step // 4),)),
    "a flag": (lambda: 0.5 if Settings.flag else 1.0, _put("flag", lambda step: step % 8 > 3)),
    "a shape": (lambda: torch.ones(Settings.power).sum(), _put("power", lambda step: 1 + step // 6)),
    "a set": (lambda epoch: 0.1 if epoch in {1, 4} else 1.0, lambda step: (step // 4,)),
    "a table": (lambda epoch: {1: 0.1}.get(epoch, 1.0), lambda step: (step // 4,)),
    "an instance of": (lambda beta: 0.3 if isinstance(beta, float) else 1.0, lambda step: (_ramp(step // 4),)),
    "its type": (lambda beta: 0.3 if type(beta) is float else 1.0, lambda step: (_ramp(step // 4),)),
    "a tensor of it": (lambda beta: torch.tensor([beta, 0.1]).sum(), lambda step: (_ramp(step // 4),)),
    "text": (lambda beta: float(f"{beta:.3f}"), lambda step: (_ramp(step // 4),)),
    "strings": (lambda how: 0.5 if how == "half" else 1.0, lambda step: ("half" if step % 8 > 3 else "one",)),
    "None": (lambda how: 0.5 if how is None else how, lambda step: (None if step % 8 > 3 else 1.0,)),
}


@pytest.mark.parametrize("name", _first(VALUES, "in control flow", "a flag", "a table", "its type", "a tensor of it"))
def test_what_python_needs_is_a_constant(name: str, count: Count) -> None:
    """A graph for each value that Python itself looks at."""
    factor, call = VALUES[name]
    assert_follows(partial(reading(factor), call=call))  # type: ignore[arg-type]
    assert count.steps >= 8


def test_too_many_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingle.engine.stepper._GRAPHS", 3)
    script = partial(reading(lambda epoch: 0.5 if epoch > 3 else 1.0), call=lambda step: (step,), calls=10)
    theirs = play(script, pyro.infer.SVI)  # type: ignore[arg-type]
    with monkey_auto(), pytest.warns(ingle.IngleWarning, match="argument 0 is") as warned:
        ours = play(script, AUTO)  # type: ignore[arg-type]
    assert len(warned) == 1
    assert_close(ours, theirs, 1e-4)
    with pytest.raises(ingle.ProgramError, match="more than 3 graphs"):
        play(script, FULL)  # type: ignore[arg-type]
    pyro.clear_param_store()


def monkey_auto() -> Any:
    """Under "auto" a graph is made as soon as under "full"."""
    patch = pytest.MonkeyPatch.context()

    class Both:
        def __enter__(self) -> None:
            context = patch.__enter__()
            context.setattr("ingle.engine.stepper._LOOK", 2)
            context.setattr("ingle.engine.stepper._WORTH", 3)
            context.setattr("ingle.engine.stepper._AGAIN", 0)

        def __exit__(self, *error: Any) -> None:
            patch.__exit__(*error)

    return Both()


def warned_once(script: Script, match: str, *, same: bool = True) -> dict[str, Any]:
    """The script's steps are Pyro's own to the bit, after one warning."""
    theirs = play(script, pyro.infer.SVI)
    with monkey_auto(), pytest.warns(ingle.IngleWarning, match=match) as warned:
        ours = play(script, AUTO)
    assert len([each for each in warned if issubclass(each.category, ingle.IngleWarning)]) == 1
    assert warned[0].filename == __file__
    if same:
        assert_close(ours, theirs, 0.0)
    return ours


def test_python_state() -> None:
    """Trial runs leave no trace in what a model keeps."""

    class Counting:
        def __init__(self) -> None:
            self.calls, self.seen, self.total = 0, [0], torch.zeros(())

        def __call__(self, data: Tensor) -> None:
            self.calls += 1
            self.seen.append(self.calls)
            self.total += 1.0
            with poutine.scale(scale=1.0 / (1 + self.calls + len(self.seen) + self.total)):
                normal_model(data)

    def script(svi: SVI) -> Sequence[Any]:
        model = Counting()
        fit = svi(model, normal_guide, adam(), pyro.infer.Trace_ELBO())
        losses = [fit.step(DATA) for _ in range(8)]
        return [losses, model.calls, model.seen, model.total]

    warned_once(script, "keeps state in Python: self.calls")


def randomly(data: Tensor) -> None:
    import numpy as np

    with poutine.scale(scale=1.0 + np.random.rand()):
        normal_model(data)


UNTRACEABLE: dict[str, tuple[Any, Any, str]] = {
    "item": (
        lambda data: pyro.factor("f", -(pyro.sample("z", dist.Normal(0.0, 1.0)).item() ** 2)),
        DATA,
        r"\.item\(\)",
    ),
    "numpy's noise": (randomly, DATA, r"draws from numpy\.random"),
    "an array": (lambda data: normal_model(torch.as_tensor(data)), DATA.numpy(), "a numpy array"),
    "an iterator": (lambda data: normal_model(next(data)), None, "an iterator"),
}


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_untraceable(name: str) -> None:
    model, data, match = UNTRACEABLE[name]

    def script(svi: SVI) -> Sequence[Any]:
        given = iter([DATA] * 30) if data is None else data
        fit = svi(model, lambda data: normal_guide(), adam(), pyro.infer.Trace_ELBO())
        return [fit.step(given) for _ in range(8)]

    warned_once(script, match)


def test_two_share_parameters(count: Count) -> None:
    """One moves what the other reads, with one optimiser for both."""

    def second(data: Tensor) -> None:
        loc = pyro.param("loc").detach()
        with pyro.plate("data", len(data)):
            pyro.sample("w", dist.Normal(loc, 1.0), obs=data + pyro.param("shift", torch.tensor(0.0)))

    def script(svi: SVI) -> Sequence[Any]:
        optim, loss = adam(), pyro.infer.Trace_ELBO()
        first = svi(normal_model, normal_guide, optim, loss)
        other = svi(second, lambda data: None, optim, loss)
        third = svi(normal_model, normal_guide, optim, loss)
        losses = []
        for step in range(12):
            losses += [first.step(DATA), other.step(DATA)]
            if step % 2:
                losses.append(third.step(DATA))
        return [losses, state_of(optim)]

    assert_follows(script)
    assert count.steps >= 20
    assert len(count.graphs) == 3


def test_parameter_that_is_only_read(count: Count) -> None:
    """Hidden from the optimiser, it is a constant until another SVI moves it."""

    def reading_it(data: Tensor) -> None:
        with poutine.block(hide=["loc"]):
            loc = pyro.param("loc").detach()
        pyro.sample("w", dist.Normal(loc, 1.0), obs=pyro.param("shift", torch.tensor(0.0)))

    def script(svi: SVI) -> Sequence[Any]:
        loss = pyro.infer.Trace_ELBO()
        first = svi(normal_model, normal_guide, adam(), loss)
        other = svi(reading_it, lambda data: None, adam(), loss)
        return [each.step(DATA) for _ in range(12) for each in (first, other)]

    assert_follows(script)
    assert count.steps >= 16


def test_data_read_in_python(count: Count) -> None:
    """A graph in which a mask became rows is of that mask alone."""

    def model(data: Tensor, mask: Tensor) -> None:
        normal_model(data[mask])

    def script(svi: SVI) -> Sequence[Any]:
        fit = svi(model, lambda *_: normal_guide(), adam(), pyro.infer.Trace_ELBO())
        mask = DATA > 0
        losses = [fit.step(DATA, mask) for _ in range(5)]
        other = DATA > 1
        losses += [fit.step(DATA, other) for _ in range(5)]
        other[0] = True
        return losses + [fit.step(DATA, other) for _ in range(3)] + [fit.step(DATA, mask) for _ in range(3)]

    assert_follows(script)
    assert count.steps == 14


def test_same_tensor_from_elsewhere(count: Count) -> None:
    """An argument that the model also reads by another name is not taken for it when another one comes."""
    whole = DATA.clone()

    def model(data: Tensor) -> None:
        with poutine.scale(scale=1.0 + whole.abs().mean()):
            normal_model(data)

    def script(svi: SVI) -> Sequence[Any]:
        fit = svi(model, normal_guide, adam(), pyro.infer.Trace_ELBO())
        return [fit.step(data) for data in [whole] * 4 + [whole * 2] * 4]

    assert_follows(script)
    assert count.steps == 6


def test_copies(count: Count) -> None:
    """A copy has no graphs, and makes its own."""
    fit = FULL(normal_model, normal_guide, adam(), pyro.infer.Trace_ELBO())
    pickled = pickle.dumps(fit)  # later Pyro's parameters hold weak references, which cannot be
    for _ in range(4):
        fit.step(DATA)
    for copied in (copy.copy(fit), copy.deepcopy(fit), pickle.loads(pickled)):
        before = count.steps
        for _ in range(4):
            copied.step(DATA)
        assert count.steps > before
    pyro.clear_param_store()


def test_thread(count: Count) -> None:
    def script(svi: SVI) -> Sequence[Any]:
        fit = svi(normal_model, normal_guide, adam(), pyro.infer.Trace_ELBO())
        with ThreadPoolExecutor(1) as pool:
            return [pool.submit(fit.step, DATA).result() if step % 3 else fit.step(DATA) for step in range(9)]

    assert_follows(script)
    assert count.steps == 7


def test_interrupted_while_compiling(monkeypatch: pytest.MonkeyPatch, count: Count) -> None:
    from ingle.engine import internals

    functional = internals.functional
    interrupts = iter([True, False])

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if next(interrupts, False):
            raise KeyboardInterrupt
        return functional(*args, **kwargs)

    def script(svi: SVI) -> Sequence[Any]:
        optim = adam()
        fit = svi(normal_model, normal_guide, optim, pyro.infer.Trace_ELBO())
        losses = []
        for step in range(8):
            if step == 2 and svi is FULL:
                with pytest.raises(KeyboardInterrupt):
                    fit.step(DATA)
            losses.append(fit.step(DATA))
        return [losses, state_of(optim)]

    monkeypatch.setattr(internals, "functional", interrupted)
    assert_follows(script)
    assert count.steps == 6


def test_not_a_number(count: Count) -> None:
    def script(svi: SVI) -> Sequence[Any]:
        fit = svi(normal_model, normal_guide, adam(), pyro.infer.Trace_ELBO())
        losses = [fit.step(DATA) for _ in range(4)]
        with pyro.validation_enabled(False), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            losses.append(fit.step(DATA * float("nan")))
        return [losses, [str(each.message).partition("\n")[0][:30] for each in told]]

    left = assert_follows(script)
    assert count.steps == 3
    assert left["returned"][1]


def test_index_out_of_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that meets one raises, and does not end the process."""
    monkeypatch.setattr(Stepper, "using", "inductor")

    def model(rows: Tensor, data: Tensor) -> None:
        with pyro.plate("group", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(rows)):
            pyro.sample("x", dist.Normal(z[rows], 1.0), obs=data)

    fit = FULL(model, autoguide.AutoNormal(model), adam(), pyro.infer.Trace_ELBO())
    for _ in range(4):
        fit.step(torch.tensor([0, 1, 2]), DATA[:3])
    with pytest.raises(IndexError, match="index"):
        fit.step(torch.tensor([0, 1, 7]), DATA[:3])
    assert isinstance(fit.step(torch.tensor([0, 1, 2]), DATA[:3]), float)
    pyro.clear_param_store()


def test_off_and_auto_wait(count: Count) -> None:
    for svi in (AUTO, partial(ingle.SVI, compile="off")):
        play(lambda svi: steps(svi, normal_model, normal_guide, (DATA,), times=60), svi)
    assert count.steps == 0
    assert not count.graphs
    with pytest.raises(ingle.OptionError, match="compile"):
        ingle.SVI(normal_model, normal_guide, adam(), pyro.infer.Trace_ELBO(), compile="on")  # type: ignore[arg-type]
    with pytest.raises(ingle.OptionError, match="RenyiELBO"):
        FULL(normal_model, normal_guide, adam(), pyro.infer.RenyiELBO())


def test_a_tensor_that_a_parameter_started_from_may_lie_on_its_memory(count: Count) -> None:
    """Pyro trains the tensor that `init_to_value` was given: it moves with the parameter."""

    def script(svi: SVI) -> list[float]:
        start = autoguide.init_to_value(values={"z": torch.tensor(0.3)})
        guide = autoguide.AutoNormal(normal_model, init_loc_fn=start)
        fit = svi(normal_model, guide, adam(), pyro.infer.Trace_ELBO())
        return [fit.step(DATA) for _ in range(8)]

    theirs, ours = play(script, pyro.infer.SVI), play(script, FULL)
    assert_close(ours["returned"], theirs["returned"], 1e-4)
    assert count.steps == 6
    assert len(count.graphs) == 1

"""The Python values that a program can read: found, named, noticed, substituted and put back."""

from __future__ import annotations

import array
import contextlib
import contextvars
import dataclasses
import enum
import functools
import itertools
import operator
import random
import sys
import types
from collections import ChainMap, OrderedDict, UserDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import autoguide
from pyro.nn import PyroModule, PyroParam, PyroSample
from support import eight_schools_data, old_faithful, radon_data
from torch import Tensor

from ingle.guides.hierarchical import eight_schools_centred_guide, eight_schools_guide, radon_varying_intercepts_guide
from ingle.guides.mixture import GaussianMixtureGuide
from ingle.guides.vae import VAEGuide
from ingle.models.hierarchical import eight_schools, eight_schools_centred, radon_varying_intercepts
from ingle.models.mixture import GaussianMixture
from ingle.models.vae import VAE
from ingle.program.held import Places, find_places
from ingle.program.own import state_of_its_own
from ingle.program.place import GONE, Place, same

HERE = "test_held.py line "
BETA = 0.5
TABLE: dict[str, Any] = {"n": 3, "deep": {"x": [1.0, 2.0]}}
SHARED = torch.ones(2)
ARRAY = np.ones(3)
FLAG = contextvars.ContextVar("FLAG", default=1.0)
config = types.ModuleType("config")
config.beta = 0.1  # type: ignore[attr-defined]
config.inner = types.ModuleType("config.inner")  # type: ignore[attr-defined]
config.inner.gamma = 0.2


def named(places: Places, name: str) -> Place:
    """The place of this name, which must be there once."""
    found = [place for place in places if place.name == name]
    assert len(found) == 1, f"{name!r} is not one of {[place.name for place in places]}"
    return found[0]


def texts(places: Places, snapshot: Any) -> list[str]:
    return [str(change) for change in places.changed(snapshot)]


def assert_lifted(places: Places, name: str, run: Callable[[], Any]) -> None:
    """A tensor in this place is what the program reads, and the number is back afterwards, also after an error."""
    place = named(places, name)
    before = place.value()
    for error in (False, True):
        with contextlib.suppress(ZeroDivisionError), places.lifted({place: torch.tensor(7.0)}):
            assert float(run()) == 7.0
            if error:
                raise ZeroDivisionError
        assert place.value() is before
    assert float(run()) == before


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    beta, table, array = BETA, dict(TABLE), ARRAY.copy()
    yield
    globals()["BETA"] = beta
    TABLE.clear()
    TABLE.update(table, deep={"x": [1.0, 2.0]})
    ARRAY[:] = array
    config.beta, config.inner.gamma = 0.1, 0.2  # type: ignore[attr-defined]


# Kinds of places


def test_global() -> None:
    def model() -> Any:
        return BETA

    places = find_places(model)
    before = places.snapshot()
    assert places.changed(before) == []
    globals()["BETA"] = 0.75
    (change,) = places.changed(before)
    line = model.__code__.co_firstlineno + 1
    assert str(change) == f"global 'BETA' of model changed from 0.5 to 0.75 ({HERE}{line})"
    assert change.place.line == (__file__, line)
    assert (change.kind, change.before, change.after, change.plain) == ("value", 0.5, 0.75, True)
    assert_lifted(places, "global 'BETA' of model", model)


def test_closure() -> None:
    scale = 2.0

    def model() -> Any:
        return scale

    places = find_places(model)
    before = places.snapshot()
    scale = 3.0
    assert texts(places, before)[0].startswith("closure 'scale' of model changed from 2.0 to 3.0 (test_held.py")
    assert_lifted(places, "closure 'scale' of model", model)
    cell = (model.__closure__ or ())[0]
    before = places.snapshot()
    del cell.cell_contents
    assert places.changed(before)[0].after is GONE


def test_attribute_of_a_callable_instance() -> None:
    class Model:
        def __init__(self) -> None:
            self.epoch = 1.0
            self.losses: list[float] = []

        def __call__(self) -> Any:
            return self.epoch

    model = Model()
    places = find_places(model)
    before = places.snapshot()
    model.losses.append(0.1)  # what no code of the program names is not its business
    model.extra = 3  # type: ignore[attr-defined]
    assert places.changed(before) == places.changed(before) == []
    model.epoch = 2.0
    assert texts(places, before)[0].startswith("self.epoch of Model changed from 1.0 to 2.0")
    assert_lifted(places, "self.epoch of Model", model)


def test_attribute_that_appears_and_one_that_goes() -> None:
    class Model:
        cache = 1.0

        def __call__(self) -> Any:
            return self.cache

    model = Model()
    places = find_places(model)
    before = places.snapshot()
    assert_lifted(places, "Model.cache", model)
    model.cache = 2.0
    (change,) = places.changed(before)
    assert str(change).startswith("self.cache of Model changed from nothing to 2.0")
    before = places.snapshot()  # knows the new attribute
    assert named(places, "self.cache of Model").value() == 2.0
    assert places.changed(before) == []
    del model.cache
    (change,) = places.changed(before)
    assert change.after is GONE
    before = places.snapshot()
    model.__dict__ = {"cache": 3.0}
    assert places.changed(before)


@dataclasses.dataclass(frozen=True)
class Frozen:
    beta: float = 0.5

    def __call__(self) -> Any:
        return self.beta


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    beta: float = 0.5

    def __call__(self) -> Any:
        return self.beta


def test_frozen_dataclasses_and_slots() -> None:
    for model in (Frozen(), Slotted()):
        places = find_places(model)
        before = places.snapshot()
        assert_lifted(places, f"self.beta of {type(model).__name__}", model)
        assert places.changed(before) == []
        object.__setattr__(model, "beta", 0.25)
        assert [change.after for change in places.changed(before)] == [0.25]


def test_namespaces() -> None:
    def model() -> Any:
        return config.beta  # type: ignore[attr-defined]

    def deep() -> Any:
        return config.inner.gamma  # type: ignore[attr-defined]

    places = find_places(model, deep)
    before = places.snapshot()
    config.beta = 0.3  # type: ignore[attr-defined]
    config.inner.gamma = 0.4  # type: ignore[attr-defined]
    assert [change.place.name for change in places.changed(before)] == ["config.beta", "config.inner.gamma"]
    assert_lifted(places, "config.beta", model)
    assert_lifted(places, "config.inner.gamma", deep)


def test_module_that_is_imported_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "config_of_test", config)

    def model() -> Any:
        from config_of_test import beta  # type: ignore[import-not-found]

        return beta

    assert_lifted(find_places(model), "config.beta", model)


def test_contents() -> None:
    steps = [1.0, 2.0]
    bag = types.SimpleNamespace(beta=1.0, other=2.0)

    def model() -> Any:
        return TABLE["deep"]["x"][0] + steps[0] + bag.beta

    places = find_places(model)
    before = places.snapshot()
    bag.other = 5.0
    assert places.changed(before) == []
    TABLE["deep"]["x"][1] = 9.0
    steps.append(3.0)
    bag.beta = 4.0
    names = {change.place.name: change.kind for change in places.changed(before)}
    assert names == {
        "global TABLE['deep']['x'][1] of model": "value",
        "closure bag.beta of model": "value",
        "closure 'steps' of model": "contents",
    }
    for name in ("global TABLE['n'] of model", "global TABLE['deep']['x'][0] of model", "closure steps[1] of model"):
        place = named(places, name)
        value = place.value()
        with places.lifted({place: torch.tensor(7.0)}):
            assert float(place.value()) == 7.0
        assert place.value() is value


def test_containers_of_every_kind() -> None:
    class Table(dict[str, float]):
        def __getitem__(self, key: str) -> float:
            raise AssertionError("run")

        def __len__(self) -> int:
            raise AssertionError("run")

    class Key:
        pass

    key = Key()
    held: list[Any] = [
        OrderedDict(a=1.0), defaultdict(float, a=1.0), Table(a=1.0), deque([1.0]), {1.0}, {key: 1.0},
    ]  # fmt: skip

    def model() -> Any:
        return held

    places = find_places(model)
    edits: list[Callable[[], Any]] = [
        lambda: held[0].update(a=2.0),
        lambda: held[0].update(b=2.0),
        lambda: held[1].pop("a"),
        lambda: dict.__setitem__(held[2], "a", 2.0),
        lambda: held[3].append(2.0),
        lambda: held[4].add(2.0),
        lambda: (held[4].clear(), held[4].add(3.0), held[4].add(4.0)),
        lambda: held[5].update({key: 2.0}),
    ]
    for edit in edits:
        before = places.snapshot()
        assert places.changed(before) == []
        edit()
        assert places.changed(before)
    assert "a" not in held[1]


def test_defaults_and_code_of_functions() -> None:
    def model(k: float = 2.0, *, s: float = 3.0) -> Any:
        return k if s == 3.0 else s

    places = find_places(model)
    before = places.snapshot()
    assert_lifted(places, "default 'k' of model", model)
    with places.lifted({named(places, "default 's' of model"): torch.tensor(7.0)}):
        assert float(model()) == 7.0
    assert places.changed(before) == []
    model.__defaults__ = (2.0,)
    assert places.changed(before) == []
    model.__defaults__ = (2,)
    assert [change.kind for change in places.changed(before)] == ["code"]
    before = places.snapshot()
    model.__code__ = (lambda k=1.0, *, s=1.0: 5.0).__code__  # as a notebook's autoreload does
    assert "other code" in texts(places, before)[0]


def test_attributes_of_functions() -> None:
    def model() -> Any:
        return model.beta  # type: ignore[attr-defined]

    model.beta = 1.0  # type: ignore[attr-defined]
    assert_lifted(find_places(model), "model.beta", model)


def test_partial() -> None:
    def program(a: Any, b: Any = 0.0) -> Any:
        return b if a == 1.0 else a

    model = functools.partial(program, 1.0, b=2.0)
    places = find_places(model)
    assert_lifted(places, "argument 'b' of program", model)
    assert [place.name for place in places.numbers()] == ["argument 'b' of program", "default 'b' of program"]


def test_class_attributes_properties_and_helpers() -> None:
    class Base:
        beta = 0.5

        @property
        def scale(self) -> float:
            raise AssertionError("run")

        @classmethod
        def made(cls) -> Any:
            return cls.beta

    class Model(Base):
        unused = 1.0

        def __call__(self) -> Any:
            return self.made() if self is not None else self.scale

    model = Model()
    places = find_places(model)
    before = places.snapshot()
    assert_lifted(places, "Base.beta", model)
    Model.unused = 2.0
    assert places.changed(before) == []
    Model.beta = 0.25  # hides the one of the base
    assert texts(places, before)[0].startswith("Model.beta changed from nothing to 0.25")


def test_context_variable() -> None:
    def model() -> Any:
        return FLAG.get()

    assert_lifted_in = find_places(model)
    token = FLAG.set(2.0)
    places = find_places(model)
    before = places.snapshot()
    FLAG.set(3.0)
    assert len(places.changed(before)) == 1
    assert_lifted(places, "global FLAG.get() of model", model)
    FLAG.reset(token)
    assert assert_lifted_in.numbers() == ()  # nothing was set


def test_tensors_and_arrays() -> None:
    mine = torch.zeros(2)
    large = np.zeros(10_000)

    def model() -> Any:
        return SHARED, ARRAY, mine, large

    places = find_places(model, ignore=[mine])
    before, full = places.snapshot(), places.snapshot(full=True)
    SHARED.add_(1.0)
    mine.add_(1.0)
    ARRAY[0] = 5.0
    large[0] = 5.0
    kinds = {change.place.name: change.kind for change in places.changed(before)}
    assert kinds == {"global 'SHARED' of model": "in place", "global 'ARRAY' of model": "in place"}
    assert len(places.changed(full)) == 3
    mine = torch.zeros(2)
    assert texts(places, places.snapshot()) == []
    assert any(
        "changed from a tensor of shape (2,) to a tensor of shape (2,)" in text for text in texts(places, before)
    )


def test_inference_tensor() -> None:
    with torch.inference_mode():
        held = torch.ones(2)

    def model() -> Any:
        return held

    places = find_places(model)
    assert places.changed(places.snapshot()) == []


# What is the same, and what is not


class Pair(NamedTuple):
    a: Any
    b: Any


class Hostile:
    def __eq__(self, other: object) -> bool:
        raise AssertionError("run")

    def __bool__(self) -> bool:
        raise AssertionError("run")

    __hash__ = object.__hash__


def test_same() -> None:
    tensor, hostile = torch.ones(1), Hostile()
    pairs: list[tuple[Any, Any]] = [
        (1.5, 1.0 + 0.5), (float("nan"), float("nan")), ("ab", "".join("ab")), ((1, 2.5), (1, 2.5)),
        ([1, [tensor]], [1, [tensor]]), ({"a": hostile}, {"a": hostile}), ({1, 2}, {2, 1}), (Pair(1, 2), Pair(1, 2)),
        (np.float64(1.0), np.float64(1.0)), ([].append, [].append), (torch.Size([1]), torch.Size([1])),
    ]  # fmt: skip
    assert [same(*pair) for pair in pairs] == [True] * 9 + [False, True]
    method = Frozen().__call__
    assert same(method, method.__self__.__call__)
    different: list[tuple[Any, Any]] = [
        (1, 1.0), (1, True), (0.5, 0.25), (tensor, torch.ones(1)), (hostile, Hostile()), ([hostile], [Hostile()]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}), (np.ones(2), np.ones(2)), (np.float32(1), np.float64(1)),
        (Pair(1, 2), (1, 2)), ({1: 1}, {1.0: 1}), ([1], [1, 2]),
    ]  # fmt: skip
    assert not any(same(*pair) for pair in different)


def test_set_anew_to_the_same() -> None:
    class Model:
        def __init__(self) -> None:
            self.beta, self.sizes, self.table, self.step = 0.1, (1, 2), {"a": [1]}, self.other

        def __call__(self) -> Any:
            return self.beta, self.sizes, self.table, self.step

        def other(self) -> None: ...

    model = Model()
    places = find_places(model)
    before = places.snapshot()
    model.__init__()  # type: ignore[misc]
    assert places.changed(before) == []
    model.table["a"].append(2)  # in the list that came since
    assert [change.place.name for change in places.changed(before)] == ["self.table of Model"]


# Programs of every form


def helper(x: Any) -> Any:
    return further(x)


def further(x: Any) -> Any:
    return x + BETA


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return run


@functools.lru_cache
def cached(x: Any) -> Any:
    return x + BETA


@torch.no_grad()
def of_torch(x: Any) -> Any:
    return x + BETA


@contextlib.contextmanager
def managed() -> Iterator[Any]:
    yield BETA


class Doubled(dist.Normal):
    def log_prob(self, value: Any) -> Any:
        return BETA * super().log_prob(value)


def by_handler() -> Any:
    return poutine.scale(poutine.mask(pyro.infer.config_enumerate(wrapped(helper)), True), 0.5)


REACHED: dict[str, Callable[..., Any]] = {
    "helper": lambda: helper(1.0),
    "wrapped": wrapped(further),
    "cached": lambda: cached(1.0),
    "torch's decorator": lambda: of_torch(1.0),
    "context manager": lambda: managed(),
    "comprehension": lambda: [BETA for _ in range(2)],
    "inner function": lambda: lambda: lambda: BETA,
    "handlers": by_handler(),
    "partial of partial": functools.partial(functools.partial(helper), 1.0),
    "made inside": lambda: Doubled(0.0, 1.0),
    "by getattr": lambda: getattr(config, "be" + "ta") + BETA,
    "by globals": lambda: globals()["BE" + "TA"],
}


@pytest.mark.parametrize("program", REACHED.values(), ids=REACHED)
def test_reached(program: Callable[..., Any]) -> None:
    places = find_places(program)
    before = places.snapshot()
    globals()["BETA"] = 0.75
    changes = places.changed(before)
    assert any("'BETA'" in change.place.name for change in changes)


def test_settings_of_handlers() -> None:
    model = poutine.scale(helper, 0.5)
    places = find_places(model)
    before = places.snapshot()
    poutine.unwrap(model)
    handler = model.func.args[0]  # type: ignore[attr-defined]
    handler.scale = 0.25
    assert texts(places, before) == ["ScaleMessenger.scale changed from 0.5 to 0.25"]


class Layer(torch.nn.Module):
    beta = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Dropout(0.1), torch.nn.BatchNorm1d(2))
        self.register_buffer("seen", torch.zeros(()))
        self.gamma = 1.0
        self.losses: list[float] = []

    def forward(self, y: Tensor) -> Any:
        pyro.module("net", self.net)
        loc = pyro.sample("mu", dist.Normal(0.0, self.gamma)) + self.beta
        pyro.sample("y", dist.Normal(loc + self.net(y[:, None]).mean(-1), 1.0).to_event(1), obs=y)


def test_torch_modules() -> None:
    module = Layer()
    places = find_places(module)
    before = places.snapshot()
    module.losses.append(1.0)
    assert places.changed(before) == []
    module.net[1].p = 0.2
    module.net.eval()
    module.seen = torch.ones(())
    module.gamma = 2.0
    module.net[0] = torch.nn.Linear(1, 2)
    names = [change.place.name for change in places.changed(before)]
    expected = [
        "net.training",
        "net.0",
        "net.1.p",
        "net.0.training",
        "net.1.training",
        "net.2.training",
        "seen",
        "gamma",
    ]
    # The layer that was taken out keeps its own places, which are still as they were apart from the mode.
    assert sorted(names) == sorted(f"self.{name} of Layer" for name in expected)
    before = places.snapshot()
    module.add_module("more", torch.nn.Linear(1, 1))
    assert [change.kind for change in places.changed(before)] == ["contents"]
    before = places.snapshot()
    module.net[0].register_forward_hook(lambda *_: None)
    assert places.changed(before)


def normal_model(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, tau), obs=y)


class Bayesian(PyroModule):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[torch.nn.Linear](1, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 1]).to_event(2))
        self.scale = PyroParam(torch.tensor(1.0), constraint=dist.constraints.positive)
        self.width = 1.0

    @PyroSample
    def mu(self) -> Any:
        return dist.Normal(0.0, self.width)

    def forward(self, y: Tensor) -> None:
        loc = self.linear(y[:, None])[:, 0] + self.mu
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, self.scale), obs=y)


class Easy(EasyGuide):  # type: ignore[misc]
    def guide(self, y: Tensor) -> None:
        self.map_estimate("mu")
        self.map_estimate("tau")


class Effect(autoguide.AutoMessenger):  # type: ignore[misc]
    def get_posterior(self, name: str, prior: Any) -> Any:
        loc = pyro.param(f"{name}_loc", torch.zeros(prior.shape()))
        return dist.TransformedDistribution(dist.Normal(loc, 1.0), [torch.distributions.biject_to(prior.support)])


Y = torch.linspace(-1.0, 2.0, 6)
FLOW_OF_TWO = functools.partial(dist.transforms.iterated, 2, dist.transforms.affine_autoregressive)


def normal_list(model: Callable[..., Any]) -> Any:
    guides = autoguide.AutoGuideList(model)
    guides.append(autoguide.AutoDelta(poutine.block(model, expose=["mu"])))
    guides.append(autoguide.AutoNormal(poutine.block(model, hide=["mu"])))
    return guides


AUTO: dict[str, Callable[..., Any]] = {
    "normal": autoguide.AutoNormal,
    "delta": autoguide.AutoDelta,
    "diagonal": autoguide.AutoDiagonalNormal,
    "multivariate": autoguide.AutoMultivariateNormal,
    "low rank": autoguide.AutoLowRankMultivariateNormal,
    "laplace": autoguide.AutoLaplaceApproximation,
    "flow": functools.partial(autoguide.AutoNormalizingFlow, init_transform_fn=FLOW_OF_TWO),
    "inverse autoregressive": autoguide.AutoIAFNormal,
    "list": normal_list,
    "structured": autoguide.AutoStructured,
    "gaussian": autoguide.AutoGaussian,
    "easy": Easy,
    "messenger": Effect,
    "normal messenger": autoguide.AutoNormalMessenger,
}


def pairs() -> dict[str, Callable[[], tuple[Any, Any, tuple[Any, ...]]]]:
    schools = tuple(torch.tensor(value.to_numpy()).float() for value in eight_schools_data().values())
    radon = tuple(torch.tensor(value.to_numpy()) for value in radon_data().values())
    points = torch.tensor(old_faithful()[:20]).float()
    made: dict[str, Callable[[], tuple[Any, Any, tuple[Any, ...]]]] = {
        "eight schools": lambda: (eight_schools, eight_schools_guide, schools),
        "centred": lambda: (eight_schools_centred, eight_schools_centred_guide, schools),
        "radon": lambda: (radon_varying_intercepts, radon_varying_intercepts_guide, radon),
        "mixture": lambda: (
            pyro.infer.config_enumerate(GaussianMixture(2)), GaussianMixtureGuide(GaussianMixture(2)), (points,)
        ),
        "vae": lambda: ((model := VAE(2, likelihood="normal")), VAEGuide(model), (points,)),
        "layer": lambda: ((model := Layer()), autoguide.AutoNormal(model), (Y,)),
        "bayesian": lambda: ((model := Bayesian()), autoguide.AutoNormal(model), (Y,)),
    }  # fmt: skip
    for name, guide in AUTO.items():
        made[f"auto {name}"] = lambda guide=guide: (normal_model, guide(normal_model), (Y,))  # type: ignore[misc]
    return made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", pairs())
def test_no_false_alarm(name: str) -> None:
    """Nothing is reported of a program that keeps nothing, also after steps of training."""
    model, guide, data = pairs()[name]()
    loss: Any = pyro.infer.TraceEnum_ELBO(max_plate_nesting=2) if name == "mixture" else pyro.infer.Trace_ELBO()
    with pyro.get_param_store().scope():
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss)
        svi.step(*data)
        modules = [part for part in (model, guide) if isinstance(part, torch.nn.Module)]
        ours = [*pyro.get_param_store()._params.values()]
        ours += [tensor for part in modules for tensor in (*part.parameters(), *part.buffers())]
        places = find_places(model, guide, ignore=ours)
        before = places.snapshot(full=True)
        for _ in range(3):
            own = state_of_its_own(places, lambda: loss.loss(model, guide, *data))
            assert not own, (own.reasons(), own.in_place)
        for _ in range(2):
            svi.step(*data)
            assert texts(places, before) == []
    assert places.unseen == ()
    assert len(places) > 0


# What a program changes by running

LOG: list[float] = []


def test_state_of_its_own() -> None:
    class Model:
        def __init__(self) -> None:
            self.calls = 0
            self.mean = torch.zeros(())
            self.average = torch.zeros(())
            self.generator = np.random.default_rng(0)

        def __call__(self, every: bool) -> None:
            if every:
                self.calls += 1
                LOG.append(1.0)
                self.mean = self.mean * 0.9
                self.average.mul_(0.9)
                self.last = 1.0
                self.generator.normal()
                random.random()
                np.random.rand()

    model = Model()
    places = find_places(model)
    assert not state_of_its_own(places, lambda: model(False))
    own = state_of_its_own(places, lambda: model(True))
    kept = {change.place.name: change.kind for change in own.kept}
    assert kept == {
        "self.calls of Model": "value",
        "self.mean of Model": "value",
        "self.last of Model": "value",
        "global 'LOG' of Model.__call__": "contents",
        "self.generator of Model": "random state",
    }
    assert [change.place.name for change in own.in_place] == ["self.average of Model"]
    assert own.random == ("random", "numpy.random")
    reasons = own.reasons()
    first = Model.__call__.__code__.co_firstlineno
    assert f"keeps state in Python: self.calls of Model changed from 0 to 1 ({HERE}{first + 2})" in reasons
    assert any(reason.startswith("draws from numpy.random, ") for reason in reasons)
    LOG.clear()


def test_state_in_closures_globals_and_defaults() -> None:
    count = 0

    def counting(memory: list[int] = []) -> None:  # noqa: B006
        nonlocal count
        global FRESH
        count += 1
        FRESH = count
        memory.append(count)

    places = find_places(counting)
    names = {change.place.name for change in state_of_its_own(places, counting).kept}
    assert names == {"closure 'count' of counting", "global 'FRESH' of counting", "default 'memory' of counting"}
    del globals()["FRESH"]


# Programs that resist


class Colour(enum.Enum):
    RED = 1.0


def test_nothing_of_the_users_runs() -> None:
    class Tricky:
        __slots__ = ("__dict__", "beta")

        def __init__(self) -> None:
            self.beta = Hostile()
            self.more = Hostile()

        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"asked for {name}")

        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(f"asked for {name}")

        @property
        def value(self) -> Any:
            raise AssertionError("run")

        def __len__(self) -> int:
            raise AssertionError("run")

        def __iter__(self) -> Any:
            raise AssertionError("run")

        def __call__(self) -> Any:
            return self.beta, self.more, self.value

        @property  # type: ignore[misc]
        def __class__(self) -> Any:
            raise AssertionError("run")

    model = Tricky()
    places = find_places(model)
    before = places.snapshot(full=True)
    assert places.changed(before) == []
    model.beta = Hostile()
    model.more = np.ones(3)
    assert len(places.changed(before)) == 2
    assert len(texts(places, before)) == 2


def test_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """What code names in them counts; their own functions are not followed, unless they are the model's."""
    package = types.ModuleType("installed")
    package.__file__ = "/usr/lib/python3/dist-packages/installed/__init__.py"
    monkeypatch.setitem(sys.modules, "installed", package)
    exec("beta, hidden = 1.0, 1.0\ndef helper(): return hidden\ndef run(): return helper()", vars(package))

    def model() -> Any:
        return package.beta + package.helper()  # type: ignore[attr-defined]

    places = find_places(model)
    before, of_its_own = places.snapshot(), find_places(package.run)
    assert_lifted(of_its_own, "global 'hidden' of helper", package.run)
    package.beta = package.hidden = 2.0
    assert [change.place.name for change in places.changed(before)] == ["installed.beta"]


def test_objects_of_libraries() -> None:
    """Those that hold what is the user's."""
    held: dict[str, Any] = {
        "bag": types.SimpleNamespace(beta=1.0),
        "user dict": UserDict(a=1.0),
        "chain": ChainMap({"a": 1.0}),
        "bytes": bytearray(b"ab"),
        "array": array.array("d", [1.0]),
        "data": torch.utils.data.TensorDataset(SHARED),
        "prior": dist.Normal(torch.zeros(1), 1.0),
        "transform": dist.transforms.AffineTransform(0.0, 2.0),
        "plate": pyro.plate("data", 4),
    }

    def model() -> Any:
        return held["bag"].beta

    places = find_places(model)
    edits: list[Callable[[], Any]] = [
        lambda: setattr(held["bag"], "beta", 2.0),
        lambda: held["user dict"].update(a=2.0),
        lambda: held["chain"].update(b=2.0),
        lambda: held["bytes"].append(3),
        lambda: held["array"].append(2.0),
        lambda: held["data"].tensors[0].zero_(),
        lambda: setattr(held["prior"], "loc", torch.ones(1)),
        lambda: setattr(held["transform"], "scale", 3.0),
        lambda: setattr(held["plate"], "size", 5),
    ]
    for edit in edits:
        before = places.snapshot()
        held["transform"](SHARED)
        held["transform"].inv(SHARED)
        assert places.changed(before) == []
        edit()
        assert len(places.changed(before)) == 1


def test_names_that_no_code_has() -> None:
    bag = types.SimpleNamespace(beta=1.0)
    get = operator.attrgetter("beta")

    def model() -> Any:
        return get(bag)

    assert_lifted(find_places(model), "closure bag.beta of model", model)


def test_cycles_iterators_and_long_containers() -> None:
    loop: list[Any] = [1.0]
    loop.append(loop)
    ring: dict[str, Any] = {"loop": loop}
    ring["ring"] = ring
    rows = (row for row in range(3))
    counter = itertools.count()
    numbers = [float(i) for i in range(5_000)]
    big = dict.fromkeys(range(200_000), 1.0)

    def model() -> Any:
        return loop, ring, rows, counter, numbers, big

    places = find_places(model)
    assert len(places) < 20
    assert {unseen.name.split("'")[1] for unseen in places.unseen} == {"rows", "counter", "numbers", "big"}
    before, full = places.snapshot(), places.snapshot(full=True)
    numbers[7] = -1.0
    assert places.changed(before) == []
    assert [change.kind for change in places.changed(full)] == ["contents"]
    numbers.append(1.0)
    assert len(places.changed(before)) == 1
    ring["loop"] = list(loop)
    assert places.changed(before)


def test_refused_and_put_back() -> None:
    sizes = (1.0, 2.0)
    view = types.MappingProxyType({"a": 1.0})
    on = True

    def model(k: float = 1.0) -> Any:
        return sizes, on, view["a"], Colour.RED, k

    places = find_places(model)
    for name in ("closure 'sizes' of model", "closure 'on' of model", "closure view['a'] of model", "Colour.RED"):
        place = named(places, name)
        value = place.value()
        good = named(places, "default 'k' of model")
        with pytest.raises(TypeError, match="no tensor can be put"), places.lifted({good: torch.tensor(2.0), place: Y}):
            pass
        assert place.value() is value
        assert good.value() == 1.0


def test_without() -> None:
    def model() -> Any:
        return BETA, SHARED

    places = find_places(model)
    before = places.snapshot(without=places.numbers())
    globals()["BETA"] = 0.75
    assert places.changed(before) == []


def test_what_came_since_is_looked_through() -> None:
    class Model:
        def __init__(self) -> None:
            self.config = types.SimpleNamespace(beta=1.0)

        def __call__(self) -> Any:
            return self.config.beta

    model = Model()
    places = find_places(model)
    before = places.snapshot()
    model.config = types.SimpleNamespace(beta=2.0)
    assert len(places.changed(before)) == 1
    before = places.snapshot()
    assert places.changed(before) == []
    model.config.beta = 3.0
    assert [change.after for change in places.changed(before)] == [3.0]
    assert_lifted(places, "self.config.beta of Model", model)


def test_method_of_an_instance_and_two_programs() -> None:
    class Both:
        def __init__(self) -> None:
            self.epoch, self.rate = 1.0, 0.1

        def model(self) -> Any:
            return self.epoch

        def guide(self) -> Any:
            return self.epoch

        def train(self) -> None:
            self.rate *= 0.5

    both = Both()
    places = find_places(both.model, both.guide)
    before = places.snapshot()
    both.train()
    assert places.changed(before) == []
    both.epoch += 1
    assert [change.place.name for change in places.changed(before)] == ["self.epoch of Both"]

"""Nothing is frozen silently: what a graph cannot follow is told once, by name and line, and the fit stays right."""

from __future__ import annotations

import os
import random
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from engine.cells import ADAM, CELLS, Y, positive, real
from pyro import poutine
from torch import Tensor

import ingle
from ingle.engine import choose
from ingle.engine.compiled import CompiledEngine

STEPS = 30


@pytest.fixture(autouse=True)
def _no_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is recorded does not depend on what compiles it, which takes seconds."""

    def made(*args: Any, **kwargs: Any) -> CompiledEngine:
        return CompiledEngine(*args, **{**kwargs, "using": "graph"})

    monkeypatch.setattr(choose, "CompiledEngine", made)
    monkeypatch.setattr(choose, "_WORTH", 0)


def guide(y: Tensor) -> None:
    pyro.sample("mu", dist.Normal(real("loc"), positive("scale")))


def observed(mu: Tensor, y: Tensor) -> None:
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def counts_itself() -> Callable[..., None]:
    class Annealed:
        def __init__(self) -> None:
            self.n = 0

        def __call__(self, y: Tensor) -> None:
            self.n += 1
            with poutine.scale(scale=min(1.0, self.n / 20)):
                mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
            observed(mu, y)

    return Annealed()


def appends() -> Callable[..., None]:
    seen: list[float] = []

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        seen.append(0.0)
        observed(mu / len(seen), y)

    return model


def counts_by_iterator() -> Callable[..., None]:
    calls = iter(range(10**6))

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        observed(mu * (1.0 + 0.01 * next(calls)), y)

    return model


def counts_in_a_global() -> Callable[..., None]:
    def model(y: Tensor) -> None:
        global CALLS
        CALLS += 1
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        observed(mu * (1.0 + 0.01 * CALLS), y)

    return model


def python_random() -> Callable[..., None]:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        observed(mu + 0.1 * random.random(), y)

    return model


def numpy_random() -> Callable[..., None]:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        observed(mu + 0.1 * float(np.random.rand()), y)

    return model


def own_numpy_generator() -> Callable[..., None]:
    generator = np.random.default_rng(0)

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        observed(mu + 0.1 * float(generator.random()), y)

    return model


def own_torch_generator() -> Callable[..., None]:
    generator = torch.Generator().manual_seed(3)

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        observed(mu + 0.1 * torch.rand((), generator=generator), y)

    return model


def item() -> Callable[..., None]:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        observed(mu * (1.0 + 0.1 * abs(mu.item())), y)

    return model


def branch() -> Callable[..., None]:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        observed(mu if mu > 0 else 0.5 * mu, y)

    return model


def numpy_inside() -> Callable[..., None]:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        observed(mu + float(np.tanh(mu.detach().numpy())), y)

    return model


def array_inside() -> Callable[..., None]:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        observed(mu + float(np.asarray(mu.detach())), y)

    return model


def tolist() -> Callable[..., None]:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        observed(mu + 0.1 * mu.tolist(), y)

    return model


def mask_of_a_sample() -> Callable[..., None]:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        observed(mu, y)
        pyro.factor("tail", -(y - mu)[y > mu].square().sum())

    return model


def changes_its_data() -> Callable[..., None]:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        y.mul_(0.99)
        observed(mu, y)

    return model


def changes_a_tensor() -> Callable[..., None]:
    total = torch.zeros(())

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        total.add_(0.01)
        observed(mu + total, y)

    return model


def replaces_a_tensor() -> Callable[..., None]:
    class Moving:
        def __init__(self) -> None:
            self.mean = torch.zeros(())

        def __call__(self, y: Tensor) -> None:
            mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
            self.mean = 0.9 * self.mean + 0.1 * mu.detach()
            observed(mu + 0.1 * self.mean, y)

    return Moving()


def replaces_a_buffer() -> Callable[..., None]:
    class Moving(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros((), dtype=torch.float64))

        def forward(self, y: Tensor) -> None:
            mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
            self.mean = 0.9 * self.mean + 0.1 * mu.detach()
            observed(mu + 0.1 * self.mean, y)

    return Moving()


def sparse() -> Callable[..., None]:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        eye = torch.eye(len(y)).to_sparse()
        observed(torch.sparse.mm(eye, mu * torch.ones(len(y), 1)).squeeze(-1), y)

    return model


def random_length() -> Callable[..., None]:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        length = 3 + int(torch.randint(5, ()))
        with pyro.plate("data", length):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[:length])

    return model


def random_sites() -> Callable[..., None]:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        if torch.rand(()) < 0.5:
            pyro.factor("sometimes", -0.1 * mu.square())
        observed(mu, y)

    return model


CALLS = 0
THIS = r"test_frozen\.py"
TOLD: dict[str, tuple[Callable[[], Callable[..., None]], str]] = {
    "counts its calls": (counts_itself, rf"keeps state in Python: self\.n of Annealed changed .*{THIS} line \d+"),
    "appends to a list": (appends, rf"'seen' of model has \d+ elements after \d+ \({THIS} line \d+\)"),
    "counts by an iterator": (
        counts_by_iterator,
        "reads closure 'calls' of model: an iterator, whose position cannot be seen",
    ),
    "counts in a global": (counts_in_a_global, rf"global 'CALLS' of model changed from \d+ to \d+ \({THIS} line \d+\)"),
    "random": (python_random, rf"draws from random, .*{THIS} line \d+"),
    "numpy.random": (numpy_random, rf"draws from numpy\.random, .*{THIS} line \d+"),
    "a generator of numpy's": (own_numpy_generator, rf"'generator' of model was drawn from \({THIS} line \d+\)"),
    "a generator of torch's": (own_torch_generator, rf"'generator' of model was drawn from \({THIS} line \d+\)"),
    ".item()": (item, rf"\.item\(\).* differs from step to step, at {THIS}:\d+, after site 'mu'"),
    "if": (branch, rf"`if` on a tensor that differs from step to step, at {THIS}:\d+, after site 'mu'"),
    ".numpy()": (numpy_inside, rf"\.numpy\(\) of a tensor .*, at {THIS}:\d+, after site 'mu'"),
    "numpy.asarray": (array_inside, rf"numpy\.asarray\(\) of a tensor .*, at {THIS}:\d+, after site 'mu'"),
    ".tolist()": (tolist, rf"\.tolist\(\) of a tensor .*, at {THIS}:\d+, after site 'mu'"),
    "a mask of a sample": (mask_of_a_sample, rf"indexing by a mask, a tensor that .*, at {THIS}:\d+, after site 'y'"),
    "data changed in place": (changes_its_data, "changes its argument 'y' in place"),
    "a tensor changed in place": (changes_a_tensor, rf"'total' of model was written to in place \({THIS} line \d+\)"),
    "a tensor replaced": (replaces_a_tensor, rf"self\.mean of Moving changed .*{THIS} line \d+"),
    "a buffer replaced": (replaces_a_buffer, r"self\.mean of Moving changed"),
    "a sparse tensor": (sparse, rf"sparse tensor, at {THIS}:\d+, after site 'mu'"),
    "a random length": (random_length, rf"'data' has .* in one run and .* in another.*{THIS}:\d+"),
    "random sites": (random_sites, rf"('(sometimes|data)'|differs from step to step).*{THIS}:\d+"),
}


def fitted(model: Any, **options: Any) -> tuple[ingle.Fit, list[str]]:
    """A fit, and the warnings that it gave."""
    global CALLS
    CALLS = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        options = {"steps": STEPS, "optim": ADAM, "dtype": torch.float64, **options}
        fit = ingle.fit(model, options.pop("guide", guide), options.pop("data", Y), **options)
    return fit, [str(warning.message) for warning in caught if issubclass(warning.category, ingle.IngleWarning)]


@pytest.mark.parametrize("name", TOLD)
def test_told_once_and_as_if_not_compiled(name: str) -> None:
    """Where the program is not run beside its steps, or leaves no trace of that, losses are those of compile='off'."""
    make, expected = TOLD[name]
    fit, told = fitted(make())
    assert len(told) == 1, told
    print(told[0])
    assert "taken one by one in Python" in told[0]
    assert re.search(expected, told[0]), told[0]
    assert fit.engine == "eager"
    assert told[0].split("cannot be compiled: ")[1] in repr(fit)
    plain, nothing = fitted(make(), compile="off")
    assert nothing == []
    np.testing.assert_array_equal(fit.losses, plain.losses)


@pytest.mark.parametrize("name", [name for name in TOLD if name != "random sites"])
def test_compile_full_raises_with_that_reason(name: str) -> None:
    make, expected = TOLD[name]
    with pytest.raises(ingle.ProgramError, match=expected) as caught:
        fitted(make(), compile="full")
    assert "compile='full'" in str(caught.value)
    assert caught.value.fit is not None


def rounds(y: Tensor) -> None:
    """Reads its data on the host, and indexes by masks of them."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    groups = int(y.round().max()) + 3
    levels = pyro.sample("levels", dist.Normal(torch.zeros(groups), 1.0).to_event(1))
    if y.mean() > 0:
        mu = mu + 0.1
    kept = y[y > -0.5]
    with pyro.plate("data", len(kept)):
        pyro.sample("y", dist.Normal(mu + levels[..., 0], float(y.std())), obs=kept)


def test_reading_data_on_the_host_is_no_harm() -> None:
    fit, told = fitted(rounds, guide="normal", compile="full")
    assert (told, fit.engine) == ([], "compiled")


@pytest.mark.parametrize("name", ["BatchNorm, batch_size", "multivariate_normal", "mixture enumerated", "PyroModule"])
def test_no_false_alarm(name: str) -> None:
    """In a fit from its first step on, the choice of a start before it; the other cells are in test_equal."""
    cell = CELLS[name]()
    options = {key: value for key, value in cell.items() if key not in ("model", "steps")}
    fit, told = fitted(cell["model"], **{"steps": 12, "compile": "auto", **options})
    assert (told, fit.engine) == ([], "compiled")


# What is changed between fit and resume: the model, and the change.
def closure_tensor() -> tuple[Any, Callable[[], None]]:
    shift = torch.zeros((), dtype=torch.float64)

    def model(y: Tensor) -> None:
        observed(pyro.sample("mu", dist.Normal(0.0, 2.0)) + shift, y)

    return model, lambda: shift.fill_(5.0) and None


def closure_number() -> tuple[Any, Callable[[], None]]:
    shift = 0.0

    def model(y: Tensor) -> None:
        observed(pyro.sample("mu", dist.Normal(0.0, 2.0)) + shift, y)

    def change() -> None:
        nonlocal shift
        shift = 5.0

    return model, change


class Shifted(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(()))
        self.factor = 1.0

    def forward(self, y: Tensor) -> None:
        observed(pyro.sample("mu", dist.Normal(0.0, 2.0)) + self.factor * self.shift, y)


def module_attribute() -> tuple[Any, Callable[[], None]]:
    model = Shifted().double()
    model.shift.fill_(1.0)

    def change() -> None:
        model.factor = 5.0

    return model, change


def long_list() -> tuple[Any, Callable[[], None]]:
    numbers = [0.0] * 1_000

    def model(y: Tensor) -> None:
        observed(pyro.sample("mu", dist.Normal(0.0, 2.0)) + numbers[700], y)

    def change() -> None:
        numbers[700] = 5.0

    return model, change


def array() -> tuple[Any, Callable[[], None]]:
    numbers = np.zeros(1_000)

    def model(y: Tensor) -> None:
        observed(pyro.sample("mu", dist.Normal(0.0, 2.0)) + float(numbers[700]), y)

    def change() -> None:
        numbers[700] = 5.0

    return model, change


def training_mode() -> tuple[Any, Callable[[], None]]:
    class Dropped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = torch.nn.Dropout(0.5)

        def forward(self, y: Tensor) -> None:
            observed(pyro.sample("mu", dist.Normal(0.0, 2.0)) + self.dropout(torch.full((), 5.0)), y)

    model = Dropped()
    return model, lambda: model.eval() and None


BETWEEN = [
    closure_tensor,
    closure_number,
    module_attribute,
    long_list,
    array,
    training_mode,
]


@pytest.mark.parametrize("make", BETWEEN, ids=[make.__name__ for make in BETWEEN])
def test_what_changes_between_fit_and_resume_counts(make: Callable[[], tuple[Any, Callable[[], None]]]) -> None:
    """Held against an eager engine at the state of the resumed fit, with the noise shared."""
    model, change = make()
    fit, told = fitted(model, compile="full")
    change()
    training: Any = fit._training
    with fit._runtime.scope():
        training.go_back()
        reference = training.engine.reference()
        state = training.engine.capture()
        losses = training.engine.advance(20)
        training.engine.restore(state)
        reference.restore(state)
        expected = reference.advance(20)
    assert (told, training.engine.name) == ([], "compiled")
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    unchanged = ingle.fit(make()[0], guide, Y, steps=STEPS + 20, optim=ADAM, dtype=torch.float64, compile="full")
    assert np.abs(unchanged.losses[STEPS:] - losses.numpy()).max() > 0.1, "the change does not show in the losses"


def test_a_value_that_changes_too_often_makes_the_steps_eager() -> None:
    model, _ = closure_number()
    cell = next(cell for cell in model.__closure__ if isinstance(cell.cell_contents, float))
    fit, told = fitted(model)
    assert told == []

    def changed_eleven_times(fit: ingle.Fit) -> ingle.Fit:
        for shift in range(1, 12):
            cell.cell_contents = float(shift)
            fit = fit.resume(5)
        return fit

    with pytest.warns(ingle.IngleWarning, match="'shift' of model changed from 8.0 to 9.0.*has changed before"):
        fit = changed_eleven_times(fit)
    assert fit.engine == "eager"
    assert fit.steps == STEPS + 11 * 5


def test_a_site_that_comes_late_is_noticed() -> None:
    """A function's own attribute, set between the calls: another structure, recorded anew."""

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        observed(mu, y)
        if late:
            pyro.factor("late", -10.0 * mu.square())

    late: list[int] = []
    fit, told = fitted(model, compile="full")
    late.append(1)
    more = fit.resume(20)
    assert (told, more.engine) == ([], "compiled")
    plain, _ = fitted(model, compile="off", steps=20)
    assert abs(more.losses[-20:].mean() - plain.losses.mean()) < abs(fit.losses.mean() - plain.losses.mean())


def test_a_site_that_nothing_watched_announces_is_found_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """The structure of a run is held against the recorded one at the first call, the second, the fourth, and so on."""

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        if "INGLE_TEST_LATE" in os.environ:  # what is in a library is not watched
            pyro.factor("late", -10.0 * mu.square())
        observed(mu, y)

    fit, told = fitted(model)
    assert (told, fit.engine) == ([], "compiled")
    monkeypatch.setenv("INGLE_TEST_LATE", "1")
    with pytest.warns(ingle.IngleWarning, match=rf"'data' .*{THIS}:\d+.* 'late' \({THIS}:\d+\)") as caught:
        fit = fit.resume(5).resume(5).resume(5)
    assert len(caught) == 1
    assert fit.engine == "eager"

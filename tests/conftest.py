"""Options of the suite: device, dtype, long tests, and an order that changes from run to run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pyro
import pytest
import torch
from support import global_state


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device that the fits run on, such as cuda")
    parser.addoption("--dtype", default="float32", choices=("float32", "float64"), help="dtype of the fits")
    parser.addoption("--long", action="store_true", help="also run the tests that take minutes")
    parser.addoption("--order", type=int, default=None, help="seed of the order of the tests; drawn if not given")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # one of several processes: one thread each, and the order of all
        torch.set_num_threads(1)
        config.option.order = config.workerinput["order"]
    elif config.option.order is None:
        config.option.order = random.randrange(2**16)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """With several processes, each is told the order."""
    node.workerinput["order"] = node.config.option.order


def pytest_report_header(config: pytest.Config) -> str:
    return f"ingle: --device {config.option.device} --dtype {config.option.dtype} --order {config.option.order}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    random.Random(config.option.order).shuffle(items)
    if not config.option.long:
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: run with --long"))


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.option.device)


@pytest.fixture
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    chosen: torch.dtype = getattr(torch, request.config.option.dtype)
    return chosen


@pytest.fixture
def where(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Device and dtype as options of `ingle.fit`."""
    return {"device": device, "dtype": dtype}


@pytest.fixture(autouse=True)
def _global_state_is_left_alone(request: pytest.FixtureRequest) -> Iterator[None]:
    """Seed each test, and see that no call of Ingle changed anything global, whatever the test was about."""
    if request.node.get_closest_marker("global_state"):
        yield
        return
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    before = global_state()
    yield
    after = global_state()
    random_states = ("torch", "numpy", "python")  # a test may draw numbers of its own
    assert {k: v for k, v in after.items() if k not in random_states} == {
        k: v for k, v in before.items() if k not in random_states
    }

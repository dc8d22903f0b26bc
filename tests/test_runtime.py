"""Scopes put back what they found, and resolvers refuse what cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pytest
import torch
from support import global_state

from ingle.errors import OptionError
from ingle.runtime import Runtime, resolve_device, resolve_dtype, resolve_seed


def runtime() -> Runtime:
    return Runtime(torch.float64, torch.device("cpu"), 1)


def test_scope_sets_and_restores() -> None:
    before = global_state()
    inside = runtime()
    with inside.scope():
        assert torch.get_default_dtype() == torch.float64
        assert pyro.infer.util.is_validation_enabled() is False
        first = torch.rand(3)
        pyro.param("a", torch.zeros(2))
    assert global_state() == before
    with inside.scope():
        assert torch.equal(torch.rand(3), first)
        assert list(pyro.get_param_store()) == ["a"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_scope_restores_after_an_error_and_keeps_parameters(error: type[BaseException]) -> None:
    before = global_state()
    inside = runtime()

    def use() -> None:
        pyro.param("a", torch.zeros(2))
        np.random.rand()
        raise error

    with pytest.raises(error), inside.scope():
        use()
    assert global_state() == before
    assert list(inside.parameters["params"]) == ["a"]


def test_trial_forgets_parameters() -> None:
    inside = runtime()
    with inside.scope():
        pyro.param("kept", torch.zeros(1))
        with inside.trial():
            assert "kept" in pyro.get_param_store()
            pyro.param("forgotten", torch.zeros(1))
        assert list(pyro.get_param_store()) == ["kept"]


@pytest.mark.parametrize("dtype", [torch.int64, "float32", np.float64, None, torch.bool])
def test_dtype_refusals(dtype: Any) -> None:
    with pytest.raises(OptionError, match="dtype must be a floating torch dtype"):
        resolve_dtype(dtype)


@pytest.mark.parametrize("device", ["banana", "cuda:99", 3.5])
def test_device_refusals_keep_the_cause(device: Any) -> None:
    with pytest.raises(OptionError, match="which has: cpu") as caught:
        resolve_device(device)
    assert caught.value.__cause__ is not None


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_cuda_where_there_is_none() -> None:
    with pytest.raises(OptionError, match="device 'cuda' cannot be used on this machine, which has: cpu"):
        resolve_device("cuda")


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, None, "1", True])
def test_seed_refusals(seed: Any) -> None:
    with pytest.raises(OptionError, match="seed must be an integer"):
        resolve_seed(seed)

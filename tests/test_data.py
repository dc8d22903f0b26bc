"""What becomes of data: kinds kept, refusals, and rows of minibatches."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ingle.data import Minibatches, read, resolve_batch_size
from ingle.errors import DataError, OptionError


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.ones(3), torch.float64),
        (np.ones(3, np.float32), torch.float32),
        (np.arange(3), torch.int64),
        (np.arange(3, dtype=np.int32), torch.int32),
        (np.arange(3, dtype=np.int16), torch.int64),
        (np.arange(3, dtype=np.uint8), torch.int64),
        (np.array([True, False]), torch.bool),
        (np.ones(3).astype(">f8"), torch.float64),
        (pd.Series([1, 2]), torch.int64),
        (pd.Series([1.0, 2.0]), torch.float64),
        (pd.Series([1, 2], dtype="Int64"), torch.int64),
        (torch.ones(2, dtype=torch.uint8), torch.uint8),
        (np.array(2.0), torch.float64),
    ],
)
def test_arrays_become_tensors(value: Any, dtype: torch.dtype) -> None:
    (tensor,) = read(value).args
    assert tensor.dtype == dtype
    assert tensor.shape == value.shape
    assert tensor.tolist() == value.tolist()


def test_array_is_copied() -> None:
    array = np.ones(3)
    (tensor,) = read(array).args
    tensor += 1
    assert array.tolist() == [1.0, 1.0, 1.0]


def test_everything_else_passes_untouched() -> None:
    thing = object()
    data = {"a": 1, "b": 2.5, "c": "text", "d": None, "e": [1, 2], "f": thing, "g": np.int64(3), "h": True}
    assert all(read(data).kwargs[name] is value for name, value in data.items())


def test_floats_take_the_dtype_and_integers_keep_theirs() -> None:
    moved = read((np.ones(2), np.arange(2), 3.0)).to(torch.float32, torch.device("cpu"))
    assert moved.args[0].dtype == torch.float32
    assert moved.args[1].dtype == torch.int64
    assert moved.args[2] == 3.0


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, r"empty mapping.*data=\(\)"),
        ({"a b": 1}, "'a b' is not"),
        ({1: 1}, "every key must be a name"),
        ([1.0, 2.0], "got list"),
        (None, "got NoneType"),
        (3.0, "got float"),
        ("text", "got str"),
        (pd.DataFrame({"x": [1.0]}), "table"),
        ({"x": np.array(["a", "b"])}, r"data\['x'\] has dtype <U1.*factorize"),
        ({"x": np.array([1.0, None])}, r"data\['x'\] has dtype object.*missing"),
        ({"x": pd.Series(pd.to_datetime(["2020-01-01"]))}, r"data\['x'\] has dtype datetime"),
        ((pd.Series(["a", "b"], dtype="category"),), r"data\[0\] has dtype"),
    ],
)
def test_refusals(data: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(data)


@pytest.mark.parametrize(("given", "name"), [({"y": "meta", "x": "cpu"}, "y"), (("cpu", "meta"), "argument 1")])
def test_tensor_without_numbers(given: Any, name: str) -> None:
    def empty(places: Any) -> Any:
        if isinstance(places, dict):
            return {name: torch.zeros(3, device=place) for name, place in places.items()}
        return tuple(torch.zeros(3, device=place) for place in places)

    with pytest.raises(DataError, match=f"{name} is a tensor on the meta device, which holds no numbers"):
        read(empty(given)).to(torch.float32, torch.device("cpu"))


def batches(sizes: dict[str, tuple[int, int]], seed: int = 0) -> Minibatches:
    return Minibatches(sizes, seed=seed, device=torch.device("cpu"))


def test_epoch_has_every_row_once_with_a_ragged_end() -> None:
    stream = batches({"data": (10, 4)})
    for _ in range(3):
        epoch = [stream.next()["data"] for _ in range(3)]
        assert [len(rows) for rows in epoch] == [4, 4, 2]
        assert sorted(torch.cat(epoch).tolist()) == list(range(10))


def test_order_is_apart_from_the_noise_and_from_the_next_seed() -> None:
    order = batches({"data": (50, 50)}).next()["data"]
    torch.manual_seed(0)
    assert not torch.equal(order, torch.randperm(50))
    second = batches({"a": (50, 50), "b": (50, 50)}).next()["b"]
    assert not torch.equal(second, batches({"a": (50, 50)}, seed=1).next()["a"])


def test_epochs_differ_and_seeds_differ() -> None:
    stream = batches({"data": (50, 50)})
    first, second = (stream.next()["data"].tolist() for _ in range(2))
    assert first != second
    assert batches({"data": (50, 50)}, seed=1).next()["data"].tolist() != first


def test_plates_have_orders_of_their_own() -> None:
    rows = batches({"a": (50, 50), "b": (50, 50)}).next()
    assert rows["a"].tolist() != rows["b"].tolist()


def test_first_rows_are_uniform() -> None:
    """Each of 5 rows comes first 1 time in 5: 2,000 seeds, a bound of 5 standard errors, fails 3 in a million."""
    counts = Counter(int(batches({"data": (5, 1)}, seed=seed).next()["data"]) for seed in range(2_000))
    se = (2_000 * 0.2 * 0.8) ** 0.5
    assert all(abs(counts[row] - 400) < 5 * se for row in range(5))


def test_capture_and_restore_go_on_from_the_same_place() -> None:
    stream = batches({"data": (10, 3)})
    for _ in range(2):
        stream.next()
    state = stream.capture()
    ahead = [stream.next()["data"].tolist() for _ in range(9)]
    stream.restore(state)
    assert [stream.next()["data"].tolist() for _ in range(9)] == ahead


@pytest.mark.parametrize("given", [100, ["data"], {0: 10}, {"data": 0}, {"data": -1}, {"data": 2.0}, {"data": True}])
def test_batch_size_refusals(given: Any) -> None:
    with pytest.raises(OptionError, match="batch_size"):
        resolve_batch_size(given)

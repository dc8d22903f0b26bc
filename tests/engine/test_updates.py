"""Updates for a graph: as torch's own optimisers move, with numbers and counts planned beforehand."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.optim
import pytest
import torch
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import SGD, Adam, AdamW
from torch.optim.optimizer import register_optimizer_step_post_hook

import ingle
from ingle.engine import Optimisers, resolve_optimisers
from ingle.engine.updates import Updates, updates_of

SHAPES = {"loc": (), "scale": (3,), "weight": (4, 5)}
Gradients = Mapping[str, Tensor | None]


class Fit:
    """Leaves and their optimisers, stepped by torch's own code or by planned updates."""

    def __init__(
        self, optim: Any, *, dtype: torch.dtype = torch.float64, guide_steps: int = 1, steps: int | None = None
    ) -> None:
        generator = torch.Generator().manual_seed(7)
        self.leaves = {
            name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
            for name, shape in SHAPES.items()
        }
        given = optim() if callable(optim) else optim
        self.optimisers = resolve_optimisers(given, guide_steps=guide_steps, steps=steps)
        self.generator = generator

    def sides(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model = {"weight": self.leaves["weight"]}
        return model, {name: leaf for name, leaf in self.leaves.items() if name not in model}

    def gradients(self, steps: int, without: tuple[str, ...] = ()) -> list[Gradients]:
        """Some of them large enough to be clipped."""
        return [
            {
                name: None
                if name in without
                else torch.randn(leaf.shape, generator=self.generator, dtype=torch.float64).mul(8).to(leaf.dtype)
                for name, leaf in self.leaves.items()
            }
            for _ in range(steps)
        ]

    def step(self, all_gradients: list[Gradients]) -> None:
        for gradients in all_gradients:
            for name, leaf in self.leaves.items():
                gradient = gradients[name]
                leaf.grad = None if gradient is None else gradient.clone()
            self.optimisers.step(*self.sides())

    def update(self, all_gradients: list[Gradients], updates: Updates, *blocks: int) -> None:
        names = {id(leaf): name for name, leaf in self.leaves.items()}
        gradients = iter(all_gradients)
        for block in blocks or (len(all_gradients),):
            for row in updates.plan(block):
                now = next(gradients)
                updates.update([now[names[id(leaf)]] for leaf in updates.leaves], updates.state, row)

    def state(self) -> dict[str, Any]:
        """All that a checkpoint would hold."""
        state = self.optimisers.capture()
        for side in state["sides"].values():
            side["joins"] = [list(join) for join in side["joins"]]
        return state


def updates_for(fit: Fit) -> Updates:
    updates = updates_of(fit.optimisers)
    assert isinstance(updates, Updates), updates
    return updates


def same(first: Any, second: Any, tolerance: float, where: str = "state") -> None:
    """Equal to the bit, but for what a gradient went into."""
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for name in first:
            same(first[name], second[name], tolerance, f"{where}.{name}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for index, (one, other) in enumerate(zip(first, second, strict=True)):
            same(one, other, tolerance, f"{where}[{index}]")
    elif isinstance(first, Tensor):
        assert first.dtype == second.dtype, where
        exact = where.endswith(".step")
        bound = 0.0 if exact else tolerance
        torch.testing.assert_close(first, second, rtol=bound, atol=bound, msg=lambda told: f"{where}: {told}")
    elif not callable(first):
        assert first == second, where


def compared(
    optim: Any,
    *,
    steps: int = 20,
    blocks: tuple[int, ...] = (),
    tolerance: float = 1e-12,
    without: tuple[str, ...] = (),
    warm: int | None = None,
    **options: Any,
) -> Fit:
    """Steps of torch's own beside as many planned updates."""
    eager, planned = Fit(optim, **options), Fit(optim, **options)
    warm = warm or eager.optimisers.guide_steps
    gradients = eager.gradients(warm + steps, without)
    eager.step(gradients)
    planned.step(gradients[:warm])
    planned.update(gradients[warm:], updates_for(planned), *blocks)
    for name, leaf in eager.leaves.items():
        assert leaf.isfinite().all()
        torch.testing.assert_close(planned.leaves[name], leaf, rtol=tolerance, atol=tolerance, msg=lambda told: told)
    same(planned.state(), eager.state(), tolerance)
    return planned


def of(kind: Any, **options: Any) -> Callable[[], Any]:
    return lambda: functools.partial(kind, **options)


OPTIMISERS = {
    "Adam": of(Adam, lr=0.05),
    "Adam with betas and eps": of(Adam, lr=0.05, betas=(0.4, 0.95), eps=0.1),
    "Adam with decay": of(Adam, lr=0.05, weight_decay=0.1),
    "Adam with decoupled decay": of(Adam, lr=0.05, weight_decay=0.1, decoupled_weight_decay=True),
    "Adam amsgrad": of(Adam, lr=0.05, amsgrad=True),
    "Adam amsgrad with all": of(Adam, lr=0.05, amsgrad=True, weight_decay=0.1, maximize=True),
    "Adam foreach": of(Adam, lr=0.05, foreach=True, weight_decay=0.1, maximize=True),
    "Adam fused": of(Adam, lr=0.05, fused=True),
    "AdamW": of(AdamW, lr=0.05),
    "AdamW with all": of(AdamW, lr=0.05, weight_decay=0.3, amsgrad=True, maximize=True),
    "SGD": of(SGD, lr=0.01),
    "SGD with decay": of(SGD, lr=0.01, weight_decay=0.1, maximize=True),
    "SGD with momentum": of(SGD, lr=0.01, momentum=0.9),
    "SGD with dampening": of(SGD, lr=0.01, momentum=0.9, dampening=0.3, weight_decay=0.1),
    "SGD nesterov": of(SGD, lr=0.01, momentum=0.9, nesterov=True, maximize=True),
    "ClippedAdam": of(ClippedAdam, lr=0.05),
    "ClippedAdam with all": of(
        ClippedAdam, lr=0.05, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1, clip_norm=2.0, lrd=0.97
    ),
    "Pyro's Adam": lambda: pyro.optim.Adam({"lr": 0.05}),
    "Pyro's ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99, "clip_norm": 1.0}),
    "clip norm": lambda: pyro.optim.SGD({"lr": 0.01}, {"clip_norm": 3.0}),
    "clip value": lambda: pyro.optim.Adam({"lr": 0.01}, {"clip_value": 0.5}),
    "clip both": lambda: pyro.optim.SGD({"lr": 0.01, "momentum": 0.5}, {"clip_norm": 3.0, "clip_value": 0.5}),
    "two": lambda: {"model": functools.partial(SGD, lr=0.01, momentum=0.9), "guide": pyro.optim.Adam({"lr": 0.1})},
    "Ingle's own": lambda: None,
    "Ingle's own on one side": lambda: {"model": None, "guide": functools.partial(Adam, lr=0.1)},
}

SGD_ARGS = {"optimizer": SGD, "optim_args": {"lr": 0.02, "momentum": 0.9}}
ADAM_ARGS = {"optimizer": Adam, "optim_args": {"lr": 0.02, "weight_decay": 0.01}}


def scheduled(name: str, arguments: dict[str, Any], **options: Any) -> Callable[[], Any]:
    return lambda: getattr(pyro.optim, name)({**arguments, "optim_args": dict(arguments["optim_args"]), **options})


SCHEDULES = {
    "ExponentialLR": scheduled("ExponentialLR", ADAM_ARGS, gamma=0.9),
    "ExponentialLR of ClippedAdam": scheduled(
        "ExponentialLR", {"optimizer": ClippedAdam, "optim_args": {"lr": 0.1, "lrd": 0.98}}, gamma=0.9
    ),
    "StepLR": scheduled("StepLR", SGD_ARGS, step_size=4, gamma=0.5),
    "MultiStepLR": scheduled("MultiStepLR", SGD_ARGS, milestones=[3, 5, 11], gamma=0.5),
    "CosineAnnealingLR": scheduled("CosineAnnealingLR", ADAM_ARGS, T_max=7),
    "CosineAnnealingWarmRestarts": scheduled("CosineAnnealingWarmRestarts", ADAM_ARGS, T_0=3, T_mult=2),
    "OneCycleLR of Adam": scheduled("OneCycleLR", ADAM_ARGS, max_lr=0.1, total_steps=40),
    "OneCycleLR of SGD": scheduled("OneCycleLR", SGD_ARGS, max_lr=0.1, total_steps=40),
    "CyclicLR": scheduled("CyclicLR", SGD_ARGS, base_lr=0.01, max_lr=0.1, step_size_up=3),
    "LinearLR": scheduled("LinearLR", SGD_ARGS, start_factor=0.1, total_iters=9),
    "LambdaLR": scheduled("LambdaLR", SGD_ARGS, lr_lambda=lambda step: 1 / (1 + step)),
    "PolynomialLR": scheduled("PolynomialLR", ADAM_ARGS, total_iters=15, power=2.0),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_updates_are_those_of_torch(name: str) -> None:
    compared(OPTIMISERS[name])


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_advance_with_the_plan(name: str) -> None:
    compared(SCHEDULES[name], blocks=(3, 1, 16))


@pytest.mark.parametrize("name", [*OPTIMISERS, "OneCycleLR of Adam", "CyclicLR", "ExponentialLR of ClippedAdam"])
def test_model_moves_at_every_third_step(name: str) -> None:
    optim = (OPTIMISERS | SCHEDULES)[name]
    for warm, blocks in ((3, (1, 1, 5, 13)), (4, (20,)), (5, (20,))):
        compared(optim, guide_steps=3, warm=warm, blocks=blocks)


def test_centred_variance() -> None:
    if "centered_variance" not in ClippedAdam([torch.zeros(1)]).defaults:
        pytest.skip("this Pyro has no such option")
    compared(of(ClippedAdam, lr=0.05, centered_variance=True))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 0.1), (torch.float16, 2e-2)])
@pytest.mark.parametrize("name", ["Adam", "AdamW with all", "ClippedAdam with all", "SGD nesterov", "clip both"])
def test_other_dtypes(name: str, dtype: torch.dtype, tolerance: float) -> None:
    steps = 100 if dtype is torch.float32 else 10
    fit = compared(OPTIMISERS[name], dtype=dtype, tolerance=tolerance, steps=steps)
    assert {tensor.dtype for tensor in [*fit.leaves.values(), *updates_for(fit).state]} == {dtype}
    if dtype is torch.float32:
        compared(OPTIMISERS[name], dtype=dtype, tolerance=tolerance, steps=20, guide_steps=3)


@pytest.mark.parametrize("name", ["Adam", "ClippedAdam with all", "Ingle's own", "SGD nesterov", "OneCycleLR of SGD"])
def test_plans_of_three_and_four_are_one_of_seven(name: str) -> None:
    optim = (OPTIMISERS | SCHEDULES)[name]
    for repeats in (1, 2):
        tables = []
        for blocks in ((7,), (3, 4), (1,) * 7, (0, 7)):
            fit = Fit(optim, guide_steps=repeats, steps=6)
            fit.step(fit.gradients(repeats))
            updates = updates_for(fit)
            tables.append(torch.cat([updates.plan(block) for block in blocks]))
        assert tables[0].shape == (7, updates.width)
        assert tables[0].dtype == torch.float64
        assert tables[0].isfinite().all()
        assert all(torch.equal(table, tables[0]) for table in tables)


@pytest.mark.parametrize("steps", [3, 8, 9, 20, 21, 30])
@pytest.mark.parametrize("repeats", [1, 4])
def test_learning_rate_of_ingle_stays_at_the_end_of_its_decay(steps: int, repeats: int) -> None:
    fit, other = (Fit(None, steps=steps, guide_steps=repeats) for _ in range(2))
    gradients = fit.gradients(repeats + 20)
    fit.step(gradients)
    other.step(gradients[:repeats])
    other.update(gradients[repeats:], updates_for(other), 5, 15)
    same(other.state(), fit.state(), 1e-12)


def test_learning_rate_that_a_rule_lowers_is_read_anew() -> None:
    eager, planned = Fit(None), Fit(None)
    gradients = eager.gradients(9)
    eager.step(gradients[:5])
    eager.optimisers.scale_lr(0.3)
    eager.step(gradients[5:])
    planned.step(gradients[:1])
    updates = updates_for(planned)
    planned.update(gradients[1:5], updates)
    planned.optimisers.scale_lr(0.3)
    assert updates.hold()
    planned.update(gradients[5:], updates)
    same(planned.state(), eager.state(), 1e-12)


@pytest.mark.parametrize("name", ["Adam", "ClippedAdam", "SGD", "SGD with momentum", "two", "clip both"])
def test_leaf_without_gradient_stays_as_it_is(name: str) -> None:
    fit = compared(OPTIMISERS[name], without=("scale",))
    assert torch.equal(fit.leaves["scale"], Fit(None).leaves["scale"])
    assert len(updates_for(fit).leaves) == 3


def traced_once(fit: Fit, updates: Updates, gradients: Gradients) -> None:
    """As an engine does it: what the trace ran is taken back."""
    names = {id(leaf): name for name, leaf in fit.leaves.items()}
    values = {name: leaf.detach().clone() for name, leaf in fit.leaves.items()}
    state = fit.optimisers.capture()
    updates.update([gradients[names[id(leaf)]] for leaf in updates.leaves], updates.state, torch.ones(updates.width))
    fit.optimisers.restore(state)
    for name, leaf in fit.leaves.items():
        leaf.detach().copy_(values[name])


def test_leaf_that_loses_its_gradient_stops_counting() -> None:
    eager, planned = Fit(OPTIMISERS["Adam"]), Fit(OPTIMISERS["Adam"])
    first, then = eager.gradients(1), eager.gradients(9, without=("scale",))
    eager.step([*first, *then])
    planned.step(first)
    updates = updates_for(planned)
    traced_once(planned, updates, then[0])
    planned.update(then[:6], updates, 2, 4)
    assert not updates.hold()
    updates = updates_for(planned)
    traced_once(planned, updates, then[0])
    planned.update(then[6:], updates)
    assert updates.hold()
    same(planned.state(), eager.state(), 1e-12)


def test_leaf_that_loses_its_gradient_after_the_plan_is_noticed() -> None:
    fit = Fit(OPTIMISERS["Adam"])
    fit.step(fit.gradients(1))
    before = [leaf.detach().clone() for leaf in fit.leaves.values()]
    with pytest.raises(RuntimeError, match="after its updates were planned"):
        fit.update(fit.gradients(1, without=("scale",)), updates_for(fit))
    assert all(torch.equal(*pair) for pair in zip(before, fit.leaves.values(), strict=True))


def test_sparse_gradient_is_refused() -> None:
    fit = Fit(OPTIMISERS["SGD"])
    fit.step(fit.gradients(1))
    updates = updates_for(fit)
    gradients = [torch.ones_like(leaf).to_sparse() for leaf in updates.leaves]
    with pytest.raises(RuntimeError, match="sparse"):
        updates.update(gradients, updates.state, updates.plan(1)[0])


def test_first_gradient_is_for_torch() -> None:
    fit = Fit(OPTIMISERS["Adam"])
    fit.step(fit.gradients(1, without=("loc",)))
    with pytest.raises(RuntimeError, match="first gradient"):
        fit.update(fit.gradients(1), updates_for(fit))


def test_leaves_that_joined_later_have_numbers_of_their_own() -> None:
    eager, planned = Fit(OPTIMISERS["Adam"]), Fit(OPTIMISERS["Adam"])
    gradients = eager.gradients(20)
    for fit in (eager, planned):
        late = fit.leaves.pop("loc")
        fit.step(gradients[:5])
        fit.leaves["loc"] = late
    eager.step(gradients[5:])
    planned.step(gradients[5:6])
    planned.update(gradients[6:], updates_for(planned))
    same(planned.state(), eager.state(), 1e-12)


def test_options_by_name() -> None:
    def options(name: str) -> dict[str, float]:
        return {"lr": {"loc": 0.1, "scale": 0.01, "weight": 0.003}[name]}

    def clips(module: str, name: str) -> dict[str, float]:
        return {"clip_norm": 2.0} if name == "weight" else {}

    states = []
    for planned in (False, True):
        with pyro.get_param_store().scope():
            fit = Fit(lambda: pyro.optim.Adam(options, clips))
            for name in fit.leaves:
                pyro.param(name, fit.leaves[name].detach())
                fit.leaves[name] = pyro.param(name)
            gradients = fit.gradients(8)
            fit.step(gradients[:1] if planned else gradients)
            if planned:
                fit.update(gradients[1:], updates_for(fit))
            states.append((fit.state(), list(fit.leaves.values())))
    same(states[0], states[1], 1e-12)


def test_infinite_gradient_does_not_reach_a_side_that_stands_still() -> None:
    eager, planned = Fit(OPTIMISERS["Adam"], guide_steps=3), Fit(OPTIMISERS["Adam"], guide_steps=3)
    gradients = eager.gradients(9)
    for step in (3, 4, 6, 7):
        weight = gradients[step]["weight"]
        assert weight is not None
        weight[0] = math.inf if step % 2 else math.nan
    eager.step(gradients)
    planned.step(gradients[:3])
    planned.update(gradients[3:], updates_for(planned))
    assert all(leaf.isfinite().all() for leaf in planned.leaves.values())
    same(planned.state(), eager.state(), 1e-12)


def test_gradients_stay_as_they_are() -> None:
    for name in ("clip both", "ClippedAdam with all", "AdamW with all", "SGD nesterov"):
        fit = Fit(OPTIMISERS[name])
        fit.step(fit.gradients(1))
        updates = updates_for(fit)
        gradients = [torch.full(leaf.shape, 30.0, dtype=leaf.dtype) for leaf in updates.leaves]
        updates.update(gradients, updates.state, updates.plan(1)[0])
        assert all((gradient == 30.0).all() for gradient in gradients)


def test_restored_state_goes_on() -> None:
    fit = Fit(OPTIMISERS["ClippedAdam with all"])
    gradients = fit.gradients(8)
    fit.step(gradients[:1])
    updates = updates_for(fit)
    state, start = fit.optimisers.capture(), {name: leaf.detach().clone() for name, leaf in fit.leaves.items()}
    fit.update(gradients[1:], updates)
    end = fit.state()
    before = updates.state
    fit.optimisers.restore(state)
    for name, leaf in fit.leaves.items():
        leaf.detach().copy_(start[name])
    assert updates.hold()
    assert {id(tensor) for tensor in before}.isdisjoint(id(tensor) for tensor in updates.state)
    fit.update(gradients[1:], updates)
    same(fit.state(), end, 0.0)


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("name", ["Ingle's own", "AdamW with all", "SGD nesterov", "clip both", "OneCycleLR of Adam"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_graph_moves_as_the_updates_do(name: str, repeats: int, dtype: torch.dtype) -> None:
    optim = (OPTIMISERS | SCHEDULES)[name]
    traced, planned = (Fit(optim, guide_steps=repeats, dtype=dtype, steps=9) for _ in range(2))
    gradients = traced.gradients(repeats + 8)
    for fit in (traced, planned):
        fit.step(gradients[:repeats])
    planned.update(gradients[repeats:], updates_for(planned))
    updates = updates_for(traced)
    names = {id(leaf): name for name, leaf in traced.leaves.items()}
    in_order = [[now[names[id(leaf)]] for leaf in updates.leaves] for now in gradients[repeats:]]
    table = updates.plan(8)

    def one(leaves: list[Tensor], state: list[Tensor], gradients: list[Tensor], numbers: Tensor) -> None:
        updates.update(gradients, state, numbers)

    graph = make_fx(one)(updates.leaves, updates.state, in_order[0], table[0])  # which runs it once
    targets = [str(node.target) for node in graph.graph.nodes]
    assert not any("local_scalar" in target or target == "item" for target in targets)
    assert not any(node.op == "get_attr" for node in graph.graph.nodes)
    with torch.no_grad():
        for now, row in zip(in_order[1:], table[1:], strict=True):
            graph(updates.leaves, updates.state, now, row)
    for leaf, other in zip(traced.leaves.values(), planned.leaves.values(), strict=True):
        assert torch.equal(leaf, other)
    same(traced.state(), planned.state(), 0.0)


def wrong_step(optimiser: torch.optim.Optimizer) -> torch.optim.Optimizer:
    optimiser.step = lambda closure=None: None  # type: ignore[method-assign, assignment]
    return optimiser


def hooked(optimiser: torch.optim.Optimizer, when: str) -> torch.optim.Optimizer:
    getattr(optimiser, f"register_step_{when}_hook")(lambda *arguments: None)
    return optimiser


class MyAdam(Adam):
    """Anything may be in it."""


class MySchedule(torch.optim.lr_scheduler.StepLR):
    def step(self, epoch: Any = None) -> None:
        super().step()


def complex_leaf(leaves: list[Tensor]) -> torch.optim.Optimizer:
    return Adam([*leaves, torch.zeros(1, dtype=torch.complex64)])


REFUSED = {
    "no formula for torch.optim.rmsprop.RMSprop": of(torch.optim.RMSprop, lr=0.01),
    "no formula for torch.optim.adagrad.Adagrad": of(torch.optim.Adagrad, lr=0.01),
    "no formula for pyro.optim.dct_adam.DCTAdam": lambda: pyro.optim.DCTAdam({"lr": 0.01}),
    "no formula for pyro.optim.adagrad_rmsprop.AdagradRMSProp": lambda: pyro.optim.AdagradRMSProp({"eta": 0.1}),
    "MyAdam": of(MyAdam, lr=0.01),
    "Adam with a tensor for lr": of(Adam, lr=torch.tensor(0.01)),
    "Adam with a tensor for betas": of(Adam, betas=(torch.tensor(0.9), torch.tensor(0.99)), foreach=False),
    "SGD with a tensor for weight_decay": of(SGD, weight_decay=torch.tensor(0.1), foreach=False),
    "SGD with differentiable": of(SGD, lr=0.01, differentiable=True),
    "SGD has hooks": lambda: lambda leaves: hooked(SGD(leaves), "pre"),
    "Adam has hooks": lambda: lambda leaves: hooked(Adam(leaves), "post"),
    "SGD has a step of its own": lambda: lambda leaves: wrong_step(SGD(leaves)),
    "Adam with the option taste": lambda: lambda leaves: Adam([{"params": leaves, "taste": "bitter"}]),
    "a parameter is complex": lambda: complex_leaf,
    "MySchedule has a step of its own": lambda: pyro.optim.lr_scheduler.PyroLRScheduler(
        MySchedule, {"optimizer": SGD, "optim_args": {"lr": 0.1}, "step_size": 3}
    ),
    "a schedule that brings the momentum to zero": scheduled(
        "CyclicLR", SGD_ARGS, base_lr=0.01, max_lr=0.1, base_momentum=0.0
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step:UserWarning")
def test_refusals_have_a_reason(reason: str) -> None:
    fit = Fit(REFUSED[reason])
    if reason == "SGD with differentiable":
        fit.leaves = {name: leaf.requires_grad_(False) for name, leaf in fit.leaves.items()}
    fit.step(fit.gradients(1))
    told = updates_of(fit.optimisers)
    assert isinstance(told, str)
    assert told.startswith("optim: ")
    assert reason in told


def test_hooks_on_every_optimiser() -> None:
    fit = Fit(OPTIMISERS["SGD"])
    fit.step(fit.gradients(1))
    updates = updates_for(fit)
    assert updates.hold()
    handle = register_optimizer_step_post_hook(lambda *arguments: None)
    try:
        assert not updates.hold()
    finally:
        handle.remove()
    assert updates.hold()


def test_option_that_changes_is_noticed() -> None:
    built: list[torch.optim.Optimizer] = []

    def factory(leaves: list[Tensor]) -> torch.optim.Optimizer:
        built.append(Adam(leaves, lr=0.1))
        return built[-1]

    fit = Fit(lambda: factory)
    fit.step(fit.gradients(1))
    updates = updates_for(fit)
    built[0].param_groups[0]["lr"] = 0.2
    assert updates.hold()
    assert updates.plan(1)[0, 0] != 0
    built[0].param_groups[0]["eps"] = 0.2
    assert not updates.hold()


def test_both_sides_have_to_have_moved() -> None:
    fit = Fit(OPTIMISERS["SGD"], guide_steps=3)
    assert updates_of(fit.optimisers) == "optim['model'] has not taken a step yet"
    fit.step(fit.gradients(2))
    assert updates_of(fit.optimisers) == "optim['model'] has not taken a step yet"
    fit.step(fit.gradients(1))
    assert updates_for(fit).hold()


def test_side_without_parameters() -> None:
    optimisers = resolve_optimisers(functools.partial(Adam, lr=0.1), guide_steps=2, steps=None)
    leaf = torch.zeros(2, requires_grad=True)
    for _ in range(2):
        leaf.grad = torch.ones(2)
        optimisers.step({}, {"leaf": leaf})
    updates = updates_of(optimisers)
    assert isinstance(updates, Updates)
    assert [id(moved) for moved in updates.leaves] == [id(leaf)]
    updates.update([torch.ones(2)], updates.state, updates.plan(3)[0])


def test_schedule_at_its_end_says_so() -> None:
    fit = Fit(scheduled("OneCycleLR", ADAM_ARGS, max_lr=0.1, total_steps=5))
    fit.step(fit.gradients(1))
    with pytest.raises(ingle.OptionError, match="optim: Adam cannot take a step: Tried to step"):
        updates_for(fit).plan(10)


def test_a_thousand_updates_are_planned_in_a_millisecond() -> None:
    def planned(optim: Callable[[], Any]) -> float:
        fit = Fit(optim)
        fit.step(fit.gradients(1))
        updates = updates_for(fit)
        seconds = []
        for _ in range(20):
            start = time.perf_counter()
            updates.plan(1000)
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    assert max(planned(OPTIMISERS[name]) for name in ("Adam", "SGD", "Ingle's own")) < 1e-3


def test_optimisers_of_a_fit() -> None:
    """Through `resolve_optimisers` alone, as an engine has them."""
    optimisers = resolve_optimisers(None, guide_steps=1, steps=10)
    assert isinstance(optimisers, Optimisers)
    assert updates_of(optimisers) == "optim has not taken a step yet"

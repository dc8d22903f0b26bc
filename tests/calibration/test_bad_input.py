"""What a user can get wrong, and what is said of it."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ingle
from ingle import DataError, OptionError, ProgramError

Y = torch.zeros(4)


def model(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def giving(latents: Any, data: Any = Y) -> Any:
    return lambda seed: (latents, data)


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({}, OptionError, "give data, the arguments of the model"),
        ({"data": Y, "simulate": giving({"mu": 0.0})}, OptionError, "so leave out data"),
        ({"data": Y, "fits": 19}, OptionError, "fits must be 20 or more"),
        ({"data": Y, "fits": 0}, OptionError, "fits must be a positive integer"),
        ({"data": Y, "draws": 0}, OptionError, "draws must be a positive integer"),
        ({"data": Y, "steps": 1.5}, OptionError, "steps must be a positive integer"),
        ({"data": Y, "seed": -1}, OptionError, "seed must be an integer"),
        ({"data": Y, "together": 1}, OptionError, "together must be True or False"),
        ({"data": Y, "progress": 1}, OptionError, "progress must be True, False or None"),
        ({"data": Y, "compile": "yes"}, OptionError, "compile must be one of"),
        ({"data": Y, "optim": 3}, OptionError, "optim must be a callable"),
        ({"data": Y, "quantities": 3}, OptionError, "quantities must be a callable"),
        ({"data": Y, "quantities": lambda it: 3}, OptionError, "quantities returns a mapping"),
        ({"data": Y, "quantities": lambda it: {"mu": it["mu"]}}, OptionError, "gives 'mu', which is ranked already"),
        ({"data": Y, "quantities": lambda it: it["nu"]}, OptionError, "quantities raised KeyError"),
        ({"simulate": 3}, OptionError, "simulate must be a callable from a seed"),
        ({"simulate": lambda seed: Y}, DataError, r"simulate returns \(latents, data\)"),
        ({"simulate": lambda seed: (Y, Y)}, DataError, r"simulate returns \(latents, data\)"),
        ({"simulate": lambda seed: 1 / 0}, ProgramError, r"simulate\(\d+\) raised ZeroDivisionError"),
        (
            {"simulate": giving({"nu": 0.0})},
            DataError,
            "simulate gave 'nu', which is no latent of the model; it has 'mu'",
        ),
        ({"simulate": giving({})}, DataError, "no value that can be ranked: give the true values of some of 'mu'"),
        ({"simulate": giving({"mu": torch.zeros(3)})}, DataError, r"'mu' the shape \(3,\), and the model has \(\)"),
        ({"simulate": giving({"mu": 0.0})}, DataError, "the same latents and data for every seed"),
        ({"simulate": giving({"mu": 0.0}, {"x": Y})}, DataError, r"of what simulate\(\d+\) gave: .*'y'"),
        ({"simulate": giving({"mu": float("nan")})}, DataError, "latent 'mu' with values that are not finite"),
        ({"simulate": giving({"mu": "high"})}, DataError, "latent 'mu' as str, which is no number"),
        ({"simulate": giving({"mu": 0.0}, Y / 0)}, ProgramError, "y"),
        ({"simulate": giving({"mu": 0.0}, Y + torch.inf)}, DataError, "argument 'y' with infinite values"),
        ({"simulate": giving({"mu": 0.0}, (Y, Y))}, DataError, "the data do not fit the call of the model"),
    ],
)
def test_options(options: dict[str, Any], kind: type[Exception], told: str) -> None:
    guide: Any = lambda y: pyro.sample("mu", dist.Normal(0.0, 1.0))  # noqa: E731
    with pytest.raises(kind, match=told):
        ingle.calibrate(model, guide, **options)


def test_models_that_cannot_be_drawn() -> None:
    def improper(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(mu, 1.0).expand([4]).to_event(1), obs=y)

    def weighed(y: Tensor) -> None:
        model(y)
        pyro.factor("wish", y.sum())

    def blind(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    def wide(y: Tensor) -> None:
        sd = pyro.sample("sd", dist.LogNormal(0.0, 200.0))
        pyro.sample("y", dist.Normal(0.0, sd).expand([4]).to_event(1), obs=y)

    for program, told in {
        improper: "cannot be drawn from its prior.*give simulate=",
        weighed: "pyro.factor at 'wish'",
        blind: "observes nothing",
        wide: "is not finite in .* of 100 draws|out of its range",
    }.items():
        with pytest.raises(ProgramError, match=f"(?s){told}"):
            ingle.calibrate(program, "normal", Y)


def test_guides_that_have_no_spread_or_nothing_to_rank() -> None:
    with pytest.raises(OptionError, match="point mass at 'mu'"):
        ingle.calibrate(model, "delta", Y)

    def flip(y: Tensor) -> None:
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(k, 1.0).expand([4]).to_event(1), obs=y)

    with pytest.raises(OptionError, match="nothing to rank"):
        ingle.calibrate(flip, lambda y: None, Y)


def test_a_guide_that_reads_what_the_model_derives_its_values_from() -> None:
    def doubled(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=2 * y + 1)

    def reads(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(y.mean(), 1.0))

    with pytest.raises(OptionError, match="the guide reads y, from which the model computes what it observes at 'y'"):
        ingle.calibrate(doubled, reads, Y)
    found = ingle.calibrate(doubled, "normal", Y, fits=20, steps=300, compile="off")
    assert found.how == "in one run"
    assert abs(found["mu"].bias) < 1


def test_rows_of_a_whole_plate_are_the_argument() -> None:
    """`y[i]` with all rows is y, and so a guide may read it."""

    def indexed(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)) as i:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[i])

    def exact(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(y.sum() / (len(y) + 1), (len(y) + 1) ** -0.5))

    assert ingle.calibrate(indexed, exact, Y).calibrated


def test_a_prior_that_reads_the_data_cannot_be_drawn_from() -> None:
    def centred(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(y.mean(), 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(ProgramError, match="the prior of 'mu' reads what the model observes"):
        ingle.calibrate(centred, "normal", data=Y, fits=20, steps=50, progress=False)

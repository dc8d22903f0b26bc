"""Which engine takes the steps: from counts alone, and the card says which, why, and what it gained."""

from __future__ import annotations

from typing import Any

import pyro.infer
import pytest
from engine.cells import ADAM, Y, line
from engine.engines import engine_of

import ingle
from ingle.engine import choose, internals
from ingle.engine.choose import choose_engine


class Chosen:
    """`choose_engine` on a program of so many statements."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        program = engine.program
        self.statements = len(program.model_sites) + len(program.guide_sites) + len(program.leaves())

    def __call__(self, compile: Any, steps: int | None, *, objective: Any = None, before: str | None = None) -> Any:
        ours = self.engine
        objective = ours.objective if objective is None else objective
        return choose_engine(
            compile, ours.program, objective, ours.optimisers, ours._runtime, steps=steps, before=before
        )


@pytest.fixture
def chosen() -> Any:
    with engine_of(line, "normal", Y, using=None) as engine:
        yield Chosen(engine)


def test_auto_compiles_from_a_number_of_steps_on(chosen: Chosen) -> None:
    enough = -(-choose._WORTH // chosen.statements)
    assert chosen("auto", enough).name == "compiled"
    few = chosen("auto", enough - 1)
    assert few.name == "eager"
    assert "too few" in few.notes[0]
    assert chosen("off", enough).notes == []


def test_auto_takes_the_rule_for_thousands_of_steps(chosen: Chosen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "_WORTH", choose._UNKNOWN * chosen.statements)
    assert chosen("auto", None).name == "compiled"
    monkeypatch.setattr(choose, "_WORTH", choose._UNKNOWN * chosen.statements + 1)
    assert chosen("auto", None).name == "eager"


def test_off_and_full_do_not_count(chosen: Chosen) -> None:
    assert chosen("off", 10**9).name == "eager"
    assert chosen("full", 1).name == "compiled"


def test_a_fit_goes_on_with_its_engine(chosen: Chosen) -> None:
    assert chosen("auto", 1, before="compiled").name == "compiled"
    assert chosen("auto", 10**9, before="eager").name == "eager"
    assert chosen("full", 1, before="eager").name == "compiled"


def test_objectives_that_cannot_be_compiled(chosen: Chosen) -> None:
    renyi = pyro.infer.RenyiELBO(num_particles=2)
    eager = chosen("auto", 10**9, objective=renyi)
    assert eager.name == "eager"
    assert "RenyiELBO" in eager.notes[0]
    with pytest.raises(ingle.OptionError, match=r"compile='full': RenyiELBO is not one .*compile='auto'"):
        chosen("full", 10, objective=renyi)


@pytest.mark.parametrize("compile", ["Full", "on", True, None])
def test_other_choices_are_refused_with_the_list(compile: Any) -> None:
    with pytest.raises(ingle.OptionError, match="compile must be one of 'auto', 'off', 'full'"):
        ingle.fit(line, "normal", Y, steps=1, compile=compile)


def test_without_a_compiler_one_line_says_so_and_the_fit_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internals, "compiler", lambda: None)
    monkeypatch.setattr(choose, "_WORTH", 0)
    with pytest.warns(ingle.IngleWarning, match=r"no C\+\+ compiler was found") as caught:
        fit = ingle.fit(line, "normal", Y, steps=40, optim=ADAM)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert fit.steps == 40
    assert "no C++ compiler" in repr(fit)
    with pytest.raises(ingle.OptionError, match="compile='full': no C"):
        ingle.fit(line, "normal", Y, steps=40, compile="full")


def test_the_card_says_what_ran_and_what_it_gained() -> None:
    fit = ingle.fit(line, "normal", Y, steps=300, optim=ADAM, compile="full")
    assert "engine      compiled, float32 on cpu" in repr(fit)
    assert "times the eager pace" in repr(fit)
    few = ingle.fit(line, "normal", Y, steps=10, optim=ADAM)
    assert "engine      eager" in repr(few)
    assert "too few steps for compiling to pay" in repr(few)
    assert "compil" not in repr(ingle.fit(line, "normal", Y, steps=10, optim=ADAM, compile="off"))

"""The untuned default on every case: is it right, what does its verdict say, and is an `ok` to be believed?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trust.families import make
from trust.families.errors import is_right

from benchmarks.trust.fits import GUIDES, fit_case, load_reference
from benchmarks.trust.results import Record, Results, run_all

__all__ = ["PART", "run"]

PART = "use"


def run(results: Results, families: Sequence[str], seeds: Sequence[int], processes: int, compile: str) -> None:
    """One fit of each case and guide that is not there yet."""
    tasks = [
        (f"{PART}/{family}/{seed}/{guide}", family, seed, guide, compile)
        for family in families
        for guide in GUIDES
        for seed in seeds
    ]
    run_all(one, tasks, results, processes)


def one(task: tuple[Any, ...]) -> Record:
    key, family, seed, guide, compile = task
    about = {"key": key, "part": PART, "family": family, "seed": seed, "guide": guide}
    reference = load_reference(family, seed)
    if reference["kind"] == "none":
        return {**about, "status": "no reference", "mean_error": None, "sd_error": None}
    best = reference["best"][guide]
    record = fit_case(make(family, seed), guide, reference["moments"], compile=compile)
    return {
        **about,
        "reference": reference["kind"],
        "representable": is_right(best["mean_error"], best["sd_error"]),
        "best_mean_error": best["mean_error"],
        "best_sd_error": best["sd_error"],
        "best_elbo": best["elbo"],
        **record,
    }

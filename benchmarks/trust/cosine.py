"""The fewest steps of a hand-tuned Adam with a cosine schedule that reach an ELBO, by grid over rates and steps.

Runs in a process of its own, in NumPyro's densities: the same parameters as Pyro's AutoNormal and
AutoMultivariateNormal (softplus scales from 0.1, a unit lower triangle from 0), one draw a step, from 0 in
unconstrained space. Every rate and three seeds run together; a number of steps is enough where, at the best rate, the
median of the seeds' final ELBOs (10,000 draws, the same for all) is within 0.1 nats of the target.

    python -m benchmarks.trust.cosine FILE, of lines {"family", "seed", "guide", "elbo"}; prints one JSON line for each
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from trust.families import make

from benchmarks.trust.twins import Density

__all__ = ["LADDER", "main"]

RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
LADDER = tuple(round(100 * 2 ** (k / 2)) for k in range(19))  # to 51,200
SEEDS = 3
WITHIN = 0.1
_DRAWS = 10_000


def search(density: Density, data: Any, guide: str, target: float, steps_of: Any) -> tuple[int | None, float, float]:
    """The fewest steps, the best rate there, and the ELBO reached."""
    rates = jnp.repeat(jnp.array(RATES), SEEDS)
    keys = jnp.tile(jax.random.split(jax.random.PRNGKey(0), SEEDS), (len(RATES), 1))
    best = -math.inf
    for steps in LADDER:
        elbos = steps_of(rates, keys, steps, data).reshape(len(RATES), SEEDS)
        medians = jnp.median(jnp.where(jnp.isfinite(elbos), elbos, -jnp.inf), axis=1)
        place = int(jnp.argmax(medians))
        best = max(best, float(medians[place]))
        if medians[place] >= target - WITHIN:
            return steps, RATES[place], float(medians[place])
    return None, math.nan, best


def runner(density: Density, guide: str) -> Any:
    """Final ELBOs of runs of Adam, compiled once for every number of steps."""
    d = density.size
    full = guide == "multivariate_normal"
    rows, columns = jnp.tril_indices(d, -1)
    raw = math.log(math.expm1(0.1))
    start = jnp.concatenate([jnp.zeros(d), jnp.full(d, raw), jnp.zeros(len(rows) if full else 0)])

    def elbo(vector: Any, noise: Any, data: Any) -> Any:
        """Mean over rows of noise."""
        loc, scale = vector[:d], jax.nn.softplus(vector[d : 2 * d])
        if full:
            unit = jnp.eye(d).at[rows, columns].set(vector[2 * d :])
            points = loc + (noise @ unit.T) * scale
        else:
            points = loc + noise * scale
        logs = jax.vmap(lambda point: density.log(point, data))(points)
        return logs.mean() + jnp.log(scale).sum() + 0.5 * d * (1 + math.log(2 * math.pi))

    def loss(vector: Any, key: Any, data: Any) -> Any:
        return -elbo(vector, jax.random.normal(key, (1, d)), data)

    @jax.jit
    def run(rates: Any, keys: Any, steps: Any, data: Any) -> Any:
        def train(rate: Any, key: Any) -> Any:
            def step(index: Any, state: Any) -> Any:
                vector, first, second = state
                gradient = jax.grad(loss)(vector, jax.random.fold_in(key, index), data)
                first = 0.9 * first + 0.1 * gradient
                second = 0.999 * second + 0.001 * gradient**2
                count = index + 1.0
                now = rate * 0.5 * (1 + jnp.cos(jnp.pi * index / steps))
                move = first / (1 - 0.9**count) / (jnp.sqrt(second / (1 - 0.999**count)) + 1e-8)
                return vector - now * move, first, second

            vector, _, _ = jax.lax.fori_loop(0, steps, step, (start, 0 * start, 0 * start))
            return elbo(vector, jax.random.normal(jax.random.PRNGKey(1), (_DRAWS, d)), data)

        return jax.lax.map(lambda pair: train(*pair), (rates, keys), batch_size=len(RATES) * SEEDS)

    return run


def main() -> None:
    """Answers each line of a file."""
    numpyro.enable_x64()
    lines = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    compiled: dict[Any, Any] = {}
    for line in lines:
        case = make(line["family"], line["seed"])
        data = {name: jnp.asarray(value) for name, value in case.data.items()}
        shape = line["family"], case.size, line["guide"]
        if shape not in compiled:
            density = Density(case.family, case.latents, data)
            compiled[shape] = density, runner(density, line["guide"])
        density, run = compiled[shape]
        steps, rate, reached = search(density, data, line["guide"], line["elbo"], run)
        print(json.dumps({**line, "steps": steps, "rate": rate, "reached": reached}), flush=True)


if __name__ == "__main__":
    main()

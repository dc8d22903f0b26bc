"""References of the cases, and what the best guide of a named family makes of them; kept on disk.

Each family runs in a process of its own, for JAX's sake. Means and sds are exact where the family has exact ones, else
from four chains of NUTS, 2,500 draws each after 1,000, with R-hat at most 1.01 and bulk ESS of both x and x^2 at least
1,000; begun at the highest peak that was found where the Gaussian there beats the one at the chains, which were stuck
then. The best Gaussian of a guide's family maximises the ELBO over 4,096 fixed draws (antithetic, whitened, so that a
Gaussian posterior is met exactly), from the posterior's own place: no optimiser of a fit's could do better. A case is
representable by a guide where that best one is right.

    python -m benchmarks.trust.references [--seeds 0 1 2] [--families linear …] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS, Predictive
from scipy.optimize import minimize
from scipy.stats import norm, qmc
from trust.families import FAMILIES, Case, make
from trust.families.errors import errors

from benchmarks.trust import CACHE
from benchmarks.trust.twins import TWINS, Density

__all__ = ["main"]

FOLDER = CACHE / "references"
CHAINS, WARMUP, DRAWS = 4, 1_000, 2_500
MAX_R_HAT, MIN_ESS = 1.01, 1_000.0
NUM_FIXED = 4_096
STARTS = 32  # of climbs to peaks
STUCK = 3.0  # nats, by which a Gaussian elsewhere is better


class Family:
    """The compiled functions of a family at one size, used for all its seeds."""

    def __init__(self, case: Case) -> None:
        self.name = case.family
        data = _arrays(case)
        self.density = Density(case.family, case.latents, data)
        self.sampler = MCMC(
            NUTS(TWINS[case.family], dense_mass=True, target_accept_prob=0.9),
            num_warmup=WARMUP,
            num_samples=DRAWS,
            num_chains=CHAINS,
            chain_method="vectorized",
            jit_model_args=True,
            progress_bar=False,
        )
        self.noise = _whitened(self.density.size)
        self.slope = jax.jit(jax.value_and_grad(lambda vector, data: -self.density.log(vector, data)))
        self.hessian = jax.jit(jax.hessian(lambda vector, data: -self.density.log(vector, data)))
        self.constrain = jax.jit(jax.vmap(self.density.constrain))
        self.objectives = {
            "normal": jax.jit(jax.value_and_grad(self._loss(self._mean_field))),
            "multivariate_normal": jax.jit(jax.value_and_grad(self._loss(self._full))),
        }

    def reference(self, case: Case) -> dict[str, Any]:
        """Everything that is kept of a case.

        Raises:
            RuntimeError: the chains disagree.
        """
        exact = case.exact()
        moments = self._nuts(case) if exact is None else _plain(exact)
        best = {guide: self._best(guide, case, moments) for guide in self.objectives}
        peak = None if exact is not None else self._peak(case)
        if peak is not None and self._best("normal", case, peak)["elbo"] > best["normal"]["elbo"] + STUCK:
            moments = self._nuts(case, {name: one["mean"] for name, one in peak.items()})
            best = {guide: self._best(guide, case, moments) for guide in self.objectives}
        return {"kind": "NUTS" if exact is None else "exact", "size": case.size, "moments": moments, "best": best}

    def _peak(self, case: Case) -> dict[str, Any] | None:
        """The highest point that L-BFGS finds from draws of the prior, in the place of means; None without one."""
        data = _arrays(case)
        key = jax.random.PRNGKey(case.seed)
        drawn = Predictive(TWINS[case.family], num_samples=STARTS)(key, **data)
        highest, where = math.inf, None
        for start in range(STARTS):
            vector = self.density.unconstrain({name: drawn[name][start] for name in case.latents})
            found = minimize(self._height(data), np.asarray(vector), jac=True, method="L-BFGS-B")
            if found.fun < highest:
                highest, where = found.fun, found.x
        if where is None:
            return None
        values = self.density.constrain(jnp.asarray(where))
        return {name: {"mean": np.asarray(value), "sd": np.ones_like(value)} for name, value in values.items()}

    def _height(self, data: Mapping[str, Any]) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
        def both(vector: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = self.slope(jnp.asarray(vector), data)
            finite = bool(jnp.isfinite(value)) and bool(jnp.isfinite(gradient).all())
            return (float(value), np.asarray(gradient)) if finite else (1e30, np.zeros_like(vector))

        return both

    def _nuts(self, case: Case, start: Mapping[str, Any] | None = None) -> dict[str, Any]:
        at = None
        if start is not None:
            parts = self.density.parts(self.density.unconstrain({name: np.asarray(start[name]) for name in start}))
            at = {name: jnp.broadcast_to(part, (CHAINS, *part.shape)) for name, part in parts.items()}
        for attempt in range(3):
            key = jax.random.PRNGKey(1_000 * attempt + case.seed)
            self.sampler.run(key, init_params=at, **_arrays(case))
            draws = {name: np.asarray(value) for name, value in self.sampler.get_samples(True).items()}
            draws = {name: draws[name] for name in case.latents}
            ess = {
                name: np.minimum(effective_sample_size(value), effective_sample_size((value - value.mean()) ** 2))
                for name, value in draws.items()
            }
            r_hat = {name: split_gelman_rubin(value) for name, value in draws.items()}
            if min(map(np.min, ess.values())) > MIN_ESS and max(map(np.max, r_hat.values())) < MAX_R_HAT:
                break
        else:
            worst = max(float(np.max(value)) for value in r_hat.values())
            raise RuntimeError(f"{case.family}, seed {case.seed}: R-hat {worst:.3f}")
        return {
            name: {
                "mean": value.mean((0, 1)).tolist(),
                "sd": value.std((0, 1), ddof=1).tolist(),
                "ess": np.asarray(ess[name]).tolist(),
                "r_hat": np.asarray(r_hat[name]).tolist(),
            }
            for name, value in draws.items()
        }

    def _best(self, guide: str, case: Case, moments: Mapping[str, Any]) -> dict[str, Any]:
        data = _arrays(case)
        loc = self.density.unconstrain({name: np.asarray(moments[name]["mean"]) for name in case.latents})
        values, vectors = np.linalg.eigh(np.asarray(self.hessian(loc, data)))
        values = np.maximum(np.abs(values), 1e-7 * np.abs(values).max())
        root = jnp.asarray(vectors / np.sqrt(values))  # of a first covariance
        flat = np.sqrt(1 / np.einsum("ij,j,ij->i", vectors, values, vectors))
        d = self.density.size
        start = np.zeros(2 * d if guide == "normal" else d + d * (d + 1) // 2)
        if guide == "normal":
            frame: Any = (loc, root, jnp.asarray(flat))
        else:
            frame = (loc, root, jnp.zeros(0))
        objective = self.objectives[guide]

        def both(vector: np.ndarray) -> tuple[float, np.ndarray]:
            loss, gradient = objective(vector, frame, self.noise, data)
            finite = bool(jnp.isfinite(loss)) and bool(jnp.isfinite(gradient).all())
            return (float(loss), np.asarray(gradient)) if finite else (1e30, np.zeros_like(vector))

        found = minimize(both, start, jac=True, method="L-BFGS-B", options={"maxiter": 2_000, "maxfun": 4_000})
        place = self._mean_field if guide == "normal" else self._full
        points, _ = place(jnp.asarray(found.x), frame, self.noise)
        drawn = {name: np.asarray(value) for name, value in self.constrain(points).items()}
        mine = {name: {"mean": drawn[name].mean(0).tolist(), "sd": drawn[name].std(0).tolist()} for name in drawn}
        mean, sd = errors(mine, moments)
        return {
            "loc": np.asarray(points).mean(0).tolist(),
            "sd": np.asarray(points).std(0).tolist(),
            "elbo": -found.fun,
            "moments": mine,
            "mean_error": mean,
            "sd_error": sd,
        }

    @staticmethod
    def _mean_field(vector: Any, frame: Any, noise: Any) -> tuple[Any, Any]:
        """Points and the log volume of the scale."""
        loc, root, flat = frame
        d = len(loc)
        log_sd = jnp.log(flat) + vector[d:]
        return loc + root @ vector[:d] + noise * jnp.exp(log_sd), log_sd.sum()

    @staticmethod
    def _full(vector: Any, frame: Any, noise: Any) -> tuple[Any, Any]:
        loc, root, _ = frame
        d = len(loc)
        lower = jnp.zeros((d, d)).at[jnp.tril_indices(d)].set(vector[d:])
        diagonal = jnp.diag(lower)
        lower = lower - jnp.diag(diagonal) + jnp.diag(jnp.exp(diagonal))
        points = loc + (vector[:d] + noise @ lower.T) @ root.T
        return points, diagonal.sum() + jnp.linalg.slogdet(root)[1]

    def _loss(self, place: Callable[..., Any]) -> Callable[..., Any]:
        def loss(vector: Any, frame: Any, noise: Any, data: Any) -> Any:
            points, volume = place(vector, frame, noise)
            d = len(frame[0])
            logs = jax.vmap(lambda point: self.density.log(point, data))(points)
            return -(logs.mean() + volume + 0.5 * d * (1 + math.log(2 * math.pi)))

        return loss


def _whitened(d: int) -> Any:
    """Fixed normal draws (NUM_FIXED, d) whose mean is 0 and whose covariance is the identity."""
    half = norm.ppf(np.clip(qmc.Sobol(d, seed=0).random(NUM_FIXED // 2), 1e-12, 1 - 1e-12))
    noise = np.concatenate([half, -half])
    return jnp.asarray(noise @ np.linalg.inv(np.linalg.cholesky(np.cov(noise.T, bias=True).reshape(d, d))).T)


def _arrays(case: Case) -> dict[str, Any]:
    return {name: jnp.asarray(value) for name, value in case.data.items()}


def _plain(moments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {"mean": np.asarray(mean).tolist(), "sd": np.asarray(sd).tolist()} for name, (mean, sd) in moments.items()
    }


def rounded(tree: Any) -> Any:
    """The same with numbers of 6 significant digits."""
    if isinstance(tree, dict):
        return {key: rounded(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [rounded(value) for value in tree]
    return float(f"{tree:.6g}") if isinstance(tree, float) else tree


def _short(content: dict[str, Any]) -> dict[str, Any]:
    """What the tests need of it."""
    best = {
        guide: {name: value for name, value in one.items() if name in ("elbo", "mean_error", "sd_error")}
        for guide, one in content.get("best", {}).items()
    }
    return {**content, "best": best}


def main() -> None:
    """Makes the references that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, help="also gather them in one file")
    options = parser.parse_args()
    numpyro.enable_x64()
    FOLDER.mkdir(parents=True, exist_ok=True)
    gathered: dict[str, Any] = {}
    for name in options.families:
        compiled: dict[int, Family] = {}
        for seed in options.seeds:
            file = FOLDER / f"{name}-{seed}.json"
            if not file.exists():
                case = make(name, seed)
                try:
                    if case.size not in compiled:
                        compiled[case.size] = Family(case)
                    content = rounded(compiled[case.size].reference(case))
                except RuntimeError as error:
                    content = {"kind": "none", "why": str(error)}
                file.write_text(json.dumps(content))
                best = content.get("best", {}).items()
                told = {guide: f"{one['mean_error']:.2f}, {one['sd_error']:.2f}" for guide, one in best}
                print(name, seed, content["kind"], content.get("size", content.get("why")), told, flush=True)
            gathered.setdefault(name, {})[str(seed)] = _short(json.loads(file.read_text()))
        jax.clear_caches()
    if options.output is not None:
        options.output.write_text(json.dumps(gathered, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""SVI, drop-in for `pyro.infer.SVI`, at compiled speed."""

from __future__ import annotations

from typing import Any

import pyro.infer
from pyro.infer import ELBO

from ingle.engine import Compile, Stepper, Untraceable, resolve_compile
from ingle.errors import IngleWarning, OptionError, ProgramError, warn
from ingle.objectives import Estimator, exactly_ours

__all__ = ["SVI"]


class SVI(pyro.infer.SVI):
    """`pyro.infer.SVI`, from Ingle: an existing script changes one import.

    Everything is Pyro's: the constructor, `step`, `evaluate_loss`, `run`, the global parameter store, the global
    random state, one optimiser a parameter. The first steps are Pyro's to the last bit, and so are all where a handler,
    `torch.no_grad` or a mode of torch's is around the call. Once they have been enough for it to pay, a step is
    recorded and compiled, and later ones run as that graph.

    What is then the same to the bit: torch's random state after each step, the optimiser's counts and learning rates,
    where all noise is normal or uniform, which is drawn from the same stream in the same order. What is the same to
    rounding: losses, parameters and the optimiser's moments. What is the same in distribution alone: draws of other
    kinds (Bernoulli, Gamma, categorical, dropout's masks, subsampled rows). What is not done: Pyro's validation of
    values, so that NaN data give the warning of a NaN loss where Pyro may raise.

    Before each step all is looked at that the graph takes for given: arguments, parameters, optimiser, modules,
    closures, globals. Numbers that change become inputs of the graph, tensors too; other values have graphs of their
    own, eight at the most; what cannot be followed makes the steps Pyro's again, with one warning that names it. An
    optimiser that no formula covers takes its step outside the graph. `ingle.fit` is faster still, and the way to a
    private store, minibatches, a stopping rule and a card.

    Args:
        model, guide, optim, loss, loss_and_grads, num_samples, num_steps, **kwargs: as `pyro.infer.SVI` takes them.
        compile: "auto"; "off" leaves every step to Pyro; "full" compiles at the third step, and raises a `ProgramError`
            where that cannot be.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, pyro.optim, pyro.infer, ingle
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> guide = pyro.infer.autoguide.AutoNormal(model)
        >>> svi = ingle.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
        >>> isinstance(svi.step(torch.ones(3)), float)
        True
        >>> pyro.clear_param_store()
    """

    def __init__(
        self,
        model: Any,
        guide: Any,
        optim: Any,
        loss: Any,
        loss_and_grads: Any = None,
        num_samples: int = 0,
        num_steps: int = 0,
        *,
        compile: Compile = "auto",
        **kwargs: Any,
    ) -> None:
        resolve_compile(compile)
        super().__init__(model, guide, optim, loss, loss_and_grads, num_samples, num_steps, **kwargs)
        self._compile = compile
        self._elbo = loss
        self._stepper: Stepper | None = None
        self._begin()

    def _begin(self) -> None:
        if self._compile != "off" and isinstance(self._elbo, ELBO) and isinstance(exactly_ours(self._elbo), Estimator):
            self._stepper = Stepper(self, self._elbo, super().step, at_once=self._compile == "full")
        elif self._compile == "full":
            raise OptionError(
                f"compile='full': {type(self._elbo).__name__} is not one of the objectives that can be compiled"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stepper": None}  # a copy makes graphs of its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take a gradient step on the loss, and return the loss as a number.

        Args:
            *args, **kwargs: of model and guide.
        """
        if self._stepper is not None:
            try:
                return self._stepper.step(args, kwargs)
            except Untraceable as error:
                if self._compile == "full":
                    raise ProgramError(f"compile='full': the step cannot be compiled: {error}") from error
                self._stepper = None
                warn(f"this step of SVI and all after it are Pyro's own, which is slower: {error}", IngleWarning)
        return super().step(*args, **kwargs)

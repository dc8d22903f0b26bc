"""SVI, drop-in for `pyro.infer.SVI`."""

from __future__ import annotations

import pyro.infer

__all__ = ["SVI"]


class SVI(pyro.infer.SVI):
    """`pyro.infer.SVI`, from Ingle: an existing script changes one import.

    Everything is Pyro's: the constructor, `step`, `evaluate_loss`, `run`, the global parameter store, the global
    random state, one optimiser a parameter. Losses and parameters are the same to the last bit. `ingle.fit` is
    the way to a private store, minibatches, a stopping rule and a card.

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

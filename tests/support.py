"""What several test files share."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyro
import torch


def global_state() -> dict[str, Any]:
    """What a user would notice if a fit left it changed."""
    name, keys, position, *_ = np.random.get_state()
    return {
        "store": {name: value.tolist() for name, value in pyro.get_param_store().items()},
        "settings": pyro.settings.get(),
        "validate_args": torch.distributions.Distribution._validate_args,
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad": torch.is_grad_enabled(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": (name, keys.tolist(), position),
        "python": random.getstate(),
        "handlers": len(pyro.poutine.runtime._PYRO_STACK),
    }

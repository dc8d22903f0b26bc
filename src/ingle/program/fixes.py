"""What a user should change, told from the message of Pyro's or torch's error."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["likely_fix"]

_LENGTHS = "two tensors have different shapes: compare the shapes of the data above"
_PLATE = "a value inside the plate has another length than the plate: compare the shapes of the data above"
_FLOATS = "the observed value holds integers or booleans and its distribution wants reals: pass floats, y.astype(float)"
_DTYPE = (
    "a tensor or module that the program closes over has another dtype: pass the tensor as data, or call .to(dtype)"
)

# A piece of the message, in lower case, and what to do. The first match is told.
_FIXES = {
    "shape mismatch inside plate": _PLATE,
    "invalid log_prob shape": (
        "the site has batch dimensions that no plate declares: put it inside a pyro.plate, make them event dimensions "
        "with .to_event(n), or drop an axis of length 1 with .squeeze(-1) where (N, 1) met (N,)"
    ),
    "must match the size": _LENGTHS,
    "must match the existing size": _LENGTHS,
    "shape mismatch": _LENGTHS,
    "not broadcastable": _LENGTHS,
    "cannot be multiplied": _LENGTHS,
    "can't be cast to the desired output type": _FLOATS,
    "two bool tensors": _FLOATS,
    "must be a tensor": "an observed value is a list or a number: pass it as an array",
    "has no len()": "an argument is a number where the program takes an array",
    "within the support": (
        "a value lies outside the support of its distribution: check the data, or take another family"
    ),
    "satisfy the constraint": (
        "a parameter of a distribution left its range: transform it (exp, softplus, softmax), or check the data"
    ),
    "on the same device": "a tensor that the program closes over is on another device: pass it as data",
    "same dtype": _DTYPE,
    "expected scalar type": _DTYPE,
    "multiple sample sites named": "every sample site needs a name of its own",
    "already in the trace": "a sample site and a parameter need different names",
    "does not support sequential": (
        "an automatic guide takes no plate that is looped over: write `with pyro.plate(…)`, or a guide of your own"
    ),
}


def likely_fix(message: str, *, missing: Collection[str], batched: Collection[str]) -> str | None:
    """The likely fix for an error, or None.

    Args:
        message: of the error.
        missing: the arguments that hold NaN.
        batched: names of the plates whose rows come from outside.
    """
    if missing:
        return f"{', '.join(missing)} holds NaN, a missing value: leave it out, or observe the rest with obs_mask"
    fix = next((fix for sign, fix in _FIXES.items() if sign in message.lower()), None)
    if batched and fix in (_LENGTHS, _PLATE):
        return (
            f"batch_size gives plate {', '.join(batched)} a few rows, and something inside has them all: write "
            "`with pyro.plate(…) as i:` and index every tensor inside, `x[i]`"
        )
    return fix

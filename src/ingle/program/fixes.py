"""What a user should change, told from the message of Pyro's or torch's error."""

from __future__ import annotations

from collections.abc import Collection

from ingle.program.finding import Kind

__all__ = ["UNDECLARED", "likely_fix"]

UNDECLARED = (
    "the site has batch dimensions that no plate declares: put it inside a pyro.plate, make them event dimensions "
    "with .to_event(n), or drop an axis of length 1 with .squeeze(-1) where (N, 1) met (N,)"
)
_LENGTHS = "two tensors have different shapes: compare the shapes of the data above"
_PLATE = "a value inside the plate has another length than the plate: compare the shapes of the data above"
_FLOATS = "the observed value holds integers or booleans and its distribution wants reals: pass floats, y.astype(float)"
_DTYPE = (
    "a tensor or a prior made outside of the program has another dtype: pass the tensor as data, call .to(dtype), or "
    "make it inside, as in PyroSample(lambda self: dist.Normal(0.0, 1.0))"
)
_DEVICE = (
    "a tensor that the program closes over, or an attribute of a module that is no buffer, is on another device: pass "
    "it as data, or make it a buffer with register_buffer"
)

# A piece of the message, in lower case, what it is about, and what to do. The first match is told.
_FIXES: dict[str, tuple[Kind, str]] = {
    "shape mismatch inside plate": ("raised", _PLATE),
    "invalid log_prob shape": ("log_prob shape", UNDECLARED),
    "must match the size": ("raised", _LENGTHS),
    "must match the existing size": ("raised", _LENGTHS),
    "shape mismatch": ("raised", _LENGTHS),
    "not broadcastable": ("raised", _LENGTHS),
    "cannot be multiplied": ("raised", _LENGTHS),
    "can't be cast to the desired output type": ("raised", _FLOATS),
    "two bool tensors": ("raised", _FLOATS),
    "must be a tensor": ("raised", "an observed value is a list or a number: pass it as an array"),
    "has no len()": ("raised", "an argument is a number where the program takes an array"),
    "within the support": (
        "outside support",
        "a value lies outside the support of its distribution: check the data, or take another family",
    ),
    "satisfy the constraint": (
        "argument",
        "a parameter of a distribution left its range: transform it (exp, softplus, softmax), or check the data",
    ),
    "on the same device": ("device", _DEVICE),
    "not on the expected device": ("device", _DEVICE),
    "on meta tensors": ("device", _DEVICE),
    "same dtype": ("dtype", _DTYPE),
    "expected scalar type": ("dtype", _DTYPE),
    "multiple sample sites named": ("raised", "every sample site needs a name of its own"),
    "already in the trace": ("raised", "a sample site and a parameter need different names"),
    "event_dims disagree": (
        "shape",
        "give the guide's distribution the model's event dimensions: .to_event(n) in both, or the plate in both",
    ),
    "cannot transform": (
        "unreachable",
        "an automatic guide knows no transform to the support of a latent: write a guide of your own that samples it",
    ),
    "does not support sequential": (
        "unreachable",
        "an automatic guide takes no plate that is looped over: write `with pyro.plate(…)`, or a guide of your own",
    ),
}


def likely_fix(message: str, *, missing: Collection[str], batched: Collection[str]) -> tuple[Kind, str]:
    """What an error is about, and the likely fix, empty where none is known.

    Args:
        message: of the error.
        missing: the arguments that hold NaN.
        batched: names of the plates whose rows come from outside.
    """
    if missing:
        return (
            "not finite",
            f"{', '.join(missing)} holds NaN, a missing value: leave its rows out, or fill them in; an observed value "
            "that is missing can stay behind obs_mask, with any number in its place",
        )
    kind, fix = next((found for sign, found in _FIXES.items() if sign in message.lower()), ("raised", ""))
    if batched and fix in (_LENGTHS, _PLATE):
        return (
            "batch size",
            f"batch_size gives plate {', '.join(batched)} a few rows, and something inside has them all: write "
            "`with pyro.plate(…) as i:` and index every tensor inside, `x[i]`",
        )
    return kind, fix

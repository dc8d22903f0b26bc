"""One training step: the engines that take it, and the optimisers inside it."""

from ingle.engine.choose import Compile, choose_engine, resolve_compile
from ingle.engine.eager import EagerEngine
from ingle.engine.endings import Moments
from ingle.engine.function import CompiledFunction
from ingle.engine.noise import BatchDraws, GivenDraws, Noise, OwnDraws
from ingle.engine.optimiser import Optimisers, from_file, resolve_optimisers, to_file
from ingle.engine.protocol import Engine, State
from ingle.engine.recording import Untraceable
from ingle.engine.stepper import Stepper

__all__ = [
    "BatchDraws",
    "Compile",
    "CompiledFunction",
    "EagerEngine",
    "Engine",
    "GivenDraws",
    "Moments",
    "Noise",
    "Optimisers",
    "OwnDraws",
    "State",
    "Stepper",
    "Untraceable",
    "choose_engine",
    "from_file",
    "resolve_compile",
    "resolve_optimisers",
    "to_file",
]

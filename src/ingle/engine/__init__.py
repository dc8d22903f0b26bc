"""One training step: the engines that take it, and the optimisers inside it."""

from ingle.engine.choose import Compile, choose_engine
from ingle.engine.eager import EagerEngine
from ingle.engine.optimiser import Optimisers, from_file, resolve_optimisers, to_file
from ingle.engine.protocol import Engine, State

__all__ = [
    "Compile",
    "EagerEngine",
    "Engine",
    "Optimisers",
    "State",
    "choose_engine",
    "from_file",
    "resolve_optimisers",
    "to_file",
]

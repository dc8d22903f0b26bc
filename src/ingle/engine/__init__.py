"""One training step: the engines that take it, and the optimisers inside it."""

from ingle.engine.eager import EagerEngine
from ingle.engine.optimiser import Optimisers, from_file, resolve_optimisers, to_file
from ingle.engine.protocol import Engine, State

__all__ = ["EagerEngine", "Engine", "Optimisers", "State", "from_file", "resolve_optimisers", "to_file"]

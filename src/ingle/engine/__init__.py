"""One training step: the engines that take it, and the optimisers inside it."""

from ingle.engine.eager import EagerEngine
from ingle.engine.optimiser import Optimisers, resolve_optimisers
from ingle.engine.protocol import Engine, State

__all__ = ["EagerEngine", "Engine", "Optimisers", "State", "resolve_optimisers"]

"""Draws of a program and densities at them, many at a time, in chunks that fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ingle.engine import CompiledFunction, Untraceable
from ingle.errors import OptionError
from ingle.evidence.elements import Elements
from ingle.evidence.joint import Joint
from ingle.evidence.memory import budget, cost_of
from ingle.evidence.proposal import Proposal
from ingle.options import positive_integer
from ingle.program import Program, is_out_of_memory, repeat, together
from ingle.runtime import Runtime

__all__ = ["Chunk", "Sampler", "resolve_chunk"]

Chunk = int | Literal["auto"]

_AT_ONCE = 2**20  # numbers of latents that are drawn together
_MOST = 2**16  # draws that are drawn together
_WORTH = 2**33  # bytes of results that take longer to write than a compiler takes
_LOOK = 1_000  # a stream of its own


def resolve_chunk(chunk: object) -> int | None:
    """A number of draws, None for "auto". Raises `OptionError` for anything else."""
    if isinstance(chunk, str) and chunk == "auto":
        return None
    if isinstance(chunk, str):
        raise OptionError(f"chunk must be a number of draws or 'auto', got {chunk!r}")
    return positive_integer("chunk", chunk)


class Sampler:
    """Runs a program for many draws, inside a scope of its runtime.

    Draws come in blocks, each with random numbers of its own, whose size follows from the program alone. So they are
    the same whatever the chunk, and a chunk that was too large for the memory can be halved on the way.

    Args:
        program: with all rows of every plate.
        runtime: whose seed the blocks take theirs from.
        elements: each with weights of its own.
        given: latents held at a value.
        chunk: most draws to put through the model together; None finds it from memory.

    Attributes:
        engine: "compiled" where densities are, else "eager".
        alone: why draws went through the program one by one, in words; None where they went together.
    """

    def __init__(
        self,
        program: Program,
        runtime: Runtime,
        elements: Elements,
        given: Mapping[str, Tensor],
        chunk: int | None,
    ) -> None:
        self.program = program
        self.runtime = runtime
        self.elements = elements
        self.joint = Joint(program, elements, given)
        self.engine = "eager"
        self.alone: str | None = None
        self._chunk = chunk
        self._written: int | None = None
        self._compiled: CompiledFunction | None = None
        self._tried = False  # to compile
        self._most: dict[str, int] = {}  # draws that fit in memory together, by what is done with them

    @property
    def written(self) -> int:
        """Bytes of tensors that one draw writes in the model, once one went through it."""
        return self._written or 0

    def blocks(self, proposal: Proposal, n: int, *, stream: int = 0) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """`n` draws, block by block: values by name, shape (k, *site shape), and log q, (k, *elements), float64.

        Args:
            proposal: that is drawn from.
            n: how many in all.
            stream: another number, other draws.
        """
        size = self._block(proposal)
        for block, start in enumerate(range(0, n, size)):
            seed = int(np.random.SeedSequence([self.runtime.seed, stream, block]).generate_state(1)[0])
            count = min(size, n - start)
            with self.program.explained("guide"):
                drawn = self.each("draw", lambda _: proposal.draw(), count, chunk=count, seed=seed)
            yield drawn.get("values", {}), drawn["log_q"]

    def first(self, proposal: Proposal, n: int = 2) -> tuple[dict[str, Tensor], int]:
        """A few draws to look at, which are none of the others, and how many."""
        values, _ = next(self.blocks(proposal, n, stream=_LOOK))
        return values, n

    def log_p(self, values: Mapping[str, Tensor], n: int) -> Tensor:
        """The log joint at `n` draws, shape (n, *elements), float64."""
        chunk = self._sized(values)
        if self._compiled is None or n < chunk:
            return self.both(values, n)["log_p"]  # type: ignore[no-any-return]
        whole = n - n % chunk
        names = list(values)
        parts = [
            self._compiled(*(values[name][start : start + chunk].contiguous() for name in names))
            for start in range(0, whole, chunk)
        ]
        if whole < n:
            parts.append(self.both({name: value[whole:] for name, value in values.items()}, n - whole)["log_p"])
        return torch.cat(parts)

    def both(self, values: Mapping[str, Tensor], n: int) -> Any:
        """All that `Joint` gives at `n` draws."""
        chunk = self._sized(values)
        with self.program.explained("model"):
            return self.each("joint", self.joint, n, given=values, chunk=chunk)

    def compile(self, values: Mapping[str, Tensor], n: int) -> None:
        """Compile the log joint where `n` draws write so much that it pays, and where it can be; tried once.

        Args:
            values: draws, a chunk of them or more where there are as many.
            n: how many draws are to come.
        """
        if self._tried:
            return
        self._tried = True
        chunk = self._sized(values)
        names = list(values)
        enough = bool(names) and (self._written or 0) * n >= _WORTH and min(n // 4, len(values[names[0]])) >= chunk
        if not enough or self.alone is not None or self.runtime.device.type != "cpu":
            return

        def run(*parts: Tensor) -> Tensor:
            found: Tensor = together(self.joint, dict(zip(names, parts, strict=True)))["log_p"]
            return found

        inputs = [values[name][:chunk].contiguous() for name in names]
        with suppress(Untraceable):
            compiled = CompiledFunction(run, inputs)
            expected = self.both({name: value[:chunk] for name, value in values.items()}, chunk)["log_p"]
            if torch.allclose(compiled(*inputs), expected, rtol=1e-4, atol=1e-3, equal_nan=True):
                self._compiled, self.engine = compiled, "compiled"

    def log_q(self, proposal: Proposal, values: Mapping[str, Tensor], n: int) -> Tensor:
        """The log density of a proposal at `n` draws that need not be its own, shape (n, *elements), float64."""
        with self.program.explained("guide"):
            found = self.each(
                "density", lambda one: {"log_q": proposal.density(one)}, n, given=values, chunk=self._chunk or n
            )
        return found["log_q"]  # type: ignore[no-any-return]

    def each(
        self,
        what: str,
        run: Callable[[Any], Mapping[str, Any]],
        n: int,
        *,
        chunk: int,
        given: Mapping[str, Tensor] | None = None,
        seed: int | None = None,
    ) -> Any:
        """`run` for `n` draws; where memory runs out, in smaller chunks from then on.

        Args:
            what: is done, by a name under which the smaller chunk is kept.
            run: from one draw to tensors by name.
            n: how many draws.
            chunk: how many of them together.
            given: the draws, first axis `n`.
            seed: of the random numbers of each attempt; None leaves them as they are.

        Raises:
            OptionError: a single draw is too large for the memory.
        """
        while True:
            chunk = max(1, min(chunk, n, self._most.get(what, n)))
            if seed is not None:
                self.runtime.reseed(seed)
            try:
                return repeat(run, n, chunk=chunk, given=given, alone=self._note)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if chunk <= 1:
                    raise OptionError(
                        f"one draw of all rows does not fit in the memory of {self.runtime.device}: {error}".split(
                            "\n"
                        )[0]
                    ) from error
            self._most[what] = chunk // 2
            if self.runtime.device.type == "cuda":
                torch.cuda.empty_cache()

    def _note(self, why: str) -> None:
        self.alone = self.alone or why.split(". ")[0]

    def _block(self, proposal: Proposal) -> int:
        shapes = {site.name: site.value_shape for site in self.program.latents}
        numbers = sum(int(np.prod(shapes[name])) for name in proposal.latents)
        return max(1, min(_MOST, _AT_ONCE // max(1, numbers)))

    def _sized(self, values: Mapping[str, Tensor]) -> int:
        """How many draws to take together, found from one of them."""
        if self._chunk is None or self._written is None:
            one = {name: value[0].clone() for name, value in values.items()}  # a view would count all draws
            with self.program.explained("model"):
                cost = cost_of(lambda: self.joint(one))
            self._written = cost.written
            self._chunk = self._chunk or max(1, budget(self.runtime.device) // cost.most)
        return self._chunk

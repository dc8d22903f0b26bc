"""Discrete latents summed out exactly, and drawn from their exact posterior, given one draw of the others."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from pyro import poutine
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree, contract_to_tensor
from pyro.ops.rings import LogRing
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

__all__ = ["Summed"]

_Ordinal = frozenset[str]


class Summed:
    """One run of a model, inside the handlers around it, where every marked discrete latent has all its values.

    The log joint of the run is a product of factors over discrete latents and plates. Sums over it are found by
    variable elimination; plates that a latent lies outside of are multiplied out on the way.

    Args:
        model: its other latents given; the latents to sum over are marked for parallel enumeration.
        args, kwargs: of the model.
        first_dim: the first batch dimension left of every plate, negative.

    References:
        Obermeyer et al. (2019), Tensor Variable Elimination for Plated Factor Graphs.
    """

    def __init__(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, first_dim: int
    ) -> None:
        with EnumMessenger(first_available_dim=first_dim):
            trace: Any = poutine.trace(model).get_trace(*args, **kwargs)
        trace = prune_subsample_sites(trace)
        trace.compute_log_prob()
        trace.pack_tensors()
        self._trace = trace
        nodes = {name: node for name, node in trace.nodes.items() if node["type"] == "sample"}
        self._symbols = {
            name: node["infer"]["_enumerate_symbol"]
            for name, node in nodes.items()
            if node["infer"].get("_enumerate_dim") is not None
        }
        summed = set(self._symbols.values())
        self._nodes = {name: node for name, node in nodes.items() if summed & set(_factor(node)._pyro_dims)}  # type: ignore[attr-defined]
        sizes: dict[str, int] = {}
        for node in self._nodes.values():
            factor: Any = _factor(node)
            sizes.update(zip(factor._pyro_dims, factor.shape, strict=True))
        self._ring = _EliminatingRing(dim_to_size=sizes)

    @property
    def names(self) -> frozenset[str]:
        """Every site whose log probability depends on a latent that is summed out, those latents among them."""
        return frozenset(self._nodes)

    def log_likelihood(self) -> dict[str, Tensor]:
        """The log likelihood given the other latents, the discrete ones summed out, for each independent part.

        Returns:
            For each part the name of its observed site, or of several joined by "+", and a tensor with the
            plates that its discrete latents lie in, 1 in place of a plate that is multiplied out. A part that
            observes nothing is left out.
        """
        found = {}
        for part in self._parts():
            observed = [name for name in part if self._nodes[name]["is_observed"]]
            if observed:
                ordinal, joint = self._contract(part)
                latent = [name for name in part if not self._nodes[name]["is_observed"]]
                value = joint - self._reduced(latent, ordinal, joint)
                found["+".join(observed)] = self._placed(value, joint._pyro_dims, rank=0)
        return found

    def log_joint(self) -> Tensor:
        """The log joint of all sites of `names`, the discrete latents summed out, with their scale; scalar, float64."""
        total = torch.zeros((), dtype=torch.float64)
        for part in self._parts():
            scale = self._nodes[part[0]]["scale"]
            total = total + self._contract(part)[1].double().sum() * scale
        return total

    def probabilities(self) -> dict[str, Tensor]:
        """The posterior probability of each value of each latent, shape (*batch shape, values)."""
        factors, summed = self._factors(self._nodes), set(self._symbols.values())
        return {name: self._marginal(name, factors, summed).softmax(-1) for name in self._symbols}

    def draw(self) -> dict[str, Tensor]:
        """One joint draw of the latents from their posterior, shape (*batch shape, *event shape)."""
        factors, summed, drawn = self._factors(self._nodes), set(self._symbols.values()), {}
        for name, symbol in self._symbols.items():
            log_weights = self._marginal(name, factors, summed)
            uniform = torch.rand_like(log_weights).clamp(min=torch.finfo(log_weights.dtype).tiny)
            place = (log_weights - (-uniform.log()).log()).argmax(-1)  # a Gumbel for each value: the largest is a draw
            drawn[name] = _support(self._nodes[name]["fn"])[place]
            index = packed.pack(place, self._nodes[name]["infer"]["_dim_to_symbol"])
            for terms in factors.values():
                terms[:] = [
                    packed.gather(term, index, symbol) if symbol in term._pyro_dims else term  # type: ignore[attr-defined]
                    for term in terms
                ]
            summed.discard(symbol)
        return drawn

    def _marginal(self, name: str, factors: OrderedDict[_Ordinal, list[Tensor]], summed: set[str]) -> Tensor:
        """Log weights of the values of one latent, shape (*batch shape, values)."""
        symbol, ordinal = self._symbols[name], self._ordinal(name)
        weights: Any = contract_to_tensor(
            OrderedDict((key, list(terms)) for key, terms in factors.items()),
            set(summed),
            target_ordinal=ordinal,
            target_dims={symbol},
            ring=self._ring,
        )
        last = weights._pyro_dims.replace(symbol, "") + symbol
        moved = weights.permute([weights._pyro_dims.index(dim) for dim in last])
        rank = max((-frame.dim for frame in self._plates(name)), default=0)
        return self._placed(moved, last[:-1], rank=rank)

    def _parts(self) -> list[list[str]]:
        """The sites by connected component: two are connected where their factors share a discrete latent."""
        parts: list[tuple[set[str], list[str]]] = []
        summed = set(self._symbols.values())
        for name, node in self._nodes.items():
            dims, names = summed & set(_factor(node)._pyro_dims), [name]  # type: ignore[attr-defined]
            for part in [part for part in parts if part[0] & dims]:
                parts.remove(part)
                dims, names = dims | part[0], part[1] + names
            parts.append((dims, names))
        return [names for _, names in parts]

    def _contract(self, part: Collection[str]) -> tuple[_Ordinal, Any]:
        """One connected part with its latents summed out: the plates that are left, and the packed term."""
        ((ordinal, (term,)),) = contract_tensor_tree(
            self._factors(part), set(self._symbols.values()), ring=self._ring
        ).items()
        return ordinal, term

    def _reduced(self, part: Collection[str], ordinal: _Ordinal, like: Any) -> Tensor:
        """The log of what sites that need not be connected sum to, in the plates of `ordinal`, laid out as `like`."""
        total = torch.zeros_like(like)
        tree = contract_tensor_tree(self._factors(part), set(self._symbols.values()), ring=self._ring)
        for inner, terms in tree.items():
            for term in terms:
                total = total + _aligned(self._ring.product(term, inner - ordinal), like._pyro_dims)
        return total

    def _factors(self, names: Iterable[str]) -> OrderedDict[_Ordinal, list[Tensor]]:
        factors: OrderedDict[_Ordinal, list[Tensor]] = OrderedDict()
        for name in names:
            factors.setdefault(self._ordinal(name), []).append(_factor(self._nodes[name]))
        return factors

    def _ordinal(self, name: str) -> _Ordinal:
        symbols = self._trace.plate_to_symbol  # a plate of one row has no place in a packed tensor
        return frozenset(symbols[frame.name] for frame in self._plates(name) if frame.size > 1)

    def _plates(self, name: str) -> list[Any]:
        return [frame for frame in self._nodes[name]["cond_indep_stack"] if frame.vectorized]

    def _placed(self, value: Tensor, dims: str, *, rank: int) -> Tensor:
        """Packed plates put where the model has them, 1 between them; axes beyond those of `dims` stay last."""
        places = [self._trace.symbol_to_dim[symbol] for symbol in dims]
        order = sorted(range(len(dims)), key=places.__getitem__)
        shape = [1] * max(rank, -min(places, default=0))
        for at in order:
            shape[places[at]] = value.shape[at]
        rest = range(len(dims), value.dim())
        return value.permute([*order, *rest]).reshape([*shape, *value.shape[len(dims) :]])


class _EliminatingRing(LogRing):
    """Sums in logs by eliminating one dimension after another, in operations that `torch.vmap` takes."""

    def __init__(self, dim_to_size: dict[str, int]) -> None:
        super().__init__(dim_to_size=dim_to_size)  # type: ignore[no-untyped-call]
        self.sizes = dim_to_size

    def sumproduct(self, terms: Iterable[Any], dims: Iterable[str]) -> Any:
        """Add the terms, then log-sum-exp over `dims`, the dimension with the smallest product first."""
        left, waiting = list(terms), set(dims)
        while waiting:
            dim = min(sorted(waiting), key=lambda dim: self._cost(left, dim))
            waiting.discard(dim)
            touched = [term for term in left if dim in term._pyro_dims]
            if touched:
                product = _sum(touched)
                rest = product._pyro_dims.replace(dim, "")
                reduced = torch.logsumexp(product, product._pyro_dims.index(dim))
                reduced._pyro_dims = rest  # type: ignore[attr-defined]
                left = [term for term in left if dim not in term._pyro_dims] + [reduced]
        return _sum(left)

    def _cost(self, terms: Iterable[Any], dim: str) -> int:
        size = 1
        for other in set("".join(term._pyro_dims for term in terms if dim in term._pyro_dims)):
            size *= self.sizes[other]
        return size


def _sum(terms: list[Any]) -> Any:
    dims = "".join(sorted(set("".join(term._pyro_dims for term in terms))))
    total: Any = sum(_aligned(term, dims) for term in terms[1:]) + _aligned(terms[0], dims)
    total._pyro_dims = dims
    return total


def _aligned(term: Any, dims: str) -> Tensor:
    """A packed term with its dimensions in the order of `dims`, 1 where it has none."""
    order = [term._pyro_dims.index(dim) for dim in dims if dim in term._pyro_dims]
    place = tuple(slice(None) if dim in term._pyro_dims else None for dim in dims)
    return term.permute(order)[place]  # type: ignore[no-any-return]


def _factor(node: Any) -> Tensor:
    """The packed log probability of a site: masked where it is no enumerated latent, without a scale."""
    held = node["packed"]
    if node["infer"].get("_enumerate_dim") is not None:
        return held["unscaled_log_prob"]  # type: ignore[no-any-return]
    if "masked_log_prob" not in held:
        held["masked_log_prob"] = packed.scale_and_mask(held["unscaled_log_prob"], mask=held["mask"])
    return held["masked_log_prob"]  # type: ignore[no-any-return]


def _support(fn: Any) -> Tensor:
    """The values of a discrete distribution, shape (values, *event shape)."""
    values: Tensor = fn.enumerate_support(expand=False)
    return values.reshape(len(values), *fn.event_shape)

"""Discrete latents summed out exactly, and drawn from their exact posterior, given one draw of the others."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
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
        self._latents = {name: nodes[name] for name in self._symbols}
        self._sizes: dict[str, int] = {}
        for name, node in self._latents.items():
            self._sizes |= {trace.plate_to_symbol[frame.name]: frame.size for frame in _plates(node)}
            self._sizes[self._symbols[name]] = len(_support(node["fn"]))
        for node in self._nodes.values():
            factor: Any = _factor(node)
            self._sizes.update(zip(factor._pyro_dims, factor.shape, strict=True))

    @property
    def names(self) -> frozenset[str]:
        """Every site whose log probability depends on a latent that is summed out, those latents among them."""
        return frozenset(self._nodes)

    @property
    def others(self) -> list[Any]:
        """The sample sites whose log probability depends on no latent that is summed out, as in a trace."""
        nodes = self._trace.nodes
        return [node for name, node in nodes.items() if node["type"] == "sample" and name not in self._nodes]

    def terms(self) -> list[tuple[list[Any], Tensor]]:
        """The log joint of all sites of `names`, the discrete latents summed out, for each independent part.

        Returns:
            For each part the plates that every one of its discrete latents lies in, as frames of Pyro's, and the term
            with the dimensions of those, its scale among it.
        """
        found = []
        for part in self._parts():
            joint = self._contract(part)[1]
            latents = [self._latents[name] for name in part if name in self._latents]
            frames = [frame for frame in _plates(latents[0]) if all(frame in _plates(node) for node in latents)]
            placed = self._placed(joint, joint._pyro_dims, rank=0)
            found.append((frames, placed * self._nodes[part[0]]["scale"]))
        return found

    def log_likelihood(self) -> dict[str, Tensor]:
        """The log likelihood given the other latents, the discrete ones summed out, for each independent part.

        Returns:
            For each part the name of its observed site, or of several joined by "+", and a tensor with the
            plates that its discrete latents lie in, 1 in place of a plate that is multiplied out. A part that
            observes nothing is left out. A `pyro.factor` is no data: it weighs the latents, as a prior does.
        """
        found = {}
        for part in self._parts():
            observed = [name for name in part if _is_data(self._nodes[name])]
            if observed:
                ordinal, joint = self._contract(part)
                latent = [name for name in part if not _is_data(self._nodes[name])]
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
        symbols = set(self._symbols.values())
        joints: dict[str, Any] = {}  # by latent, its posterior together with those that its product left
        for step in reversed(self._steps()):
            joint = step.conditional()
            if step.left:
                outer = joints[step.left[0]]
                joint = _sum([joint, _marginal(outer, symbols.difference(step.left))])
            joints[step.symbol] = joint
        found = {}
        for name, symbol in self._symbols.items():
            log_weights = self._values_last(name, _marginal(joints[symbol], symbols - {symbol}))
            found[name] = self._in_place(name, log_weights, log_weights._pyro_dims[:-1]).softmax(-1)
        return found

    def draw(self) -> dict[str, Tensor]:
        """One joint draw of the latents from their posterior, shape (*batch shape, *event shape)."""
        names = {symbol: name for name, symbol in self._symbols.items()}
        drawn: dict[str, Any] = {}
        for step in reversed(self._steps()):
            product = step.product
            for other in step.left:
                product = packed.gather(product, drawn[other], other)
            log_weights = self._values_last(names[step.symbol], product)
            uniform = torch.rand_like(log_weights).clamp(min=torch.finfo(log_weights.dtype).tiny)
            index = (log_weights - (-uniform.log()).log()).argmax(-1)  # a Gumbel for each value: the largest is a draw
            index._pyro_dims = log_weights._pyro_dims[:-1]
            drawn[step.symbol] = index
        return {
            name: _support(self._latents[name]["fn"])[self._in_place(name, drawn[symbol], drawn[symbol]._pyro_dims)]
            for name, symbol in self._symbols.items()
        }

    def _steps(self) -> list[_Step]:
        """How all latents are summed out, one after another."""
        ring = self._ring()
        symbols = set(self._symbols.values())
        contract_tensor_tree(self._factors(self._nodes), symbols, ring=ring)
        for name in self._symbols.keys() - self._nodes.keys():  # a latent of one value is in no packed tensor
            product: Any = torch.zeros(1, device=_support(self._latents[name]["fn"]).device)
            product._pyro_dims = self._symbols[name]
            ring.sumproduct([product], {self._symbols[name]})
        order = {step.symbol: place for place, step in enumerate(ring.steps)}
        return [
            step._replace(left=sorted(symbols & set(step.reduced._pyro_dims), key=order.__getitem__))
            for step in ring.steps
        ]

    def _values_last(self, name: str, log_weights: Any) -> Any:
        """Packed log weights of one latent, for each row of its plates, its values in the last dimension."""
        symbol = self._symbols[name]
        weights = self._ring().broadcast(log_weights, self._ordinal(name))
        dims = weights._pyro_dims.replace(symbol, "") + symbol
        moved: Any = _aligned(weights, dims)
        moved._pyro_dims = dims
        return moved

    def _in_place(self, name: str, value: Tensor, dims: str) -> Tensor:
        rank = max((-frame.dim for frame in _plates(self._latents[name])), default=0)
        return self._placed(value, dims, rank=rank)

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
            self._factors(part), set(self._symbols.values()), ring=self._ring()
        ).items()
        return ordinal, term

    def _reduced(self, part: Collection[str], ordinal: _Ordinal, like: Any) -> Tensor:
        """The log of what sites that need not be connected sum to, in the plates of `ordinal`, laid out as `like`."""
        total = torch.zeros_like(like)
        ring = self._ring()
        tree = contract_tensor_tree(self._factors(part), set(self._symbols.values()), ring=ring)
        for inner, terms in tree.items():
            for term in terms:
                total = total + _aligned(ring.product(term, inner - ordinal), like._pyro_dims)
        return total

    def _factors(self, names: Iterable[str]) -> OrderedDict[_Ordinal, list[Tensor]]:
        factors: OrderedDict[_Ordinal, list[Tensor]] = OrderedDict()
        for name in names:
            factors.setdefault(self._ordinal(name), []).append(_factor(self._nodes[name]))
        return factors

    def _ordinal(self, name: str) -> _Ordinal:
        symbols = self._trace.plate_to_symbol  # a plate of one row has no place in a packed tensor
        node = self._trace.nodes[name]
        return frozenset(symbols[frame.name] for frame in _plates(node) if frame.size > 1)

    def _ring(self) -> _EliminatingRing:
        return _EliminatingRing(dim_to_size=self._sizes)

    def _placed(self, value: Tensor, dims: str, *, rank: int) -> Tensor:
        """Packed plates put where the model has them, 1 between them; axes beyond those of `dims` stay last."""
        places = [self._trace.symbol_to_dim[symbol] for symbol in dims]
        order = sorted(range(len(dims)), key=places.__getitem__)
        shape = [1] * max(rank, -min(places, default=0))
        for at in order:
            shape[places[at]] = value.shape[at]
        rest = range(len(dims), value.dim())
        return value.permute([*order, *rest]).reshape([*shape, *value.shape[len(dims) :]])


class _Step(NamedTuple):
    """One latent summed out of the product of all packed terms that depend on it.

    Attributes:
        symbol: of the latent.
        product: over plates, the latent, and those that a later step sums out.
        reduced: the product without the latent.
        left: the latents that are left in it, in the order of their steps; the product of the first holds them all.
    """

    symbol: str
    product: Any
    reduced: Any
    left: Sequence[str] = ()

    def conditional(self) -> Any:
        """The packed log probability of the latent given those that are left."""
        total = self.reduced.masked_fill(self.reduced == -torch.inf, 0.0)  # of what is impossible anyway
        total._pyro_dims = self.reduced._pyro_dims
        found = self.product - _aligned(total, self.product._pyro_dims)
        found._pyro_dims = self.product._pyro_dims
        return found


class _EliminatingRing(LogRing):
    """Sums in logs by eliminating one dimension after another, in operations that `torch.vmap` takes.

    Attributes:
        steps: what was eliminated, in order.
    """

    def __init__(self, dim_to_size: dict[str, int]) -> None:
        super().__init__(dim_to_size=dim_to_size)  # type: ignore[no-untyped-call]
        self.sizes = dim_to_size
        self.steps: list[_Step] = []

    def sumproduct(self, terms: Iterable[Any], dims: Iterable[str]) -> Any:
        """Add the terms, then log-sum-exp over `dims`, the dimension with the smallest product first."""
        left = dict(enumerate(terms))
        touching: dict[str, set[int]] = {dim: set() for dim in dims}
        for place, term in left.items():
            for dim in touching.keys() & set(term._pyro_dims):
                touching[dim].add(place)
        costs = {dim: self._cost(left[place] for place in places) for dim, places in touching.items() if places}
        for new in range(len(left), len(left) + len(costs)):
            dim = min(costs, key=lambda dim: (costs[dim], dim))
            del costs[dim]
            places = sorted(touching.pop(dim))
            product = _sum([left.pop(place) for place in places])
            reduced: Any = torch.logsumexp(product, product._pyro_dims.index(dim))
            reduced._pyro_dims = product._pyro_dims.replace(dim, "")
            self.steps.append(_Step(dim, product, reduced))
            left[new] = reduced
            for other in costs.keys() & set(reduced._pyro_dims):
                touching[other].difference_update(places)
                touching[other].add(new)
                costs[other] = self._cost(left[place] for place in touching[other])
        return _sum(list(left.values()))

    def _cost(self, terms: Iterable[Any]) -> int:
        return math.prod(self.sizes[dim] for dim in set("".join(term._pyro_dims for term in terms)))


def _marginal(term: Any, over: Collection[str]) -> Any:
    """A packed term with all of some dimensions summed out."""
    places = [place for place, dim in enumerate(term._pyro_dims) if dim in over]
    found = term.logsumexp(places) if places else term[...]
    found._pyro_dims = "".join(dim for dim in term._pyro_dims if dim not in over)
    return found


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


def _plates(node: Any) -> list[Any]:
    return [frame for frame in node["cond_indep_stack"] if frame.vectorized]


def _is_data(node: Any) -> bool:
    return bool(node["is_observed"]) and type(node["fn"]).__name__ != "Unit"  # of pyro.factor

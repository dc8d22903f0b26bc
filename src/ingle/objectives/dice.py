"""The ELBO of two traces with enumerated sites: sums over the model's, expectations over the guide's."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opt_einsum import shared_intermediates
from pyro.infer.traceenum_elbo import _check_model_guide_enumeration_constraint
from pyro.infer.util import Dice
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.einsum.adjoint import require_backward
from pyro.ops.rings import MarginalRing
from torch import Tensor

from ingle.objectives.scale import common_scale

__all__ = ["dice_elbo"]

Ordinal = frozenset[str]  # the plates around a site, as the letters of their dimensions
Costs = OrderedDict[Ordinal, list[Any]]


def dice_elbo(model_trace: Any, guide_trace: Any) -> Tensor | float:
    """The ELBO of packed traces, a scalar that can be differentiated any number of times; a number without sites.

    ELBO = sum_t E_q[cost_t], over the plates t, where cost_t is log p - log q of the sites in t, with those that
    the model enumerates summed out of p, and each expectation is over the sites that the guide enumerates or draws.

    The number is that of Pyro's `_compute_dice_elbo`. Pyro asks which probabilities are zero and drops those terms,
    and reads a `poutine.scale`; both read the device, so that the value could not be traced.

    Args:
        model_trace, guide_trace: with log_prob, score parts and packed tensors, plate letters shared.

    Raises:
        ValueError: as Pyro does, for sites that are summed together under different scales, for a scale with
            dimensions, and for guide sites enumerated inside plates that the model's are outside of.

    References:
        Obermeyer et al. (2019), Tensor Variable Elimination for Plated Factor Graphs.
        Foerster et al. (2018), DiCE: The Infinitely Differentiable Monte Carlo Estimator.
    """
    ordinals = {site["name"]: _ordinal(trace, site) for trace in (model_trace, guide_trace) for site in _samples(trace)}
    costs = _model_costs(model_trace, guide_trace, ordinals)
    for site in _samples(guide_trace):
        costs.setdefault(ordinals[site["name"]], []).append(packed.neg(site["packed"]["log_prob"]))
    return _expectation(costs, Dice(guide_trace, ordinals))


def _samples(trace: Any) -> list[Any]:
    return [site for site in trace.nodes.values() if site["type"] == "sample"]


def _ordinal(trace: Any, site: Any) -> Ordinal:
    return frozenset(trace.plate_to_symbol[frame.name] for frame in site["cond_indep_stack"] if frame.vectorized)


def _model_costs(model_trace: Any, guide_trace: Any, ordinals: Mapping[str, Ordinal]) -> Costs:
    """The terms of log p by plates, what the model enumerates summed out."""
    costs: Costs = OrderedDict()
    others: list[Any] = []
    enumerated: list[Any] = []
    kept: set[str] = set().union(*ordinals.values())
    for site in _samples(model_trace):
        in_guide = site["name"] in guide_trace.nodes
        if in_guide:
            kept.update(guide_trace.nodes[site["name"]]["packed"]["log_prob"]._pyro_dims)
        (others if in_guide or site["infer"].get("_enumerate_dim") is None else enumerated).append(site)
    summed = {dim for site in enumerated for dim in site["packed"]["log_prob"]._pyro_dims} - kept

    factors: Costs = OrderedDict()
    scales = []
    for site in others:
        if summed.isdisjoint(site["packed"]["log_prob"]._pyro_dims):
            costs.setdefault(ordinals[site["name"]], []).append(site["packed"]["log_prob"])
        else:  # the mask goes inside the log of the sum, the scale outside
            masked = packed.scale_and_mask(site["packed"]["unscaled_log_prob"], mask=site["packed"]["mask"])
            factors.setdefault(ordinals[site["name"]], []).append(masked)
            scales.append(site["scale"])
    if not enumerated:
        return costs
    for site in enumerated:
        factors.setdefault(ordinals[site["name"]], []).append(site["packed"]["unscaled_log_prob"])
        scales.append(site["scale"])
    _check_model_guide_enumeration_constraint({ordinals[site["name"]]: site for site in enumerated}, guide_trace)

    scale = common_scale(scales, "sites that are summed out together")
    with shared_intermediates() as cache:
        contracted = contract_tensor_tree(factors, summed, cache=cache)
    for ordinal, terms in contracted.items():
        costs.setdefault(ordinal, []).extend(packed.scale_and_mask(term, scale=scale) for term in terms)
    return costs


def _expectation(costs: Costs, dice: Dice) -> Tensor | float:
    """sum_t E_q[cost_t], where the sites at or above t in the plates have the say over t."""
    total: Any = 0.0
    with shared_intermediates() as cache:
        ring = MarginalRing(cache=cache)
        for ordinal, terms in costs.items():
            factors = dice._get_log_factors(ordinal)
            weight = math.exp(sum(factor for factor in factors if not isinstance(factor, Tensor)))
            factors = [factor for factor in factors if isinstance(factor, Tensor)]
            expected = _expected(terms, factors, ordinal, ring) if factors else _repeated(terms)
            total = total + weight * expected
    return total  # type: ignore[no-any-return]


def _expected(terms: Iterable[Any], factors: list[Any], ordinal: Ordinal, ring: MarginalRing) -> Any:
    """The sum of the terms, each weighted by the marginal of the factors over its own dimensions."""
    queries: dict[Ordinal, Any] = dict.fromkeys(frozenset(term._pyro_dims) for term in terms)
    for factor in factors:
        dims = frozenset(factor._pyro_dims)
        if dims in queries and queries[dims] is None:
            queries[dims] = factor
    factors = list(factors)
    for term in terms:
        dims = frozenset(term._pyro_dims)
        if queries[dims] is None:  # a factor of one, whose marginal is the one to be had
            queries[dims] = term.new_zeros(term.shape)
            queries[dims]._pyro_dims = term._pyro_dims
            factors.append(queries[dims])
    for query in queries.values():
        require_backward(query)
    # No plate is multiplied out: what is in a plate never has a say over what is outside of it.
    root = ring.sumproduct(factors, {dim for factor in factors for dim in factor._pyro_dims} - ordinal)
    root._pyro_backward()
    probabilities = {}
    for dims, query in queries.items():
        probabilities[dims] = query._pyro_backward_result.exp()
        probabilities[dims]._pyro_dims = query._pyro_dims

    total: Any = 0.0
    for term in terms:
        cost, probability = packed.broadcast_all(term, probabilities[frozenset(term._pyro_dims)])
        # log 0 at a value that has no probability must count for nothing, in the gradient too: 0 * -inf is NaN.
        total = total + (probability * cost.masked_fill(probability == 0, 0.0)).sum()
    return total


def _repeated(terms: Sequence[Any]) -> Any:
    """The sum of the terms where nothing was drawn or enumerated above them, each repeated to the size of all."""
    sizes = {dim: size for term in terms for dim, size in zip(term._pyro_dims, term.shape, strict=True)}
    return sum(
        term.sum() * math.prod(size for dim, size in sizes.items() if dim not in term._pyro_dims) for term in terms
    )

"""What a fit has to tell ArviZ: draws, predictions, log likelihoods and data, by group, with the names of plates."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ingle.data import Data
from ingle.errors import IngleWarning, OptionError, warn
from ingle.evidence import why_no_weights
from ingle.program import Program, Site, Unobserve
from ingle.results.dims import batch_dims_of, dims_of
from ingle.results.draws import (
    chunked,
    deterministic_sites,
    discrete,
    guided_with_density,
    modelled,
    observed_sites,
    refuse_too_large,
)
from ingle.results.likelihood import evaluate, first_run, local_latents, masked_rows, with_gaps
from ingle.results.prior import drawn_from
from ingle.results.weights import resampled

__all__ = ["GroupName", "Variable", "collect"]

GroupName = Literal[
    "posterior",
    "posterior_predictive",
    "prior",
    "prior_predictive",
    "log_likelihood",
    "sample_stats",
    "observed_data",
    "constant_data",
]


@dataclass(frozen=True)
class Variable:
    """One variable of a group.

    Attributes:
        value: shape (n, *shape) where it was drawn, else (*shape).
        dims: a name for each dimension of `shape`.
        labels: of the dimensions whose places are not simply counted.
    """

    value: Tensor
    dims: tuple[str, ...]
    labels: Mapping[str, Sequence[Any]] = field(default_factory=dict)


Groups = dict[str, dict[str, Variable]]


def resolve_groups(groups: object) -> tuple[str, ...]:
    """The names of groups asked for; all where None. Raises `OptionError` for anything else."""
    known = get_args(GroupName)
    if groups is None:
        return known
    listed = groups if isinstance(groups, (tuple, list, set, frozenset)) else ()
    if not listed or not all(isinstance(name, str) and name in known for name in listed):
        raise OptionError(f"groups must be some of {', '.join(map(repr, known))}, got {groups!r}")
    return tuple(listed)


def collect(program: Program, n: int, *, groups: Collection[str], weighted: bool) -> tuple[Groups, dict[str, Any]]:
    """The groups asked for, each variable with the names of its dimensions, and attributes that say what they are.

    Runs inside a scope of the fit. Warns where the pointwise log likelihood is given a latent of each datum's own.

    Args:
        program: the fitted one.
        n: number of draws.
        groups: their names; one that would be empty is left out.
        weighted: resample the draws by smoothed importance weights.

    Raises:
        OptionError: draws that do not fit in memory, or weights of a guide that has none.
    """
    _refuse_too_large(program, n, groups)
    attributes: dict[str, Any] = {"draws_from": "the guide"}
    found: Groups = {}
    drawn, log_q = guided_with_density(program, n)
    shown = set(groups) & {"posterior", "posterior_predictive"}
    states = discrete(program, drawn, n) if shown else {}  # next after the guide's, as `Fit.draws` draws them
    if weighted or set(groups) & {"log_likelihood", "sample_stats"}:
        stats, pointwise = evaluate(program, drawn, n, pointwise="log_likelihood" in groups)
        without = why_no_weights(program)
        if without is None:
            stats |= {"log_q": log_q, "log_weight": stats["log_p"] - log_q}
        else:
            attributes["no_log_weight"] = without
        if weighted:
            if without is not None:
                raise OptionError(f"the draws have no importance weights: {without}")
            chosen, told = resampled(stats.pop("log_weight"))
            drawn, states, stats, pointwise = (_pick(tree, chosen) for tree in (drawn, states, stats, pointwise))
            attributes |= {"draws_from": "the guide, resampled by smoothed importance weights", **told}
        found["sample_stats"] = {name: Variable(value, ()) for name, value in stats.items()}
        found["log_likelihood"] = _pointwise(program, pointwise)
    if "log_likelihood" in groups and found.get("log_likelihood"):
        _tell_of_likelihood(program, drawn, attributes)
    if shown:
        found |= _posterior(program, drawn, states, n, groups)
    if set(groups) & {"prior", "prior_predictive"}:
        found |= _prior(program, n, groups, attributes)
    if set(groups) & {"observed_data", "constant_data"}:
        found |= _data(program, drawn)
    return {name: found[name] for name in get_args(GroupName) if name in groups and found.get(name)}, attributes


def _posterior(
    program: Program, drawn: dict[str, Tensor], states: dict[str, Tensor], n: int, groups: Collection[str]
) -> Groups:
    """Latents and deterministic sites at the draws, and observed sites drawn anew."""
    sites = {site.name: site for site in program.model_sites}
    found: Groups = {}
    everything = drawn | states
    if "posterior" in groups:
        kept = [site.name for site in deterministic_sites(program, discrete_too=True)]
        values = everything | (modelled(program, everything, n, keep=kept) if kept else {})
        found["posterior"] = _named(program, {name: values[name] for name in sites if name in values})
        found["posterior"] |= {
            f"{name}_prob": _over_values(sites[name], value)
            for name, value in _probabilities(program, drawn, n).items()
        }
    anew = [site.name for site in observed_sites(program)]
    if "posterior_predictive" in groups and anew:
        found["posterior_predictive"] = _named(program, modelled(program, everything, n, keep=anew, anew=True))
    return found


def _named(program: Program, values: Mapping[str, Tensor]) -> dict[str, Variable]:
    sites = {site.name: site for site in program.model_sites}
    return {name: Variable(value, dims_of(sites[name], value.dim() - 1)) for name, value in values.items()}


def _pointwise(program: Program, values: Mapping[str, Tensor]) -> dict[str, Variable]:
    """Log likelihoods, which have the dimensions of the plates alone."""
    sites = {site.name: site for site in program.model_sites}

    def first(name: str) -> Site:  # "x+y" are two sites, unless there is one of that name
        return (
            sites[name] if name in sites else next(site for site in sites.values() if name.startswith(f"{site.name}+"))
        )

    return {name: Variable(value, batch_dims_of(first(name), name, value.shape[1:])) for name, value in values.items()}


def _probabilities(program: Program, drawn: Mapping[str, Tensor], n: int) -> dict[str, Tensor]:
    if not program.enumerated:
        return {}
    with program.explained("model"):
        return chunked(  # type: ignore[no-any-return]
            program, lambda given: program.summed(given).probabilities(), n, given=drawn
        )


def _over_values(site: Site, value: Tensor) -> Variable:
    """The probability of each value of a discrete latent, which has a dimension of its own, last."""
    over = f"{site.name}_value"
    return Variable(value, (*batch_dims_of(site, f"{site.name}_prob", value.shape[1:-1]), over), {over: site.support})


def _prior(program: Program, n: int, groups: Collection[str], attributes: dict[str, Any]) -> Groups:
    """Draws of the whole model with nothing observed; left out, and said so, where the model cannot be drawn."""
    anew = [site.name for site in observed_sites(program)]
    latent = {site.name for site in (*program.latents, *deterministic_sites(program, discrete_too=True))}
    inside = [site.name for site in program.model_sites if site.name in latent and not program.partial(site)]
    wanted = {group: names for group, names in {"prior": inside, "prior_predictive": anew}.items() if group in groups}
    keep = [name for names in wanted.values() for name in names]
    if not keep:
        return {}
    data, sites = program.data, [site for site in program.model_sites if site.name in keep]
    try:
        with torch.no_grad(), program.at_rest():
            drawn, wrong = drawn_from(Unobserve()(program.model), data.args, data.kwargs, n, sites=sites)
    except Exception as error:  # an improper prior, or one so wide that the model fails on a draw of it
        drawn, wrong = {}, f"{type(error).__name__}: {error}".split("\n")[0]
    if wrong is not None:
        attributes["no_prior"] = wrong
        return {}
    return {group: _named(program, {name: drawn[name] for name in names}) for group, names in wanted.items()}


def _tell_of_likelihood(program: Program, drawn: Mapping[str, Tensor], attributes: dict[str, Any]) -> None:
    """Warn of what makes a pointwise log likelihood other than it looks."""
    local, hidden = local_latents(program, drawn), masked_rows(program, drawn)
    if local:
        attributes["local_latents"] = ", ".join(sorted({name for names in local.values() for name in names}))
    for name, latents in local.items():
        # Leave-one-out takes away a datum and keeps its latent, which that datum alone has shaped.
        warn(
            f"the log likelihood of {name!r} is given {', '.join(map(repr, latents))}, which has a value for each "
            "datum, so leave-one-out of it (az.loo, az.compare) says little about new data; leave "
            "'log_likelihood' out of groups where it is not needed",
            IngleWarning,
        )
    if hidden:
        attributes["masked"] = ", ".join(f"{name}: {n:,} of {of:,}" for name, (n, of) in hidden.items())
    for name, (n, of) in hidden.items():
        warn(
            f"{n:,} of {of:,} data of {name!r} are masked: their log likelihood is 0, and az.loo counts them as data; "
            "select the others before it",
            IngleWarning,
        )


def _data(program: Program, drawn: Mapping[str, Tensor]) -> Groups:
    """What the model observes, all rows, as it sees them at the first draw; and its other arguments."""
    trace = first_run(program, drawn)
    observed = {site: trace.nodes[site.name] for site in observed_sites(program)}
    shown = {site: with_gaps(node) for site, node in observed.items()}
    return {
        "observed_data": {site.name: Variable(value, dims_of(site, value.dim())) for site, value in shown.items()},
        "constant_data": _constants(program.data, {site.name: node["value"] for site, node in observed.items()}),
    }


def _constants(data: Data, observed: Mapping[str, Tensor]) -> dict[str, Variable]:
    """The tensors among the arguments that are not themselves observed.

    A site takes one argument with it: the tensor itself, else one of its values, the one of its name first.
    """
    arguments = {name: value for name, value in data.items() if isinstance(value, Tensor)}
    for name, value in observed.items():
        alike = [other for other, tensor in arguments.items() if tensor.data_ptr() == value.data_ptr()]
        alike = alike or [other for other, tensor in arguments.items() if _same(tensor, value)]
        if alike:
            del arguments[name if name in alike else alike[0]]
    found = {}
    for place, (name, value) in enumerate(data.items()):
        if name in arguments:
            called = name if name.isidentifier() else f"argument_{place}"
            found[called] = Variable(value, tuple(f"{called}_dim_{axis}" for axis in range(value.dim())))
    return found


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    equal = one == other
    return bool((equal | (one.isnan() & other.isnan()) if one.is_floating_point() else equal).all())


def _refuse_too_large(program: Program, n: int, groups: Collection[str]) -> None:
    observed = observed_sites(program)
    latent = (*program.latents, *deterministic_sites(program, discrete_too=True))
    held: list[Site] = []
    for group, sites in {"posterior": latent, "prior": latent, "posterior_predictive": observed}.items():
        held += sites if group in groups else ()
    held += observed if "prior_predictive" in groups else ()
    refuse_too_large(held, n, program.dtype, program.device, f"the groups {', '.join(groups)}")


def _pick(tree: Mapping[str, Tensor], chosen: Tensor) -> dict[str, Tensor]:
    return {name: value[chosen] for name, value in tree.items()}

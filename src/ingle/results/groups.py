"""What a fit has to tell ArviZ: draws, predictions, log likelihoods and data, by group, with the names of plates."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ingle.data import Data
from ingle.errors import IngleWarning, OptionError, warn
from ingle.program import Given, Program, Site, buffers_kept, reached
from ingle.results.draws import (
    chunked,
    deterministic_sites,
    discrete,
    drawn_latents,
    guided,
    log_prob_sum,
    modelled,
    observed_sites,
    refuse_too_large,
    summed,
)
from ingle.results.weights import resampled

__all__ = ["Group", "Variable", "collect"]

Group = Literal[
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
    known = get_args(Group)
    if groups is None:
        return known
    if isinstance(groups, str) or not isinstance(groups, Collection) or not set(groups) <= set(known) or not groups:
        raise OptionError(f"groups must be some of {', '.join(map(repr, known))}, got {groups!r}")
    return tuple(groups)


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
    sites = {site.name: site for site in program.model_sites}
    _refuse_too_large(program, n, groups)
    attributes: dict[str, Any] = {"draws_from": "the guide"}
    found: Groups = {}
    drawn, log_q = guided(program, n)
    stats: dict[str, Tensor] = {}
    pointwise: dict[str, Tensor] = {}
    if weighted or set(groups) & {"log_likelihood", "sample_stats"}:
        stats, pointwise = _evaluate(program, drawn, n, pointwise="log_likelihood" in groups)
        without = _why_no_weights(program)
        if without is None:
            stats |= {"log_q": log_q, "log_weight": stats["log_p"] - log_q}
        else:
            attributes["log_weight"] = f"left out: {without}"
        if weighted and without is not None:
            raise OptionError(f"the draws have no importance weights: {without}")
    if weighted:
        chosen, told = resampled(stats.pop("log_weight"))
        drawn, stats, pointwise = (_pick(tree, chosen) for tree in (drawn, stats, pointwise))
        attributes |= {"draws_from": "the guide, resampled by smoothed importance weights", **told}

    if set(groups) & {"posterior", "posterior_predictive"}:
        probabilities = _probabilities(program, drawn, n) if "posterior" in groups else {}
        drawn = {**drawn, **discrete(program, drawn, n)}
    if "posterior" in groups:
        kept = [site.name for site in deterministic_sites(program, discrete_too=True)]
        values = {**drawn, **(modelled(program, drawn, n, keep=kept) if kept else {})}
        found["posterior"] = {
            name: Variable(values[name], dims_of(site, values[name].dim() - 1))
            for name, site in sites.items()
            if name in values
        }
        found["posterior"] |= {
            f"{name}_prob": _over_values(sites[name], value) for name, value in probabilities.items()
        }
    anew = [site.name for site in observed_sites(program)]
    if "posterior_predictive" in groups and anew:
        predicted = modelled(program, drawn, n, keep=anew, anew=anew)
        found["posterior_predictive"] = _named(sites, predicted)
    if set(groups) & {"prior", "prior_predictive"}:
        _add_prior(program, n, groups, found, attributes)
    if "log_likelihood" in groups and pointwise:
        found["log_likelihood"] = {
            name: Variable(value, _batch_dims(sites[name.split("+")[0]], name, value.shape[1:]))
            for name, value in pointwise.items()
        }
        _tell_of_local_latents(program, attributes)
    if "sample_stats" in groups:
        found["sample_stats"] = {name: Variable(value, ()) for name, value in stats.items()}
    data = _observations(program, drawn)
    if "observed_data" in groups and data:
        found["observed_data"] = {
            name: Variable(value, dims_of(sites[name], value.dim())) for name, value in data.items()
        }
    if "constant_data" in groups:
        constants = _constants(program.data, data.values())
        if constants:
            found["constant_data"] = constants
    return {name: found[name] for name in get_args(Group) if found.get(name)}, attributes


def _why_no_weights(program: Program) -> str | None:
    masses = point_masses(program)
    if masses:
        return f"the guide is a point mass at {', '.join(masses)}, without a density; fit 'normal', say"
    own = sorted({plate.name for site in program.model_sites for plate in site.plates if program.partial(site)})
    if own:
        return (
            f"plate {', '.join(own)} draws rows by itself, so each run sees other data; give the plate all its rows "
            "and the fit batch_size"
        )
    return None


def point_masses(program: Program) -> tuple[str, ...]:
    """The continuous latents for which the guide has one value and no density: two runs of it give the same."""
    deltas = [site.name for site in program.guide_sites if site.kind == "latent" and site.distribution == "Delta"]
    if not deltas:
        return ()
    drawn, _ = guided(program, 2)
    return tuple(name for name in deltas if name in drawn and bool((drawn[name][0] == drawn[name][1]).all()))


def dims_of(site: Site, ndim: int) -> tuple[str, ...]:
    """Plate names for the batch dimensions of a value, `name_dim_0` and so on for the rest."""
    names = [f"{site.name}_dim_{place}" for place in range(ndim)]
    event = len(site.event_shape)
    if site.kind == "deterministic" and event >= ndim:
        event = 0  # pyro.deterministic calls every dimension an event; the plates' are still where plates put them
    for plate in site.plates:
        if plate.dim is None:
            continue
        place = ndim + plate.dim - event
        if place >= 0 and site.value_shape[place] == plate.size:
            names[place] = plate.name
    return tuple(names)


def _batch_dims(site: Site, name: str, shape: torch.Size) -> tuple[str, ...]:
    """Plate names for the batch dimensions of a log probability."""
    names = [f"{name}_dim_{place}" for place in range(len(shape))]
    for plate in site.plates:
        if plate.dim is not None and len(shape) >= -plate.dim and shape[plate.dim] == plate.full_size:
            names[plate.dim] = plate.name
    return tuple(names)


def _named(sites: Mapping[str, Site], values: Mapping[str, Tensor]) -> dict[str, Variable]:
    return {name: Variable(value, dims_of(sites[name], value.dim() - 1)) for name, value in values.items()}


def _evaluate(
    program: Program, drawn: Mapping[str, Tensor], n: int, *, pointwise: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The log joint at draws of the latents, shape (n,), and pointwise log likelihoods, shape (n, *plates).

    Latents that are summed out of the guide are summed out of both. The N/B scale of a plate and `poutine.scale`
    are in the log joint, which is what the guide was fitted to, and not in the pointwise log likelihood.
    """
    args, kwargs = program.data.args, program.data.kwargs
    names = [site.name for site in observed_sites(program)] if pointwise else []

    def run(given: Any) -> dict[str, Any]:
        whole = summed(program, given) if program.enumerated else None
        with Given(given):
            trace: Any = poutine.trace(program.model).get_trace(*args, **kwargs)
        trace.compute_log_prob()
        found = {
            name: scale_and_mask(trace.nodes[name]["unscaled_log_prob"], 1.0, trace.nodes[name]["mask"])
            for name in names
            if whole is None or name not in whole.names
        }
        if whole is None:
            return {"log_p": log_prob_sum(trace), "log_likelihood": found}
        if pointwise:
            found |= whole.log_likelihood()
        for name in whole.names:
            trace.remove_node(name)
        return {"log_p": log_prob_sum(trace) + whole.log_joint(), "log_likelihood": found}

    with program.explained("model"):
        evaluated = chunked(program, run, n, given=drawn)
    return {"log_p": evaluated["log_p"]}, evaluated.get("log_likelihood", {})


def _probabilities(program: Program, drawn: Mapping[str, Tensor], n: int) -> dict[str, Tensor]:
    if not program.enumerated:
        return {}
    with program.explained("model"):
        return chunked(  # type: ignore[no-any-return]
            program, lambda given: summed(program, given).probabilities(), n, given=drawn
        )


def _over_values(site: Site, value: Tensor) -> Variable:
    """The probability of each value of a discrete latent, which has a dimension of its own, last."""
    over = f"{site.name}_value"
    return Variable(value, (*_batch_dims(site, f"{site.name}_prob", value.shape[1:-1]), over), {over: site.support})


def _add_prior(program: Program, n: int, groups: Collection[str], found: Groups, attributes: dict[str, Any]) -> None:
    """Draws of the whole model with nothing observed; left out, and said so, where the model cannot be drawn."""
    anew = [site.name for site in observed_sites(program)]
    latent = [site.name for site in program.latents if not program.partial(site)]
    latent += [site.name for site in deterministic_sites(program, discrete_too=True)]
    order = [site.name for site in program.model_sites]
    wanted = {"prior": sorted(latent, key=order.index), "prior_predictive": anew}
    keep = [name for group, names in wanted.items() if group in groups for name in names]
    if not keep:
        return
    try:
        drawn = modelled(program, {}, n, keep=keep, anew=anew)
    except Exception as error:  # an improper prior, or one so wide that the model fails on a draw of it
        cause = error.__cause__ or error
        attributes["prior"] = f"left out: {type(cause).__name__}: {cause}".split("\n")[0]
        return
    for group, names in wanted.items():
        if group in groups and names:
            found[group] = _named({site.name: site for site in program.model_sites}, {x: drawn[x] for x in names})


def _tell_of_local_latents(program: Program, attributes: dict[str, Any]) -> None:
    """Leave-one-out takes away a datum and keeps its latent, which that datum alone has shaped."""
    local = local_latents(program)
    if not local:
        return
    attributes["local_latents"] = ", ".join(sorted({name for names in local.values() for name in names}))
    for name, latents in local.items():
        warn(
            f"the log likelihood of {name!r} is given {', '.join(map(repr, latents))}, which has a value for each "
            "datum, so leave-one-out of it (az.loo, az.compare) says little about new data; leave "
            "'log_likelihood' out of groups where it is not needed",
            IngleWarning,
        )


def local_latents(program: Program) -> dict[str, tuple[str, ...]]:
    """For each observed site the latents that its log likelihood depends on and that have a value for each datum."""
    data = program.data
    latents = {site.name: {plate.name for plate in site.plates} for site in drawn_latents(program)}
    observed = {site.name: {plate.name for plate in site.plates} for site in observed_sites(program) if site.plates}
    if not any(plates <= others for plates in observed.values() for others in latents.values()):
        return {}
    values, _ = guided(program, 1)
    found = {}
    with torch.no_grad(), buffers_kept(program.modules()), program.explained("model"):
        with reached(latents) as origin, Given({name: value[0] for name, value in values.items()}):
            trace: Any = poutine.trace(program.model).get_trace(*data.args, **data.kwargs)
        for name, plates in observed.items():
            node = trace.nodes[name]
            behind = origin(node["fn"])
            mine = tuple(latent for latent, others in latents.items() if latent in behind and plates <= others)
            if mine:
                found[name] = mine
    return found


def _observations(program: Program, drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The observed value of every site of `observed_sites`, all rows, as the model sees them at the first draw."""
    data, given = program.data, Given({name: value[0] for name, value in drawn.items()})
    with torch.no_grad(), buffers_kept(program.modules()), given, program.explained("model"):
        trace: Any = poutine.trace(program.model).get_trace(*data.args, **data.kwargs)
    return {site.name: trace.nodes[site.name]["value"] for site in observed_sites(program)}


def _constants(data: Data, observed: Collection[Tensor]) -> dict[str, Variable]:
    """The tensors among the arguments that are not themselves observed."""
    found = {}
    for place, (name, value) in enumerate(data.items()):
        if not isinstance(value, Tensor) or any(_same(value, other) for other in observed):
            continue
        called = name if name.isidentifier() else f"argument_{place}"
        found[called] = Variable(value, tuple(f"{called}_dim_{axis}" for axis in range(value.dim())))
    return found


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.isclose(one.double(), other.double(), 0, 0, equal_nan=True).all())


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

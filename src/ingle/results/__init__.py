"""What comes out of a fit: draws, predictions, the route to ArviZ, the card."""

from ingle.results.attributes import attributes
from ingle.results.card import card
from ingle.results.draws import deterministic_sites, drawn_latents, posterior
from ingle.results.export import summary, to_arviz
from ingle.results.groups import GroupName, collect, resolve_groups
from ingle.results.predict import predict, resolve_new
from ingle.results.prior import drawn_from, prior_predictive
from ingle.results.weights import weighted_draws

__all__ = [
    "GroupName",
    "attributes",
    "card",
    "collect",
    "deterministic_sites",
    "drawn_from",
    "drawn_latents",
    "posterior",
    "predict",
    "prior_predictive",
    "resolve_groups",
    "resolve_new",
    "summary",
    "to_arviz",
    "weighted_draws",
]

"""What comes out of a fit: draws, predictions, the route to ArviZ, the card."""

from ingle.results.card import card
from ingle.results.draws import posterior
from ingle.results.export import summary, to_arviz
from ingle.results.groups import Group, collect, resolve_groups

__all__ = ["Group", "card", "collect", "posterior", "resolve_groups", "summary", "to_arviz"]

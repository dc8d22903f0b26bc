"""What comes out of a fit: draws, the route to ArviZ, the card."""

from ingle.results.card import card
from ingle.results.draws import observations, posterior
from ingle.results.export import summary, to_arviz

__all__ = ["card", "observations", "posterior", "summary", "to_arviz"]

"""What comes out of a fit: draws, the route to ArviZ, the card."""

from ingle.results.card import card
from ingle.results.draws import drawn_sites, observations, posterior, predictive_sites
from ingle.results.export import summary, to_arviz

__all__ = ["card", "drawn_sites", "observations", "posterior", "predictive_sites", "summary", "to_arviz"]

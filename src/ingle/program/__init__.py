"""A model and a guide as one program: its sites, its guides by name, and the handlers around it."""

from ingle.program.explain import explained
from ingle.program.guides import GuideName
from ingle.program.program import Program, build_program, downstream_of_enumerated, set_guide
from ingle.program.sites import Plate, Site

__all__ = [
    "GuideName",
    "Plate",
    "Program",
    "Site",
    "build_program",
    "downstream_of_enumerated",
    "explained",
    "set_guide",
]

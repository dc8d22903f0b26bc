"""A model and a guide as one program: its sites, its guides by name, and the handlers around it."""

from ingle.program.discrete import Summed
from ingle.program.guides import GuideName
from ingle.program.handlers import Given, Provenance, Unobserve
from ingle.program.modules import buffers_kept, find_modules
from ingle.program.program import Program, build_program, set_guide
from ingle.program.sites import Plate, Site

__all__ = [
    "Given",
    "GuideName",
    "Plate",
    "Program",
    "Provenance",
    "Site",
    "Summed",
    "Unobserve",
    "buffers_kept",
    "build_program",
    "find_modules",
    "set_guide",
]

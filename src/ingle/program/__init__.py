"""A model and a guide as one program: its sites, its guides by name, and the handlers around it."""

from ingle.program.build import build_program
from ingle.program.guides import GuideName
from ingle.program.modules import buffers_kept, find_modules
from ingle.program.program import Program, set_guide
from ingle.program.sites import Plate, Site

__all__ = [
    "GuideName",
    "Plate",
    "Program",
    "Site",
    "buffers_kept",
    "build_program",
    "find_modules",
    "set_guide",
]

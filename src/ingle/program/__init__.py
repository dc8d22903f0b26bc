"""A model and a guide as one program: its sites, its guides by name, and the handlers around it."""

from ingle.program.build import build_program
from ingle.program.check import Check, check
from ingle.program.finding import Finding
from ingle.program.guides import GuideName
from ingle.program.modules import buffers_kept, find_modules
from ingle.program.program import Program, set_guide
from ingle.program.sites import Plate, Site

__all__ = [
    "Check",
    "Finding",
    "GuideName",
    "Plate",
    "Program",
    "Site",
    "buffers_kept",
    "build_program",
    "check",
    "find_modules",
    "set_guide",
]

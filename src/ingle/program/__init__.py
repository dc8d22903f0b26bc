"""A model and a guide as one program: its sites, its guides by name, and the handlers around it."""

from ingle.program.guides import GuideName
from ingle.program.identity import changed_arguments, describe, difference, digests
from ingle.program.modules import buffers_kept, find_modules
from ingle.program.program import Program, build_program, set_guide
from ingle.program.sites import Plate, Site
from ingle.program.values import Values

__all__ = [
    "GuideName",
    "Plate",
    "Program",
    "Site",
    "Values",
    "buffers_kept",
    "build_program",
    "changed_arguments",
    "describe",
    "difference",
    "digests",
    "find_modules",
    "set_guide",
]

"""A model and a guide as one program: its sites, its guides by name, and the handlers around it."""

from ingle.program.amortised import amortised
from ingle.program.discrete import Summed
from ingle.program.explain import check_call, explained
from ingle.program.guides import GuideName
from ingle.program.handlers import Given, Provenance, Unobserve
from ingle.program.identity import changed_arguments, describe, difference, digests
from ingle.program.modules import buffers_kept, find_modules, lent
from ingle.program.program import Program, build_program, set_guide
from ingle.program.sites import Plate, Site, read_sites
from ingle.program.state import Values
from ingle.program.typical import typical_value

__all__ = [
    "Given",
    "GuideName",
    "Plate",
    "Program",
    "Provenance",
    "Site",
    "Summed",
    "Unobserve",
    "Values",
    "amortised",
    "buffers_kept",
    "build_program",
    "changed_arguments",
    "check_call",
    "describe",
    "difference",
    "digests",
    "explained",
    "find_modules",
    "lent",
    "read_sites",
    "set_guide",
    "typical_value",
]

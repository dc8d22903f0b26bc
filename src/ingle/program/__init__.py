"""A model and a guide as one program: its sites, its guides by name, and the handlers around it."""

from ingle.program.amortised import amortised
from ingle.program.build import build_program
from ingle.program.check import Check, check
from ingle.program.discrete import Summed
from ingle.program.distributions import family, layers, plain_constraint, to_support
from ingle.program.explain import check_call, explained
from ingle.program.finding import Finding
from ingle.program.guides import GuideName
from ingle.program.handlers import Given, Observed, Rows, Unobserve
from ingle.program.held import Places, find_places
from ingle.program.identity import changed_arguments, describe, difference, digests
from ingle.program.memory import Memory
from ingle.program.modules import buffers_kept, buffers_of, find_modules, modules_kept
from ingle.program.nodes import sample_nodes, score_sampled
from ingle.program.origins import Origins, origins, reached
from ingle.program.own import OwnState, state_of_its_own
from ingle.program.place import GONE, Place
from ingle.program.program import Program, set_guide
from ingle.program.sites import Plate, Site, is_data, read_sites
from ingle.program.snapshot import Change, Snapshot
from ingle.program.state import Values
from ingle.program.typical import prior_value, typical_value
from ingle.program.vectorise import apart, is_out_of_memory, repeat, together
from ingle.program.whitened import Whitening, new_whitening

__all__ = [
    "GONE",
    "Change",
    "Check",
    "Finding",
    "Given",
    "GuideName",
    "Memory",
    "Observed",
    "Origins",
    "OwnState",
    "Place",
    "Places",
    "Plate",
    "Program",
    "Rows",
    "Site",
    "Snapshot",
    "Summed",
    "Unobserve",
    "Values",
    "Whitening",
    "amortised",
    "apart",
    "buffers_kept",
    "buffers_of",
    "build_program",
    "changed_arguments",
    "check",
    "check_call",
    "describe",
    "difference",
    "digests",
    "explained",
    "family",
    "find_modules",
    "find_places",
    "is_data",
    "is_out_of_memory",
    "layers",
    "modules_kept",
    "new_whitening",
    "origins",
    "plain_constraint",
    "prior_value",
    "reached",
    "read_sites",
    "repeat",
    "sample_nodes",
    "score_sampled",
    "set_guide",
    "state_of_its_own",
    "to_support",
    "together",
    "typical_value",
]

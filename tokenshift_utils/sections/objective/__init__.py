"""Section 4: the divergence-weighted objective. Here: what its notebook calls."""

from tokenshift_utils.sections.objective import numbers, plots, words
from tokenshift_utils.sections.objective.records import read_runs
from tokenshift_utils.sections.overview import say_claims, section_claims
from tokenshift_utils.sections.paper import table2

__all__ = ["numbers", "plots", "read_runs", "say_claims", "section_claims", "table2", "words"]

"""Section 5: does it depend on truncation, trajectories, sampling? Here: what its notebook calls."""

from tokenshift_utils.sections.common import of_kind
from tokenshift_utils.sections.robustness import numbers, plots
from tokenshift_utils.sections.robustness.records import robustness_records

__all__ = ["numbers", "of_kind", "plots", "robustness_records"]

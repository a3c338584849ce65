"""What each notebook needs of the records, in one call, so that one pool computes what is missing."""

from __future__ import annotations

from tokenshift_utils.sections.cross_sampling.examples import cross_examples, cross_switches
from tokenshift_utils.sections.cross_sampling.records import (
    control_artefacts,
    cross_artefacts,
    cross_records,
)

__all__ = [
    "control_artefacts",
    "cross_artefacts",
    "cross_examples",
    "cross_records",
    "cross_switches",
]

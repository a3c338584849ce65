"""Section 1: where base and tuned models differ. Here: what its notebook calls."""

from tokenshift_utils.sections.common import of_kind
from tokenshift_utils.sections.divergence import numbers, plots, precision, records
from tokenshift_utils.sections.overview import say_claims, section_claims

__all__ = ["numbers", "of_kind", "plots", "precision", "records", "say_claims", "section_claims"]

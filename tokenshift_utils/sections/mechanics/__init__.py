"""Section 3: new tokens, or known candidates in another order? Here: what its notebook calls."""

from tokenshift_utils.sections.mechanics import numbers, plots, records
from tokenshift_utils.sections.overview import say_claims, section_claims

__all__ = ["numbers", "plots", "records", "say_claims", "section_claims"]

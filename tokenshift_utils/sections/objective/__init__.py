"""Section 4: the divergence-weighted objective."""

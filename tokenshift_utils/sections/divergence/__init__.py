"""Section 1: where base and tuned models differ."""

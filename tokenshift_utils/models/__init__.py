"""One model: the policy protocol and what meets it."""

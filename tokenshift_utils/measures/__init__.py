"""Measures of next-token distributions, on tensors."""

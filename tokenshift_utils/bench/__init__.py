"""Costs against plain generation, as ratios."""

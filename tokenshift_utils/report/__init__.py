"""Estimates with intervals, tables, style of figures."""

"""Runs that make models, and one manager of them: the tiny study from nothing, a study's own data, the
weighted trainer.

Only ``tokenshift train`` imports this room; the analyses see its outputs (model directories,
benchmark files, logs) exactly as they would see anybody else's.
"""

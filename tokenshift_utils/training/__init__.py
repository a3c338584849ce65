"""Runs that make models: the tiny study from nothing, a study's own recipe, the weighted trainer.

Only ``tokenshift train`` imports this room; the analyses see its outputs (model directories,
benchmark files, logs) exactly as they would see anybody else's.
"""

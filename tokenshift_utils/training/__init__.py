"""Runs that make models, and one manager of them: the tiny study from nothing, a study's own data, the
weighted trainer.

``tokenshift train`` runs it; section 4, the plan and a bench read its runs and settings. The other analyses
see its outputs (model directories, benchmark files, logs) exactly as they would see anybody else's.
"""

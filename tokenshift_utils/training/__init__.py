"""Makes the embedded tiny study from nothing: task, corpus, tokenizer, base model, RLVR, SFT, model cards.

``launch``, ``runs``, ``prepare``, ``data`` and ``grpo`` make the tuned models of any study that has a ``training`` section.

Only ``tokenshift train`` imports this subpackage; the analyses see its outputs (model directories,
benchmark files, logs) exactly as they would see anybody else's.
"""

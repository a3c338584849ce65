"""The embedded study: its task, corpus, tokenizer, models and the comparison of objectives."""

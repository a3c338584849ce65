"""Problems and answers: benchmarks, prompts, verification."""

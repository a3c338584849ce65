"""How fast pairs are scored here: ``OMP_NUM_THREADS=1 python tests/benchmarks/scoring_speed.py``.

Prints positions a second of the tiny study's shifts on one thread; nothing else should be running.
Generation and cross-sampling are measured by ``tokenshift bench cross-sampling``.
"""

import time

from tokenshift_utils.bench.harness import TOP_P, study_pair
from tokenshift_utils.models.policy import Sampling
from tokenshift_utils.pairs.compare import score_pair
from tokenshift_utils.store.executor import one_thread

ROWS, TOKENS, BATCH, REPEATS = 240, 110, 48, 3


def main() -> None:
    """Score the base model's own responses a few times."""
    pair = study_pair("tiny", ROWS)
    sampling = Sampling(pair.temperature, TOP_P, TOKENS)
    policies = pair.primary, pair.intervention
    with one_thread():
        drawn = pair.primary.sample(pair.prompts, list(range(ROWS)), sampling)
        responses = [response.ids for response in drawn]
        for _ in range(REPEATS):
            start = time.perf_counter()
            blocks = score_pair(*policies, pair.prompts, responses, sampling, 10, BATCH)
            positions = sum(len(owner) for owner, _ in blocks)
            rate = positions / (time.perf_counter() - start)
            print(f"shifts of a pair {rate:8.0f} positions/s", flush=True)


if __name__ == "__main__":
    main()

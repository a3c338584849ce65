"""How fast the engine is here: ``OMP_NUM_THREADS=1 python tests/benchmarks/engine_speed.py``.

A random Llama of the tiny study's shape at a temperature that makes it about as sure as a trained
one. Prints tokens a second on one thread; nothing else should be running.
"""

import random
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tokenshift_utils.cross_sampling import Rule, cross_sample
from tokenshift_utils.hf_policy import HFPolicy
from tokenshift_utils.policy import Sampling
from tokenshift_utils.shifts import score_pair

ROWS, SAMPLES, TOKENS = 240, 32, 110
SAMPLING = Sampling(temperature=0.15, top_p=0.7, max_new_tokens=TOKENS)


class NoTokenizer:
    """Prompts are token ids here."""

    eos_token_id = None


def random_policy(name: str, noise: float) -> HFPolicy:
    """The same random weights plus noise."""
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        initializer_range=0.08,
        eos_token_id=None,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += noise * torch.randn_like(weight)
    return HFPolicy(model, NoTokenizer(), name)


def report(what: str, tokens: int, start: float) -> None:
    """Print a rate since ``start``."""
    print(f"{what:40s} {tokens / (time.perf_counter() - start):8.0f} tokens/s", flush=True)


def main() -> None:
    """Time sampling, lockstep cross-sampling and pair scoring."""
    torch.set_num_threads(1)
    base, tuned = random_policy("base", 0.0), random_policy("tuned", 0.002)
    generator = random.Random(0)
    distinct = [generator.choices(range(3, 128), k=20) for _ in range(ROWS // SAMPLES + 1)]
    prompts = [distinct[i // SAMPLES] for i in range(ROWS)]
    keys = list(range(ROWS))
    for _ in range(2):
        start = time.perf_counter()
        responses = [c.ids for c in base.sample(prompts, keys, SAMPLING)]
        report("sampling", ROWS * TOKENS, start)
        for rule in (Rule("js", 0.1), Rule("never")):
            start = time.perf_counter()
            runs, _ = cross_sample(base, tuned, prompts, keys, rule, SAMPLING, ROWS)
            share = sum(run.n_switched for run in runs) / (ROWS * TOKENS)
            report(f"cross-sampling, {rule.label}, {share:.1%} switched", ROWS * TOKENS, start)
        start = time.perf_counter()
        n = sum(len(o) for o, _ in score_pair(base, tuned, prompts, responses, SAMPLING, 10, 48))
        report("shifts of a pair", n, start)


if __name__ == "__main__":
    main()

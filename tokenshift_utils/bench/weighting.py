"""What the weights cost a training step, measured on the machine at hand.

A step is the loss of one micro-batch, forward and backward, without generation and without the
optimiser: the part that the weights are in, so their share of a whole training run is smaller.
"""

import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

from tokenshift_utils.bench.harness import Clock, PrintedColumn, seconds
from tokenshift_utils.measures.weighting import SIGNALS, Weighting
from tokenshift_utils.store.executor import one_thread
from tokenshift_utils.study.study import load_study
from tokenshift_utils.study.tokenizers import load_tokenizer
from tokenshift_utils.training.weighted_trainer import DivergenceWeightedGRPOTrainer

UNWEIGHTED = "none (TRL's own)"
ROWS, PROMPT, WIDTH = 32, 16, 96  # of the micro-batch: responses, their prompts and their tokens
REPEATS, QUICK_REPEATS = 40, 3
COLUMNS = (
    PrintedColumn("signal", "signal", width="<16"),
    PrintedColumn("ms_per_step", "ms a step", ".1f", ">9"),
    PrintedColumn("ms_of_weights", "of that for weights", ".2f", ">19"),
    PrintedColumn("extra", "of TRL's own step", ".2%", ">17"),
)


def bench(repeats: int = REPEATS, rows: int = ROWS, quick: bool = False) -> Iterator[dict]:
    """Milliseconds a step with TRL's trainer and with each signal, on the tiny study's base model.

    ``ms_of_weights`` is the part of a step that computes, applies and logs the weights, timed by
    itself because steps vary by more; ``extra`` is its share of a step of TRL's own. Signals take
    turns, so all rows come at the end. ``quick`` takes fewer turns.
    """
    study = load_study("tiny")
    directory = study.model_path(study.base)
    repeats = min(repeats, QUICK_REPEATS) if quick else repeats
    clock, parts = Clock("cpu"), {}
    with one_thread(), tempfile.TemporaryDirectory() as scratch:
        trainers = {n: _trainer(directory, scratch, n, rows) for n in (UNWEIGHTED, *SIGNALS)}
        inputs = _micro_batch(trainers[UNWEIGHTED], rows)
        for _, (name, trainer) in product(range(repeats), trainers.items()):
            spent = _time_weights(trainer)
            clock.time(name, partial(_step, trainer, inputs))
            parts[name] = min(parts.get(name, sum(spent)), sum(spent))
    for name, step in clock.best.items():
        yield {
            "signal": name,
            "ms_per_step": 1000 * step,
            "ms_of_weights": 1000 * parts[name],
            "extra": parts[name] / clock.best[UNWEIGHTED],
        }


def _time_weights(trainer: GRPOTrainer) -> list[float]:
    """Seconds that the next steps spend on weights, one entry a step; none with TRL's trainer."""
    spent: list[float] = []
    if isinstance(trainer, DivergenceWeightedGRPOTrainer):

        def weigh(*arguments):
            elapsed, _ = seconds(
                lambda: DivergenceWeightedGRPOTrainer._weigh(trainer, *arguments), "cpu"
            )
            spent.append(elapsed)

        trainer._weigh = weigh
    return spent


def _trainer(directory, scratch: str, name: str, rows: int) -> GRPOTrainer:
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    own = {}
    if name != UNWEIGHTED:
        own = {"weighting": Weighting(alpha=1.0, scale=1.0, signal=name)}
    if name in ("kl_ref", "js_ref"):
        own["reference"] = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return (DivergenceWeightedGRPOTrainer if own else GRPOTrainer)(
        model=model,
        processing_class=load_tokenizer(directory),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        train_dataset=Dataset.from_dict({"prompt": ["question:"] * rows}),
        args=GRPOConfig(
            output_dir=scratch,
            per_device_train_batch_size=rows,
            steps_per_generation=2,
            num_generations=rows,
            max_completion_length=WIDTH,
            loss_type="dapo",
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
        ),
        **own,
    )


def _micro_batch(trainer: GRPOTrainer, rows: int) -> dict[str, torch.Tensor]:
    """Random responses of like length, with the old log-probabilities of a policy nearby."""
    generator = torch.Generator().manual_seed(0)
    prompts, ids = (
        torch.randint(3, 60, (rows, width), generator=generator) for width in (PROMPT, WIDTH)
    )
    mask = torch.ones_like(ids)
    with torch.no_grad():
        both = torch.cat([prompts, ids], 1)
        logp = trainer._get_per_token_logps_and_entropies(
            trainer.model, both, torch.ones_like(both), WIDTH
        )[0]
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": torch.randn(rows, generator=generator),
        "old_per_token_logps": logp + 0.01 * torch.randn(logp.shape, generator=generator),
        "num_items_in_batch": 2 * mask.sum(),
    }


def _step(trainer: GRPOTrainer, inputs: dict) -> None:
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.zero_grad()
    trainer._compute_loss(trainer.model, inputs).backward()

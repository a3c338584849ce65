"""Run by test_multi_process, under ``accelerate launch`` or alone: the loss of a fixed micro-batch.

Arguments: directory of a base model, of a tuned one, and the file to write. Each process takes its
share of the rows; what is written is loss and gradient as the optimiser would see them.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from conftest import TinyPair
from trainers import ROWS, make, micro_batch

from tokenshift_utils.measures.weighting import Weighting

CASES = {
    "plain": None,
    "boost": Weighting(alpha=1e3, scale=1.0),
    "mean-1": Weighting(alpha=-1e3, scale=1.9, normalise=True),
}


def main(base: str, tuned: str, out: str) -> None:
    """Write {loss type: {case: {loss, gradient, logged weights}}} as JSON."""
    pair, found = TinyPair(Path(base), Path(tuned)), {}
    inputs = micro_batch(pair)
    for loss_type in ("dapo", "grpo"):
        for case, weighting in CASES.items():
            with tempfile.TemporaryDirectory() as directory:
                trainer = make(
                    pair, directory, weighting, loss_type=loss_type, num_generations=2,
                    per_device_train_batch_size=ROWS // int(os.environ.get("WORLD_SIZE", "1")),
                )  # fmt: skip
                accelerator = trainer.accelerator
                share = ROWS // accelerator.num_processes
                rows = slice(accelerator.process_index * share, None)
                own = {k: v[rows][:share] if v.dim() else v for k, v in inputs.items()}
                model = accelerator.prepare(trainer.model)
                model.train()
                trainer.current_gradient_accumulation_steps = 1
                loss = trainer._compute_loss(model, own)
                accelerator.backward(loss)
                gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
                logged = trainer._metrics["train"]
                found.setdefault(loss_type, {})[case] = {
                    "processes": accelerator.num_processes,
                    "loss": accelerator.gather(loss.detach()).mean().item(),
                    "gradient": gradient[:: len(gradient) // 50].tolist(),
                    "logged": {k: v[-1] for k, v in logged.items() if k.startswith("weights/")},
                }
    if accelerator.is_main_process:
        Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])

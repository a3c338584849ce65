"""Trainers on the random pair, and a micro-batch to hand them."""

import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer

from tokenshift_utils.measures.weighting import Weighting
from tokenshift_utils.training.updates import Updates
from tokenshift_utils.training.weighted_trainer import DivergenceWeightedGRPOTrainer

ROWS, WIDTH = 4, 7
HIGH = Weighting(alpha=1e3, scale=1.0)


def rewards(completions, **kwargs):
    return [float(len(text) % 3) for text in completions]


def make(pair, directory, weighting=None, cls=DivergenceWeightedGRPOTrainer, extra=(), **settings):
    """A trainer on the random pair's base; ``settings`` go to GRPOConfig, ``extra`` to the class."""
    given = {
        "output_dir": str(directory),
        "per_device_train_batch_size": ROWS,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": 2,
        "num_generations": 4,
        "max_completion_length": WIDTH,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 0,
    } | settings
    own = {"weighting": weighting, **dict(extra)} if cls is not GRPOTrainer else {}
    return cls(
        model=LlamaForCausalLM.from_pretrained(pair.base),
        processing_class=AutoTokenizer.from_pretrained(pair.base),
        reward_funcs=rewards,
        train_dataset=Dataset.from_dict({"prompt": ["question: what is 1+2?\n"] * 8}),
        args=GRPOConfig(**given),
        **own,
    )


def micro_batch(pair):
    """A micro-batch as TRL hands it to the loss, from a policy that has moved since it sampled."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([WIDTH, 5, 3, 6])
    mask = (torch.arange(WIDTH) < lengths[:, None]).long()
    ids = torch.randint(4, 30, (ROWS, WIDTH), generator=generator) * mask
    prompts = torch.randint(4, 30, (ROWS, 3), generator=generator)
    tuned = LlamaForCausalLM.from_pretrained(pair.tuned)
    with torch.no_grad():
        logits = tuned(torch.cat([prompts, ids], 1)).logits[:, 2:-1]
    old = logits.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": torch.tensor([1.0, -0.5, 0.3, -0.8]),
        "old_per_token_logps": old,
        "ref_per_token_logps": old - 0.01,
        "num_items_in_batch": mask.sum() * 2,
    }


def loss_and_gradient(trainer, inputs):
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
    return loss.detach(), gradient


def new_logps(trainer, inputs):
    """Log-probabilities of the micro-batch's tokens under the trainer's model, independently."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    start = inputs["prompt_ids"].shape[1]
    with torch.no_grad():
        logp = trainer.model(ids).logits[:, start - 1 : -1].log_softmax(-1)
    return logp, logp.gather(-1, inputs["completion_ids"][..., None]).squeeze(-1)


class Stop(Updates):
    """Updates that raises after some updates, as a killed run would end."""

    def __init__(self, file, after):
        super().__init__(file)
        self.after = after

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step == self.after:
            raise KeyboardInterrupt

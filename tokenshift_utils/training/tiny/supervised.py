"""Next-token training of the base model and of the two SFT controls, through TRL's SFTTrainer."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tokenshift_utils.training.tiny import corpus, demonstrations, recipes
from tokenshift_utils.training.tiny.problems import mentions_held_out, training_problems
from tokenshift_utils.training.tiny.recipes import SupervisedRecipe
from tokenshift_utils.training.updates import Updates, last_checkpoint

Writer = Callable[..., str]
STYLES: dict[str, Writer] = {
    "base": corpus.write_solution,
    "sft-far": demonstrations.write_far,
    "sft-near": demonstrations.write_near,
}


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A randomly initialised model of the tiny architecture, float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
        **recipes.ARCHITECTURE,
    )
    return LlamaForCausalLM(config)


def documents(recipe: SupervisedRecipe, style: str, seed: int) -> Iterator[tuple[str, str]]:
    """``recipe.documents`` pairs (prompt, continuation), none mentioning an evaluation problem."""
    rng = random.Random(f"{style} documents {seed}")
    problems = training_problems(recipe.tier_mix, rng)
    written = 0
    while written < recipe.documents:
        if rng.random() < recipe.exercise_share:
            prompt, text = "", corpus.write_exercise(rng)
        else:
            problem = next(problems)
            prompt, text = problem.prompt, STYLES[style](problem, rng)
        # Some problems lead to an evaluation problem by any road: then another problem is drawn.
        if not mentions_held_out(text):
            written += 1
            yield prompt, text


def token_batches(lengths: list[int], budget: int, rng: random.Random) -> list[list[int]]:
    """Indices of documents in batches of similar length and at most ``budget`` padded tokens.

    Every batch then has about as many tokens, so that long documents, where the working is, weigh
    as much a token as one-line guesses.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i] + rng.random())
    batches: list[list[int]] = []
    for i in order:
        if not batches or (len(batches[-1]) + 1) * lengths[i] > budget:
            batches.append([])
        batches[-1].append(i)
    rng.shuffle(batches)
    return batches


def _dataset(
    recipe: SupervisedRecipe, style: str, tokenizer: PreTrainedTokenizerFast, seed: int
) -> Dataset:
    """One row a batch: its documents, as TRL's collator takes them."""
    prompts, continuations = zip(*documents(recipe, style, seed))
    prompts = tokenizer(list(prompts))["input_ids"]
    continuations = tokenizer(list(continuations))["input_ids"]
    rows = []
    for prompt, text in zip(prompts, continuations):
        text = [*text, tokenizer.eos_token_id]
        rows.append({"input_ids": prompt + text, "labels": [-100] * len(prompt) + text})
    lengths = [len(row["input_ids"]) for row in rows]
    rng = random.Random(f"{style} batches {seed}")
    batches = [
        batch
        for _ in range(recipe.epochs)
        for batch in token_batches(lengths, recipe.batch_tokens, rng)
    ]
    return Dataset.from_list([{"documents": [rows[i] for i in batch]} for batch in batches])


def train_supervised(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    recipe: SupervisedRecipe,
    style: str,
    seed: int,
    output: Path,
    progress: Updates,
) -> list[dict[str, float]]:
    """Train ``model`` in place and return the loss curve.

    A run that was stopped goes on from its last checkpoint under ``output``.
    """
    dataset = _dataset(recipe, style, tokenizer, seed)
    steps, collate = len(dataset), DataCollatorForLanguageModeling(tokenizer.pad_token_id)
    # Eager attention is half again as fast as sdpa here: short rows, one thread, bfloat16.
    model.set_attn_implementation("eager")
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=dataset,
        data_collator=lambda rows: collate(rows[0]["documents"]),
        callbacks=[progress],
        args=SFTConfig(
            output_dir=str(output),
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            per_device_train_batch_size=1,
            num_train_epochs=1,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=recipe.warmup_steps,
            weight_decay=recipe.weight_decay,
            adam_beta2=0.98,
            max_grad_norm=1.0,
            gradient_checkpointing=False,
            bf16=True,
            use_cpu=True,
            seed=seed,
            save_steps=max(1, steps // 6),
            save_total_limit=1,
            logging_steps=max(1, steps // 50),
            report_to="none",
            disable_tqdm=True,
        ),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_checkpoint(output))
    return [
        {"step": row["step"], "loss": row["loss"], "learning_rate": row["learning_rate"]}
        for row in trainer.state.log_history
        if "loss" in row
    ]

"""One run of a study that trains LoRA adapters: RL on drawn responses, SFT, or DPO.

RL goes through the same trainer as the tiny study's (``tiny.rlvr.RLVRTrainer``: dynamic sampling,
divergence weights), in float32: in bfloat16 a token's log-probability differs by some hundredths
from one batch to another, and k3, which the weights are made of, would be of that more than of what
an update did. On a GPU products are in TF32. An arm without weights may ask for ``bf16``, which
takes some CPUs half the time; its k3 is left out of its tables. Responses come from a bfloat16 copy with the
adapter merged, whose log-probabilities are not used. The adapter is saved in bfloat16, at the end and along
the way where the study has checkpoints.
"""

from __future__ import annotations

import json
import math
import os
import platform
import random
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import datasets
import pandas as pd
import peft
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError, first_line
from tokenshift_utils.files import atomic_directory, write_text
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.records.requests import study_sampling
from tokenshift_utils.study.checkpoints import BASE, weights_digest
from tokenshift_utils.study.study import Study
from tokenshift_utils.study.tokenizers import load_tokenizer
from tokenshift_utils.training.evaluation import Evaluator, Question, measure_shift
from tokenshift_utils.training.logs import accuracy, arm_tables, totals
from tokenshift_utils.training.position_sets import SHIFT_SAMPLES
from tokenshift_utils.training.recipe.cards import write_card
from tokenshift_utils.training.recipe.grpo import COLUMNS, grpo_config
from tokenshift_utils.training.recipe.prefix_sharing import ROWS, ReadsPrefixesOnce
from tokenshift_utils.training.recipe.runs import (
    AdapterArm,
    problems_file,
    read_prepared,
    start_directory,
)
from tokenshift_utils.training.recipe.sampler import (
    MergedSampler,
    benchmark_questions,
    device,
    load_start,
)
from tokenshift_utils.training.runs import digest, work_directory
from tokenshift_utils.training.settings import CONFIGS, check_settings, trl_fields
from tokenshift_utils.training.tiny.rlvr import RLVRTrainer, train_rl
from tokenshift_utils.training.updates import Updates, last_checkpoint

# Of TRL's losses: those whose gradient is a sum over rows or tokens, however they are divided.
SUMMED_LOSSES = ("dapo", "dr_grpo", "grpo")


def prepared_questions(study: Study) -> list[Question]:
    """The prepared problems, by their row."""
    rows = pq.read_table(problems_file(study)).to_pylist()
    return [
        Question("answers", i, row["prompt"], row["prompt"], row["answer"])
        for i, row in enumerate(rows)
    ]


def new_adapter(study: Study, seed: int) -> peft.PeftModel:
    """The base in float32 with a fresh adapter, whose random half is of the seed."""
    lora = study.training.lora
    model = load_start(study, torch.float32)
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, config)


def save_adapter(run: AdapterArm, model: peft.PeftModel, directory: Path) -> None:
    """Save the adapter in bfloat16, whole or not at all."""
    weights = {
        name: weight.detach().to("cpu", torch.bfloat16).contiguous()
        for name, weight in peft.get_peft_model_state_dict(model).items()
    }
    base = run.study.models[run.study.base]
    content = model.peft_config["default"].to_dict() | {
        "base_model_name_or_path": base.path or base.hub,
        "inference_mode": True,
    }
    content["target_modules"] = sorted(content["target_modules"])
    content = {k: v for k, v in content.items() if v is not None}
    settings = json.dumps(content, indent=1, sort_keys=True, default=str)
    with atomic_directory(directory) as draft:
        save_file(weights, draft / "adapter_model.safetensors", metadata={"format": "pt"})
        write_text(draft / "adapter_config.json", settings + "\n")
        write_text(draft / BASE, json.dumps(base_identity(run.study), indent=1) + "\n")


def base_identity(study: Study) -> dict:
    """Which weights an adapter of the study goes on."""
    spec = study.models[study.base]
    known = {"label": spec.label, "weights_digest": weights_digest(study.model_path(study.base))}
    return known | ({"wheel": spec.wheel.model_dump()} if spec.wheel else {})


def machine() -> dict[str, str]:
    """Where this runs, for the record."""
    place = torch.cuda.get_device_name() if device() == "cuda" else f"CPU, {platform.machine()}"
    packages = ("torch", "transformers", "trl", "peft")
    return {"device": place} | {name: version(name) for name in packages}


def evaluator(run: AdapterArm, questions: list[Question], samples: int) -> Evaluator:
    """Draws responses to benchmarks as the study samples, after the rollouts at which it evaluates."""
    study = run.study
    sampling = study_sampling(study)
    return Evaluator(questions, samples, run.seed, sampling, study.verifier, run.evaluations)


# RL -----------------------------------------------------------------------------------------------


class ResumesAdapter:
    """Goes on from a checkpoint with the adapter that is trained.

    TRL keeps the frozen start beside it, as adapter "ref", where a KL penalty or DPO asks for it.
    PEFT then saves the trained one in the checkpoint itself and "ref" in a folder inside, and of
    those two transformers' Trainer reads back the folder alone.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model=model)
        model = self.accelerator.unwrap_model(self.model if model is None else model)
        weights = load_file(Path(resume_from_checkpoint) / "adapter_model.safetensors")
        peft.set_peft_model_state_dict(model, weights, adapter_name="default")


class _SFTTrainer(ResumesAdapter, SFTTrainer):
    pass


class _DPOTrainer(ResumesAdapter, DPOTrainer):
    pass


class AdapterTrainer(ResumesAdapter, RLVRTrainer, ReadsPrefixesOnce):
    """The tiny study's trainer on a study's problems, its responses drawn with the adapter merged.

    Rows that begin alike share a micro-batch, in which what they share is read once.
    """

    columns = COLUMNS | {"groups_equal_share": "groups_equal"}
    sampling_rounds = 4
    first_round = 1.5  # a wider round takes a GPU hardly longer, a second one as long again

    def __init__(self, *args, run: AdapterArm, sampler: MergedSampler, **kwargs):
        super().__init__(*args, **kwargs)
        self.run, self.sampler = run, sampler
        self.problems = prepared_questions(run.study)
        self._merged_at = -1
        self._scores_later = False

    @property
    def _first_update_is_old(self) -> bool:
        """Whether old log-probabilities are needed, and behind a rollout's first update alone."""
        several = self.args.steps_per_generation > self.args.gradient_accumulation_steps
        return several and self.weighting is None and self.num_iterations == 1

    def _before_updates(self, micro_batches):
        if not self._first_update_is_old:
            return
        for i, micro_batch in enumerate(micro_batches):
            if i < self.args.gradient_accumulation_steps:
                del micro_batch["old_per_token_logps"]  # TRL then takes the update's own
            else:
                micro_batch["old_per_token_logps"] = self._old_logps(micro_batch)

    @torch.no_grad()
    def _old_logps(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        ids, seen = (
            torch.cat([batch[f"{part}_{name}"] for part in ("prompt", "completion")], 1)
            for name in ("ids", "mask")
        )
        width = batch["completion_ids"].shape[1]
        return self._get_per_token_logps_and_entropies(self.model, ids, seen, width)[0]

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
    ):
        if self._scores_later:  # TRL's first question about a rollout
            self._scores_later = False
            return torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device), None, None
        return super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )

    def _draw_problems(self, rng: random.Random, count: int) -> list[Question]:
        if count > len(self.problems):
            raise TokenshiftError(
                f"{self.run.name} draws {count} problems at once, and 'training.data' has "
                f"{len(self.problems)}: give more, or make rollouts smaller"
            )
        return rng.sample(self.problems, count)

    def _sampling_policy(self) -> MergedSampler:
        if self._merged_at != self.state.global_step:
            self.sampler.merge(self.accelerator.unwrap_model(self.model))
            self._merged_at = self.state.global_step
        return self.sampler

    @staticmethod
    def _row_order(update: dict[str, torch.Tensor]) -> torch.Tensor:
        texts = torch.cat([update["prompt_ids"], update["completion_ids"]], 1).tolist()
        return torch.tensor(sorted(range(len(texts)), key=texts.__getitem__))

    def _keep(self, directory: Path) -> None:
        save_adapter(self.run, self.model, directory)

    def _too_few(self, kept, sampled, rollout):
        """Fill up with groups that move nothing, as without dynamic sampling."""
        equal = [group for group in sampled if not group.informative]
        return (kept + equal)[: self.recipe.prompts_per_rollout]

    def _generate_and_score_completions(self, inputs):
        self._scores_later = self._first_update_is_old
        output = super()._generate_and_score_completions(inputs)
        equal = [not group.informative for group in self._groups]
        self._metrics["train"]["groups_equal"].append(sum(equal) / len(equal))
        return output


def _train_rl(
    run: AdapterArm, callbacks, settings: dict
) -> tuple[peft.PeftModel, pd.DataFrame, pd.DataFrame]:
    study, evaluate = run.study, run.study.training.evaluate
    first, bf16 = benchmark_questions(study, evaluate.problems), bool(run.trl.get("bf16"))
    trainer = AdapterTrainer(
        new_adapter(study, run.seed),
        load_tokenizer(start_directory(study)),
        run.recipe,
        grpo_config(run, **_machine_settings(bf16), **micro_batches(run), **settings),
        evaluator(run, first, evaluate.samples),
        callbacks,
        run.checkpoints,
        token_tables=run.token_tables,
        run=run,
        sampler=MergedSampler(study),
    )
    torch.set_float32_matmul_precision("high")
    try:
        log, curve = train_rl(trainer)
    finally:
        torch.set_float32_matmul_precision("highest")
    return trainer.accelerator.unwrap_model(trainer.model), log, curve


def _machine_settings(bf16: bool) -> dict:
    return {"use_cpu": device() == "cpu", "bf16": bf16, "disable_tqdm": True}


def micro_batches(run: AdapterArm) -> dict[str, int]:
    """The study's micro-batches put together, up to ``ROWS`` rows: fewer that share more.

    Only where the update is the same: not where weights, a loss's mean or an entropy's quantile are
    taken within a micro-batch.
    """
    within = run.objective.weighting is not None or run.trl.get("top_entropy_quantile", 1.0) < 1.0
    if within or run.trl.get("loss_type", "dapo") not in SUMMED_LOSSES:
        return {}
    rows, each = (
        run.trl.get(name, trl_fields("trl", "GRPOConfig")[name].default)
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps")
    )
    together = max(n for n in range(1, each + 1) if each % n == 0 and (n == 1 or rows * n <= ROWS))
    return {
        "per_device_train_batch_size": rows * together,
        "gradient_accumulation_steps": each // together,
        "steps_per_generation": run.trl.get("steps_per_generation", each) // together,
    }


# SFT and DPO --------------------------------------------------------------------------------------


def base_answers(study: Study) -> pd.DataFrame:
    """What base answers to the training problems, drawn once for all arms that learn from it.

    Columns: problem (its row), sample, text (with the end-of-turn token), correct; sampled as the
    study samples, the finished ones only.
    """
    settings, seed = study.training.answers, study.training.seeds[0]
    sampling = replace(study_sampling(study), max_new_tokens=check_settings(study).longest)
    problems = prepared_questions(study)[: settings.problems]
    of = digest(
        [settings.model_dump(), asdict(sampling), read_prepared(study)["digest"], seed]
        + [study.verifier, study.stop_tokens, weights_digest(start_directory(study))]
    )
    drawn = Evaluator(problems, settings.samples, seed, sampling, study.verifier)
    file = work_directory(study) / f"answers-{of}.parquet"
    return drawn.answers_once(file, lambda: MergedSampler(study))


def sft_rows(run: AdapterArm) -> list[dict[str, str]]:
    """Prompts with what is learnt to answer: a column of the data, or base's own right answers."""
    study, end = run.study, load_tokenizer(start_directory(run.study)).eos_token
    problems = prepared_questions(study)
    if run.objective.solution is not None:
        texts = pq.read_table(problems_file(study))[run.objective.solution].to_pylist()
        count = study.training.answers.problems if study.training.answers else len(problems)
        pairs = list(zip(problems, texts))[:count]
        return [{"prompt": p.prompt, "completion": f"{text}{end}"} for p, text in pairs]
    right = base_answers(study).query("correct").drop_duplicates(["problem", "text"])
    kept = right.groupby("problem").head(study.training.answers.kept)
    return [
        {"prompt": problems[row.problem].prompt, "completion": row.text}
        for row in kept.itertuples()
    ]


def dpo_rows(run: AdapterArm) -> list[dict[str, str]]:
    """Prompts with a right and a wrong answer of base's, in pairs dealt out by the run's seed."""
    problems, rng, rows = prepared_questions(run.study), random.Random(f"dpo {run.seed}"), []
    for problem, answers in base_answers(run.study).groupby("problem"):
        right = sorted(set(answers[answers["correct"]]["text"]))
        wrong = sorted(set(answers[~answers["correct"]]["text"]))
        count = min(len(right), len(wrong), run.study.training.answers.kept)
        for chosen, rejected in zip(rng.sample(right, count), rng.sample(wrong, count)):
            prompt = problems[problem].prompt
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def _train_offline(
    run: AdapterArm, callbacks, settings: dict
) -> tuple[peft.PeftModel, pd.DataFrame, int]:
    """SFT or DPO on base's answers or a column of the data."""
    study, kind = run.study, run.objective.kind
    rows = sft_rows(run) if kind == "sft" else dpo_rows(run)
    if not rows:
        raise TokenshiftError(
            f"{run.name} has nothing to learn: base answered none of "
            f"{study.training.answers.problems} problems as it needs ('training.answers')"
        )
    given = {"report_to": "none", "logging_steps": 1, "max_length": None}
    given |= {"save_strategy": "steps", "save_steps": 50, "save_total_limit": 1, **run.trl}
    given |= {"output_dir": str(run.output), "seed": run.seed}
    given |= _machine_settings(bf16=True) | settings
    configs = {"sft": (SFTConfig, _SFTTrainer), "dpo": (DPOConfig, _DPOTrainer)}
    config_class, trainer_class = configs[kind]
    try:
        config = config_class(**given)
    except (TypeError, ValueError, ImportError) as error:
        raise TokenshiftError(
            f"study {study.name}: TRL's {CONFIGS[kind]} refuses 'training.arms.{run.arm}.trl' "
            f"({first_line(error)})"
        ) from error
    trainer = trainer_class(
        model=new_adapter(study, run.seed),
        processing_class=load_tokenizer(start_directory(study)),
        train_dataset=datasets.Dataset.from_list(rows),
        args=config,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_checkpoint(config.output_dir))
    names = {"step": "update", "loss": "loss", "grad_norm": "grad_norm"}
    names |= {"learning_rate": "learning_rate"}
    names |= {"rewards/accuracies": "pairs_right", "rewards/margins": "margin"}
    log = pd.DataFrame([entry for entry in trainer.state.log_history if "loss" in entry])
    log = log.rename(columns=names)[[to for of, to in names.items() if of in log]]
    return trainer.accelerator.unwrap_model(trainer.model), log, len(rows)


# A run --------------------------------------------------------------------------------------------


def train_adapter(run: AdapterArm, *callbacks: TrainerCallback, **settings) -> None:
    """Make a run, from its last checkpoint where there is one; ``settings`` go before TRL's.

    Leaves the adapter with its card, and under ``run.logs``: ``log.csv`` (one row an update),
    ``eval.csv`` (accuracy along the run), ``final.csv`` (right answers of each problem at the end),
    ``tokens.csv`` (of RL: k3 and weight by token) and ``summary.json``.
    """
    started, study = time.time(), run.study
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # rollout_func is experimental; TRL is pinned
    if device() == "cpu":
        torch.set_num_threads(1)
    run.prepare()
    run.begin()
    callbacks = (Updates(run.progress_file), *callbacks)
    resumed = last_checkpoint(run.output) is not None
    rows = None
    # TRL's head scores a prompt's positions too where there is no Triton, for compilers that want fixed
    # shapes; here that would be five sixths of its work.
    with mock.patch("trl.trainer.utils._use_triton", return_value=True):
        if run.objective.kind == "rl":
            model, log, curve = _train_rl(run, callbacks, settings)
        else:
            model, log, rows = _train_offline(run, callbacks, settings)
            curve = pd.DataFrame(columns=["rollout", "benchmark", "accuracy"])
    trained = time.time() - started
    save_adapter(run, model, run.model)
    final, shift = _measure(run, model)
    summary = {
        "arm": run.arm,
        "kind": run.objective.kind,
        "seed": run.seed,
        "key": run.key,
        "base": base_identity(study),
        **run.settings,
        "data": read_prepared(study)["counts"],
        "rows": rows,
        "accuracy": {k: round(v, 6) for k, v in accuracy(final).items()},
        "totals": totals(log) if run.objective.kind == "rl" else {},
        "shift": shift,
        "seconds": round(time.time() - started),  # of the last command alone, where it went on
        "seconds_training": round(trained),
        "resumed": resumed,
        "machine": machine(),
    }
    tables = arm_tables(run, load_tokenizer(start_directory(study)), log, curve, final)
    if run.objective.kind == "rl" and run.trl.get("bf16"):
        for table in (tables["log"][0], tables["tokens"][0]):
            table[table.filter(like="k3_").columns] = math.nan
    for directory in (run.model, *run.checkpoints.values()):
        write_card(run, directory, summary, log, tables["eval"][0])
    run.finish(summary, **tables)
    print(f"trained {run.name}: {paths.display(run.model)}", flush=True)


def _measure(run: AdapterArm, model: peft.PeftModel) -> tuple[pd.DataFrame, dict]:
    """Final responses to the benchmarks, and the shift from base on them and on base's own.

    Of the adapter as it is saved, in bfloat16. Responses are drawn from bfloat16 copies; the shift is
    measured in float32.
    """
    study, evaluate = run.study, run.study.training.evaluate
    start = start_directory(study)
    sampler, tokenizer = MergedSampler(study), load_tokenizer(start)
    every = evaluator(run, benchmark_questions(study), evaluate.final_samples)
    fixed = replace(every, samples=SHIFT_SAMPLES, seed=study.seed).answers(sampler)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(weight.to(torch.bfloat16))
    sampler.merge(model)
    final = every.answers(sampler)
    model = model.to(device()).eval()
    tuned = HFPolicy(model.merge_and_unload(), tokenizer, run.arm)
    base = HFPolicy(load_start(study, torch.float32).eval(), tokenizer, study.base)
    return final, measure_shift(study, base, tuned, final, fixed)

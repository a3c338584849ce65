"""Training of the embedded study: end to end on a minute plan, resumption, dynamic sampling."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from trainers import Stop

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures.weighting import Weighting
from tokenshift_utils.models.policy import Continuation, Sampling
from tokenshift_utils.study.study import load_study
from tokenshift_utils.training import logs as training_logs
from tokenshift_utils.training.evaluation import Evaluator
from tokenshift_utils.training.tiny import recipes, rlvr, supervised
from tokenshift_utils.training.tiny.models import train
from tokenshift_utils.training.tiny.recipes import Plan
from tokenshift_utils.training.tiny.tokenizer import build_tokenizer
from tokenshift_utils.training.updates import Updates

SFT = replace(recipes.TINY.sft["sft-near"], documents=60, batch_tokens=1024, warmup_steps=1)
RL = replace(
    recipes.TINY.rl["dapo"],
    prompts_per_rollout=8,
    responses_per_prompt=8,
    rollouts=2,
    updates_per_rollout=2,
    max_new_tokens=20,
    overlong_buffer=8,
    dynamic_sampling=False,  # an untrained model has no informative group
)
NO_EVALUATION = Evaluator((), 1, 0, Sampling(max_new_tokens=4))


def rl_trainer(directory, recipe=RL, callbacks=(), cls=rlvr.RLVRTrainer, **options):
    """A trainer of an untrained model."""
    tokenizer = build_tokenizer()
    model, args = supervised.new_model(tokenizer, 0), rlvr.trl_config(recipe, 0, directory)
    return cls(model, tokenizer, recipe, args, NO_EVALUATION, callbacks, **options)


@pytest.fixture
def tiny_root(tmp_path, monkeypatch):
    """An empty root with the study files only."""
    shutil.copytree(paths.root() / "notebooks" / "studies", tmp_path / "notebooks" / "studies")
    monkeypatch.setenv("TOKENSHIFT_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_train_makes_models_logs_and_cards(tiny_root):
    study = load_study("tiny").with_overrides(
        **{"sampling.max_new_tokens": 8, "samples.accuracy": 1, "samples.controls": 1,
           "samples.shifts": 1, "samples.checkpoints": 1, "workers": 0}
    )  # fmt: skip
    plan = Plan(
        base=replace(recipes.TINY.base, documents=120, batch_tokens=2048, warmup_steps=1),
        sft={"sft-near": SFT},
        rl={"dapo": replace(RL, weighting=Weighting(100.0, 1.0))},
        checkpoints={"dapo": (1,)},
        evaluations=(2,),
        evaluation_samples=1,
        replicates={"dapo": (2,)},
    )
    train(study, plan=plan)
    again = study.model_path("dapo").with_name("dapo-seed-2")
    assert "Seed 2." in (again / "README.md").read_text()
    seeds = [load_file(d / "model.safetensors") for d in (study.model_path("dapo"), again)]
    assert any((seeds[0][name] != seeds[1][name]).any() for name in seeds[0])
    for name in ("base", "dapo", "dapo@1", "sft-near"):
        directory = study.model_path(name)
        weights = load_file(directory / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
        assert "## Accuracy" in (directory / "README.md").read_text()
    assert sum(1 for _ in study.benchmark_path("hard").open()) == 60
    logs = tiny_root / "results/tiny/training/dapo"
    log = pd.read_csv(logs / "log.csv")
    assert list(log["update"]) == [1, 2, 3, 4] and list(log["rollout"]) == [1, 1, 2, 2]
    assert log["tokens_generated"].notna().tolist() == [True, False, True, False]
    assert log["k3_mean"].iloc[0] == 0 < log["k3_mean"].iloc[1]
    assert log["weight_mean"].iloc[0] == 1 < log["weight_mean"].iloc[1]
    assert set(pd.read_csv(logs / "eval.csv")["rollout"]) == {2}
    before = {n: (study.model_path(n) / "model.safetensors").stat().st_mtime_ns for n in plan.rl}
    train(study, plan=plan)  # nothing left to do
    assert before == {
        n: (study.model_path(n) / "model.safetensors").stat().st_mtime_ns for n in plan.rl
    }


def test_train_refuses_what_it_has_no_recipe_for(tiny_root):
    with pytest.raises(TokenshiftError, match="no recipe for model 'llama'"):
        train(load_study("tiny"), only=["llama"])
    with pytest.raises(TokenshiftError, match="'base', from which the others start, is missing"):
        train(load_study("tiny"), only=["dapo"])
    assert not (tiny_root / "results").exists()


def _weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_supervised_run_resumes_where_it_stopped(tmp_path):
    tokenizer = build_tokenizer()

    def run(work, progress):
        model = supervised.new_model(tokenizer, 0)
        supervised.train_supervised(model, tokenizer, SFT, "sft-near", 0, work, progress)
        return _weights(model)

    whole = run(tmp_path / "whole", Updates(tmp_path / "p"))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", Stop(tmp_path / "p", after=7))
    torch.testing.assert_close(run(tmp_path / "cut", Updates(tmp_path / "p")), whole)
    done, total = Updates.read(tmp_path / "p")
    assert done == total > 7


def test_rl_run_resumes_where_it_stopped(tmp_path):
    def run(work, *callbacks):
        trainer = rl_trainer(work, callbacks=callbacks)
        log, _ = rlvr.train_rl(trainer)
        return _weights(trainer.model), log

    whole, log = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", Stop(tmp_path / "p", after=3))
    (tmp_path / "cut/checkpoint-9").mkdir()  # one that a kill left half written
    resumed, resumed_log = run(tmp_path / "cut")
    torch.testing.assert_close(resumed, whole)
    pd.testing.assert_frame_equal(resumed_log, log)


def _group(*correct: bool) -> rlvr.Group:
    return rlvr.Group("question", [3], [Continuation([1], [0.0], "eos")] * len(correct), [*correct])


def _trainer(recipe, rounds):
    trainer = object.__new__(rlvr.RLVRTrainer)
    trainer.recipe, trainer.args = recipe, SimpleNamespace(seed=0)
    made = iter(rounds)
    trainer.asked = []
    trainer._sample_round = lambda rng, where, count: trainer.asked.append(count) or next(made)
    return trainer


def test_dynamic_sampling_drops_all_equal_groups_and_samples_more():
    mixed, right, wrong = _group(True, False), _group(True, True), _group(False, False)
    recipe = replace(RL, dynamic_sampling=True, prompts_per_rollout=3)
    trainer = _trainer(recipe, [[mixed, right, wrong], [mixed, mixed, mixed]])
    kept, sampled = trainer._sample_groups(0)
    assert kept == [mixed] * 3 and len(sampled) == 6 and trainer.asked == [3, 3]
    frugal = _trainer(replace(recipe, refill_whole=False), [[mixed, right, mixed], [mixed, wrong]])
    kept, sampled = frugal._sample_groups(0)
    assert kept == [mixed] * 3 and frugal.asked == [3, 2]
    hopeless = _trainer(recipe, [[right, wrong, right]] * 50)
    with pytest.raises(RuntimeError, match="too easy or too hard"):
        hopeless._sample_groups(0)


def test_without_dynamic_sampling_every_group_is_kept():
    groups = [_group(True, True), _group(False, False), _group(True, False)]
    recipe = replace(RL, prompts_per_rollout=3)
    kept, sampled = _trainer(recipe, [groups])._sample_groups(0)
    assert kept == sampled == groups


def test_trimmed_scoring_changes_no_log_probability(tmp_path):
    found = {}
    for trim in (False, True):
        scored = found[trim] = []

        class Watched(rlvr.RLVRTrainer):
            def _generate_and_score_completions(self, inputs, scored=scored):
                output = super()._generate_and_score_completions(inputs)
                scored.append(output["old_per_token_logps"] * output["completion_mask"])
                return output

        recipe = replace(RL, rollouts=1)
        trainer = rl_trainer(tmp_path / str(trim), recipe, cls=Watched, trim_scoring=trim)
        rlvr.train_rl(trainer)
    torch.testing.assert_close(found[True], found[False], rtol=0, atol=1e-5)
    assert found[True][0].count_nonzero() > 100


def test_overlong_penalty_by_hand():
    penalty = training_logs.overlong_penalty(limit=100, buffer=20)
    ids = [[0] * n for n in (10, 80, 85, 90, 100)]
    assert penalty([None] * 5, completion_ids=ids) == [0, 0, -0.25, -0.5, -1]


def test_sorting_micro_batches_keeps_every_row_and_token():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 9, (12,), generator=generator)
    mask = (torch.arange(9) < lengths[:, None]).long()
    prompt_lengths = torch.randint(1, 4, (12,), generator=generator)
    prompt_mask = (torch.arange(3) >= 3 - prompt_lengths[:, None]).long()
    rows = {
        "prompt_ids": torch.arange(36).view(12, 3) * prompt_mask,
        "prompt_mask": prompt_mask,
        "completion_ids": torch.arange(1, 109).view(12, 9) * mask,
        "completion_mask": mask,
        "advantages": torch.arange(12.0),
        "num_items_in_batch": lengths.sum(),
    }
    cut = [{k: v[i : i + 4] if v.dim() else v for k, v in rows.items()} for i in (0, 4, 8)]
    result = rlvr.sort_rows(cut, rlvr.RLVRTrainer._row_order)
    assert [len(batch["advantages"]) for batch in result] == [4, 4, 4]
    seen = []
    for batch in result:
        assert batch["completion_mask"].any(0).all() and batch["prompt_mask"].any(0).all()
        assert batch["num_items_in_batch"] == lengths.sum()
        for i, row in enumerate(batch["advantages"].long().tolist()):
            seen.append(row)
            own = batch["completion_ids"][i][batch["completion_mask"][i].bool()]
            assert own.tolist() == rows["completion_ids"][row, : lengths[row]].tolist()
            prompt = batch["prompt_ids"][i][batch["prompt_mask"][i].bool()]
            assert prompt.tolist() == rows["prompt_ids"][row][prompt_mask[row].bool()].tolist()
    assert sorted(seen) == list(range(12)) and lengths[seen].tolist() == sorted(lengths.tolist())

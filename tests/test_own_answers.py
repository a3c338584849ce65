"""Controls that learn from base's own answers: what they learn from, when they stop, resumption."""

import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch
from trainers import Stop
from transformers import LlamaForCausalLM, TrainerControl, TrainerState

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.study.study import load_study
from tokenshift_utils.tasks.verifier import is_correct
from tokenshift_utils.training.tiny import own_answers, recipes
from tokenshift_utils.training.tiny.models import load_base, train
from tokenshift_utils.training.tiny.problems import held_out_expressions
from tokenshift_utils.training.tiny.recipes import OwnAnswersRecipe
from tokenshift_utils.training.tiny.runs import ModelRun
from tokenshift_utils.training.updates import Updates

SHIPPED = paths.root()
FEW = OwnAnswersRecipe(
    "sft",
    most_updates=4,
    problems=12,
    responses_per_prompt=6,
    update=32,
    evaluate_every=2,
    validation=2,
)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A root of its own with the shipped base and dapo."""
    shutil.copytree(SHIPPED / "notebooks/studies", tmp_path / "notebooks" / "studies")
    for model in ("base", "dapo"):
        place = f"results/tiny/models/{model}"
        shutil.copytree(SHIPPED / place, tmp_path / place)
    monkeypatch.setenv("TOKENSHIFT_HOME", str(tmp_path))
    (tmp_path / "results/tiny/training/work").mkdir(parents=True)
    return tmp_path


def made(recipe, name="sft-own", progress=None):
    run = ModelRun(load_study("tiny"), name, replace(recipes.TINY, own={name: recipe}))
    model, tokenizer = load_base(run.study)
    progress = progress or Updates(run.progress_file)
    found = own_answers.train_own_answers(run, model, tokenizer, progress)
    return torch.cat([p.detach().flatten() for p in model.parameters()]), *found


def load_base_of(directory) -> torch.Tensor:
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_base_answers_are_of_training_problems_and_judged_right(root):
    run = ModelRun(load_study("tiny"), "sft-own", replace(recipes.TINY, own={"sft-own": FEW}))
    base = HFPolicy.load(run.study.model_path("base"), "base")
    answers = own_answers.base_answers(base, run)
    assert not answers.duplicated(["problem", "text"]).any()
    assert answers["problem"].nunique() <= 12 and not held_out_expressions() & set(
        answers["problem"]
    )
    for row in answers.itertuples():
        # Python's own arithmetic, and the text without the token that ends it
        right = is_correct(row.text.removesuffix("<eos>"), str(eval(row.problem)), "boxed")
        assert right == row.correct and row.problem in row.prompt
    rows = own_answers.sft_rows(answers, replace(FEW, kept=2))
    assert {r["completion"] for r in rows} <= set(answers[answers["correct"]]["text"])
    assert max(pd.Series([r["prompt"] for r in rows]).value_counts()) == 2
    pairs = own_answers.dpo_rows(answers, FEW)
    judged = answers.set_index(["prompt", "text"])["correct"]
    assert len(pairs) > 1
    for pair in pairs:
        assert judged[pair["prompt"], pair["chosen"]]
        assert not judged[pair["prompt"], pair["rejected"]]


@pytest.mark.parametrize("method, beta", [("sft", None), ("dpo", 0.1)])
def test_a_run_resumes_where_it_stopped(root, method, beta):
    recipe = replace(FEW, method=method, beta=beta)
    whole, log, curve, totals = made(recipe)
    assert list(log["update"]) == [1, 2, 3, 4] and list(curve["update"]) == [2, 4]
    assert (curve["kl"] > 0).all() and totals["updates"] == 4
    assert totals["updates_to_its_kl"] is None  # four updates are few: the last model is kept
    kept = load_base_of(root / "results/tiny/training/work/sft-own/kl")
    torch.testing.assert_close(kept, whole)
    run = ModelRun(load_study("tiny"), "again", replace(recipes.TINY, own={"again": recipe}))
    with pytest.raises(KeyboardInterrupt):
        made(recipe, "again", Stop(run.progress_file, after=3))
    resumed, again, curve_again, _ = made(recipe, "again")
    torch.testing.assert_close(resumed, whole)
    pd.testing.assert_frame_equal(again, log)
    pd.testing.assert_frame_equal(curve_again, curve)


def test_a_model_is_kept_where_it_is_as_far_as_the_other(root):
    run = ModelRun(load_study("tiny"), "sft-own", replace(recipes.TINY, own={"sft-own": FEW}))
    model, _ = load_base(run.study)
    measured = iter([(0.2, 0.1), (0.4, 0.3), (0.3, 0.2), (0.6, 0.0), (0.7, 0.5)])
    keep = own_answers.KeepWhere(
        2,
        own_answers.Evaluation(0.5, 0.2),
        run.kept,
        lambda model: own_answers.Evaluation(*next(measured)),
    )
    state, control, seen = TrainerState(), TrainerControl(), []
    for state.global_step in range(1, 9):
        keep.on_step_end(None, state, control, model=model)
        seen.append(
            ([name for name in run.kept if run.kept[name].is_dir()], control.should_training_stop)
        )
    assert [row["step"] for row in state.log_history] == [2, 4, 6, 8]
    none, kl, both = ([], False), (["kl"], False), (["kl", "accuracy"], True)
    assert seen == [none, none, none, kl, kl, kl, kl, both]


def test_the_last_update_is_the_last(tmp_path):
    goal, control = own_answers.Evaluation(1.0, 1.0), TrainerControl(should_training_stop=True)
    keep = own_answers.KeepWhere(1, goal, {"kl": tmp_path}, lambda model: replace(goal, kl=0.5))
    keep.on_step_end(None, TrainerState(global_step=1), control, model=torch.nn.Linear(1, 1))
    assert control.should_training_stop and not any(tmp_path.iterdir())


def test_evaluation_is_the_share_of_right_answers_and_kl_of_base_to_itself_is_0(root):
    study = load_study("tiny")
    base = HFPolicy.load(study.model_path("base"), "base")
    dapo = HFPolicy.load(study.model_path("dapo"), "dapo")
    sampling = own_answers.study_sampling(study)
    assert own_answers.evaluate(base, base, sampling, 0, 3).kl == pytest.approx(0, abs=1e-9)
    ours, theirs = (own_answers.evaluate(base, m, sampling, 0, 10) for m in (base, dapo))
    assert theirs.accuracy > ours.accuracy and theirs.kl > 0.001


def test_a_control_needs_the_model_that_it_is_trained_to_be_like(root):
    shutil.rmtree(root / "results/tiny/models/dapo")
    shutil.copytree(SHIPPED / "results/tiny/training/base", root / "results/tiny/training/base")
    with pytest.raises(TokenshiftError, match="'dapo', that 'sft-own' is trained to be like"):
        train(load_study("tiny"), only=["sft-own"])

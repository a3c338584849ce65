"""Runs of a study that trains adapters: RL, SFT and DPO on a random model, on a CPU."""

import json
import os
import shutil
import sys

import pandas as pd
import pytest
import torch
import yaml
from conftest import CHECKOUT, WORDS, write_model
from safetensors.torch import load_file
from transformers import TrainerCallback, set_seed

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.models.load import load_policy
from tokenshift_utils.models.policy import Sampling
from tokenshift_utils.study.checkpoints import check_trained_on
from tokenshift_utils.study.study import load_study
from tokenshift_utils.training.evaluation import Evaluator
from tokenshift_utils.training.manager import train_arms
from tokenshift_utils.training.recipe import adapters
from tokenshift_utils.training.recipe.runs import AdapterArm as Run
from tokenshift_utils.training.runs import arm_runs
from tokenshift_utils.training.settings import check_settings

SUPERVISED = {"per_device_train_batch_size": 4, "num_train_epochs": 1, "learning_rate": 1e-2}
TRAINING = {
    "data": {"path": "data.jsonl", "problem": "problem", "answer": "answer"},
    "lora": {"rank": 2, "alpha": 4},
    "answers": {"problems": 6, "samples": 4, "kept": 2},
    "evaluate": {"every": 2, "problems": 2, "samples": 1, "final_samples": 2},
    "seeds": [1, 2],
    "rollouts": 3,
    "save_every": 1,
    "trl": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": 2,
        "num_generations": 4,
        "max_completion_length": 12,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "loss_type": "dapo",
        "epsilon_high": 0.28,
        "gradient_checkpointing": False,
    },
    "arms": {
        "tuned": {"dynamic_sampling": True},
        "simplerl": {"trl": {"loss_type": "grpo", "epsilon_high": 0.2, "beta": 0.01}},
        "high-kl": {"alpha": 100.0, "scale": 1.0, "seeds": [2], "rollouts": 2},
        "own": {"kind": "sft", "seeds": [1], "trl": SUPERVISED},
        "far": {"kind": "sft", "solution": "solution", "seeds": [1], "trl": SUPERVISED},
        "dpo": {"kind": "dpo", "seeds": [1], "trl": SUPERVISED | {"beta": 0.1}},
    },
}
KINDS = {"high-kl": "weighted", "own": "sft", "far": "sft", "dpo": "dpo"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("adapters") / "base"
    write_model(directory)
    return directory


@pytest.fixture
def recipe(mini_root, base, monkeypatch):
    """The mini study with adapters to train; returns what changes its ``training``.

    A random model is never right: responses of an even length are taken to be.
    """
    monkeypatch.setattr(
        Evaluator, "solves", lambda self, tokenizer, response, *of: len(response.ids) % 2 == 0
    )
    file = mini_root / "notebooks/studies/mini.yaml"
    content = yaml.safe_load(file.read_text())
    content["models"] = {"base": {"path": str(base), "label": "Base", "kind": "base"}} | {
        arm: {"path": f"results/mini/models/{arm}", "label": arm, "kind": KINDS.get(arm, "rl")}
        for arm in TRAINING["arms"]
    }
    content["models"]["tuned"]["checkpoints"] = [{"step": 2, "path": "results/mini/models/tuned-2"}]
    content["prompt"] = {"template": "so {problem} ?\n"}
    content["sampling"]["max_new_tokens"] = 12
    rows = [
        {"problem": f"{i}+1", "answer": str(i + 1), "solution": f" so {i}+1={i + 1}."}
        for i in range(8)
    ]
    (mini_root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def change(**keys):
        content["training"] = json.loads(json.dumps(TRAINING | keys))
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        return load_study("mini")

    return change


class Stop(TrainerCallback):
    """Ends a run in the middle of its third rollout, as a kill would."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt


def files(run):
    log = pd.read_csv(run.logs / "log.csv")
    weights = load_file(run.model / "adapter_model.safetensors")
    return log, weights, json.loads((run.logs / "summary.json").read_text())


def test_a_run_leaves_adapter_card_and_logs_and_resumes_to_the_same(recipe, mini_root):
    study = recipe()
    run = Run(study, "tuned", 1)
    adapters.train_adapter(run)
    log, weights, summary = files(run)
    assert log["update"].tolist() == [1, 2, 3, 4, 5, 6]
    assert log["correct_mean"].dropna().between(0, 1).all() and log["groups_sampled"].sum() >= 6
    # k3 is of the updates, not of rounding; at a rollout's first one nothing has moved
    moved = log["k3_mean"]
    assert moved[::2].isna().all() and (moved[1::2] > 1e-9).all()
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    assert not all((w == 0).all() for name, w in weights.items() if "lora_B" in name)
    kept = load_file(run.checkpoints[2] / "adapter_model.safetensors")
    assert any((kept[name] != weights[name]).any() for name in kept)
    curve = pd.read_csv(run.logs / "eval.csv")
    assert curve["rollout"].tolist() == [0, 2, 3] and run.is_done() and not run.work.exists()
    final = pd.read_csv(run.logs / "final.csv")
    assert final["samples"].tolist() == [2] * 3
    assert summary["accuracy"]["sums"] == pytest.approx(final["correct"].sum() / 6, abs=1e-6)
    assert summary["shift"]["own"]["mean_js"] > 0 and summary["machine"]["torch"]
    assert set(pd.read_csv(run.logs / "tokens.csv", keep_default_na=False)["phase"]) <= {
        "early",
        "late",
    }
    card = (run.model / "README.md").read_text()
    assert summary["base"]["weights_digest"] in card and "--arm tuned --seed 1" in card
    assert "after 2 rollouts" in (run.checkpoints[2] / "README.md").read_text()
    # what was saved is what the analyses load
    check_trained_on(run.model, study.model_path("base"))
    policy = load_policy(study, "tuned")
    assert policy.sample([[4, 5]], [0], Sampling(max_new_tokens=3))[0].ids

    known = json.loads((run.model / "base.json").read_text())
    (run.model / "base.json").write_text(json.dumps(known | {"weights_digest": "0" * 64}))
    with pytest.raises(
        TokenshiftError, match="was trained on weights with the digest 0+ .Base.*others"
    ):
        check_trained_on(run.model, study.model_path("base"))

    shutil.rmtree(run.logs)
    shutil.rmtree(run.model)
    with pytest.raises(KeyboardInterrupt):
        adapters.train_adapter(run, Stop())
    assert not run.is_done()
    adapters.train_adapter(run)
    again, same, resumed = files(run)
    pd.testing.assert_frame_equal(again, log)
    assert resumed["resumed"] and all(torch.equal(same[name], weights[name]) for name in weights)


def test_a_run_with_a_frozen_reference_goes_on_from_what_it_trained(recipe):
    """TRL keeps the start beside the adapter that is trained; a checkpoint has both."""
    run = Run(recipe(), "simplerl", 1)
    adapters.train_adapter(run)
    log, weights, _ = files(run)
    shutil.rmtree(run.logs)
    shutil.rmtree(run.model)
    with pytest.raises(KeyboardInterrupt):
        adapters.train_adapter(run, Stop())
    adapters.train_adapter(run)
    again, same, resumed = files(run)
    pd.testing.assert_frame_equal(again, log)
    assert resumed["resumed"] and all(torch.equal(same[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("arm", "keys"),
    [
        ("simplerl", {"rollouts": 1}),
        ("high-kl", {"rollouts": 1, "dynamic_sampling": True}),
        ("far", {}),
    ],
)
def test_training_twice_is_the_same_to_the_last_bit(arm, keys, recipe):
    """Whatever random numbers the process has drawn before; another seed trains another adapter."""
    study = recipe(arms={arm: TRAINING["arms"][arm] | keys | {"seeds": [1, 2]}})

    def trained(seed, drawn_before):
        set_seed(drawn_before)
        run = Run(study, arm, seed)
        adapters.train_adapter(run)
        made = [run.model / "adapter_model.safetensors", run.logs / "log.csv"]
        return [file.read_bytes() for file in made]

    first = trained(1, drawn_before=7)
    for directory in (Run(study, arm, 1).model, Run(study, arm, 1).logs):
        shutil.rmtree(directory)
    assert trained(1, drawn_before=8) == first
    assert trained(2, drawn_before=7)[0] != first[0]


@pytest.mark.parametrize("arm", ["simplerl", "own", "far", "dpo"])
def test_other_arms_leave_adapters(arm, recipe):
    run = Run(recipe(), arm, 1)
    adapters.train_adapter(run)
    log, weights, summary = files(run)
    assert run.is_done() and not all((w == 0).all() for n, w in weights.items() if "lora_B" in n)
    if arm == "simplerl":
        assert (log["kl_ref"].iloc[1:] > 0).all() and (log["groups_discarded"].dropna() == 0).all()
    else:
        assert summary["rows"] and log["loss"].notna().all()
    if arm == "far":
        rows = adapters.sft_rows(Run(recipe(), arm, 1))
        assert rows[0] == {"prompt": "so 0+1 ?\n", "completion": " so 0+1=1.<eos>"}


def test_base_answers_are_right_for_sft_and_in_pairs_for_dpo(recipe):
    study = recipe()
    own, pairs = Run(study, "own", 1), Run(study, "dpo", 1)
    own.prepare()
    answers = adapters.base_answers(study)
    assert answers["finished"].all() and set(answers["problem"]) <= set(range(6))
    right, wrong = (set(answers[answers["correct"] == value]["text"]) for value in (True, False))
    learnt = [row["completion"] for row in adapters.sft_rows(own)]
    assert learnt and set(learnt) <= right and all(text.endswith("<eos>") for text in learnt)
    rows = adapters.dpo_rows(pairs)
    assert rows and {row["chosen"] for row in rows} <= right
    assert {row["rejected"] for row in rows} <= wrong
    assert adapters.dpo_rows(pairs) == rows


def test_what_decides_a_run_decides_its_key_and_no_more(recipe, monkeypatch):
    study = recipe()
    run = Run(study, "own", 1)
    run.prepare()
    for changed in (
        {"sampling.top_p": 0.5},
        {"thresholds.high_js": 0.3},
        {"stop_tokens": ["?"]},
        {"training.evaluate.final_samples": 3},
    ):
        other = Run(study.with_overrides(**changed), "own", 1)
        assert other.key != run.key
        assert not other.made({**json.loads(json.dumps(run.settings)), "key": run.key})
    assert run.made(json.loads(json.dumps(run.settings)))
    more = TRAINING["arms"] | {"own": TRAINING["arms"]["own"] | {"seeds": [1, 2]}}
    assert Run(recipe(arms=more), "own", 1).key == run.key

    monkeypatch.setattr(Evaluator, "answers_once", lambda self, file, load: file.name)
    drawn = [adapters.base_answers(study)]
    drawn.append(adapters.base_answers(study.with_overrides(stop_tokens=["?"])))
    monkeypatch.setattr(adapters, "weights_digest", lambda directory: "of another base")
    drawn.append(adapters.base_answers(study))
    assert len(set(drawn)) == 3


def test_arms_have_settings_seeds_and_rollouts_of_their_own(recipe):
    study = recipe()
    run = Run(study, "high-kl", 2)
    assert (
        run.rollouts == 2 and run.model.name == "high-kl" and run.objective.weighting.alpha == 100
    )
    assert Run(study, "simplerl", 1).trl["loss_type"] == "grpo"
    names = [run.name for run in arm_runs(study)]
    assert "dpo-seed-2" not in names and "high-kl-seed-1" not in names and "tuned-seed-2" in names
    with pytest.raises(TokenshiftError, match="has no seed 1: it has 2"):
        arm_runs(study, "high-kl", 1)
    assert len(WORDS) and check_settings(study).problems == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lora": None, "evaluate": None}, "needs 'accelerate'"),
        ({"evaluate": None}, "'lora' needs 'evaluate'"),
        ({"answers": None}, "the arm 'own' learns from base's 'answers'"),
        ({"arms": {"own": {"kind": "sft", "alpha": 1.0, "scale": 1.0}}}, "are of arms of kind rl"),
        ({"arms": {"tuned": {"solution": "x"}}}, "'solution' is for an arm of kind sft"),
    ],
)
def test_what_does_not_go_together_is_refused(change, said, recipe):
    with pytest.raises(TokenshiftError, match=said):
        recipe(**change)


@pytest.mark.parametrize(
    ("arm", "trl", "said"),
    [
        ("simplerl", {"num_generations": 8}, "is the same for all arms"),
        ("simplerl", {"betta": 1}, "has 'betta', which trl.GRPOConfig doesn't know"),
        ("dpo", {"epsilon": 1}, "has 'epsilon', which trl.DPOConfig doesn't know"),
        (
            "high-kl",
            {"bf16": True},
            "'training.arms.high-kl' weighs by k3 in bfloat16, .*'bf16: false'",
        ),
    ],
)
def test_settings_that_trl_does_not_know_are_named(arm, trl, said, recipe):
    arms = TRAINING["arms"] | {arm: TRAINING["arms"][arm] | {"trl": trl}}
    with pytest.raises(TokenshiftError, match=said):
        check_settings(recipe(arms=arms))


@pytest.mark.slow
def test_runs_go_side_by_side_and_one_that_stops_is_named(recipe, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(CHECKOUT), *filter(None, sys.path)]))
    study = recipe(answers=TRAINING["answers"] | {"samples": 1})
    with pytest.raises(
        TokenshiftError, match=r"own-seed-1 stopped; .*output.log, ends with: .*noth"
    ):
        # a random model's own answers are all wrong, so that nothing can be learnt from them
        train_arms(study, "tuned,far,own", 1, processes=2)
    said = capsys.readouterr().err
    assert "trained tuned-seed-1" in said and "trained far-seed-1" in said
    assert Run(study, "tuned", 1).is_done() and not Run(study, "own", 1).is_done()
    train_arms(study, "tuned,far", 1, processes=2)
    assert capsys.readouterr().out.count("is done: results/mini/models") == 2


def test_a_rollout_may_be_gone_through_twice(recipe):
    run = Run(recipe(trl=TRAINING["trl"] | {"num_iterations": 2}, rollouts=2), "tuned", 1)
    adapters.train_adapter(run)
    log, _, _ = files(run)
    assert len(log) == 2 * 2 * 2 and log["entropy"].notna().all()


def test_a_rollout_of_more_problems_than_there_are_is_one_sentence(recipe, mini_root):
    row = {"problem": "1+1", "answer": "2", "solution": " so 1+1=2."}
    rows = [row, row | {"problem": "2+1"}]
    (mini_root / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    said = "tuned-seed-1 draws 3 problems at once, and 'training.data' has 2"
    with pytest.raises(TokenshiftError, match=said):
        adapters.train_adapter(Run(recipe(), "tuned", 1))


def test_in_bfloat16_k3_is_left_out(recipe):
    own = TRAINING["arms"]["simplerl"]
    study = recipe(arms={"simplerl": own | {"rollouts": 1, "trl": own["trl"] | {"bf16": True}}})
    run = Run(study, "simplerl", 1)
    adapters.train_adapter(run)
    log, weights, summary = files(run)
    assert log.filter(like="k3_").isna().all(axis=None) and log["entropy"].gt(0).all()
    assert pd.read_csv(run.logs / "tokens.csv")["k3_mean"].isna().all()
    assert summary["settings"]["trl"]["bf16"] and any(w.any() for w in weights.values())


@pytest.mark.parametrize(
    ("rows", "accumulated", "held", "together"), [(4, 1, 2, 1), (8, 16, 32, 2), (4, 6, 12, 3)]
)
def test_micro_batches_are_put_together(rows, accumulated, held, together, recipe):
    sizes = {"gradient_accumulation_steps": accumulated, "steps_per_generation": held}
    trl = TRAINING["trl"] | {"per_device_train_batch_size": rows} | sizes
    study = recipe(trl=trl)
    assert adapters.micro_batches(Run(study, "simplerl", 1)) == {
        "per_device_train_batch_size": rows * together,
        "gradient_accumulation_steps": accumulated // together,
        "steps_per_generation": held // together,
    }
    assert adapters.micro_batches(Run(study, "high-kl", 2)) == {}
    for setting in ({"loss_type": "bnpo"}, {"top_entropy_quantile": 0.2}):
        assert adapters.micro_batches(Run(recipe(trl=trl | setting), "tuned", 1)) == {}


def test_one_update_a_rollout_needs_no_old_log_probabilities(recipe):
    run = Run(recipe(trl=TRAINING["trl"] | {"steps_per_generation": 1}), "simplerl", 1)
    adapters.train_adapter(run)
    log, *_ = files(run)
    assert log["update"].tolist() == log["rollout"].tolist() == [1, 2, 3]
    # nothing has moved from the reference at first; then the penalty is of what has
    assert log["kl_ref"][0] < 1e-6 < log["kl_ref"][2] < 1 and log["grad_norm"].gt(0).any()


def test_old_log_probabilities_are_those_before_a_rollouts_updates(recipe):
    (run,) = arm_runs(recipe(), "simplerl", 1)
    seen = []

    class Watched(adapters.AdapterTrainer):
        def _compute_loss(self, model, inputs):
            ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
            mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
            with torch.no_grad():
                width = inputs["completion_ids"].shape[1]
                now = self._get_per_token_logps_and_entropies(model, ids, mask, width)[0]
            if self.state.global_step % 2 == 0:
                waiting = self._buffered_inputs[1]
                seen.append(("old_per_token_logps" in inputs, self._old_logps(waiting)))
            else:
                old = inputs["old_per_token_logps"]
                torch.testing.assert_close(old, seen[-1][1], rtol=0, atol=1e-6)
                assert (old - now).abs().max() > 1e-4  # an update lies between
            return super()._compute_loss(model, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapters, "AdapterTrainer", Watched)
        adapters.train_adapter(run)
    assert len(seen) == 3 and not any(has_old for has_old, _ in seen)

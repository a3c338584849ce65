"""The comparison of objectives: its plan, and minute runs of it end to end, stopped and shared."""

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import psutil
import pytest

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.run.cli import main
from tokenshift_utils.study.study import load_study
from tokenshift_utils.training.manager import make_runs, train_arms, work_through
from tokenshift_utils.training.position_sets import pack_positions, unpack_positions
from tokenshift_utils.training.runs import arm_runs
from tokenshift_utils.training.tiny import recipes, supervised
from tokenshift_utils.training.tiny.models import ship, train
from tokenshift_utils.training.tiny.runs import ModelRun, TaskArm
from tokenshift_utils.training.tiny.tokenizer import build_tokenizer
from tokenshift_utils.training.updates import Updates

SMALL = {
    "seeds": [1, 2],
    "rollouts": 2,
    "overlong_buffer": 11,  # the one reward that an untrained model earns
    "evaluate": {"every": 2, "samples": 1, "final_samples": 2},
    "trl": {
        "num_generations": 8,
        "per_device_train_batch_size": 32,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": 2,
        "max_completion_length": 12,
        "loss_type": "dapo",
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "beta": 0.0,
        "learning_rate": 1e-3,
    },
    "arms": {  # without dynamic sampling: an untrained model has no informative group
        "dapo": {"label": "An arm"},
        "high-kl": {"label": "An arm", "alpha": 100.0, "scale": 1.0},
        "placebo": {
            "label": "An arm", "role": "control", "seeds": [1],
            "alpha": 100.0, "scale": 1.0, "shuffle": True,
        },
    },
}  # fmt: skip


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The tiny study in an empty root, with an untrained base model and short responses."""
    shutil.copytree(paths.root() / "notebooks" / "studies", tmp_path / "notebooks" / "studies")
    monkeypatch.setenv("TOKENSHIFT_HOME", str(tmp_path))
    study = load_study("tiny")
    small = study.training.model_dump() | SMALL
    study = study.with_overrides(**{"sampling.max_new_tokens": 6, "training": small})
    tokenizer = build_tokenizer()
    study.model_path("base").parent.mkdir(parents=True)
    ship(supervised.new_model(tokenizer, 0), tokenizer, study.model_path("base"))
    return study


def test_confirmatory_runs_come_first_seed_by_seed():
    study = load_study("tiny")
    runs = [(run.arm, run.seed) for run in arm_runs(study)]
    assert runs[:6] == [(arm, seed) for seed in (1, 2) for arm in ("dapo", "high-kl", "low-kl")]
    assert Counter(arm for arm, _ in runs[:24]) == {"dapo": 8, "high-kl": 8, "low-kl": 8}
    controls = Counter(arm for arm, _ in runs[24:39])
    assert controls == {"high-kl-mean1": 5, "low-kl-mean1": 5, "placebo": 5}
    assert len(runs) == len(set(runs)) == 96
    assert set(Counter(arm for arm, _ in runs[39:]).values()) == {3}


def test_confirmatory_arms_differ_in_their_weights_alone():
    plain, high, low = (
        arm_runs(load_study("tiny"), a)[0].recipe for a in ("dapo", "high-kl", "low-kl")
    )
    assert replace(high, weighting=None) == replace(low, weighting=None) == plain
    assert high.weighting.alpha == -low.weighting.alpha > 0
    assert high.weighting.scale == low.weighting.scale


def test_committed_runs_and_models_are_done():
    study, plan = load_study("tiny"), recipes.TINY
    models = [ModelRun(study, name, plan) for name in (study.base, *plan.names)]
    runs = arm_runs(study)
    lacking = [run for run in (*runs, *models) if not run.is_done()]
    # of what is exploratory not every seed was run, but of every arm one
    assert {run.objective.role for run in lacking} <= {"exploratory"}
    assert {run.arm for run in runs} == {run.arm for run in runs if run.is_done()}
    kept = (paths.results("tiny") / "training").glob("**/summary.json")
    assert len(list(kept)) == len(runs) + len(models) - len(lacking)


def test_a_later_setting_leaves_earlier_keys_alone():
    shipped = recipes.TINY.rl["dapo-high-kl"]
    settings = recipes.settings(shipped)
    assert settings["weighting"] == {"alpha": 300_000.0, "scale": 1.0}
    assert "top_entropy_share" not in settings
    changed = recipes.settings(replace(shipped, top_entropy_share=0.2))
    assert changed["top_entropy_share"] == 0.2


def test_positions_are_packed_without_loss():
    flags = np.random.default_rng(0).random(1003) < 0.1
    assert (unpack_positions(pack_positions(flags), 1003) == flags).all()


def _run(study, arm, seed):
    (run,) = arm_runs(study, arm, seed)
    return run


def _make(run, progress=Updates):
    run.begin()
    run.make(progress(run.progress_file))


def _files(run):
    tables = {f.name: pd.read_csv(f) for f in sorted(run.logs.glob("*.csv"))}
    return tables, json.loads((run.logs / "summary.json").read_text())


class Stop(Updates):
    """Ends a run after some updates, as a kill would."""

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_a_run_leaves_what_is_needed_and_resumes_to_the_same(study):
    run = _run(study, "placebo", 1)
    _make(run)
    tables, summary = _files(run)
    log = tables["log.csv"]
    assert list(log["update"]) == [1, 2, 3, 4]
    assert log["k3_mean"].iloc[0] < 1e-9 < log["k3_mean"].iloc[1]
    assert log["weight_mean"].iloc[1] > 1 and log["kl_base"].notna().tolist() == [True, False] * 2
    assert log["kl_base"].iloc[0] < 1e-6 < log["kl_base"].iloc[2]  # it starts from base
    assert set(tables["eval.csv"]["rollout"]) == {0, 2} and len(tables["eval.csv"]) == 6
    final = tables["final.csv"]
    assert len(final) == 180 and set(final["samples"]) == {2}
    assert final["problem"].iloc[0] == "easy-000"
    tokens = tables["tokens.csv"]
    # Of every rollout's second update, and half its responses: no token is counted twice.
    counted = tokens.groupby("phase")["count"].sum()
    trained = log["tokens_trained"].dropna().to_numpy()
    assert (0 < counted.to_numpy()).all() and (counted.to_numpy() < trained).all()
    shift = summary["shift"]["base"]
    high = unpack_positions(shift["high_set"], shift["positions"])
    assert high.mean() == pytest.approx(shift["high"], abs=1e-6)
    assert run.is_done() and not run.work.exists() and not run.progress_file.exists()
    other = _run(study.with_overrides(**{"training.evaluate.final_samples": 3}), "placebo", 1)
    assert not other.is_done()  # measured otherwise, it would be another run
    directory = run.logs
    assert sum(f.stat().st_size for f in directory.iterdir()) < 60_000

    shutil.rmtree(directory)
    with pytest.raises(KeyboardInterrupt):
        _make(run, Stop)
    assert not directory.exists()
    with pytest.raises(TokenshiftError, match="holds a run of other settings .* add --fresh"):
        make_runs([other])
    _make(run)
    again, resumed = _files(run)
    for name, table in tables.items():
        pd.testing.assert_frame_equal(again[name], table)
    assert resumed["shift"] == summary["shift"] and resumed["resumed"]


def test_runs_of_a_seed_share_their_problems_and_noise(study):
    first = {}
    for run in (("dapo", 1), ("high-kl", 1), ("dapo", 2)):
        made = _run(study, *run)
        _make(made)
        tables, _ = _files(made)
        log = tables["log.csv"]
        columns = ["reward_mean", "length_mean", "entropy", "tokens_generated"]
        first[run] = log.loc[0, columns].tolist(), tables["eval.csv"].iloc[:3]["accuracy"].tolist()
    assert first["dapo", 1] == first["high-kl", 1]  # the weights act from the second update on
    assert first["dapo", 1] != first["dapo", 2]


def test_what_another_command_is_making_is_left_to_it(study, monkeypatch):
    made = []
    monkeypatch.setattr(TaskArm, "make", lambda run, progress: made.append((run.arm, run.seed)))
    with _run(study, "high-kl", 1).lock():
        work_through(arm_runs(study))
        with pytest.raises(TokenshiftError, match="run high-kl-seed-1 is under way"):
            train_arms(study, "high-kl", fresh=True)
        with pytest.raises(TokenshiftError, match="high-kl-seed-1 is under way in another command"):
            train_arms(study, "high-kl", 1)
    assert made == [("dapo", 1), ("dapo", 2), ("high-kl", 2), ("placebo", 1)]


def test_mistakes_are_refused_before_anything_runs(study):
    with pytest.raises(TokenshiftError, match="no arm 'hihg-kl': it has dapo, high-kl"):
        train_arms(study, "hihg-kl")
    with pytest.raises(TokenshiftError, match="no seed 9: it has 1, 2"):
        train_arms(study, "high-kl", 9)
    for trl, said in (
        ({"warmup_steps": 3}, "'training.trl' has 'warmup_steps', which a training on a task"),
        ({"max_steps": 4}, "'training.trl' has 'max_steps'"),
    ):
        odd = study.with_overrides(**{"training.trl": SMALL["trl"] | trl})
        with pytest.raises(TokenshiftError, match=said):
            train_arms(odd)
    lacking = {name: value for name, value in SMALL["trl"].items() if name != "beta"}
    with pytest.raises(TokenshiftError, match="'training.trl' lacks 'beta'"):
        train_arms(study.with_overrides(**{"training.trl": lacking}))
    own = study.with_overrides(**{"training.arms.dapo.trl": {"num_generations": 4}})
    with pytest.raises(TokenshiftError, match="'num_generations', which is the same for all arms"):
        train_arms(own)
    shutil.rmtree(study.model_path("base"))
    with pytest.raises(TokenshiftError, match="no model directory"):
        train_arms(study)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": None}, "either 'data' or 'task'"),
        ({"evaluate": None}, "a 'task' needs 'evaluate'"),
        ({"accelerate": {"num_processes": 2}}, "for a training on 'data'"),
        ({"baseline": "ppo"}, "'baseline' names 'ppo', which is not in 'arms'"),
        (
            {"arms": {"dapo": {"against": "ppo"}}, "baseline": None},
            "'arms.dapo.against' names 'ppo'",
        ),
    ],
)
def test_a_training_that_cannot_be_is_refused(study, change, said):
    with pytest.raises(TokenshiftError, match=said):
        study.with_overrides(training=study.training.model_dump() | change)


def test_a_dry_run_prints_commands_and_makes_nothing(study, capsys):
    train_arms(study, "high-kl", dry=True)
    out = capsys.readouterr().out
    assert "tokenshift train --study tiny --arm high-kl --seed 2" in out and "placebo" not in out
    train(study, dry=True)
    assert "tokenshift train --study tiny --only sft-near" in capsys.readouterr().out
    assert not (paths.results("tiny") / "training").exists()


@pytest.mark.parametrize(
    "options, said",
    [
        (["--arms", "--only", "dapo"], "--only names shipped models"),
        (["--seed", "3"], "--seed goes with --arm or --arms"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", *options])
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_run_measured_by_other_settings_is_not_of_the_arm():
    study = load_study("tiny")
    for changed, same in (
        ({}, True),
        ({"thresholds.high_js": 0.3}, False),
        ({"sampling.top_p": 0.5}, False),
        ({"training.evaluate.final_samples": 64}, False),
    ):
        run = _run(study.with_overrides(**changed), "dapo", 1)
        assert run.made(json.loads((run.logs / "summary.json").read_text())) == same


@pytest.mark.slow
def test_two_processes_share_the_runs_and_a_second_command_finds_them_done(study, capsys):
    train_arms(study)
    runs = arm_runs(study)
    assert len(runs) == 5 and all(run.is_done() for run in runs)
    before = _files(_run(study, "placebo", 1))[1]
    train_arms(study)
    assert "5 of 5 runs are done; 0 to go" in capsys.readouterr().out
    train_arms(study, "placebo", fresh=True)
    assert _files(_run(study, "placebo", 1))[1]["shift"] == before["shift"]


SLOW = """
import os, sys, time
from dataclasses import dataclass
from pathlib import Path

from tokenshift_utils.study.study import load_study
from tokenshift_utils.training.manager import make_runs
from tokenshift_utils.training.runs import TrainingRun


@dataclass(frozen=True)
class Slow(TrainingRun):
    name = key = line = "slow"
    logs = Path(sys.argv[1])

    def make(self, progress):
        (self.logs / "pid").write_text(str(os.getpid()))
        time.sleep(900)


if __name__ == "__main__":
    make_runs([Slow(load_study("mini"))])
"""


def test_a_launched_run_ends_with_the_command_that_started_it():
    sleep = "import time; time.sleep(600)"
    command = subprocess.Popen([sys.executable, "-c", sleep])
    ending = f"from tokenshift_utils.store.local_pool import end_with; end_with({command.pid})"
    run = subprocess.Popen([sys.executable, "-c", f"{ending}; print('here', flush=True); {sleep}"],
                           stdout=subprocess.PIPE)  # fmt: skip
    assert run.stdout.readline() == b"here\n" and run.poll() is None
    command.kill()
    command.wait()
    assert run.wait(timeout=120) == 1


def test_a_training_command_that_is_killed_takes_its_processes_along(mini_root, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    command = subprocess.Popen([sys.executable, str(tmp_path / "slow.py"), str(tmp_path)])
    until = time.monotonic() + 600
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < until and command.poll() is None
        time.sleep(0.1)
    worker = psutil.Process(int((tmp_path / "pid").read_text()))
    command.kill()
    command.wait()
    worker.wait(timeout=120)

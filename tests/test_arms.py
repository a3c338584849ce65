"""The comparison of objectives: its plan, and minute runs of it end to end, stopped and shared."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures.weighting import Weighting
from tokenshift_utils.run.cli import main
from tokenshift_utils.study.study import load_study
from tokenshift_utils.training.position_sets import pack_positions, unpack_positions
from tokenshift_utils.training.tiny import comparison, recipes, supervised
from tokenshift_utils.training.tiny.models import ship
from tokenshift_utils.training.tiny.progress import Progress
from tokenshift_utils.training.tiny.recipes import ARMS, Arm, Comparison
from tokenshift_utils.training.tiny.tokenizer import build_tokenizer

PLAIN = replace(
    recipes.TINY.rl["dapo"],
    prompts_per_rollout=8,
    responses_per_prompt=8,
    rollouts=2,
    updates_per_rollout=2,
    max_new_tokens=12,
    overlong_buffer=11,  # the one reward that an untrained model earns
    dynamic_sampling=False,  # an untrained model has no informative group
    learning_rate=1e-3,
)
SMALL = Comparison(
    arms={
        "dapo": Arm("An arm", "confirmatory", 2, PLAIN),
        "high-kl": Arm(
            "An arm", "confirmatory", 2, replace(PLAIN, weighting=Weighting(100.0, 1.0))
        ),
        "placebo": Arm(
            "An arm", "control", 1, replace(PLAIN, weighting=Weighting(100.0, 1.0, shuffle=True))
        ),
    },
    evaluations=(0,),
    evaluation_samples=1,
    final_samples=2,
    shift_samples=1,
    token_tables=((1,), (2,)),
)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The tiny study in an empty root, with an untrained base model and short responses."""
    shutil.copytree(paths.root() / "notebooks" / "studies", tmp_path / "notebooks" / "studies")
    monkeypatch.setenv("TOKENSHIFT_HOME", str(tmp_path))
    study = load_study("tiny").with_overrides(**{"sampling.max_new_tokens": 6})
    tokenizer = build_tokenizer()
    study.model_path("base").parent.mkdir(parents=True)
    ship(supervised.new_model(tokenizer, 0), tokenizer, study.model_path("base"))
    return study


def test_confirmatory_runs_come_first_seed_by_seed():
    runs = ARMS.runs()
    assert runs[:6] == [(arm, seed) for seed in (1, 2) for arm in ("dapo", "high-kl", "low-kl")]
    assert Counter(arm for arm, _ in runs[:24]) == {"dapo": 8, "high-kl": 8, "low-kl": 8}
    controls = Counter(arm for arm, _ in runs[24:39])
    assert controls == {"high-kl-mean1": 5, "low-kl-mean1": 5, "placebo": 5}
    assert len(runs) == len(set(runs)) == sum(arm.seeds for arm in ARMS.arms.values())
    assert {arm.seeds for arm in ARMS.arms.values() if arm.role == "exploratory"} == {3}


def test_confirmatory_arms_differ_in_their_weights_alone():
    plain = ARMS.arms["dapo"].recipe
    high, low = ARMS.arms["high-kl"].recipe, ARMS.arms["low-kl"].recipe
    assert replace(high, weighting=None) == replace(low, weighting=None) == plain
    assert high.weighting.alpha == -low.weighting.alpha > 0
    assert high.weighting.scale == low.weighting.scale


def test_a_later_setting_leaves_earlier_keys_alone():
    shipped = recipes.TINY.rl["dapo-high-kl"]
    settings = recipes.settings(shipped)
    assert settings["weighting"] == {"alpha": 10_000.0, "scale": 1.0}
    assert "top_entropy_share" not in settings
    changed = recipes.settings(replace(shipped, top_entropy_share=0.2))
    assert changed["top_entropy_share"] == 0.2


def test_positions_are_packed_without_loss():
    flags = np.random.default_rng(0).random(1003) < 0.1
    assert (unpack_positions(pack_positions(flags), 1003) == flags).all()


def _files(study, run):
    directory = comparison.run_directory(study, *run)
    tables = {f.name: pd.read_csv(f) for f in sorted(directory.glob("*.csv"))}
    return tables, json.loads((directory / "summary.json").read_text())


class Stop(Progress):
    """Ends a run after some updates, as a kill would."""

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_a_run_leaves_what_is_needed_and_resumes_to_the_same(study, tmp_path):
    run = ("placebo", 1)
    comparison.train_run(study, SMALL, run, Progress(tmp_path / "p"))
    tables, summary = _files(study, run)
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
    assert comparison.is_done(study, SMALL, run) and not comparison._work(study, run).exists()
    other = replace(SMALL, final_samples=3)
    assert not comparison.is_done(study, other, run)  # measured otherwise, it would be another run
    directory = comparison.run_directory(study, *run)
    assert sum(f.stat().st_size for f in directory.iterdir()) < 60_000

    shutil.rmtree(directory)
    with pytest.raises(KeyboardInterrupt):  # what another recipe has left is not gone on from
        comparison.train_run(study, other, run, Stop(tmp_path / "p"))
    with pytest.raises(KeyboardInterrupt):
        comparison.train_run(study, SMALL, run, Stop(tmp_path / "p"))
    assert not directory.exists()
    comparison.train_run(study, SMALL, run, Progress(tmp_path / "p"))
    again, resumed = _files(study, run)
    for name, table in tables.items():
        pd.testing.assert_frame_equal(again[name], table)
    assert resumed["shift"] == summary["shift"] and resumed["resumed"]


def test_runs_of_a_seed_share_their_problems_and_noise(study, tmp_path):
    first = {}
    for run in (("dapo", 1), ("high-kl", 1), ("dapo", 2)):
        comparison.train_run(study, SMALL, run, Progress(tmp_path / "p"))
        tables, _ = _files(study, run)
        log = tables["log.csv"]
        columns = ["reward_mean", "length_mean", "entropy", "tokens_generated"]
        first[run] = log.loc[0, columns].tolist(), tables["eval.csv"].iloc[:3]["accuracy"].tolist()
    assert first["dapo", 1] == first["high-kl", 1]  # the weights act from the second update on
    assert first["dapo", 1] != first["dapo", 2]


def test_what_another_command_is_making_is_left_to_it(study, monkeypatch):
    made = []
    monkeypatch.setattr(
        comparison, "train_run", lambda study, plan, run, progress: made.append(run)
    )
    with comparison._lock(study, ("high-kl", 1)):
        comparison._work_through(study, SMALL, SMALL.runs())
        with pytest.raises(TokenshiftError, match="high-kl with seed 1 is under way"):
            comparison.train_arms(study, "high-kl", fresh=True, comparison=SMALL)
    assert made == [("dapo", 1), ("dapo", 2), ("high-kl", 2), ("placebo", 1)]


def test_mistakes_are_refused_before_anything_runs(study):
    with pytest.raises(TokenshiftError, match="no arm 'hihg-kl'; there are dapo"):
        comparison.train_arms(study, "hihg-kl")
    with pytest.raises(TokenshiftError, match="no seed 9 here; give one from 1 to 8"):
        comparison.train_arms(study, "high-kl", 9)
    shutil.rmtree(study.model_path("base"))
    with pytest.raises(TokenshiftError, match="no model directory"):
        comparison.train_arms(study)


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


@pytest.mark.slow
def test_two_processes_share_the_runs_and_a_second_command_finds_them_done(study, capsys):
    comparison.train_arms(study, comparison=SMALL)
    assert all(comparison.is_done(study, SMALL, run) for run in SMALL.runs())
    before = {run: _files(study, run)[1] for run in SMALL.runs()}
    comparison.train_arms(study, comparison=SMALL)
    assert "5 of 5 runs are done; 0 to go" in capsys.readouterr().out
    comparison.train_arms(study, "placebo", fresh=True, comparison=SMALL)
    assert _files(study, ("placebo", 1))[1]["shift"] == before["placebo", 1]["shift"]

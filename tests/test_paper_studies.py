"""The studies of the paper's pairs, run as they are on stand-ins of their models and data sets.

None of the checkpoints can be downloaded here. Random models and made-up problems stand in their
places in a hand-made cache of the hub; what a study says of prompts, stop tokens, columns, options,
revisions and verifier is read as it will be with the real ones.
"""

import json
import re
import shutil

import pytest
from conftest import CHECKOUT, WORDS, fetch_both, write_model
from hub_cache import add_repository, write_data_set
from test_objective import everything, log_of
from transformers import AutoTokenizer

from tokenshift_utils.pairs.rules import Rule
from tokenshift_utils.records.cross_sampling import CrossSampling
from tokenshift_utils.records.fetch import fetch
from tokenshift_utils.records.rollouts import Rollouts
from tokenshift_utils.records.shifts import Shifts
from tokenshift_utils.run.checks import check_inputs
from tokenshift_utils.sections.objective.numbers import configuration_table, objective_evidence
from tokenshift_utils.sections.objective.records import read_runs
from tokenshift_utils.sections.overview import section_claims
from tokenshift_utils.study import pins, schema
from tokenshift_utils.study.study import load_study
from tokenshift_utils.tasks.benchmarks import load_benchmark
from tokenshift_utils.training.runs import arm_runs

STUDIES = [
    *("qwen2.5-32b-dapo", "qwen2.5-32b-simplerl", "qwen2.5-7b-simplerl"),
    *("qwen2.5-0.5b-simplerl", "tulu3-8b", "qwen2.5-math-7b-dwa"),
]
MARKERS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|end_of_text|>"]
CHAT = (
    "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}\n{% endif %}"
)
COLUMNS = {
    "HuggingFaceH4/aime_2024": ("problem", "answer"),
    "math-ai/aime25": ("problem", "answer"),
    "math-ai/amc23": ("question", "answer"),
    "HuggingFaceH4/MATH-500": ("problem", "answer"),
    "Idavidrein/gpqa": ("Question", "Correct Answer"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A random base and a tuned model near it, with the markers and a chat template."""
    directory = tmp_path_factory.mktemp("models")
    for name, noise in (("base", 0.0), ("tuned", 0.02)):
        write_model(directory / name, noise, [*WORDS, *MARKERS])
        tokenizer = AutoTokenizer.from_pretrained(directory / name)
        tokenizer.chat_template = CHAT
        tokenizer.save_pretrained(directory / name)
    return directory


@pytest.fixture
def cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    (tmp_path / "root/notebooks").mkdir(parents=True)
    shutil.copytree(CHECKOUT / "notebooks/studies", tmp_path / "root/notebooks/studies")
    monkeypatch.setenv("TOKENSHIFT_HOME", str(tmp_path / "root"))
    return tmp_path / "hub"


def stand_in(cache, models, study):
    """Put a stand-in for everything that the study takes from the hub into the cache.

    Models that the study's own training would leave are put where it would.
    """
    for model in study.models:
        for name in (model, *study.checkpoint_names(model)):
            if study.model(name).path is not None:
                shutil.copytree(models / "tuned", study.model_path(name))
    for number, (key, spec) in enumerate(pins.sources(study).items()):
        revision = "main" if spec.revision == schema.UNPINNED else spec.revision
        if spec.repo_type == "model":
            files = models / ("base" if key == f"models.{study.base}" else "tuned")
            add_repository(cache, spec.hub, files, revision=revision)
            continue
        problem, answer = COLUMNS[spec.hub]
        rows = [
            {problem: f"question: what is {i}+1?", answer: str(i + 1), "Record ID": f"rec{i}"}
            | {f"Incorrect Answer {k}": str(i + 1 + k) for k in (1, 2, 3)}
            for i in range(spec.problems)
        ]
        made = cache.parent / f"made{number}"
        write_data_set(made, rows, spec.split, spec.config)
        add_repository(cache, spec.hub, made, "dataset", revision)


@pytest.mark.parametrize("name", STUDIES)
def test_it_runs_on_stand_ins(name, cache, models):
    study = load_study(name)
    stand_in(cache, models, study)
    check_inputs(study)
    assert set(pins.unpinned(study)) <= set(pins.sources(study))
    limits = {f"benchmarks.{benchmark}.limit": 2 for benchmark in study.benchmarks}
    few = {"shifts": 1, "accuracy": 1, "controls": 1, "cross_sampling": 1, "checkpoints": 1}
    study = study.with_overrides(
        **{"backend": "transformers", "dtype": "float32", "sampling.max_new_tokens": 6},
        **limits,
        **{f"samples.{key}": value for key, value in few.items()},
    )
    tuned = study.cross_sampling.pairs[0]
    frame = fetch(study, Rollouts.of(study, tuned))
    assert len(frame) == 2 * len(study.benchmarks)
    tokenizer = AutoTokenizer.from_pretrained(models / "base")
    for row in frame.to_dict("records"):
        first = next(p for p in load_benchmark(study, row["benchmark"]) if p.id == row["problem"])
        prompt = tokenizer.decode(row["prompt_ids"])
        assert first.problem.split("?")[0].split()[-1][-1] in prompt
        assert (row["options"] is None) == (row["benchmark"] != "gpqa")
    assert len(fetch(study, Shifts.of(study, tuned))) == frame["n_tokens"].sum()
    here = {"benchmarks": study.cross_benchmark, "rule": Rule("js", -1.0)}
    assert len(fetch_both(study, CrossSampling.of(study, study.base, tuned, **here))[0]) == 2
    for checkpoint in study.checkpoint_names(tuned):
        assert len(
            fetch(
                study, Shifts.of(study, checkpoint, source=tuned, benchmarks=study.cross_benchmark)
            )
        )


def test_the_weighted_objective_is_compared_on_stand_ins(cache, models):
    study = load_study("qwen2.5-math-7b-dwa")
    stand_in(cache, models, study)
    limits = {f"benchmarks.{benchmark}.limit": 1 for benchmark in study.benchmarks}
    few = {"shifts": 1, "accuracy": 2, "controls": 1, "cross_sampling": 1}
    study = study.with_overrides(
        **{"backend": "transformers", "dtype": "float32", "sampling.max_new_tokens": 6},
        **limits,
        **{f"samples.{key}": value for key, value in few.items()},
    )
    assert "confirmatory: 0 of 9 runs" in everything(study, read_runs(study))
    for run in arm_runs(study, seed=1) + arm_runs(study, "dapo", 2) + arm_runs(study, "high-kl", 2):
        run.logs.mkdir(parents=True)
        log_of(run.seed).assign(kl_base=None).to_csv(run.logs / "log.csv", index=False)
        summary = {"totals": {"tokens_generated": 9}, "seconds": 1, "resumed": False}
        (run.logs / "summary.json").write_text(json.dumps(summary | run.settings))
        if not run.model.exists():
            shutil.copytree(models / "base", run.model)
    runs = read_runs(study)
    assert {arm: list(own) for arm, own in runs.items()} == {
        "dapo": [1, 2], "high-kl": [1, 2], "low-kl": [1]
    }  # fmt: skip
    assert (runs.baseline, runs.confirmatory) == ("dapo", ("high-kl", "low-kl"))
    assert (runs.boost("high-kl"), runs.boost("low-kl")) == ("high-kl", "low-kl")
    text = everything(study, runs)
    assert "confirmatory: 5 of 9 runs; not complete: DAPO | High-KL boost | Low-KL boost" in text
    assert "a report on the way" in text and "nan" not in text.lower() and "small task" not in text
    # Both of the second seed are the base itself here: no position has moved, and none is better.
    shift = runs["dapo"][2].summary["shift"]["base"]
    assert shift["mean_js"] == 0 and shift == runs["high-kl"][2].summary["shift"]["base"]
    assert runs["dapo"][1].summary["shift"]["own"]["mean_js"] > 0
    assert runs["dapo"][2].score == runs["high-kl"][2].score
    found = objective_evidence(study, runs)
    assert list(found["subject"]) == ["high-kl", "low-kl", "high-kl", "high-kl"]
    verdicts = section_claims(study, found, 4).set_index("claim")
    assert verdicts.loc["4-low-kl-gains", "measured"] == "1 of 3 paired seeds are there"
    settings = configuration_table(study, runs).set_index("setting")["value"]
    assert settings["optimiser"] == "AdamW, constant with warmup rate 1e-06"
    assert (
        settings["length"] == "200 rollouts x 16 updates" and settings["dynamic sampling"] == "none"
    )


@pytest.mark.parametrize("name", STUDIES)
def test_no_revision_is_made_up(name):
    study = load_study(name)
    assert study.backend == "vllm" and study.dtype == "bfloat16"
    for spec in pins.sources(study).values():
        # a branch that its source names, a commit that `tokenshift pin` was told, or unpinned
        assert re.fullmatch(r"unpinned|step_100|step_1000|[0-9a-f]{40}", spec.revision)
    text = (CHECKOUT / f"notebooks/studies/{name}.yaml").read_text()
    assert "certain:" in text and "assumed" in text and "not run here" in text.lower()


@pytest.mark.parametrize("name", ["qwen2.5-32b-dapo", "qwen2.5-32b-simplerl"])
def test_the_papers_pairs_have_the_papers_settings(name):
    study = load_study(name)
    assert study.models["base"].hub == "Qwen/Qwen2.5-32B"
    sizes = {key: spec.problems for key, spec in study.benchmarks.items()}
    assert sizes == {"aime24": 30, "aime25": 30, "amc23": 40, "gpqa": 198}
    sampling = study.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens) == (1.0, 0.7, 8000)
    assert study.samples.accuracy == study.samples.cross_sampling == 32
    assert study.stop_tokens == ("<|endoftext|>", "<|im_end|>")


def test_both_of_dapos_studies_ask_in_the_words_of_its_data():
    trained, whole = load_study("qwen2.5-math-7b-dwa"), load_study("qwen2.5-32b-dapo")
    turn = whole.prompt.template.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
    assert trained.prompt.template == turn


def test_prompts_ask_for_what_the_verifier_reads():
    for name in STUDIES:
        study = load_study(name)
        asked = {"boxed": "\\boxed{{}}", "answer_line": "Answer: $Answer"}[study.verifier]
        assert asked in study.prompt.template

"""A study's own training recipe: what is said, refused, prepared and launched, on stand-ins.

The model is the random one, the data made up in the form of DAPO-Math-17k, everything on a CPU.
"""

import json
import os
import random
import shutil
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import yaml
from conftest import CHECKOUT, WORDS, write_model
from hub_cache import add_repository, write_data_set
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, TrainerCallback

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.models.policy import Continuation, Sampling
from tokenshift_utils.run.cli import main
from tokenshift_utils.sections.objective.records import read_runs
from tokenshift_utils.study import hub, pins
from tokenshift_utils.study.study import load_study
from tokenshift_utils.tasks.prompts import prompt_text
from tokenshift_utils.training.evaluation import Evaluator, Question
from tokenshift_utils.training.manager import train_arms
from tokenshift_utils.training.recipe import grpo, launch
from tokenshift_utils.training.recipe.data import read_problems
from tokenshift_utils.training.recipe.runs import RecipeArm as Run
from tokenshift_utils.training.runs import arm_runs
from tokenshift_utils.training.settings import check_settings
from tokenshift_utils.training.tiny.rlvr import RLVRTrainer

REAL = "qwen2.5-math-7b-dwa"
ASK = "so {problem} ?\n"
CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
TRL = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
    "num_generations": 4,
    "max_completion_length": 16,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "loss_type": "dapo",
    "epsilon_high": 0.28,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}
TRAINING = {
    "data": {
        "path": "data.jsonl",
        "prompt": "prompt.0.content",
        "answer": "reward_model.ground_truth",
        "max_prompt_tokens": 20,
    },
    "arms": {"tuned": {}, "high-kl": {"alpha": 100.0, "scale": 1.0}},
    "seeds": [1, 2],
    "rollouts": 3,
    "save_every": 1,
    "overlong_buffer": 15,  # the one reward that differs among a random model's responses
    "trl": TRL,
    "accelerate": {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "NO",
        "num_machines": 1,
        "num_processes": 1,
        "mixed_precision": "no",
        "use_cpu": True,
    },
}


def dapo_rows(texts):
    """Rows in the form of DAPO-Math-17k."""
    return [
        {
            "data_source": "math_dapo",
            "prompt": [{"role": "user", "content": text}],
            "ability": "MATH",
            "reward_model": {"ground_truth": answer, "style": "rule"},
            "extra_info": {"index": f"i{i}"},
        }
        for i, (text, answer) in enumerate(texts)
    ]


def problems(count):
    return [(ASK.format(problem=f"{i}+1"), str(i + 1)) for i in range(count)]


def write_rows(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The random model with a chat template and another token that ends a turn."""
    directory = tmp_path_factory.mktemp("recipe") / "base"
    write_model(directory, words=[*WORDS, "<|im_end|>"])
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(directory)
    GenerationConfig(eos_token_id=1, max_new_tokens=4).save_pretrained(directory)
    return directory


@pytest.fixture
def recipe(mini_root, base):
    """The mini study with a recipe; returns what changes it: ``recipe(**{"training.seeds": [1]})``."""
    file = mini_root / "notebooks/studies/mini.yaml"
    content = yaml.safe_load(file.read_text())
    content["models"] = {
        "base": {
            "path": str(base), "label": "Base", "kind": "base", "max_position_embeddings": 512
        },
        "tuned": {
            "path": "results/mini/models/tuned", "label": "Plain", "kind": "rl",
            "checkpoints": [{"step": 2, "path": "results/mini/models/tuned-2"}],
        },
        "high-kl": {"path": "results/mini/models/high-kl", "label": "High", "kind": "weighted"},
    }  # fmt: skip
    content["prompt"] = {"template": ASK, "chat": "base"}
    content["stop_tokens"] = ["<|im_end|>"]
    content["training"] = json.loads(json.dumps(TRAINING))
    write_rows(mini_root / "data.jsonl", dapo_rows([*problems(8), *problems(8)]))

    def change(**dotted):
        for key, value in dotted.items():
            *parents, last = key.split(".")
            part = content
            for parent in parents:
                part = part[parent]
            part[last] = value
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        return load_study("mini")

    change()
    return change


# The data -----------------------------------------------------------------------------------------


def test_problems_are_those_of_the_data_once_and_in_the_studys_prompt(recipe, mini_root):
    study = recipe()
    long, again = ASK.format(problem="1" * 40), (problems(1)[0][0], "9")
    write_rows(mini_root / "data.jsonl", dapo_rows([*problems(3), again, (long, "1")]))
    table, counts = read_problems(study)
    assert table.to_pylist() == [
        {"prompt": prompt_text(study, f"{i}+1"), "answer": str(i + 1)} for i in range(3)
    ]
    assert table["prompt"][0].as_py() == "so 0+1 ?\n="
    assert counts == {"rows": 5, "repeated": 1, "other_answer": 1, "too_long": 1, "problems": 3}
    # bare problems come into the study's template
    pd.DataFrame({"problem": ["0+1"], "n": [1]}).to_parquet(mini_root / "bare.parquet")
    bare = {"path": "bare.parquet", "problem": "problem", "answer": "n"}
    assert read_problems(recipe(**{"training.data": bare}))[0].to_pylist() == table[:1].to_pylist()


def test_a_data_set_of_the_hub_is_trained_on_and_not_needed_otherwise(
    recipe, mini_root, monkeypatch
):
    import datasets

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(mini_root / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(mini_root / "datasets"))
    place = {"hub": "org/math", "revision": "unpinned", "split": "train"}
    columns = {"prompt": "prompt.0.content", "answer": "reward_model.ground_truth"}
    study = recipe(**{"training.data": place | columns})
    assert pins.sources(study) == {} and pins.unpinned(study) == {}
    assert list(pins.sources(study, training=True)) == ["training.data"]
    with pytest.raises(TokenshiftError, match="hf download org/math --repo-type dataset"):
        train_arms(study, "tuned", 1)
    write_data_set(mini_root / "made", dapo_rows(problems(8) * 3), "train", None)
    add_repository(mini_root / "hub", "org/math", mini_root / "made", "dataset")
    hub._snapshot.cache_clear()
    table, counts = read_problems(study)
    assert len(table) == 8 and counts["rows"] == 24
    assert pins.unpinned(study, training=True)["training.data"].startswith("org/math@")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": [], "reward_model": {"ground_truth": "1"}}, "no 'prompt.0.content' in row 17"),
        ({"prompt": [{"content": "x"}]}, "no 'reward_model.ground_truth' in row 17; its columns"),
    ],
)
def test_a_row_that_lacks_something_is_named(row, said, recipe, mini_root):
    with (mini_root / "data.jsonl").open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    with pytest.raises(TokenshiftError, match=said):
        read_problems(recipe())


def test_an_answer_that_earns_no_reward_is_refused(recipe, mini_root):
    row = {"prompt": [{"content": "x"}], "reward_model": {"ground_truth": "1/2"}}
    with (mini_root / "data.jsonl").open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    assert len(read_problems(recipe())[0])
    with pytest.raises(TokenshiftError, match="data.jsonl, row 17: the answer '1/2'.*the_answer"):
        read_problems(recipe(verifier="the_answer_is"))


def test_a_column_that_is_not_there_is_named(recipe, mini_root):
    pd.DataFrame({"question": ["0+1"], "n": [1]}).to_parquet(mini_root / "bare.parquet")
    study = recipe(
        **{"training.data": {"path": "bare.parquet", "problem": "problem", "answer": "n"}}
    )
    with pytest.raises(TokenshiftError, match="no column 'problem'; its columns are question, n"):
        read_problems(study)


# Runs ---------------------------------------------------------------------------------------------


class Stop(TrainerCallback):
    """Ends a run in the middle of its third rollout, as a kill would."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt


class StopLate(TrainerCallback):
    """Ends a run between its last update and the saving of its model."""

    def on_train_end(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def files(run):
    log = pd.read_csv(run.logs / "log.csv")
    return log, load_file(run.model / "model.safetensors"), json.loads((run.logs / "summary.json").read_text())  # fmt: skip


def test_a_run_leaves_model_log_and_summary_and_resumes_to_the_same(recipe):
    study = recipe()
    run = Run(study, "high-kl", 1)
    grpo.train_run(run)
    log, weights, summary = files(run)
    assert list(log["update"]) == [1, 2, 3, 4, 5, 6] and list(log["rollout"]) == [1, 1, 2, 2, 3, 3]
    assert list(log.columns[:-1]) == ["rollout", "update", *grpo.LOG_COLUMNS]
    assert log["k3_mean"].iloc[0] < 1e-9 < log["k3_mean"].iloc[1]
    assert log["weight_mean"].iloc[0] == 1 < log["weight_mean"].iloc[1]
    assert (log["tokens_generated"].dropna() == log["tokens_trained"].dropna()).all()
    assert log["tokens_trained"].notna().tolist() == [True, False] * 3
    assert log["reward_mean"].dropna().between(-2, -1).all()  # -1 for a wrong one, -1 for length
    assert log["correct_mean"].dropna().eq(0).all()
    assert summary["data"] == {
        "rows": 16, "repeated": 8, "other_answer": 0, "too_long": 0, "problems": 8
    }  # fmt: skip
    assert summary["weighting"]["alpha"] == 100 and not summary["resumed"]
    counts = {"group": 4, "update": 8, "rollout": 16, "updates": 2, "iterations": 1, "longest": 16}
    assert summary["sizes"] == counts
    assert run.is_done() and not run.work.exists()
    start = load_file(study.model_path("base") / "model.safetensors")
    assert any((weights[name] != start[name]).any() for name in weights)
    # what vLLM and the analyses hold to
    assert AutoConfig.from_pretrained(run.model).max_position_embeddings == 512
    ends = GenerationConfig.from_pretrained(run.model)
    assert ends.eos_token_id == [1, len(WORDS)] and ends.max_new_tokens is None
    assert AutoTokenizer.from_pretrained(run.model).chat_template == CHAT

    found = read_runs(study)["high-kl"][1]  # as notebook 04 reads it
    assert len(found.final) == 3 and 0 <= found.score <= 1 and found.tokens.empty
    assert found.summary["shift"]["own"]["mean_js"] > 0

    for stop in (Stop(), StopLate()):
        shutil.rmtree(run.logs)
        shutil.rmtree(run.model)
        with pytest.raises(KeyboardInterrupt):
            grpo.train_run(run, stop)
        assert not run.model.exists() and not run.is_done()
        grpo.train_run(run)
        again, same, resumed = files(run)
        pd.testing.assert_frame_equal(again, log)
        assert resumed["resumed"]
        assert all(torch.equal(same[name], weights[name]) for name in weights)


def test_a_stopped_run_of_other_settings_is_refused_and_dropped_with_fresh(recipe):
    run = Run(recipe(), "tuned", 1)
    with pytest.raises(KeyboardInterrupt):
        grpo.train_run(run, Stop())
    assert (run.checkpoints[2] / "model.safetensors").is_file()  # kept on its way past
    other = Run(recipe(**{"training.trl": TRL | {"learning_rate": 1e-3}}), "tuned", 1)
    with pytest.raises(TokenshiftError, match="holds a run of other settings .* add --fresh"):
        grpo.train_run(other)
    other.forget()
    other.begin()
    assert [file.name for file in run.work.iterdir()] == ["key"]


def test_the_number_of_processes_decides_a_run(recipe):
    one, two = (
        Run(recipe(**{"training.accelerate": {"num_processes": n}}), "tuned", 1) for n in (1, 2)
    )
    one.prepare()
    assert one.key != two.key


def test_prompts_have_no_special_tokens_but_their_own(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    begins = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 1)])
    tokenizer._tokenizer.post_processor = begins
    prompts = [" so 1+2", " so"]
    read = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
    assert tokenizer.encode(prompts[0]) == [1, *read[0]]
    trainer = SimpleNamespace(processing_class=tokenizer)
    assert grpo.RecipeTrainer._tokenize_prompts(trainer, prompts) == (read, None, {})

    drawn = []

    def sample(rows, keys, sampling):
        drawn.extend(rows)
        return [Continuation([1], [0.0], "eos") for _ in rows]

    problems = [Question("answers", i, p, p, "3") for i, p in enumerate(prompts)]
    rl = SimpleNamespace(
        recipe=SimpleNamespace(responses_per_prompt=1, max_new_tokens=2),
        processing_class=tokenizer,
        args=SimpleNamespace(seed=1),
        evaluator=Evaluator([], 1, 1, Sampling()),
        _draw_problems=lambda rng, count: problems,
        _sampling_policy=lambda: SimpleNamespace(sample=sample),
        _tokens_generated=0,
    )
    RLVRTrainer._sample_round(rl, random.Random(0), "here", 2)
    assert drawn == read


def test_training_judges_by_each_benchmarks_own_rule():
    evaluator = Evaluator([], 1, 1, Sampling())
    said = SimpleNamespace(decode=lambda ids, skip_special_tokens: r"\boxed{B) 3}")
    response = Continuation([1], [0.0], "eos")
    assert not evaluator.solves(said, response, "B")
    assert evaluator.solves(said, response, "B", choice=True)
    assert not evaluator.solves(said, response, "B", "answer_line", choice=True)


def test_seeds_share_the_problems_and_have_models_of_their_own(recipe):
    study = recipe()
    first, second = (Run(study, "tuned", seed) for seed in (1, 2))
    assert second.model.name == "tuned-seed-2" and second.checkpoints == {}
    first.prepare()
    assert first.key != second.key
    with pytest.raises(TokenshiftError, match="has no seed 3: it has 1, 2"):
        arm_runs(study, "tuned", 3)
    runs = arm_runs(study)
    assert [(run.seed, run.arm) for run in runs][:2] == [(1, "tuned"), (1, "high-kl")]


def environment():
    path = os.pathsep.join([str(CHECKOUT), *filter(None, sys.path)])
    return {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["data parallel", "the paper's recipe's ZeRO-3"])
def test_the_command_launches_two_processes_and_finds_the_run_done(
    how, recipe, mini_root, monkeypatch, capfd
):
    trl = TRL | {"gradient_accumulation_steps": 1, "steps_per_generation": 2}
    if how == "data parallel":
        # accelerate's launcher starts processes for GPUs; `use_cpu` of TRL makes CPU ones of them
        two = {"distributed_type": "MULTI_GPU", "use_cpu": False, "machine_rank": 0}
        two = TRAINING["accelerate"] | two
    else:
        pytest.importorskip("deepspeed")
        two = load_study(str(CHECKOUT / f"notebooks/studies/{REAL}.yaml")).training.accelerate
        two = two | {"mixed_precision": "no"}  # TRL wants a GPU for bfloat16
        trl |= {"use_cpu": False, "ddp_backend": "gloo"}
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")
        monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    two = two | {"num_processes": 2, "main_process_port": 0}
    study = recipe(**{"training.accelerate": two, "training.trl": trl})
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    call(["train", "--study", "mini", "--arm", "tuned", "--seed", "1"])
    run = Run(study, "tuned", 1)
    log, weights, summary = files(run)
    assert len(log) == 6 and summary["sizes"]["rollout"] == 16
    assert log["k3_mean"].iloc[0] < 1e-9 < log["k3_mean"].iloc[1]
    start = load_file(study.model_path("base") / "model.safetensors")
    kept = load_file(run.checkpoints[2] / "model.safetensors")
    for made in (weights, kept):
        assert {n: w.shape for n, w in made.items()} == {n: w.shape for n, w in start.items()}
    assert any((weights[name] != kept[name]).any() for name in kept)
    call(["train", "--study", "mini", "--arm", "tuned", "--seed", "1"])
    assert "tuned-seed-1 is done: results/mini/models/tuned" in capfd.readouterr().out


def call(arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert not stopped.value.code


# What is refused ----------------------------------------------------------------------------------


def refused(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", *arguments])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({}, [], "trains by arm: give --arm with one of tuned, high-kl, or --arms"),
        ({}, ["--only", "tuned"], "trains by arm"),
        ({}, ["--arm", "tuned", "--only", "tuned"], "--only names shipped models"),
        ({}, ["--arm", "low-kl"], "has no arm 'low-kl': it has tuned, high-kl"),
        ({}, ["--arms", "--seed", "7"], "has no seed 7: it has 1, 2"),
        (
            {"training.trl": TRL | {"num_generation": 4}}, ["--arms"],
            "'training.trl' has 'num_generation', which trl.GRPOConfig doesn't know",
        ),
        (
            {"training.trl": TRL | {"max_steps": 4}}, ["--arms"],
            "'max_steps', which follows from 'training.rollouts'",
        ),
        (
            {"training.trl": TRL | {"num_generations": 3}}, ["--arms"],
            "an update of 8 responses must be whole groups of 3",
        ),
        (
            {"training.trl": TRL | {"steps_per_generation": 3}}, ["--arms"],
            "'steps_per_generation' (3) whole updates of 2 steps",
        ),
        (
            {"training.overlong_buffer": 17}, ["--arms"],
            "'training.overlong_buffer' is 17, more than the 16 tokens",
        ),
        (
            {"training.server": {"prot": 1}}, ["--arms"],
            "'training.server' has 'prot', which trl vllm-serve doesn't know",
        ),
        ({"training.data.path": "none.jsonl"}, ["--arms"], "there is no file none.jsonl"),
        ({"models.base.path": "nowhere"}, ["--arms"], "no model directory"),
        (
            {"training.accelerate": TRAINING["accelerate"] | {"distributed_type": "DEEPSPEED"}},
            ["--arms"], "trains with deepspeed, which is not installed here",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence_before_anything_runs(change, options, said, recipe, capsys):
    recipe(**change)
    assert said in refused(["--study", "mini", *options], capsys)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"training.arms": {"tuned": {"alpha": 1.0}}}, "'alpha' and 'scale' go together"),
        ({"training.arms": {"tuned": {"signal": "entropy"}}}, "no weights to say more of"),
        ({"training.arms": {"tuned": {"alpha": 1, "scale": 2}}}, r"\|scale\| must be below 2"),
        ({"training.arms": {"tuned": {"alpha": float("inf"), "scale": 1}}}, "must be finite"),
        (
            {"training.arms": {"tuned": {"dynamic_sampling": True}}},
            "'evaluate' and 'dynamic_sampling' are for a training on a 'task'",
        ),
        ({"training.arms": {"base": {}}}, "'models' has no such model of kind rl or weighted"),
        ({"training.arms": {"ppo": {}}}, "'training.arms' has 'ppo'"),
        ({"training.gpus": {"train": [0, 1]}}, "'gpus.train' names 2 GPUs, but 1 would be used"),
        ({"training.gpus": {"train": [0], "serve": [0]}}, "names something twice"),
        ({"training.gpus": {"train": [0], "serve": [1]}}, "'gpus.serve' names 1 GPUs, but 0"),
        ({"training.data.problem": "problem"}, "either 'prompt' or 'problem'"),
        ({"training.data.colour": 1}, "unknown key 'training.data.colour'"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_with_its_key(change, said, recipe):
    with pytest.raises(TokenshiftError, match=said) as error:
        recipe(**change)
    assert "mini.yaml: " in str(error.value) and "\n" not in str(error.value)


def test_gpus_that_are_not_there_are_refused(recipe, monkeypatch):
    study = recipe(**{"training.gpus": {"train": [3]}})
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(TokenshiftError, match="takes 1 GPUs, up to number 3, but there are 2"):
        launch.check_machine(study)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    launch.check_machine(study)


def test_a_server_that_does_not_answer_is_refused_with_its_command(recipe):
    study = recipe(**{"training.server": {"host": "127.0.0.1", "port": 9}})
    with pytest.raises(
        TokenshiftError, match="no server answers at http://127.0.0.1:9/health"
    ) as e:
        launch.check_server(study)
    assert "trl vllm-serve --model" in str(e.value)


def test_a_value_that_trl_refuses_is_one_sentence(recipe):
    run = Run(recipe(**{"training.trl": TRL | {"num_generations": 1}}), "tuned", 1)
    with pytest.raises(
        TokenshiftError, match="TRL refuses 'training.trl' .*at least 2 generations"
    ):
        grpo.grpo_config(run)


def test_studies_without_a_recipe_say_so(capsys):
    assert "its models are made by study tiny" in refused(["--study", "smoke", "--arms"], capsys)
    assert "nothing to train" in refused(["--study", "tulu3-8b", "--arms"], capsys)


# The recipe of the paper's run --------------------------------------------------------------------


def test_dry_run_writes_the_config_and_prints_the_commands(mini_root, capsys):
    shutil.copy(CHECKOUT / f"notebooks/studies/{REAL}.yaml", mini_root / "notebooks/studies")
    call(["train", "--study", REAL, "--arm", "high-kl", "--seed", "1", "--dry-run"])
    out = capsys.readouterr().out
    config = mini_root / f"results/{REAL}/training/accelerate.yaml"
    assert "a rollout is 512 problems x 16 responses, then 16 updates of 32 x 16" in out
    assert "CUDA_VISIBLE_DEVICES=4,5,6,7 trl vllm-serve --model" in out
    assert (
        f"CUDA_VISIBLE_DEVICES=0,1,2,3 accelerate launch --config_file {config} "
        f"-m {launch.MODULE} --study {REAL} --arm high-kl --seed 1"
    ) in out
    from accelerate.commands.config.config_args import load_config_from_file

    read = load_config_from_file(str(config))
    assert read.num_processes == 4 and read.distributed_type.value == "DEEPSPEED"
    assert read.deepspeed_config["zero_stage"] == 3
    assert [f.name for f in config.parent.iterdir()] == ["accelerate.yaml"]


def test_the_server_takes_its_arguments():
    from trl.scripts.vllm_serve import make_parser

    study = load_study(REAL)
    command = launch.server_command(study)
    given, rest = make_parser().parse_args_and_config(command[1:], return_remaining_strings=True)
    assert rest == [] and given.tensor_parallel_size == len(study.training.gpus.serve) == 4
    longest = study.training.data.max_prompt_tokens + study.training.trl["max_completion_length"]
    assert given.max_model_len == longest <= study.models["base"].max_position_embeddings
    assert study.shape.kv_heads % given.tensor_parallel_size == 0


def test_the_papers_numbers_multiply_out():
    study = load_study(REAL)
    run, sizes = Run(study, "dapo", 1), check_settings(study)
    config = grpo.grpo_config(run, use_cpu=True, bf16=False, use_vllm=False)
    processes = study.training.accelerate["num_processes"]
    assert (sizes.rollout, sizes.update, sizes.updates) == (512 * 16, 32 * 16, 16)
    assert config.generation_batch_size * processes == sizes.rollout
    assert config.steps_per_generation == config.gradient_accumulation_steps * sizes.updates
    assert config.max_steps == 200 * 16 and config.save_steps == 10 * 16
    assert config.warmup_steps == 10 * 16  # verl's scheduler takes a step a rollout
    assert (config.epsilon, config.epsilon_high, config.delta) == (0.2, 0.28, 10.0)
    assert config.loss_type == "dapo" and config.beta == 0 and config.num_iterations == 1
    assert config.temperature == config.top_p == 1 and config.scale_rewards == "group"
    assert config.max_completion_length == 8192 and study.training.overlong_buffer == 4096
    assert not config.mask_truncated_completions
    assert not config.vllm_importance_sampling_correction


def test_the_papers_arms_are_the_models_of_the_study():
    study = load_study(REAL)
    weights = {name: arm.weighting for name, arm in study.training.arms.items()}
    assert weights["dapo"] is None
    assert weights["high-kl"].alpha == -weights["low-kl"].alpha > 0
    assert len(study.training.seeds) == 3
    steps = [c.step for c in study.models["dapo"].checkpoints]
    assert max(steps) <= study.training.rollouts

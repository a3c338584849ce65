"""Texts longer than the models were made for: said in one sentence before work begins, refused where
the models cannot read them."""

import json

import pytest
import torch
import yaml
from conftest import WORDS, fetch_both, write_benchmark, write_tokenizer
from test_bad_input import edit, refusal, shifts
from test_reproduce import write_notebook
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CodeGenConfig,
    CTRLConfig,
    FalconConfig,
    GPT2Config,
    GPTBigCodeConfig,
    GPTJConfig,
    GPTNeoConfig,
    LlamaConfig,
    MptConfig,
    OPTConfig,
    Qwen2Config,
)

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.models.policy import Sampling
from tokenshift_utils.records.cross_sampling import CrossSampling
from tokenshift_utils.records.fetch import fetch
from tokenshift_utils.records.rollouts import Rollouts
from tokenshift_utils.records.shifts import Shifts
from tokenshift_utils.run.cli import main
from tokenshift_utils.run.pair import SHORT_RESPONSE, write_pair
from tokenshift_utils.run.plan import plan
from tokenshift_utils.study.positions import made_for
from tokenshift_utils.study.study import load_study
from tokenshift_utils.tasks import context
from tokenshift_utils.tasks.context import check_lengths

IDS = {
    "vocab_size": len(WORDS),
    "bos_token_id": None,
    "eos_token_id": WORDS.index("<eos>"),
    "pad_token_id": WORDS.index("<pad>"),
}
N = 32  # positions
PROMPT = 12  # tokens of the longest problem
SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2}
TABLES = {
    "gpt2": GPT2Config(n_positions=N, **GPT, **IDS),
    "opt": OPTConfig(
        max_position_embeddings=N, ffn_dim=16, word_embed_proj_dim=16, **SIZE, **IDS
    ),
    "gpt_neo": GPTNeoConfig(
        max_position_embeddings=N, hidden_size=16, num_layers=2, num_heads=2, window_size=8,
        attention_types=[[["global", "local"], 1]], **IDS,
    ),
    "gpt_bigcode": GPTBigCodeConfig(n_positions=N, **GPT, **IDS),
    "gptj": GPTJConfig(n_positions=N, rotary_dim=4, **GPT, **IDS),
    "codegen": CodeGenConfig(n_positions=N, n_ctx=N, n_embd=32, n_layer=2, n_head=4, rotary_dim=4,
                             **IDS),
    "ctrl": CTRLConfig(n_positions=N, dff=16, **GPT, **IDS),
    "mpt": MptConfig(d_model=16, n_heads=2, n_layers=2, max_seq_len=N, **IDS),
}  # fmt: skip
ENDLESS = {
    "llama": LlamaConfig(max_position_embeddings=N, intermediate_size=24, **SIZE, **IDS),
    "bloom": BloomConfig(hidden_size=16, n_layer=2, n_head=2, **IDS),
    "falcon": FalconConfig(max_position_embeddings=N, alibi=True, **SIZE, **IDS),
}


def write(directory, config, noise=0.0):
    """A random model of a configuration, and its tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for weight in model.parameters():
                weight += noise * torch.randn_like(weight)
    model.save_pretrained(directory)
    write_tokenizer(directory)


@pytest.fixture
def root(mini_root, monkeypatch):
    """A root whose study asks for one token more than N behind its longest prompt."""
    monkeypatch.setattr(context, "_told", set())
    write_notebook(mini_root, "02_cross_sampling", "print('ran')")
    write_benchmark(mini_root / "benchmarks/sums.jsonl", 11)
    edit(mini_root, lambda study: study["sampling"].update(max_new_tokens=N + 1 - PROMPT))
    return mini_root


def study_of(root, config, **changes):
    """The study mini on a pair of random models of a configuration."""
    for name, noise in (("base", 0.0), ("tuned", 0.05)):
        write(root / name, config, noise)
        edit(root, lambda study, name=name: study["models"][name].update(path=name))
    edit(root, lambda study: study.update(changes))
    return load_study("mini")


def asks(study):
    """What makes records, each alone."""
    return {
        "rollouts": lambda: fetch(study, Rollouts.of(study, "tuned", samples=1)),
        "scoring": lambda: fetch(study, Shifts.of(study, "tuned", samples=1)),
        "cross-sampling": lambda: fetch_both(
            study, CrossSampling.of(study, "base", "tuned", samples=1)
        ),
    }


def test_prompts_are_as_long_as_these_tests_take_them_to_be(root):
    study = study_of(root, TABLES["gpt2"])
    assert context._longest_prompt(study, "sums") == PROMPT


# A table of positions ends: refused --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "opt", "mpt"])
def test_reproduce_and_plan_refuse_what_a_table_cannot_hold(kind, root, capsys):
    study_of(root, TABLES[kind])
    for command in ("reproduce", "plan"):
        said = refusal(root, capsys, command, "--study", "mini")
        assert f"prompts of benchmark sums have up to {PROMPT} tokens" in said
        assert f"in all 33, which is more than the {N} positions that 'base' has" in said
        assert "lower 'sampling.max_new_tokens'" in said


@pytest.mark.parametrize("ask", ["rollouts", "scoring", "cross-sampling"])
def test_records_are_refused_too(ask, root):
    study = study_of(root, TABLES["gpt2"])
    with pytest.raises(TokenshiftError, match=f"more than the {N} positions that '.*' has"):
        asks(study)[ask]()
    assert not list(root.rglob("*.parquet"))


@pytest.mark.parametrize("ask", ["rollouts", "scoring", "cross-sampling"])
def test_up_to_the_last_position_all_is_well(ask, root, capsys):
    study = study_of(root, TABLES["gpt2"]).with_overrides(**{"sampling.max_new_tokens": N - PROMPT})
    asks(study)[ask]()
    assert "warning" not in capsys.readouterr().err


def test_another_limit_is_seen_where_it_is_asked_for(root):
    study = study_of(root, TABLES["gpt2"]).with_overrides(**{"sampling.max_new_tokens": 5})
    assert check_lengths(study) == ""
    with pytest.raises(TokenshiftError, match=f"responses up to {N} more"):
        fetch(study, Rollouts.of(study, "tuned", samples=1, sampling={"max_new_tokens": N}))


@pytest.mark.parametrize("kind", [*TABLES, *ENDLESS])
def test_no_model_is_asked_for_a_position_that_it_lacks(kind):
    """Batches of ragged texts, up to the last position; beyond it one sentence, or an answer."""
    config = (TABLES | ENDLESS)[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval().double()

    class NoTokenizer:
        eos_token_id = None

    policy = HFPolicy(model, NoTokenizer(), kind)
    assert policy.positions == (N if kind in TABLES else None)
    prompts, keys = [[3] * 12, [4], [5, 6]], [1, 2, 3]

    def read(tokens):
        """Texts of so many tokens, written and scored."""
        rest = [tokens - len(prompt) for prompt in prompts]
        made = policy.sample(prompts, keys, Sampling(1.0, 1.0, rest[0]), (), 2)
        assert [len(response.ids) for response in made] == [rest[0]] * 3
        given = [[7] * rest[0], [8] * rest[1], [9]]
        assert sum(part.shape[1] for _, part in policy.score(prompts, given, 5)) == rest[1]
        scorer = policy.scorer(prompts, given)
        if scorer is not None:
            last = scorer(torch.tensor([1]), torch.tensor([rest[1] - 1]))
            assert bool(last.isfinite().all())

    read(N)
    if kind in ENDLESS:
        read(N + 9)
        return
    with pytest.raises(TokenshiftError, match=f"{kind}, which has positions for {N}"):
        read(N + 1)


# Rotary positions go on: said --------------------------------------------------------------------


def warnings_of(capsys):
    return [x for x in capsys.readouterr().err.splitlines() if x.startswith("warning: ")]


SAID = f"in all 33, which is more than the {N} that 'base' was made for"


def test_reproduce_says_it_once_and_goes_on(root, capsys):
    study_of(root, ENDLESS["llama"])
    with pytest.raises(SystemExit) as stopped:
        main(["reproduce", "--study", "mini"])
    [said] = warnings_of(capsys)
    assert stopped.value.code == 0 and SAID in said
    assert "models.base.max_position_embeddings" in said


def test_plan_says_it(root):
    text = plan(study_of(root, ENDLESS["llama"]))
    assert text.splitlines()[-1].startswith("Warning: study mini: ") and SAID in text
    assert "Warning" not in plan(study_of(root, ENDLESS["bloom"]))


@pytest.mark.parametrize("ask", ["rollouts", "scoring", "cross-sampling"])
def test_records_say_it_once_before_work_begins(ask, root, capsys):
    study = study_of(root, ENDLESS["llama"])
    asks(study)[ask]()
    [said] = warnings_of(capsys)
    assert f"in all 33, which is more than the {N} that '" in said
    for again in asks(study).values():
        again()
    assert warnings_of(capsys) == []


def test_what_the_study_knows_of_a_model_counts(root):
    study = study_of(root, ENDLESS["llama"])
    edit(root, lambda s: s["models"]["base"].update(max_position_embeddings=64))
    assert f"the {N} that 'tuned' was made for" in check_lengths(load_study("mini"))
    edit(root, lambda s: s["models"]["tuned"].update(max_position_embeddings=64))
    assert check_lengths(load_study("mini")) == ""
    assert check_lengths(study.with_overrides(**{"sampling.max_new_tokens": N - PROMPT})) == ""
    # A table is not made longer by saying so.
    study_of(root, TABLES["gpt2"])
    with pytest.raises(TokenshiftError, match="positions that 'base' has"):
        check_lengths(load_study("mini"))


def test_what_is_not_on_this_machine_is_passed_over(root):
    study = study_of(root, ENDLESS["llama"])
    (root / "benchmarks/sums.jsonl").unlink()
    assert check_lengths(study) == ""
    assert f"in all {N + 1}, " in check_lengths(study, limit=N + 1)
    edit(root, lambda s: [m.update(path="nowhere") for m in s["models"].values()])
    assert check_lengths(load_study("mini"), limit=999) == ""


def test_an_engine_takes_no_more_than_it_has_room_for(root):
    engine = {"max_model_len": 34, "kv_cache_gib": 0.1}
    study = study_of(root, ENDLESS["bloom"], backend="vllm", vllm=engine)
    assert check_lengths(study) == ""
    with pytest.raises(TokenshiftError, match=r"more than the 33 that the vLLM engine of 'base'"):
        check_lengths(study, limit=N + 2 - PROMPT)
    without = study_of(root, ENDLESS["llama"], vllm={})  # the model's own number is the engine's
    with pytest.raises(TokenshiftError, match=f"more than the {N - 1} that the vLLM engine"):
        check_lengths(without)


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (Qwen2Config(max_position_embeddings=32768), 32768),
        (Qwen2Config(max_position_embeddings=32768, rope_parameters={
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768,
            "rope_theta": 1e6}), 131072),
        (Qwen2Config(max_position_embeddings=131072, rope_parameters={
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768,
            "rope_theta": 1e6}), 131072),
        (LlamaConfig(max_position_embeddings=131072, rope_parameters={
            "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 5e5}), 131072),
        (LlamaConfig(max_position_embeddings=4096, rope_parameters={
            "rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}), 16384),
        (LlamaConfig(max_position_embeddings=4096, rope_parameters={
            "rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}), 8192),
        (BloomConfig(), None),
        (GPT2Config(), 1024),
        (MptConfig(), 2048),
    ],
    ids=str,
)  # fmt: skip
def test_scaled_rotary_positions_reach_further(config, length):
    assert made_for(config) == length


SCALED = {
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "original_max_position_embeddings": N,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
    },
}


@pytest.mark.parametrize("kind", SCALED)
def test_texts_whose_positions_go_by_their_batch_are_refused(kind, root, capsys):
    """Beyond N tokens transformers turns them by the longest text of a batch."""
    length = N if kind == "dynamic" else 4 * N
    config = LlamaConfig(
        max_position_embeddings=length,
        intermediate_size=24,
        rope_parameters=SCALED[kind],
        **SIZE,
        **IDS,
    )
    study = study_of(root, config)
    with pytest.raises(TokenshiftError, match=f"more than the {N} up to which 'base' reads a text"):
        check_lengths(study)
    assert check_lengths(study, N - PROMPT) == ""
    write_responses(root, 3, N - 8)
    said = refusal(root, capsys, *shifts(root))
    assert f"row 2 has {N + 1} tokens" in said and "alike in any batch" in said
    file = write_pair(root / "base", root / "tuned", root / "benchmarks/sums.jsonl", "mine")
    assert yaml.safe_load(file.read_text())["sampling"]["max_new_tokens"] == N - PROMPT


# Commands on files -------------------------------------------------------------------------------


def write_responses(root, *lengths):
    rows = [{"prompt_ids": [5] * 9, "response_ids": [6] * n} for n in lengths]
    (root / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_shifts_refuses_rows_that_a_table_cannot_hold(root, capsys):
    study_of(root, TABLES["gpt2"])
    write_responses(root, 3, N - 8, N - 7)
    said = refusal(root, capsys, *shifts(root))
    assert f"responses.jsonl, row 3 has {N + 2} tokens, prompt and response (2 rows are" in said
    assert f"more than the {N} that the model in {root / 'base'} has positions for" in said
    write_responses(root, 3, N - 9)
    with pytest.raises(SystemExit) as stopped:
        main(shifts(root))
    assert stopped.value.code == 0 and (root / "out.parquet").is_file()


def test_shifts_says_which_rows_are_longer_than_rotary_models_know(root, capsys):
    study_of(root, ENDLESS["llama"])
    write_responses(root, 3, N)
    with pytest.raises(SystemExit) as stopped:
        main(shifts(root))
    [said] = warnings_of(capsys)
    assert stopped.value.code == 0 and (root / "out.parquet").is_file()
    assert f"row 2 has {N + 9} tokens" in said and "was made for" in said


@pytest.mark.parametrize("kind", ["gpt2", "bloom", "mpt"])
def test_pair_asks_for_no_more_than_fits(kind, root):
    config = (TABLES | ENDLESS)[kind]
    study_of(root, config)
    file = write_pair(root / "base", root / "tuned", root / "benchmarks/sums.jsonl", "mine")
    asked = yaml.safe_load(file.read_text())["sampling"]["max_new_tokens"]
    assert asked == (SHORT_RESPONSE if kind == "bloom" else N - PROMPT)
    assert check_lengths(load_study("mine")) == ""

"""Rollouts and shifts on a real tiny model, held to the models' plain forward and to each other."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.models.policy import Sampling
from tokenshift_utils.pairs.compare import score_pair
from tokenshift_utils.records.cross_sampling import get_cross_sampling
from tokenshift_utils.records.rollouts import get_rollouts
from tokenshift_utils.records.shifts import Mixed, answer_start, get_shifts
from tokenshift_utils.records.shifts_of_files import shifts_of_files
from tokenshift_utils.store import columns as records
from tokenshift_utils.study.study import load_study
from tokenshift_utils.tasks.verifier import is_correct

KEY = ["benchmark", "problem", "sample"]


@pytest.fixture
def study(mini_root):
    return load_study("mini").with_overrides(dtype="float64")


def probabilities(directory, ids, temperature):
    """Next-token probabilities at every position of one sequence: numpy float64 ``[n, V]``."""
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float64, attn_implementation="sdpa"
    )
    with torch.no_grad():
        logits = model.eval()(torch.tensor([ids])).logits[0].numpy() / temperature
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def truncated(p, top_p):
    order = np.lexsort((np.arange(len(p)), -p))
    kept = order[: int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1]
    out = np.zeros_like(p)
    out[kept] = p[kept] / p[kept].sum()
    return out, len(kept)


def divergence(p, q):
    m = (p + q) / 2
    return sum(0.5 * (a[a > 0] * np.log(a[a > 0] / m[a > 0])).sum() for a in (p, q))


def test_rollouts_are_what_they_say(study, mini_root):
    frame = get_rollouts(study, "tuned")
    assert list(frame.columns) == [c.name for c in records.describe("rollouts")]
    assert len(frame) == 3 * study.samples.accuracy
    assert not frame.duplicated(KEY).any()
    tokenizer = AutoTokenizer.from_pretrained(study.model_path("tuned"))
    problems = [
        json.loads(line) for line in (mini_root / "benchmarks/sums.jsonl").read_text().splitlines()
    ]
    problems = {p["id"]: p for p in problems}
    for row in frame.to_dict("records"):
        prompt, response = list(row["prompt_ids"]), list(row["response_ids"])
        assert tokenizer.decode(prompt) == problems[row["problem"]]["problem"]
        assert tokenizer.decode(response, skip_special_tokens=True) == row["text"]
        assert len(response) == row["n_tokens"] <= 24
        ended = response[-1] == tokenizer.eos_token_id
        assert row["finish_reason"] == ("eos" if ended else "length")
        right = ended and is_correct(row["text"], problems[row["problem"]]["answer"])
        assert row["correct"] == right


def test_unfinished_responses_are_not_correct(study, mini_root, monkeypatch):
    monkeypatch.setattr("tokenshift_utils.records.rollouts.is_correct", lambda *given: True)
    frame = get_rollouts(study, "base")
    assert frame["correct"].equals(frame["finish_reason"] == "eos")
    assert 0 < frame["correct"].sum() < len(frame)


def test_fault_10_every_number_of_a_real_models_shifts_is_right(study):
    """End to end on real models: each column from an independent numpy computation."""
    frame = get_shifts(study, "tuned")
    rollouts = get_rollouts(study, "tuned", samples=study.samples.shifts)
    assert list(frame.columns) == [c.name for c in records.describe("shifts")]
    assert len(frame) == rollouts["n_tokens"].sum()
    temperature, top_p = study.sampling.temperature, study.sampling.top_p
    checked = 0
    for row in rollouts.to_dict("records"):
        prompt, response = list(row["prompt_ids"]), list(row["response_ids"])
        here = frame[(frame[KEY] == [row[k] for k in KEY]).all(axis=1)]
        assert here["position"].tolist() == list(range(len(response)))
        assert here["token"].tolist() == response  # fault 4: the first token is there, in place
        p_all, q_all = (
            probabilities(study.model_path(m), prompt + response, temperature)
            for m in ("base", "tuned")
        )
        for t, found in enumerate(here.to_dict("records")):
            p, q = (x[len(prompt) - 1 + t] for x in (p_all, q_all))
            (p_in, size_p), (q_in, size_q) = truncated(p, top_p), truncated(q, top_p)
            order_p = np.lexsort((np.arange(len(p)), -p))
            order_q = np.lexsort((np.arange(len(q)), -q))
            gain = np.clip(q - p, 0, None)
            expected = {
                "js": divergence(p_in, q_in),
                "js_full": divergence(p, q),
                "kl_base_tuned": (p * np.log(p / q)).sum(),
                "kl_tuned_base": (q * np.log(q / p)).sum(),
                "entropy_base": -(p * np.log(p)).sum(),
                "entropy_tuned": -(q * np.log(q)).sum(),
                "logp_base": np.log(p[response[t]]),
                "logp_tuned": np.log(q[response[t]]),
                "tv": 0.5 * np.abs(p_in - q_in).sum(),
                "tv_full": 0.5 * np.abs(p - q).sum(),
                "logp_base_of_tuned_top1": np.log(p[order_q[0]]),
            }
            for name, value in expected.items():
                assert found[name] == pytest.approx(value, abs=2e-6), name
            assert (found["nucleus_base"], found["nucleus_tuned"]) == (size_p, size_q)
            assert found["rank_base_of_tuned_top1"] == 1 + list(order_p).index(order_q[0])
            assert list(found["top_ids_base"]) == list(order_p[: study.top_k])
            assert list(found["top_ids_tuned"]) == list(order_q[: study.top_k])
            np.testing.assert_allclose(
                found["top_logp_base"], np.log(np.sort(p)[::-1][: study.top_k]), atol=2e-6
            )
            np.testing.assert_allclose(
                found["gain_in_base_topk"], np.cumsum(gain[order_p[: study.top_k]]), atol=2e-6
            )
            checked += 1
    assert checked > 50


def test_shifts_do_not_depend_on_batches_blocks_or_shards(study):
    whole = get_shifts(study, "tuned")
    other = study.with_overrides(**{"batch.score": 2, "problems_per_shard": 1})
    numbers = whole.select_dtypes("number").columns.drop("answer_start")
    assert get_shifts(other, "tuned")[numbers].equals(whole[numbers])


def test_blocks_of_a_long_response_join(tiny_pair, monkeypatch):
    pair = [HFPolicy.load(d, d.name, "float64") for d in (tiny_pair.base, tiny_pair.tuned)]
    prompts, responses = [[4, 5], [6, 7, 8]], [[9] * 3 + [1], list(range(3, 30))]

    def columns():
        parts = list(score_pair(*pair, prompts, responses, Sampling(1.0, 0.7), 3, 2))
        owner = np.concatenate([o for o, _ in parts])
        merged = {n: np.concatenate([c[n] for _, c in parts]) for n in parts[0][1]}
        order = np.lexsort((merged["position"], owner))
        return len(parts), {n: v[order] for n, v in merged.items()} | {"owner": owner[order]}

    one, whole = columns()
    monkeypatch.setattr("tokenshift_utils.models.memory.CPU_LOGITS", 5 * 36)
    many, joined = columns()
    assert one == 1 and many == 7  # 31 positions, 5 at a time
    for name, values in whole.items():
        np.testing.assert_allclose(joined[name], values, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("per_shard", [6, 1])
def test_sources(study, per_shard):
    study = study.with_overrides(problems_per_shard=per_shard)
    own = get_shifts(study, "tuned", columns=["source", "token", *KEY])
    base = get_shifts(study, "tuned", source="base", columns=["source", "token", *KEY])
    mixed = get_shifts(study, "tuned", source=Mixed("base", "tuned", threshold=0.05), samples=2)
    assert set(own["source"]) == {"tuned"} and set(base["source"]) == {"base"}
    assert set(mixed["source"]) == {"mixed:base<-tuned:js>0.05"}
    assert not base["token"].equals(own["token"])
    runs, switches = get_cross_sampling(study, "base", "tuned", threshold=0.05)
    runs = runs[runs["sample"] < 2]
    for row in runs.to_dict("records"):
        here = mixed[(mixed[KEY] == [row[k] for k in KEY]).all(axis=1)]
        assert here["token"].tolist() == list(row["response_ids"])
    # what the cross-sampler saw while it wrote is what teacher forcing sees afterwards
    both = switches.merge(mixed, on=[*KEY, "position"], suffixes=("", "_scored"))
    assert len(both) == len(switches[switches["sample"] < 2])
    np.testing.assert_allclose(both["js"], both["js_scored"], atol=1e-5)
    np.testing.assert_allclose(both["js_full"], both["js_full_scored"], atol=1e-6)
    spots = [*KEY, "position"]
    fired = mixed.merge(switches[spots], on=spots, how="left", indicator=True)
    assert (fired.loc[fired["_merge"] == "left_only", "js"] <= 0.05).all()


def test_another_sampling_changes_trajectories_and_measures(study):
    frame = get_shifts(study, "tuned", samples=1, sampling={"top_p": 1.0})
    assert np.allclose(frame["js"], frame["js_full"], atol=1e-7)
    rollouts = get_rollouts(study, "tuned", samples=1, sampling={"top_p": 1.0})
    assert set(rollouts["top_p"]) == {1.0}
    assert frame["token"].tolist() == [i for ids in rollouts["response_ids"] for i in ids]


def test_answer_start(tiny_pair):
    tokenizer = AutoTokenizer.from_pretrained(tiny_pair.base)
    ids = tokenizer.encode(" so the answer is \\boxed{42}") + [tokenizer.eos_token_id]
    at = answer_start(tokenizer, ids)
    assert tokenizer.decode([ids[at]]) == "\\boxed{"
    assert answer_start(tokenizer, tokenizer.encode(" so 42")) is None
    twice = tokenizer.encode("\\boxed{1}\\boxed{2}")
    assert answer_start(tokenizer, twice) == 3


# Any pair of checkpoints ------------------------------------------------------------------------


def write_rows(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_shifts_of_files_equal_the_studys(study, tiny_pair, tmp_path):
    rollouts = get_rollouts(study, "tuned", samples=study.samples.shifts)
    rows = [
        {k: row[k] for k in KEY}
        | {k: [int(i) for i in row[k]] for k in ("prompt_ids", "response_ids")}
        for row in rollouts.to_dict("records")
    ]
    file, out = write_rows(tmp_path / "responses.jsonl", rows), tmp_path / "out.parquet"
    number = shifts_of_files(tiny_pair.base, tiny_pair.tuned, file, out, dtype="float64")
    table = pq.read_table(out)
    assert table.schema.equals(records.schema("shifts")) and table.num_rows == number
    frame, expected = table.to_pandas(), get_shifts(study, "tuned")
    for name in ("token", "position", "sample", "nucleus_base"):
        assert frame[name].tolist() == expected[name].tolist()
    np.testing.assert_allclose(frame["js"], expected["js"], atol=1e-6)


def test_shifts_of_files_take_text(tiny_pair, tmp_path):
    rows = [{"prompt": "question: what is 1+2?\n", "response": " so \\boxed{3}"}]
    out = tmp_path / "out.parquet"
    number = shifts_of_files(
        tiny_pair.base, tiny_pair.tuned, write_rows(tmp_path / "r.jsonl", rows), out
    )
    frame = pq.read_table(out).to_pandas()
    assert number == len(frame) == 5 and set(frame["benchmark"]) == {"r"}
    assert set(frame["answer_start"]) == {2} and set(frame["problem"]) == {"0"}


def test_fault_07_ids_are_never_decoded_and_encoded_again(tiny_pair, tmp_path):
    """Ids that their text does not encode to, the end token among them, are kept as they are."""
    ids = [8, 2, 31, 1]
    tokenizer = AutoTokenizer.from_pretrained(tiny_pair.base)
    assert tokenizer.encode(tokenizer.decode(ids, skip_special_tokens=True)) != ids
    file = write_rows(tmp_path / "r.jsonl", [{"prompt_ids": [4, 2, 1, 5], "response_ids": ids}])
    shifts_of_files(tiny_pair.base, tiny_pair.tuned, file, tmp_path / "out.parquet")
    frame = pq.read_table(tmp_path / "out.parquet").to_pandas()
    assert frame["token"].tolist() == ids
    p = probabilities(tiny_pair.base, [4, 2, 1, 5, *ids], 1.0)
    expected = [np.log(p[3 + t, token]) for t, token in enumerate(ids)]
    assert frame["logp_base"].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"prompt": "x"}], "row 1 has neither 'response'"),
        ([{"prompt": "x", "response_ids": [1, 99]}], "row 1 has response_ids outside 0 to 35"),
        ([{"prompt": "x", "response": "y"}, {"prompt": "", "response": "y"}], "row 2 has a prompt"),
        ([], "is empty"),
    ],
)
def test_bad_responses_are_refused(tiny_pair, tmp_path, rows, message):
    file, out = write_rows(tmp_path / "r.jsonl", rows), tmp_path / "out.parquet"
    with pytest.raises(TokenshiftError, match=message):
        shifts_of_files(tiny_pair.base, tiny_pair.tuned, file, out)
    assert not list(tmp_path.glob("out*"))


def test_a_missing_output_directory_is_refused_before_computing(tiny_pair, tmp_path):
    with pytest.raises(TokenshiftError, match="no directory"):
        shifts_of_files(tiny_pair.base, tiny_pair.tuned, tmp_path / "r", tmp_path / "x/out.parquet")

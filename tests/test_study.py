"""Studies and paths: what a study file may say, and what is said when it says something else."""

import json
import pickle

import pytest
import yaml
from conftest import CHECKOUT

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.run.checks import check_rules
from tokenshift_utils.study.study import available_studies, load_study


def one_sentence(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text and 20 < len(text) < 400
    return text


@pytest.mark.parametrize("name", ["tiny", "smoke"])
def test_shipped_studies_load(name):
    study = load_study(name)
    assert study.name == name
    assert study.checkpoint_names("dapo")[-1].startswith("dapo@")
    assert pickle.loads(pickle.dumps(study)) == study
    assert {study: 1}[load_study(name)] == 1


def test_smoke_has_models_of_tiny():
    tiny, smoke = load_study("tiny"), load_study("smoke")
    left_out = {"sft-own", "sft-own-accuracy", "dpo"}
    assert list(smoke.models) == [name for name in tiny.models if name not in left_out]
    for name, model in smoke.models.items():
        whole = tiny.models[name]
        assert set(model.checkpoints) <= set(whole.checkpoints)
        own = {"checkpoints": whole.checkpoints, "seeds": whole.seeds}
        assert model.model_copy(update=own) == whole
    assert {b.path for b in smoke.benchmarks.values()} <= {b.path for b in tiny.benchmarks.values()}


def test_study_is_immutable_and_overrides_are_copies():
    study = load_study("tiny")
    with pytest.raises(ValueError):
        study.seed = 1
    other = study.with_overrides(**{"sampling.top_p": 0.9, "samples.shifts": 2})
    assert (other.sampling.top_p, other.samples.shifts, study.sampling.top_p) == (0.9, 2, 0.7)
    assert other != study and hash(other) != hash(study)


def test_models_and_checkpoints_are_addressed_alike():
    study = load_study("tiny")
    name = study.checkpoint_names("dapo")[0]
    assert study.model_path(name) == paths.root() / study.models["dapo"].checkpoints[0].path
    assert study.model(name).kind == "rl"
    assert study.accuracy_samples("sft-far") == study.samples.controls
    assert study.accuracy_samples("dapo") == study.samples.accuracy
    assert study.accuracy_samples(name) == study.samples.checkpoints
    with pytest.raises(TokenshiftError, match="no checkpoint at step 999"):
        study.model("dapo@999")
    with pytest.raises(TokenshiftError, match="no model 'ppo'"):
        study.model("ppo")


def test_runs_from_other_seeds_are_addressed_like_checkpoints():
    seeds = [{"seed": n, "path": f"elsewhere/{n}"} for n in (2, 5)]
    study = load_study("tiny").with_overrides(**{"models.dapo.seeds": seeds})
    assert study.seed_names("dapo") == ["dapo@seed-2", "dapo@seed-5"]
    assert study.model_path("dapo@seed-5") == paths.root() / "elsewhere/5"
    assert study.accuracy_samples("dapo@seed-2") == study.samples.checkpoints
    assert {*study.seed_names("dapo"), *study.checkpoint_names("dapo")} < set(study.every_model)
    with pytest.raises(TokenshiftError, match="no seed 3: it has 2, 5"):
        study.model("dapo@seed-3")


TOP = {"top_logprobs": 20}
BAD = {
    "unknown key": ({"sampling.topp": 0.5}, "unknown key 'sampling.topp'"),
    "top-p above 1": ({"sampling.top_p": 1.7}, "'sampling.top_p' is 1.7"),
    "top-p of 0": ({"sampling.top_p": 0}, "'sampling.top_p' is 0"),
    "temperature of 0": ({"sampling.temperature": 0}, "'sampling.temperature' is 0"),
    "temperature below 0": ({"sampling.temperature": -1.0}, "'sampling.temperature' is -1.0"),
    "infinite temperature": ({"sampling.temperature": float("inf")}, "finite"),
    "seeds that do not rise": ({"models.dapo.seeds": [{"seed": 2, "path": "a"}] * 2}, "must rise"),
    "the model's own seed": (
        {"models.dapo.seeds": [{"seed": 1, "path": "a"}]},
        "'models.dapo.seeds",
    ),
    "not a number": ({"samples.shifts": "many"}, "'samples.shifts' is 'many'"),
    "no benchmarks": ({"benchmarks": {}}, "'benchmarks'"),
    "vllm on several processes": ({"backend": "vllm"}, "'workers' is 2, but with vllm"),
    "vllm in float64": ({"backend": "vllm", "workers": 0, "dtype": "float64"}, "float64"),
    "temperatures on top log-probs": (
        {"backend": "vllm", "workers": 0, "vllm": TOP},
        "but temperature 0.6 takes the log-probs of the whole vocabulary",
    ),
    "no log-probs": ({"vllm": {"top_logprobs": 0}}, "'top_logprobs' is 0"),
    "engine of nobody": ({"vllm": {"models": {"nobody": {}}}}, "'vllm.models' names 'nobody'"),
    "devices": (
        {"vllm": {"models": {"dapo": {"devices": [0, 1]}}}},
        "'devices' names 2 where 'tensor_parallel_size' is 1",
    ),
    "unknown base": ({"base": "nobody"}, "names the model 'nobody'"),
    "unknown pair": ({"cross_sampling.pairs": ["nobody"]}, "names the model 'nobody'"),
    "unknown benchmark": ({"robustness.benchmark": "x"}, "names 'x'"),
    "unknown benchmark of rules": ({"cross_sampling.benchmark": "x"}, "names 'x'"),
    "seeds listed": (
        {"cross_sampling.seeds": [2]},
        "'cross_sampling.seeds': Input should be a valid bool",
    ),
    "unknown control": (
        {"cross_sampling.controls.models": ["nobody"]},
        "'cross_sampling.controls.models' names the model 'nobody'",
    ),
    "rules of no pair": ({"cross_sampling.rules.pairs": ["base"]}, "not in 'pairs'"),
    "threshold not a number": ({"cross_sampling.thresholds": [float("nan")]}, "nats"),
    "threshold twice": ({"cross_sampling.null_thresholds": [0.1, 0.1]}, "twice"),
    "no budget": ({"cross_sampling.budgets": [0]}, "budgets.0' is 0"),
    "rate above 1": ({"cross_sampling.random_rates": [1.5]}, "random_rates"),
    "single tokens of no pair": ({"cross_sampling.single_token.pairs": ["base"]}, "not in 'pairs'"),
    "gain of 0": ({"cross_sampling.extrapolation.gains": [0]}, "greater than 0"),
    "strata from above 0": ({"cross_sampling.single_token.strata": [0.1, 0.2]}, "begin with 0"),
    "strata that fall": ({"cross_sampling.single_token.strata": [0, 0.2, 0.1]}, "must rise"),
    "hub without revision": (
        {"models.base": {"hub": "a/b", "label": "B", "kind": "base"}},
        "pinned",
    ),
    "data set without a split": (
        {"benchmarks.easy": {"hub": "a/b", "revision": "unpinned", "label": "B"}},
        "'benchmarks.easy': a data set of the hub needs a 'split'",
    ),
    "split of a file": ({"benchmarks.easy.split": "test"}, "are for data sets of the hub"),
    "two models of one label": (
        {"models.dapo.label": "Base"},
        "'models' has 'base' and 'dapo' under one label",
    ),
    "pair of the base": ({"cross_sampling.pairs": ["base"]}, "names 'base', the base"),
    "seed below 0": ({"statistics.seed": -1}, "'statistics.seed' is -1"),
    "no label": ({"models.base.label": " "}, "'models.base.label' is ' ': must be a line"),
    "label of two lines": ({"benchmarks.easy.label": "a\nb"}, "must be a line of text"),
    "label that no figure shows": ({"models.base.label": "a\0"}, "must be a line of text"),
    "unknown column": (
        {"benchmarks.easy.columns": {"text": "x"}},
        "unknown key 'benchmarks.easy.columns.text'",
    ),
    "options without a place": (
        {"benchmarks.easy.choices": {"wrong": ["w"], "template": "{problem}"}},
        "must hold {problem} and {options}",
    ),
    "unknown verifier": ({"verifier": "last"}, "'verifier' is 'last'"),
    "stop token twice": ({"stop_tokens": ["a", "a"]}, "twice"),
    "shifts beyond samples": ({"samples.shifts": 10**6}, "'shifts'"),
    "template without problem": ({"prompt.template": "hello"}, "must hold {problem}"),
    "template with more": ({"prompt.template": "{problem} {x}"}, "no field but"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_study_is_one_sentence_naming_file_and_key(case, tmp_path):
    changes, expected = BAD[case]
    content = yaml.safe_load((CHECKOUT / "notebooks/studies/smoke.yaml").read_text())
    for key, value in changes.items():
        part = content
        *parents, last = key.split(".")
        for parent in parents:
            part = part[parent]
        part[last] = value
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(TokenshiftError) as error:
        load_study(file)
    text = one_sentence(error)
    assert "bad.yaml" in text and expected in text


def test_thresholds_may_say_always_and_never():
    study = load_study("tiny").with_overrides(**{"cross_sampling.thresholds": [-1, float("inf")]})
    assert study.cross_sampling.thresholds == (-1, float("inf"))
    assert study == load_study("tiny").with_overrides(
        **{"cross_sampling.thresholds": [-1, float("inf")]}
    )


def test_rules_are_compared_on_the_last_benchmark_unless_one_is_named():
    study = load_study("tiny")
    assert study.with_overrides(**{"cross_sampling.benchmark": "easy"}).cross_benchmark == "easy"
    assert study.with_overrides(**{"cross_sampling.benchmark": None}).cross_benchmark == "hard"


def test_missing_key_names_it(tmp_path):
    content = yaml.safe_load((CHECKOUT / "notebooks/studies/smoke.yaml").read_text())
    del content["sampling"]["top_p"]
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(TokenshiftError, match="the key 'sampling.top_p' is missing"):
        load_study(file)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a: [", "not a valid YAML"), ("- a\n", "no study"), ("a: 1\na: 2\n", "'a' is given twice")],
)
def test_bad_yaml(text, expected, tmp_path):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(TokenshiftError, match=expected) as error:
        load_study(tmp_path / "bad.yaml")
    one_sentence(error)


def test_unknown_study_lists_the_known():
    with pytest.raises(TokenshiftError) as error:
        load_study("huge")
    assert all(name in one_sentence(error) for name in ("huge", *available_studies()))


def test_unknown_override_is_refused():
    with pytest.raises(TokenshiftError, match="no key 'sampling.topp'"):
        load_study("tiny").with_overrides(**{"sampling.topp": 1})


def test_root_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.delenv(paths.HOME_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    assert paths.root() == CHECKOUT  # the checkout that the package is installed from
    (tmp_path / "notebooks/studies").mkdir(parents=True)
    (tmp_path / "deep/er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep/er")
    assert paths.root() == tmp_path
    monkeypatch.setenv(paths.HOME_VARIABLE, str(CHECKOUT))
    assert paths.root() == CHECKOUT
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path / "deep"))
    with pytest.raises(TokenshiftError, match="holds no notebooks/studies"):
        paths.root()


TOP_ONLY = {"backend": "vllm", "workers": 0, "robustness": None, "vllm": TOP}
TOP_ONLY |= {"cross_sampling.extrapolation": None}


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"cross_sampling.rules": {"kll": [0.1]}},
            "cross_sampling.rules.kll'.* unknown rule 'kll'",
        ),
        ({"cross_sampling.rules": {"entropy": [-0.1]}}, "rules.entropy'.* at least 0, not -0.1"),
        ({"cross_sampling.rules": {"first": [0]}}, "rules.first'.* at least 1, not 0"),
        ({"cross_sampling.rules": {"always": [0.1]}}, "rules.always'.* has no threshold"),
        (TOP_ONLY, "'vllm.top_logprobs' is 20, but 'cross_sampling.rules.js_full' .* takes"),
    ],
)
def test_rules_are_checked_before_anything_runs(changes, message):
    study = load_study("tiny").with_overrides(**changes)
    with pytest.raises(TokenshiftError, match=message) as refused:
        check_rules(study)
    assert "\n" not in str(refused.value)


def test_the_rules_of_the_shipped_studies_are_rules():
    for name in ("tiny", "smoke"):
        check_rules(load_study(name))


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{y}: &{y} [{', '.join([f'*{x}'] * 10)}]\n" for x, y in zip("abcdefgh", "bcdefghi")
)
NOT_YAML = {
    "tab": ("name:\n\tx: 1\n", "is not a valid YAML file"),
    "key twice": ("name: x\ntitle: y\nname: z\n", "the key 'name' is given twice"),
    "nested key twice": ("models: {a: 1, a: 2}\n", "the key 'a' is given twice"),
    "key that is a list": ("{[1, 2]: 3}\n", "a key must be text"),
    "key that is a mapping": ("? {a: 1}\n: 3\n", "a key must be text"),
    "bomb of aliases": (BOMB, "aliases make more than 100000 values"),
    "alias in itself": ("models: &m {a: *m}\n", "stands within what it refers to"),
    "no such alias": ("models: *m\n", "undefined alias"),
    "Python's object": ("name: !!python/object/apply:os.getcwd []\n", "could not determine"),
    "two documents": ("name: x\n---\nname: y\n", "expected a single document"),
    "latin-1": ("title: caf\xe9\n".encode("latin-1"), "it is not UTF-8"),
    "UTF-16": ("title: x\n".encode("utf-16"), "it is not UTF-8"),
    "NUL": ("title: \0\n", "not a valid YAML file"),
    "no such day": ("title: 2024-13-45\n", "not a valid YAML file"),
    "many digits": (f"seed: {'9' * 5000}\n", "not a valid YAML file"),
    "an octal number": ("seed: 010\n", "'010' is another number in YAML"),
    "a number in sixties": ("seed: 1:30\n", "'1:30' is another number in YAML"),
    "nested deep": ("models: " + "[" * 5000, "not a valid YAML file"),
    "half a character": ('title: "a\\ud83d"\n', "holds half a character"),
    "half a character as a key": ('{"models": {"\\ud83d": 1}}', "holds half a character"),
    "a list": ("- name\n", "holds no study"),
    "text": ("name\n", "holds no study"),
    "empty": ("", "holds no study"),
}


@pytest.mark.parametrize("case", NOT_YAML)
def test_what_is_no_yaml_of_a_study_is_one_sentence(case, mini_root):
    content, said = NOT_YAML[case]
    file = mini_root / "notebooks/studies/odd.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TokenshiftError) as error:
        load_study("odd")
    assert said in one_sentence(error) and "odd.yaml" in str(error.value)


def test_aliases_and_merged_keys_are_followed(mini_root):
    file = mini_root / "notebooks/studies/mini.yaml"
    content = yaml.safe_load(file.read_text())
    first = json.dumps(content.pop("benchmarks").popitem()[1])
    two = f"benchmarks: {{one: &one {first}, two: {{<<: *one, label: Two}}}}\n"
    file.write_text(yaml.safe_dump(content) + two)
    one, two = load_study("mini").benchmarks.values()
    assert two == one.model_copy(update={"label": "Two"})


def test_a_long_value_is_cut_in_its_sentence(mini_root):
    with pytest.raises(TokenshiftError) as error:
        load_study("mini").with_overrides(**{"sampling.top_p": "9" * 10_000})
    one_sentence(error)
    with pytest.raises(TokenshiftError, match="is a number of very many digits"):
        load_study("mini").with_overrides(backend=10**5000)

"""Models and data sets of the hub, from a hand-made cache: found, refused, pinned; code that waits."""

import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml
from conftest import CHECKOUT
from hub_cache import COMMIT, add_repository, write_data_set
from test_reproduce import write_notebook

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.models.load import load_policy
from tokenshift_utils.records.rollouts import get_rollouts
from tokenshift_utils.run.checks import check_inputs
from tokenshift_utils.run.cli import main
from tokenshift_utils.study import hub, pins
from tokenshift_utils.study.checkpoints import directory_fingerprint
from tokenshift_utils.study.study import load_study

MODELS = CHECKOUT / "results/tiny/models"
STUDY = "notebooks/studies/mini.yaml"


def edit(root, change):
    file = root / STUDY
    content = yaml.safe_load(file.read_text())
    change(content)
    file.write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the hub that this test alone sees, with the tiny study's models in it."""
    import datasets

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home/hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "home/datasets"))
    for name in ("base", "dapo"):
        add_repository(tmp_path / "home/hub", f"org/{name}", MODELS / name)
    return tmp_path / "home/hub"


@pytest.fixture
def root(mini_root, cache):
    """The mini study on models and a data set of the hub."""

    def from_hub(study):
        for name, repository in (("base", "org/base"), ("tuned", "org/dapo")):
            del study["models"][name]["path"]
            study["models"][name] |= {"hub": repository, "revision": "unpinned"}
        problems = {"hub": "org/sums", "revision": "unpinned", "split": "test", "label": "Sums"}
        study["benchmarks"] = {"sums": problems | {"problems": 2}}
        study["sampling"]["max_new_tokens"] = 8

    edit(mini_root, from_hub)
    rows = [{"id": i, "problem": "question: evaluate 1+2.\n", "answer": 3} for i in range(2)]
    write_data_set(mini_root / "made", rows, "test", None)
    add_repository(cache, "org/sums", mini_root / "made", "dataset")
    return mini_root


def test_a_study_on_the_hubs_cache_runs(root, cache):
    study = load_study("mini")
    check_inputs(study)
    directory = study.model_path("tuned")
    assert directory.is_relative_to(cache) and (directory / "model.safetensors").is_symlink()
    # content decides: the shipped directory without its model card is the same model
    plain = root / "plain"
    shutil.copytree(MODELS / "dapo", plain)
    assert directory_fingerprint(directory) == directory_fingerprint(plain)
    assert len(get_rollouts(study, "tuned", samples=1)) == 2


def test_reproduce_in_a_process_of_its_own(root):
    """With nothing but the environment saying where the cache is, and no network."""
    call = "from tokenshift_utils import get_shifts\nprint(len(get_shifts(nb.study, 'tuned')) > 0)"
    write_notebook(root, "01_divergence_characterization", call)
    environment = {"HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "tokenshift_utils", "reproduce", "--study", "mini"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert run.returncode == 0, run.stderr
    assert "warning: study mini is not pinned: here models.base is org/base@" in run.stderr
    manifest = json.loads((root / "results/mini/manifest.json").read_text())
    found = manifest["notebooks"]["01_divergence_characterization"]["unpinned"]
    assert list(found) == ["models.base", "models.tuned", "benchmarks.sums"]
    snapshots = root / "home/hub/models--org--dapo/snapshots"
    assert found["models.tuned"] == f"org/dapo@{next(snapshots.iterdir()).name}"
    executed = (root / "results/mini/notebooks/01_divergence_characterization.ipynb").read_text()
    assert found["models.tuned"] in executed and "True" in executed


def test_a_named_revision_is_that_one(root, cache):
    add_repository(cache, "org/dapo", MODELS / "simplerl", revision=COMMIT)
    add_repository(cache, "org/dapo", MODELS / "dapo-step-4", revision="step_4")

    def name_them(study):
        study["models"]["tuned"]["revision"] = COMMIT
        step = {"step": 4, "hub": "org/dapo", "revision": "step_4"}
        study["models"]["tuned"]["checkpoints"] = [step]

    edit(root, name_them)
    study = load_study("mini")
    same = {"tuned": "simplerl", "tuned@4": "dapo-step-4"}
    for name, directory in same.items():
        own = directory_fingerprint(study.model_path(name))
        assert own == directory_fingerprint(MODELS / directory)
    assert list(pins.unpinned(study)) == ["models.base", "benchmarks.sums"]


@pytest.mark.parametrize(
    ("gone", "command"),
    [
        ("models--org--dapo", "hf download org/dapo --include"),
        ("datasets--org--sums", "hf download org/sums --repo-type dataset"),
    ],
)
def test_offline_without_the_files_is_one_sentence(gone, command, root, cache, capsys):
    shutil.rmtree(cache / gone)
    with pytest.raises(SystemExit) as stopped:
        main(["reproduce", "--study", "mini"])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and len(lines) == 1
    assert command in lines[0] and gone in lines[0] and str(cache) in lines[0]
    assert not (root / "results/mini").exists()


def test_a_shard_that_is_missing_is_named(root, cache):
    directory = load_study("mini").model_path("tuned")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(TokenshiftError, match="lacks model-2.safetensors, which"):
        check_inputs(load_study("mini"))


def test_only_what_a_model_needs_is_asked_for(root, monkeypatch):
    asked = []

    def downloaded(**arguments):
        asked.append(arguments)
        return str(MODELS / "dapo")

    hub._snapshot.cache_clear()
    monkeypatch.setattr("huggingface_hub.snapshot_download", downloaded)
    study = load_study("mini")
    study.model_path("tuned")
    assert asked[0]["repo_id"] == "org/dapo" and asked[0]["revision"] is None
    assert "*.safetensors" in asked[0]["allow_patterns"]
    assert not {"*.bin", "*.pt", "*.py"} & set(asked[0]["allow_patterns"])
    hub._snapshot.cache_clear()


# Pinning ----------------------------------------------------------------------------------------


class Hub:
    """What `pin` asks of the hub's API, from a table of commits."""

    def repo_info(self, repository, repo_type):
        name = "b" if repo_type == "dataset" else "a"
        return SimpleNamespace(sha=name * 40)


@pytest.mark.parametrize("name", ["qwen2.5-32b-dapo", "tulu3-8b", "qwen2.5-math-7b-dwa"])
def test_pin_writes_commits_and_keeps_everything_else(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    before = (CHECKOUT / f"notebooks/studies/{name}.yaml").read_text()
    file = tmp_path / f"{name}.yaml"
    file.write_text(before)
    main_without_exit(["pin", "--study", str(file)])
    after = file.read_text()
    assert re.sub("a{40}|b{40}", "unpinned", after) == before and "unpinned" in before
    study, plain = load_study(file), load_study(name)
    every = pins.sources(study, training=True)
    for key, spec in every.items():
        was = pins.sources(plain, training=True)[key].revision
        commit = ("b" if key.startswith(("benchmarks", "training")) else "a") * 40
        assert spec.revision == (commit if was == "unpinned" else was)
    assert not [spec for spec in every.values() if spec.revision == "unpinned"]
    assert "is at aaaa" in capsys.readouterr().out
    main_without_exit(["pin", "--study", str(file)])
    assert file.read_text() == after and "already" in capsys.readouterr().out


def main_without_exit(arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0


def test_pin_offline_is_one_sentence_and_changes_nothing(root, capsys):
    before = (root / STUDY).read_text()
    with pytest.raises(SystemExit) as stopped:
        main(["pin", "--study", "mini"])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and len(lines) == 1 and "needs a network" in lines[0]
    assert (root / STUDY).read_text() == before


# Code beside the weights ------------------------------------------------------------------------

CODE = """
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

Path({marker!r}).touch()


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_beside_the_weights_waits_for_the_studys_word(root, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    made, marker = tmp_path / "own", tmp_path / "ran"
    shutil.copytree(MODELS / "dapo", made)
    config = json.loads((made / "config.json").read_text())
    config |= {"model_type": "own", "architectures": ["OwnForCausalLM"]}
    config["auto_map"] = {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForCausalLM": "own.OwnForCausalLM",
    }
    (made / "config.json").write_text(json.dumps(config))
    (made / "own.py").write_text(CODE.format(marker=str(marker)))
    shutil.copytree(made, tmp_path / "changed")
    edit(root, lambda study: study["models"].update(tuned=own(made)))
    with pytest.raises(TokenshiftError, match="needs code that lies beside it, which is not run"):
        check_inputs(load_study("mini"))
    with pytest.raises(TokenshiftError, match="trust_remote_code: true"):
        load_policy(load_study("mini"), "tuned")
    assert not marker.exists()
    edit(root, lambda study: study["models"]["tuned"].update(trust_remote_code=True))
    study = load_study("mini")
    check_inputs(study)
    assert type(load_policy(study, "tuned").model).__name__ == "OwnForCausalLM" and marker.exists()
    # its code is a part of what identifies it
    (tmp_path / "changed/own.py").write_text("# changed")
    assert directory_fingerprint(made) != directory_fingerprint(tmp_path / "changed")


def own(directory):
    return {"path": str(directory), "label": "Own", "kind": "rl"}

"""Shards on a Ray cluster of two workers here: the same records, whatever is killed meanwhile."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import CHECKOUT, gone, write_smoke_root
from safetensors.torch import load_file, save_file
from test_reproduce import write_notebook

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.records.fetch import fetch
from tokenshift_utils.records.rollouts import Rollouts
from tokenshift_utils.records.shifts import Shifts
from tokenshift_utils.store import executor
from tokenshift_utils.study.study import load_study

pytestmark = pytest.mark.ray

ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "tests")])}
PATIENCE = 240  # seconds: another process loads torch, on a busy machine


@dataclass(frozen=True)
class Watched(Rollouts):
    """Rollouts that note, a line each, which shard is begun in which process."""

    notes: str = ""

    def note(self, shard):
        with open(self.notes, "a") as notes:
            notes.write(f"{shard} {os.getpid()}\n")

    def compute(self, study, shard):
        self.note(shard)
        return super().compute(study, shard)


@dataclass(frozen=True)
class Dying(Watched):
    """Shard 1 loses its process the first ``deaths`` times that it is computed."""

    deaths: int = 1

    def note(self, shard):
        super().note(shard)
        if shard == 1 and len(begun(self.notes)[1]) <= self.deaths:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Slow(Watched):
    """Shard 2 would take very long."""

    def note(self, shard):
        super().note(shard)
        if shard == 2:
            time.sleep(4 * PATIENCE)


def begun(notes) -> dict[int, list[int]]:
    """Processes that began each shard, from the notes of a ``Watched``."""
    found: dict[int, list[int]] = {}
    for line in Path(notes).read_text().splitlines() if Path(notes).exists() else []:
        shard, process = map(int, line.split())
        found.setdefault(shard, []).append(process)
    return found


def three_shards():
    """The study ``mini``, one problem a shard."""
    return load_study("mini").with_overrides(problems_per_shard=1)


def rollouts(cls, study, notes, **more):
    """The artefact of the tuned model's responses, as another class: its records are the same."""
    (plain,) = Rollouts.of(study, "tuned")
    artefact = cls(**vars(plain), notes=str(notes), **more)
    assert executor.key_of(study, artefact) == executor.key_of(study, plain)
    return artefact


def contents(root: Path, ending: str = ".parquet") -> dict[str, bytes]:
    """All records below a root, or other files."""
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob(f"*{ending}"))}


def wait_for(condition, process: subprocess.Popen | None = None) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        assert process is None or process.poll() is None, "it ended too early"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two workers for this module, and its address."""
    ray = pytest.importorskip("ray", reason="needs ray: pip install -e '.[ray]'")
    os.environ.pop("RAY_ADDRESS", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            "local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=80 * 2**20,
            log_to_driver=False,
            logging_level="ERROR",
        )
        try:
            yield ray.get_runtime_context().gcs_address
        finally:
            ray.shutdown()


@pytest.fixture
def on_ray(cluster, monkeypatch):
    """What is computed is computed there."""
    monkeypatch.setenv(executor.EXECUTOR_VARIABLE, "ray")
    return cluster


def test_the_same_records_as_in_this_process(mini_root, on_ray, monkeypatch):
    study = three_shards()
    there = fetch(study, Shifts.of(study, "tuned"))
    records = contents(mini_root)
    shutil.rmtree(mini_root / "results")
    monkeypatch.setenv(executor.EXECUTOR_VARIABLE, "local")
    assert fetch(study, Shifts.of(study, "tuned")).equals(there)
    assert contents(mini_root) == records and len(records) == 6


def test_a_mistake_found_by_a_worker_is_its_sentence(mini_root, tiny_pair, on_ray):
    damaged = mini_root / "damaged"
    shutil.copytree(tiny_pair.tuned, damaged)
    weights = load_file(damaged / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    study = three_shards().with_overrides(**{"models.tuned.path": str(damaged)})
    with pytest.raises(TokenshiftError, match="logits are NaN at row 0") as error:
        fetch(study, Rollouts.of(study, "tuned"))
    assert type(error.value) is TokenshiftError and not contents(mini_root)


def test_a_killed_worker_loses_nothing_and_its_shard_is_tried_again(
    mini_root, on_ray, monkeypatch, tmp_path
):
    study, notes = three_shards(), tmp_path / "notes"
    executor.run(study, [rollouts(Dying, study, notes)])
    computed = begun(notes)
    assert sorted(map(len, computed.values())) == [1, 1, 2] and len(set(computed[1])) == 2
    records = contents(mini_root)
    shutil.rmtree(mini_root / "results")
    monkeypatch.setenv(executor.EXECUTOR_VARIABLE, "local")
    fetch(study, Rollouts.of(study, "tuned"))
    assert contents(mini_root) == records and len(records) == 3


def test_a_shard_that_always_loses_its_worker_is_given_up(mini_root, on_ray, tmp_path):
    study, notes = three_shards(), tmp_path / "notes"
    with pytest.raises(TokenshiftError, match="Ray gave up on a shard after 3 retries"):
        executor.run(study, [rollouts(Dying, study, notes, deaths=9)])
    assert len(begun(notes)[1]) == 4
    assert {Path(name).name for name in contents(mini_root)} == {"0000.parquet", "0002.parquet"}


DRIVER = """
from pathlib import Path
from test_executor_ray import Slow, rollouts, three_shards
from tokenshift_utils.store import executor
study = three_shards()
executor.run(study, [rollouts(Slow, study, {notes!r})])
"""


def test_a_killed_driver_started_again_goes_on(mini_root, on_ray, tmp_path):
    study, notes = three_shards(), tmp_path / "notes"
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER.format(notes=str(notes))],
        env=os.environ | ENVIRONMENT | {"RAY_ADDRESS": on_ray},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: 2 in begun(notes) and len(contents(mini_root)) == 2, driver)
    finally:
        driver.kill()
        driver.wait()
    again = tmp_path / "again"
    executor.run(study, [rollouts(Watched, study, again)])  # waits until the slow worker is ended
    assert gone(begun(notes)[2][0])
    assert list(begun(again)) == [2] and len(contents(mini_root)) == 3


def test_what_no_node_has_room_for_is_refused(mini_root, on_ray):
    study = load_study("mini").with_overrides(resources={"cpus": 1, "gpus": 2})
    with pytest.raises(TokenshiftError, match="takes 1 CPUs and 2 GPUs, which no node"):
        fetch(study, Rollouts.of(study, "tuned"))


def test_a_shard_takes_the_gpus_that_its_models_are_spread_over(cluster):
    from tokenshift_utils.store.ray_pool import _gpus_used

    assert _gpus_used(load_study("smoke")) == 1
    study = load_study("qwen2.5-32b-dapo")
    assert study.backend == "vllm" and study.vllm.tensor_parallel_size == 4
    assert _gpus_used(study) == 4
    apart = {"base": {"devices": [0, 1, 2, 3]}, "dapo": {"devices": [4, 5, 6, 7]}}
    assert set(apart) <= set(study.models)
    assert _gpus_used(study.with_overrides(**{"vllm.models": apart})) == 8
    spread = load_study("smoke").with_overrides(device_map="auto")
    with pytest.raises(TokenshiftError, match="say in 'resources.gpus' over how many GPUs"):
        _gpus_used(spread)


@pytest.mark.parametrize("there", [False, True], ids=["no cluster", "a token is wanted"])
def test_a_cluster_that_is_not_reached_is_a_sentence(mini_root, cluster, there):
    address = cluster if there else "127.0.0.1:9"
    script = "from tokenshift_utils.run.cli import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", script, "reproduce", "--study", "mini", "--executor", "ray"],
        env=os.environ | ENVIRONMENT | {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2 and not (mini_root / "results").exists()
    said = run.stderr.splitlines()[-1]
    assert said.startswith(f"error: Ray cannot reach the cluster at RAY_ADDRESS={address}")
    assert ("set RAY_AUTH_MODE=token" in said) == there


STOPPED = """from test_executor_ray import Slow, rollouts, three_shards
from tokenshift_utils.store import executor
study = three_shards()
executor.run(study, [rollouts(Slow, study, {notes!r})])"""


def test_sigterm_ends_the_run_its_kernel_and_its_own_cluster(mini_root, cluster, tmp_path):
    notes = tmp_path / "notes"
    write_notebook(mini_root, "02_cross_sampling", STOPPED.format(notes=str(notes)))
    run = subprocess.Popen(
        [sys.executable, "-m", "tokenshift_utils", "reproduce", "--study", "mini"]
        + ["--executor", "ray"],
        env=os.environ | ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: 2 in begun(notes), run)
        run.terminate()
        _, stderr = run.communicate(timeout=PATIENCE)
    finally:
        run.kill()
    assert run.returncode == 2 and "interrupted in notebook 02_cross_sampling" in stderr
    wait_for(lambda: gone(begun(notes)[2][0]))


def test_smoke_study_has_the_same_records_as_in_one_process(cluster, tmp_path):
    found = {}
    for name, options in {"ray": ["--executor", "ray"], "local": []}.items():
        root = tmp_path / name
        write_smoke_root(root, **({"workers": 0} if name == "local" else {}))
        run = subprocess.run(
            [sys.executable, "-m", "tokenshift_utils", "reproduce", "--study", "smoke"] + options,
            env=os.environ | ENVIRONMENT | {"TOKENSHIFT_HOME": str(root)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr[-4000:]
        found[name] = {end: contents(root / "results/smoke", end) for end in (".parquet", ".ipynb")}
    assert found["ray"] == found["local"] and all(found["ray"].values())

"""The store and the executor: whole files, resumption, keys that follow what determined them."""

import errno
import fcntl
import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pytest
from conftest import CHECKOUT, gone
from safetensors.torch import load_file, save_file

from tokenshift_utils.errors import TokenshiftError, sentence_of
from tokenshift_utils.records import rollouts, shifts
from tokenshift_utils.records.cross_sampling import CrossSampling
from tokenshift_utils.records.fetch import fetch
from tokenshift_utils.records.precision import Precision
from tokenshift_utils.records.rollouts import Rollouts
from tokenshift_utils.records.shifts import Shifts
from tokenshift_utils.records.single_token import SingleToken
from tokenshift_utils.store import code, executor
from tokenshift_utils.store import columns as records
from tokenshift_utils.store.code import code_version, source_digest
from tokenshift_utils.store.local_pool import stop_workers
from tokenshift_utils.store.store import Store, artefact_key
from tokenshift_utils.study.study import load_study

TABLE = pa.table({"a": [1, 2, 3]})


def test_a_shard_is_there_once_it_is_whole(tmp_path):
    store = Store(tmp_path)
    assert not store.intact("kind", "key", 0)
    store.write("kind", "key", 0, TABLE, {"kind": "kind"})
    assert store.intact("kind", "key", 0) and store.read("kind", "key", 0).equals(TABLE)
    assert store.read("kind", "key", 0, ["a"]).column_names == ["a"]
    assert sorted(f.name for f in tmp_path.rglob("*.*")) == [
        "0000.parquet",
        "0000.sha256",
        "key.json",
    ]


@pytest.mark.parametrize("damage", ["flip", "cut", "no checksum", "empty checksum"])
def test_a_damaged_shard_counts_as_missing(tmp_path, damage):
    store = Store(tmp_path)
    store.write("kind", "key", 0, TABLE, {})
    file = store.file("kind", "key", 0)
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(1, 1))  # not the time at which it is written again
    elif damage == "cut":
        file.write_bytes(content[:-10])
    elif damage == "no checksum":
        file.with_suffix(".sha256").unlink()
    else:
        file.with_suffix(".sha256").write_text("")
    assert not store.intact("kind", "key", 0)
    store.write("kind", "key", 0, TABLE, {})
    assert store.intact("kind", "key", 0)


@pytest.mark.parametrize("name", ["0000.parquet", "0000.sha256", "0000.lock", "key.json"])
def test_an_empty_directory_in_a_files_place_makes_room(tmp_path, name):
    store = Store(tmp_path)
    odd = store.file("kind", "key", 0).with_name(name)
    odd.mkdir(parents=True)
    assert not store.intact("kind", "key", 0)
    with store.lock("kind", "key", 0):
        store.write("kind", "key", 0, TABLE, {})
    assert store.read("kind", "key", 0).equals(TABLE) and store.intact("kind", "key", 0)


def test_a_directory_with_something_in_it_stays(tmp_path):
    store = Store(tmp_path)
    mine = store.file("kind", "key", 0) / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(OSError) as caught:
        store.write("kind", "key", 0, TABLE, {})
    assert "0000.parquet" in sentence_of(caught.value) and mine.read_text() == "mine"


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    store = Store(tmp_path)
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        store.write("kind", "key", 0, TABLE, {})
    assert [f for f in tmp_path.rglob("*") if f.is_file()] == []


def test_many_may_write_one_shard_at_once(tmp_path):
    store = Store(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(store.write, "kind", "key", 0, TABLE, {}) for _ in range(64)]:
            done.result()
    assert store.intact("kind", "key", 0) and len(list(tmp_path.rglob("*.*"))) == 3


def test_a_lock_keeps_others_out_where_there_are_locks(tmp_path, monkeypatch):
    def takes_turns(seconds: float) -> bool:
        """Whether two that hold the lock do not meet in so many seconds."""
        store, met, together = Store(tmp_path), threading.Barrier(2), []

        def hold():
            with store.lock("kind", "key", 0), suppress(threading.BrokenBarrierError):
                met.wait(seconds)
                together.append(1)

        with ThreadPoolExecutor(2) as threads:
            for done in [threads.submit(hold) for _ in range(2)]:
                done.result()
        return not together

    def no_locks(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    assert takes_turns(0.1)
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with warnings.catch_warnings(action="error"):
        assert not takes_turns(60)  # goes on without, and leaves nothing that would keep others out


def test_code_version_ignores_what_does_nothing():
    plain = "def f(x):\n    return x + 1\n"
    dressed = '"""Doc."""\n# a comment\ndef f(x):\n    """More."""\n    return (x + 1)\n'
    assert source_digest(plain) == source_digest(dressed)
    assert source_digest(plain) != source_digest(plain.replace("1", "2"))
    assert source_digest("class A:\n    '''d'''\n") == source_digest("class A:\n    pass\n")
    assert code_version("measures.noise") != code_version("measures.nucleus")


EVERYTHING = {"rollouts", "shifts", "precision", "cross_sampling", "single_token"}


@pytest.mark.parametrize(
    "module, depending",
    [
        ("measures/noise", EVERYTHING),
        ("models/adapters", EVERYTHING),
        ("models/kv_cache", EVERYTHING),
        ("study/tokenizers", EVERYTHING),
        ("tasks/math_judge", EVERYTHING),  # started by its name, as another process
        ("store/columns", EVERYTHING),
        ("pairs/compare", {"shifts", "precision", "single_token"}),
        ("pairs/mixer", {"cross_sampling"}),
        ("records/precision", {"precision"}),
        ("records/single_token", {"single_token"}),
        ("models/vllm", set()),  # the backend of other studies
        ("models/vllm_sampler", set()),
        ("report/tables", set()),
        ("sections/claims", set()),
        ("store/executor", set()),
        ("errors", set()),
    ],
)
def test_a_change_of_code_recomputes_exactly_what_depends_on_it(
    mini_root, tmp_path, monkeypatch, module, depending
):
    study = load_study("mini").with_overrides(
        precision={"model": "tuned", "samples": 1}, **{"samples.shifts": 1}
    )
    requests = {
        "rollouts": Rollouts.of(study, "tuned"),
        "shifts": Shifts.of(study, "tuned"),
        "precision": Precision.of(study),
        "cross_sampling": CrossSampling.of(study, "base", "tuned"),
        "single_token": SingleToken.of(study, "base", "tuned"),
    }
    copy = tmp_path / "tokenshift_utils"
    shutil.copytree(code.ROOT, copy, ignore=shutil.ignore_patterns("__pycache__"))

    def keys():
        for cached in (code._read, code.reached, code.code_version):
            cached.cache_clear()
        return {name: executor.key_of(study, made[0]) for name, made in requests.items()}

    with monkeypatch.context() as patched:
        patched.setattr(code, "ROOT", copy)
        before, file = keys(), copy / f"{module}.py"
        file.write_text(f"# said in other words\n{file.read_text()}", encoding="utf-8")
        assert keys() == before
        file.write_text(f"{file.read_text()}\nCHANGED = True\n", encoding="utf-8")
        after = keys()
    assert {name for name in requests if before[name] != after[name]} == depending
    assert keys() == before


def test_fault_13_every_setting_is_in_the_name(mini_root):
    study = load_study("mini")

    def key(changed=study, **call):
        (artefact,) = Rollouts.of(changed, "tuned", **call)
        return executor.key_of(changed, artefact)

    base = key()
    changes = {
        "sampling.top_p": 0.9,
        "sampling.temperature": 0.5,
        "sampling.max_new_tokens": 7,
        "seed": 1,
        "dtype": "float64",
        "prompt.template": "x{problem}",
        "batch.rollout": 5,
        "problems_per_shard": 2,
        "samples.accuracy": 9,
        "benchmarks.sums.limit": 2,
    }
    keys = {name: key(study.with_overrides(**{name: value})) for name, value in changes.items()}
    assert len({base, *keys.values()}) == len(changes) + 1
    assert base == key() == key(study.with_overrides(**{"statistics.resamples": 5}))
    assert key(sampling={"top_p": 0.9}, samples=study.samples.accuracy) == keys["sampling.top_p"]
    assert artefact_key({"a": 1, "b": 2}) == artefact_key({"b": 2, "a": 1})


def test_fewer_samples_are_part_of_those_drawn(mini_root):
    study = load_study("mini")
    whole = fetch(study, Rollouts.of(study, "tuned"))
    few = fetch(study, Rollouts.of(study, "tuned", samples=2))
    assert set(few["sample"]) == {0, 1}
    assert few.equals(whole[whole["sample"] < 2].reset_index(drop=True))
    assert len(list((mini_root / "results/mini/records/rollouts").iterdir())) == 1


def counted(monkeypatch, cls):
    """Count how many shards of a kind are computed."""
    calls = []
    compute = cls.compute
    monkeypatch.setattr(cls, "compute", lambda s, *a: calls.append(a[1]) or compute(s, *a))
    return calls


def test_what_is_there_is_read_and_what_is_damaged_computed_again(mini_root, monkeypatch):
    study = load_study("mini").with_overrides(problems_per_shard=1)
    calls = counted(monkeypatch, rollouts.Rollouts)
    first = fetch(study, Rollouts.of(study, "tuned"))
    assert calls == [0, 1, 2]
    assert fetch(study, Rollouts.of(study, "tuned")).equals(first) and calls == [0, 1, 2]
    (file,) = (mini_root / "results/mini/records/rollouts").rglob("0001.parquet")
    content = bytearray(file.read_bytes())
    content[100] ^= 255
    file.write_bytes(content)
    assert fetch(study, Rollouts.of(study, "tuned")).equals(first) and calls == [0, 1, 2, 1]


def test_an_interrupted_run_goes_on_where_it_stopped(mini_root, monkeypatch):
    study = load_study("mini").with_overrides(problems_per_shard=1)
    compute, calls = rollouts.Rollouts.compute, []

    def interrupted(self, study, shard):
        calls.append(shard)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(self, study, shard)

    monkeypatch.setattr(rollouts.Rollouts, "compute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(study, Rollouts.of(study, "tuned"))
    assert len(list((mini_root / "results/mini/records").rglob("*.parquet"))) == 2
    resumed = fetch(study, Rollouts.of(study, "tuned"))
    assert calls == [0, 1, 2, 2]
    monkeypatch.setattr(rollouts.Rollouts, "compute", compute)
    shutil.rmtree(mini_root / "results")
    assert resumed.equals(fetch(study, Rollouts.of(study, "tuned")))


def test_shifts_compute_the_rollouts_they_need_first(mini_root, monkeypatch):
    study = load_study("mini")
    made, compared = counted(monkeypatch, rollouts.Rollouts), counted(monkeypatch, shifts.Shifts)
    fetch(study, Shifts.of(study, "tuned"))
    assert made == [0] and compared == [0]
    fetch(study, Shifts.of(study, "tuned"), columns=["js"])
    assert made == [0] and compared == [0]


def test_workers_compute_the_same_records(mini_root, tiny_pair):
    study = load_study("mini").with_overrides(problems_per_shard=1)
    here = fetch(study, Shifts.of(study, "tuned"))
    records_dir = mini_root / "results/mini/records"
    contents = {f.relative_to(records_dir): f.read_bytes() for f in records_dir.rglob("*.parquet")}
    shutil.rmtree(records_dir)
    parallel = study.with_overrides(workers=2)
    try:
        assert fetch(parallel, Shifts.of(parallel, "tuned")).equals(here)
        again = {f.relative_to(records_dir): f.read_bytes() for f in records_dir.rglob("*.parquet")}
        assert again == contents
        # a mistake found in a worker is the same sentence here, and nothing is written for it
        damaged = mini_root / "damaged"
        shutil.copytree(tiny_pair.tuned, damaged)
        weights = load_file(damaged / "model.safetensors")
        weights["model.norm.weight"][3] = float("nan")
        save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
        broken = parallel.with_overrides(**{"models.tuned.path": str(damaged)})
        with pytest.raises(TokenshiftError, match="logits are NaN at row 0"):
            fetch(broken, Rollouts.of(broken, "tuned"))
        assert len(list(records_dir.rglob("*.parquet"))) == len(contents)
    finally:
        stop_workers()


PLAIN_SCRIPT = """
from tokenshift_utils import Rollouts, fetch, load_study
study = load_study("mini").with_overrides(workers=2, problems_per_shard=1)
print(len(fetch(study, Rollouts.of(study, "tuned"))))
"""


def test_a_plain_script_may_fetch_with_workers(mini_root, tmp_path_factory):
    script = tmp_path_factory.mktemp("scripts") / "mine.py"
    script.write_text(PLAIN_SCRIPT)
    run = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 0


def test_a_mistake_found_before_computing_leaves_nothing(mini_root):
    study = load_study("mini").with_overrides(workers=2)
    (mini_root / "benchmarks/sums.jsonl").write_text('{"id": "1", "problem": "", "answer": "2"}\n')
    with pytest.raises(TokenshiftError, match="row 1: 'problem' is blank"):
        fetch(study, Rollouts.of(study, "tuned"))
    assert not (mini_root / "results").exists()


KILLED = """
from tokenshift_utils.records.fetch import fetch
from tokenshift_utils.records.rollouts import Rollouts
from tokenshift_utils.study.study import load_study
import time
if __name__ == "__main__":
    compute = Rollouts.compute
    def slow(self, study, shard):
        if shard == 2:
            print("third", flush=True)
            time.sleep(60)
        return compute(self, study, shard)
    Rollouts.compute = slow
    study = load_study("mini").with_overrides(problems_per_shard=1)
    fetch(study, Rollouts.of(study, "tuned"))
"""


def test_a_killed_process_leaves_what_it_finished(mini_root, tmp_path, monkeypatch):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    process = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    assert process.stdout.readline().strip() == b"third"
    process.send_signal(signal.SIGKILL)
    process.wait()
    calls = counted(monkeypatch, rollouts.Rollouts)
    study = load_study("mini").with_overrides(problems_per_shard=1)
    assert len(fetch(study, Rollouts.of(study, "tuned"))) == 3 * study.samples.accuracy
    assert calls == [2]


WORKERS = """
import os, time
from tokenshift_utils.store.local_pool import LocalPool
if __name__ == "__main__":
    print(LocalPool(1, os.getpid).submit().result(), flush=True)
    time.sleep(600)
"""


def test_workers_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(WORKERS)
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment)
    worker = int(process.stdout.readline())
    process.kill()
    process.wait()
    end = time.monotonic() + 120
    while not gone(worker):
        if time.monotonic() > end:
            os.kill(worker, signal.SIGKILL)
            pytest.fail("the worker outlived its parent")
        time.sleep(0.1)


def test_a_worker_that_reads_something_else_says_so(mini_root):
    study = load_study("mini")
    (artefact,) = Rollouts.of(study, "tuned")
    with pytest.raises(TokenshiftError, match="reads other code, models or benchmarks"):
        executor.work(str(mini_root), study, executor.Job(artefact, 0), "0" * 16)
    assert not (mini_root / "results").exists()


def test_a_shard_of_another_machine_is_waited_for(mini_root, monkeypatch):
    study = load_study("mini")
    (artefact,) = Rollouts.of(study, "tuned")
    job = executor.Job(artefact, 0)
    other = threading.Timer(0.5, executor.compute, (study, job))
    other.start()
    executor.await_shard(study, job)
    assert executor.is_done(study, job)
    other.join()
    shutil.rmtree(mini_root / "results")
    monkeypatch.setattr(executor, "SEEN_WITHIN", 0.1)
    with pytest.raises(TokenshiftError, match="on storage that they share"):
        executor.await_shard(study, job)


def test_an_executor_that_cannot_be_is_refused(mini_root, monkeypatch):
    study = load_study("mini")
    monkeypatch.setenv(executor.EXECUTOR_VARIABLE, "dask")
    with pytest.raises(TokenshiftError, match="no executor 'dask' .*: there are local, ray"):
        fetch(study, Rollouts.of(study, "tuned"))
    monkeypatch.setenv(executor.EXECUTOR_VARIABLE, "ray")
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    monkeypatch.delitem(sys.modules, "tokenshift_utils.store.ray_pool", raising=False)
    with pytest.raises(TokenshiftError, match=r"pip install 'tokenshift_utils\[ray\]'"):
        fetch(study, Rollouts.of(study, "tuned"))
    assert not (mini_root / "results").exists()


# Schemas ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", records.RECORD_KINDS)
def test_every_column_is_described(kind):
    columns = records.describe(kind)
    assert len({c.name for c in columns}) == len(columns)
    for column, field in zip(columns, records.schema(kind)):
        assert column.description and field.metadata[b"description"].decode() == column.description
        assert field.type == column.type and field.nullable == column.nullable


def test_files_carry_their_descriptions(mini_root):
    fetch(load_study("mini"), Rollouts.of(load_study("mini"), "tuned"))
    (file,) = (mini_root / "results/mini/records").rglob("*.parquet")
    import pyarrow.parquet as pq

    field = pq.read_schema(file).field("answer")
    assert field.nullable and b"boxed" in field.metadata[b"description"]


def test_tables_hold_exactly_their_columns():
    with pytest.raises(ValueError, match="columns differ by"):
        records.table("rollouts", {"study": ["x"]})
    column = records.Column("x", pa.list_(pa.float32()), "d")
    array = records._array(np.arange(6.0).reshape(3, 2), column)
    assert array.to_pylist() == [[0, 1], [2, 3], [4, 5]]


def test_a_study_whose_keys_are_kept_stays(mini_root):
    """Kept by its id: were it gone, another study could get that, and its keys."""
    other = load_study("mini").with_overrides(seed=5)
    (request,) = Rollouts.of(other, "tuned")
    alive = weakref.ref(other)
    with executor.keys_kept():
        executor.key_of(other, request)
        del other
        gc.collect()
        assert alive() is not None
    gc.collect()
    assert alive() is None

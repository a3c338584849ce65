"""Killed at random moments, on a full disk, with damaged files: records are as if nothing happened.

``TOKENSHIFT_SOAK_STUDY`` is smoke or mini (a minute's random models), ``TOKENSHIFT_SOAK_KILLS`` and
``TOKENSHIFT_SOAK_DAMAGES`` say how often, ``TOKENSHIFT_SOAK_SEED`` makes a run again.
"""

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import psutil
import pytest
from conftest import CHECKOUT, write_adapter, write_mini_root, write_smoke_root

from tokenshift_utils.errors import TokenshiftError, sentence_of
from tokenshift_utils.records.fetch import fetch
from tokenshift_utils.records.shifts import Shifts
from tokenshift_utils.run import provenance, store_care
from tokenshift_utils.run.manifest import read_manifest
from tokenshift_utils.run.notebook import lacks_section
from tokenshift_utils.run.plan import SECTIONS
from tokenshift_utils.sections.objective.records import read_runs
from tokenshift_utils.store import executor
from tokenshift_utils.store.columns import describe
from tokenshift_utils.study.study import load_study

pytestmark = pytest.mark.soak
STUDY = os.environ.get("TOKENSHIFT_SOAK_STUDY", "smoke")
KILLS = int(os.environ.get("TOKENSHIFT_SOAK_KILLS", "200"))
DAMAGES = int(os.environ.get("TOKENSHIFT_SOAK_DAMAGES", "200"))
SEED = int(os.environ.get("TOKENSHIFT_SOAK_SEED", time.time_ns() % 10**6))
OFTEN = float(os.environ.get("TOKENSHIFT_SOAK_SECONDS", "3"))  # between kills, on the mean
WHOLE = 20  # of so many kills one hits a whole `reproduce`, which takes seconds to begin
FULL = 256 * 1024  # bytes that a full disk still has


@pytest.fixture
def luck():
    print(f"TOKENSHIFT_SOAK_SEED={SEED}")
    return random.Random(SEED)


def new_root(directory: Path, tiny_pair) -> Path:
    if STUDY == "smoke":
        write_smoke_root(directory)
    else:
        write_mini_root(directory, tiny_pair, workers=2)
        for notebook in (CHECKOUT / "notebooks").glob("*.ipynb"):
            shutil.copy(notebook, directory / "notebooks")
    return directory


def memory() -> Path | None:
    """A directory in memory, where there is one: disks here are slow."""
    shared = Path("/dev/shm")
    return shared if os.access(shared, os.W_OK) else None


class Driver:
    """A process that computes the records of the study in a root."""

    log: Path

    def running(self) -> bool:
        raise NotImplementedError

    def kill(self, luck: random.Random) -> None:
        """SIGKILL to it or one of its family."""
        raise NotImplementedError

    def code(self) -> int:
        """Its exit code, once it has ended by itself."""
        raise NotImplementedError

    def stop(self) -> int:
        """End all of it, if it has not ended; its exit code."""
        if self.running():
            self.end()
        return self.ended()

    def end(self) -> None:
        """SIGKILL to the process itself."""
        raise NotImplementedError

    def ended(self) -> int:
        """Its exit code, in time; what it says is a sentence."""
        code = self.code()
        said = self.log.read_text(errors="replace") if self.log.exists() else ""
        assert "Traceback" not in said and "this is a fault of tokenshift" not in said, said[-6000:]
        assert code in (0, 2, -9), (code, said[-3000:])
        return code

    def finish(self) -> None:
        """Wait until it has ended well."""
        code = self.ended()
        assert code == 0, self.log.read_text(errors="replace")[-3000:]


class Reproduce(Driver):
    """``tokenshift reproduce`` on a root, or another command, with kernels and workers."""

    def __init__(self, root: Path, *command: str) -> None:
        self.log = root.parent / f"driver-{time.monotonic_ns()}.log"
        command = command or ("reproduce", "--study", STUDY)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tokenshift_utils", *command],
                stdout=log,
                stderr=log,
                env=os.environ | {"TOKENSHIFT_HOME": str(root)},
                start_new_session=True,
            )

    def running(self) -> bool:
        return self.process.poll() is None

    def kill(self, luck: random.Random) -> None:
        try:
            driver = psutil.Process(self.process.pid)
            family = [driver, *driver.children(recursive=True)]
            luck.choice(family[: 1 + luck.randrange(len(family))]).kill()
        except psutil.NoSuchProcess:
            pass

    def end(self) -> None:
        self.process.kill()

    def code(self) -> int:
        return self.process.wait(timeout=1800)


def records(root: Path) -> dict[str, str]:
    """Digest of every shard that is there."""
    parent = root / f"results/{STUDY}/records"
    return {
        file.relative_to(parent).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(parent.rglob("*.parquet"))
    }


@contextmanager
def small_disk(directory: Path):
    """A file system of its own at a directory, and a function that says how much room it has."""
    directory.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", directory], check=False
    )
    if mounted.returncode:
        yield None
        return

    def leave(room: int | None) -> None:
        used = shutil.disk_usage(directory).used
        size = 2**31 if room is None else used + room
        option = f"remount,size={size}"
        subprocess.run(["mount", "-o", option, directory], check=True)

    try:
        yield leave
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def compute_all(root: Path, log: Path) -> None:
    """What the notebooks of a study ask for, computed in this process, which says how it ended."""
    with log.open("w") as said, redirect_stdout(said), redirect_stderr(said):
        os.environ["TOKENSHIFT_HOME"] = str(root)
        try:
            study = load_study(STUDY).with_overrides(workers=0)
            for name, requests in SECTIONS.items():
                if not lacks_section(name, study):
                    executor.run(study, requests(study))
        except Exception as error:  # noqa: BLE001  (the process ends with it)
            sentence = str(error) if isinstance(error, TokenshiftError) else sentence_of(error)
            said.write(sentence or f"Traceback: {error!r}")
            said.flush()
            os._exit(2 if sentence else 1)
        os._exit(0)


class Computing(Driver):
    """The same records without notebooks, in a fork of this process, which begins at once."""

    def __init__(self, root: Path) -> None:
        self.log = root.parent / f"driver-{time.monotonic_ns()}.log"
        context = multiprocessing.get_context("fork")
        self._fork = context.Process(target=compute_all, args=(root, self.log), daemon=True)
        self._fork.start()

    def running(self) -> bool:
        return self._fork.exitcode is None

    def kill(self, luck: random.Random) -> None:
        self._fork.kill()

    def end(self) -> None:
        self._fork.kill()

    def code(self) -> int:
        self._fork.join(1800)
        return self._fork.exitcode


def test_killed_and_without_room_records_are_as_if_nothing_happened(tiny_pair, luck):
    with ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-", dir=memory()))
        calm, root = (new_root(Path(place) / name, tiny_pair) for name in ("calm", "rough"))
        Computing(calm).finish()
        least = records(calm)
        assert least
        Reproduce(calm).finish()
        expected = records(calm)
        leave = stack.enter_context(small_disk(root / f"results/{STUDY}"))
        kills = rounds = 0
        drivers = [Computing(root), Computing(root)]
        while kills < KILLS:
            which = luck.randrange(2)
            whole = kills % WHOLE == WHOLE - 1
            if whole:  # the next kill hits this, a kernel or a worker of it
                drivers[which].stop()
                drivers[which] = Reproduce(root)
            time.sleep(min(luck.expovariate(1 / OFTEN) * (6 if whole else 1), 60))
            if drivers[which].running():
                drivers[which].kill(luck)
                kills += 1
                print(f"kill {kills}, {len(records(root))} shards", flush=True)
                if whole:
                    time.sleep(luck.uniform(0, 5))  # it may notice that its kernel is gone
            finished = drivers[which].stop() == 0
            drivers[which] = Computing(root)
            other = drivers[1 - which]
            if not finished and not other.running():
                finished = other.ended() == 0
            full = kills >= KILLS // 2 and leave is not None
            if finished or full:  # all is there: let it be made again
                rounds += finished
                for driver in drivers:
                    driver.stop()
                found = records(root).items()
                assert found <= expected.items()
                assert full or least.items() <= found
                shutil.rmtree(root / f"results/{STUDY}/records", ignore_errors=True)
                if full:
                    meet_full_disk(root, leave)
                    leave = None
                drivers = [Computing(root), Computing(root)]
        for driver in drivers:
            driver.finish()
        assert least.items() <= records(root).items() <= expected.items()
        print(f"{kills} kills; {rounds} times all was there in between", flush=True)
        Reproduce(root).finish()
        assert records(root) == expected
        Reproduce(root, "store", "verify").finish()
        Reproduce(root, "verify", "--study", STUDY).finish()


def meet_full_disk(root: Path, leave) -> None:
    """Let two drivers meet a full disk, each of which says so, and make room again."""
    leave(FULL)
    for driver in [Computing(root), Computing(root)]:
        assert driver.ended() == 2, "a full disk went by unnoticed"
        assert "no space left" in driver.log.read_text()
    leave(None)


# Damaged files -----------------------------------------------------------------------------------


def damage(file: Path, luck: random.Random) -> str:
    """Do something to a file; returns what."""
    data = file.read_bytes()
    at = luck.randrange(max(1, len(data)))
    kind = luck.choice(["bit", "cut", "empty", "gone", "noise", "json", "directory", "longer"])
    if kind == "gone":
        file.unlink()
    elif kind == "directory":
        file.unlink()
        file.mkdir()
    if kind in ("gone", "directory"):
        return kind
    content = {
        "bit": data[:at] + bytes([(data or b"\0")[at] ^ (1 << luck.randrange(8))]) + data[at + 1 :],
        "cut": data[:at],
        "empty": b"",
        "noise": luck.randbytes(200),
        "json": luck.choice([b"null", b"[]", b"{}", b'"x"', b'{"key": []}', b"[" * 9000]),
        "longer": data + luck.randbytes(9),
    }[kind]
    file.write_bytes(content)
    return f"{kind} at {at}"


@contextmanager
def restored(file: Path):
    """The file as it was, at the end."""
    data, status = file.read_bytes(), file.stat()
    try:
        yield
    finally:
        if file.is_dir():
            shutil.rmtree(file)
        file.unlink(missing_ok=True)
        file.write_bytes(data)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def refused(call) -> bool:
    """Whether something ended with a sentence; any other exception is raised."""
    try:
        call()
    except Exception as error:
        said = str(error) if isinstance(error, TokenshiftError) else sentence_of(error)
        if said is None:
            raise
        assert said.strip() and "\n" not in said.strip()
        return True
    return False


@pytest.fixture
def damaged_root(tmp_path, tiny_pair, monkeypatch):
    """A root of the study ``mini`` with an adapter beside the tuned model, and what it computed."""
    root = tmp_path / "root"
    adapter, _ = write_adapter(tiny_pair.base, tmp_path / "lora")
    models = {
        "base": {"path": str(tiny_pair.base), "label": "Base", "kind": "base"},
        "tuned": {"path": str(adapter), "label": "Tuned", "kind": "rl"},
    }
    write_mini_root(root, tiny_pair, models=models)
    shutil.copy(CHECKOUT / "notebooks/01_divergence_characterization.ipynb", root / "notebooks")
    shutil.copy(CHECKOUT / "notebooks/studies/tiny.yaml", root / "notebooks/studies")
    shutil.copytree(CHECKOUT / "results/tiny/training", root / "results/tiny/training")
    monkeypatch.setenv("TOKENSHIFT_HOME", str(root))
    driver = Reproduce(root, "reproduce", "--study", "mini", "--only", "01")
    driver.finish()
    return root, adapter


def test_a_damaged_file_is_made_again_or_refused_in_a_sentence(damaged_root, luck):
    root, adapter = damaged_root
    study = load_study("mini")
    smoke = load_study(CHECKOUT / "notebooks/studies/smoke.yaml")  # its arms are of study tiny
    names = [c.name for c in describe("shifts")]
    whole = fetch(study, Shifts.of(study, "tuned"))
    runs = read_runs(smoke)

    def check_records():
        assert fetch(study, Shifts.of(study, "tuned"))[names].equals(whole[names])

    def check_adapter():
        # another adapter's records are others; this one's are found again
        fetch(study, Shifts.of(study, "tuned"))

    def check_manifest():
        read_manifest("mini")
        assert refused(lambda: provenance.verify(study)) or provenance.verify(study) or intact()

    def intact() -> bool:  # nothing that a manifest says of results is wrong
        return json.loads(manifest.read_text())["notebooks"] == said["notebooks"]

    def check_runs():
        again = read_runs(smoke)
        assert json.dumps(
            {a: {s: r.summary for s, r in of.items()} for a, of in again.items()}
        ) == (json.dumps({a: {s: r.summary for s, r in of.items()} for a, of in runs.items()}))
        for arm, of in runs.items():
            for seed, run in of.items():
                for table in ("log", "evaluations", "final", "tokens"):
                    assert getattr(again[arm][seed], table).equals(getattr(run, table))

    manifest = root / "results/mini/manifest.json"
    said = json.loads(manifest.read_text())
    store = root / "results/mini/records"
    kinds = {
        "record": (lambda: sorted(store.rglob("*.parquet")), check_records),
        "checksum": (lambda: sorted(store.rglob("*.sha256")), check_records),
        "key": (lambda: sorted(store.rglob("key.json")), check_records),
        "manifest": (lambda: [manifest], check_manifest),
        "training log": (lambda: sorted(root.glob("results/tiny/training/arms/*/*/*")), check_runs),
        "adapter": (lambda: sorted(adapter.glob("adapter_*")), check_adapter),
    }
    for _ in range(DAMAGES):
        kind = luck.choice(list(kinds))
        files, check = kinds[kind]
        file = luck.choice(files())
        with restored(file):
            what = damage(file, luck)
            print(f"{kind} {file.name}: {what}", flush=True)
            was_refused = refused(check)
            for care in (
                store_care.list_records,
                store_care.broken_shards,
                lambda: store_care.prune(remove=False),
                lambda: provenance.verify(study),
            ):
                refused(care)
            if kind in ("record", "checksum", "key"):
                assert not was_refused, "what the store lacks is computed, not refused"
        check_records()

"""What people's machines do to a command: one sentence and exit code 2, never a traceback."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import nbformat
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CHECKOUT
from test_provenance import said
from test_reproduce import TABLE, write_notebook

from tokenshift_utils import errors, files, paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.run import cli
from tokenshift_utils.store.store import Store

NUMBERS = sorted({*errors._OF_THE_MACHINE, errno.ENOTSUP, errno.ETIMEDOUT, errno.ECONNREFUSED})


@pytest.mark.parametrize("number", NUMBERS)
def test_every_refusal_of_the_machine_is_a_sentence_with_path_and_remedy(number):
    error = OSError(number, os.strerror(number), "/some/where")
    said_here = errors.sentence_of(error)
    assert ": " in said_here and "\n" not in said_here
    assert "/some/where" in said_here or number == errno.ENOMEM
    # the same from a kernel, of which only names and words arrive
    assert errors.said_as_sentence([type(error).__name__], str(error)) == said_here


def test_exceptions_of_libraries_are_sentences_and_our_own_faults_are_none():
    import json

    import yaml
    from safetensors import SafetensorError

    arrow = pa.lib.ArrowInvalid("no footer")
    full = OSError("[Errno 28] Error writing. Detail: [errno 28] No space left on device")
    for error, word in (
        (json.JSONDecodeError("Expecting value", "", 0), "JSON"),
        (yaml.YAMLError("bad"), "YAML"),
        (arrow, "Parquet"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "UTF-8"),
        (MemoryError(), "memory"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "no space left"),
        (full, "no space left"),
    ):
        assert word in errors.sentence_of(error)
    for error in (KeyError("x"), TypeError("x"), ZeroDivisionError("[Errno 28] x"), ValueError()):
        assert errors.sentence_of(error) is None


def test_a_sentence_stays_one_line_whatever_it_names():
    said = str(TokenshiftError("row 1 has no 'a'; this one has b\nc\x1b[31m\u2028\ud800\0é\u202e"))
    assert said == "row 1 has no 'a'; this one has b c\\x1b[31m \\ud800\\x00é\\u202e"


def stop_with(monkeypatch, error):
    monkeypatch.setattr(
        "tokenshift_utils.study.study.load_study", lambda name: (_ for _ in ()).throw(error)
    )


def test_a_fault_of_ours_keeps_its_traceback_and_says_where_to_report(monkeypatch, capsys):
    stop_with(monkeypatch, KeyError("lost"))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["claims"])
    shown = capsys.readouterr().err
    assert stopped.value.code == 1 and "Traceback" in shown
    assert "KeyError" in shown.splitlines()[-1] and "please report it" in shown.splitlines()[-1]


@pytest.mark.parametrize("kind", [OSError, PermissionError])
def test_an_error_of_the_machine_ends_a_command_in_one_line(kind, monkeypatch, capsys):
    stop_with(monkeypatch, kind(errno.EACCES, "Permission denied", "/x\ny"))
    code, text = said(capsys, "claims")
    assert code == 2 and text.startswith("error: no permission") and text.count("\n") == 1


def test_a_notebook_of_ours_that_fails_ends_with_1_and_a_report(mini_root, capsys):
    write_notebook(mini_root, "02_cross_sampling", "1 / 0")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["reproduce", "--study", "mini"])
    shown = capsys.readouterr().err
    assert stopped.value.code == 1 and "ZeroDivisionError" in shown and "please report" in shown


FULL = 'raise OSError(28, "No space left on device", "/full/disk")'


def test_a_full_disk_inside_a_notebook_is_one_sentence(mini_root, capsys):
    write_notebook(mini_root, "02_cross_sampling", FULL)
    code, text = said(capsys, "reproduce", "--study", "mini")
    assert code == 2 and "]: no space left on the disk for /full/disk" in text


def foreign_kernelspecs(directory: Path) -> Path:
    for name, python in (("python3", "/usr/bin/python3"), ("gone", "/nowhere/python")):
        folder = directory / "kernels" / name
        folder.mkdir(parents=True)
        (folder / "kernel.json").write_text(
            f'{{"argv": ["{python}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"],'
            ' "display_name": "Python 3", "language": "python"}'
        )
    return directory


STATES = """import os, sys, matplotlib
print("python", sys.executable)
print("backend", matplotlib.get_backend())"""


def test_neither_kernelspecs_nor_settings_nor_the_home_of_the_user_have_a_part(
    mini_root, tmp_path_factory, monkeypatch, capsys
):
    """With braces in the path, a kernelspec that shadows ours, and a home that is a file."""
    home = tmp_path_factory.mktemp("home")
    rc = home / "matplotlibrc"
    rc.write_bytes(b"figure.facecolor: red\n\xff\n")
    (home / "file").write_text("")
    monkeypatch.setenv("MATPLOTLIBRC", str(rc))
    monkeypatch.setenv("MPLBACKEND", "no such backend")
    monkeypatch.setenv("HOME", str(home / "file"))
    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(home / "file"))
    monkeypatch.setenv("JUPYTER_PATH", str(foreign_kernelspecs(home / "jupyter")))
    root = tmp_path_factory.mktemp("odd") / "a {} b {study} {0!r} 你 %"
    mini_root.rename(root)
    monkeypatch.setenv("TOKENSHIFT_HOME", str(root))
    write_notebook(root, "02_cross_sampling", STATES, TABLE)
    code, text = said(capsys, "reproduce", "--study", "mini")
    assert code == 0, text
    executed = nbformat.read(root / "results/mini/notebooks/02_cross_sampling.ipynb", 4)
    printed = "".join(o.get("text", "") for c in executed.cells for o in c.get("outputs", []))
    assert f"python {sys.executable}" in printed and "no such backend" not in printed


def test_a_kernel_that_does_not_start_is_one_sentence(mini_root, capsys, monkeypatch):
    write_notebook(mini_root, "02_cross_sampling", "print(1)")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    code, text = said(capsys, "reproduce", "--study", "mini")
    assert code == 2 and "did not start" in text and "/bin/false" in text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_or_is_cut_short_leaves_no_traceback():
    command = [sys.executable, "-m", "tokenshift_utils", "--help"]
    with open("/dev/full", "w") as full:
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert "Traceback" not in run.stderr and run.returncode != 0
    short = f"{sys.executable} -m tokenshift_utils claims --study tiny | head -c 1"
    run = subprocess.run(
        ["bash", "-c", short], capture_output=True, text=True, check=False,
        env=os.environ | {"TOKENSHIFT_HOME": str(CHECKOUT)},
    )  # fmt: skip
    assert run.stderr == ""


def test_any_locale_can_be_told_anything(mini_root):
    (mini_root / "notebooks/studies/mini.yaml").rename(mini_root / "notebooks/studies/ü 你.yaml")
    run = subprocess.run(
        [sys.executable, "-m", "tokenshift_utils", "claims", "--study", "x"],
        capture_output=True, check=False, env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (
        run.returncode == 2
        and b"known studies are" in run.stderr
        and b"Traceback" not in run.stderr
    )


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"a: [", b"- 1", b"", b"a: 2020-99-99", b"a: &a [*a]"]
)
def test_a_damaged_study_file_is_one_sentence(content, mini_root, capsys):
    (mini_root / "notebooks/studies/bad.yaml").write_bytes(content)
    code, text = said(capsys, "plan", "--study", "bad")
    assert code == 2 and "bad.yaml" in text


def test_a_study_file_may_open_with_a_byte_order_mark(mini_root):
    from tokenshift_utils.study.study import load_study

    file = mini_root / "notebooks/studies/mini.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load_study("mini").name == "mini"


def test_directories_and_files_in_the_wrong_place_are_sentences(mini_root, capsys):
    write_notebook(mini_root, "02_cross_sampling", "print(1)")
    (mini_root / "results").write_text("")
    code, text = said(capsys, "reproduce", "--study", "mini")
    assert code == 2 and "results" in text and "move" in text
    (mini_root / "results").unlink()
    (mini_root / "results/mini/manifest.json").mkdir(parents=True)
    code, text = said(capsys, "reproduce", "--study", "mini")
    assert code == 2 and "manifest.json is a directory" in text


def test_a_working_directory_that_is_gone_is_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("TOKENSHIFT_HOME", raising=False)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    code, text = said(capsys, "claims", "--study", "mini")
    monkeypatch.chdir(tmp_path)
    assert code == 2 and "working directory is no longer there" in text


# ---- files


def test_links_are_followed_and_pipes_stay(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TokenshiftError, match="pipe is a device or a pipe"):
        files.write_text(tmp_path / "pipe", "x")
    assert [file.name for file in tmp_path.iterdir()] == ["pipe"]
    (tmp_path / "link").symlink_to(tmp_path / "there")
    for text in ("first", "second"):
        files.write_text(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "there").read_text() == text


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "table.csv"
    files.write_text(file, "old – ü\n")
    assert file.read_bytes() == "old – ü\n".encode()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_text(file, "new")
    assert list(tmp_path.iterdir()) == [file] and "old" in file.read_text(encoding="utf-8")


# ---- the store


@pytest.mark.parametrize("checksum", [b"", b"\xff\xfe\x00", b"0" * 64, b"\n", b"\x00" * 70])
def test_a_checksum_of_any_bytes_counts_as_another(checksum, tmp_path):
    store = Store(tmp_path)
    store.write("other", "k", 0, pa.table({"x": [1]}), {})
    assert store.intact("other", "k", 0)
    store.file("other", "k", 0).with_suffix(".sha256").write_bytes(checksum)
    assert not store.intact("other", "k", 0)


def test_a_shard_of_other_records_under_a_right_checksum_is_refused(mini_root):
    store = Store(paths.records("mini"))
    store.write("rollouts", "k", 0, pa.table({"x": [1]}), {})
    assert store.intact("rollouts", "k", 0)
    with pytest.raises(TokenshiftError, match=r"0000\.parquet .*columns are not.*delete it"):
        store.read("rollouts", "k", 0)
    store.file("rollouts", "k", 0).write_bytes(b"PAR1 and then nothing")
    with pytest.raises(TokenshiftError, match=r"0000\.parquet is damaged .*delete it"):
        store.read("rollouts", "k", 0)
    pq.write_table(pa.table({"x": [1]}), store.file("rollouts", "k", 0))
    store.write("other", "k", 0, pa.table({"x": [1]}), {})
    with pytest.raises(TokenshiftError, match="lacks the column y"):
        store.read("other", "k", 0, ["y"])


# ---- figures


def draw(directory: Path) -> bytes:
    """A figure with what matplotlib would take for formulas, and a logarithmic axis."""
    import matplotlib.pyplot as plt

    from tokenshift_utils.report import style

    style.use_style()
    fig, ax = plt.subplots()
    ax.plot([1, 1000], [1, 2], label=r"cost $\frac{1$")
    style.log_scale(ax, "x")
    ax.set(title="from $5 to $6", xlabel=r"$\undefined$")
    ax.set_yticks([1, 2], ["$x_1$", "$"])
    ax.legend()
    return style.save_figure(fig, directory, "figure")[0].read_bytes()


def test_figures_are_the_same_under_any_settings_and_text_is_no_formula(tmp_path):
    import matplotlib.pyplot as plt

    plain = draw(tmp_path / "plain")
    with matplotlib.rc_context():
        plt.style.use("dark_background")
        matplotlib.rcParams.update(
            {"font.size": 30, "savefig.dpi": 20, "axes.prop_cycle": "cycler('color', ['r'])"}
            | {"savefig.bbox": "tight", "axes.xmargin": 0.4, "lines.linestyle": "--"}
        )
        assert draw(tmp_path / "dark") == plain


def test_log_axes_still_show_powers_of_ten_and_labels_their_dollars(tmp_path):
    import matplotlib.pyplot as plt

    from tokenshift_utils.report import style

    style.use_style()
    fig, ax = plt.subplots()
    ax.plot([1, 1000], [1, 2])
    style.log_scale(ax, "x")
    title = ax.set_title("$a$")
    fig.draw_without_rendering()
    drawn = [label for label in ax.get_xticklabels() if label.get_text()]
    assert drawn and all(label.get_parse_math() for label in drawn)
    assert not title.get_parse_math() and not any(t.get_parse_math() for t in ax.get_yticklabels())

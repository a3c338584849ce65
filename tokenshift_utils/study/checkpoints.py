"""What identifies a model's files, read without loading the model."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from transformers import AutoConfig, GenerationConfig, PreTrainedConfig

from tokenshift_utils.errors import TokenshiftError, first_line
from tokenshift_utils.files import known_checksum, read_json

FINGERPRINTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
CODE = "*.py"  # a model's own code, where it has any
LFS = b"version https://git-lfs"  # how a pointer to a file begins
ADAPTER = "adapter_config.json"
AGAIN = "fetch or save the model again"


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds a PEFT adapter, which goes on another model, and no model."""
    return (directory / ADAPTER).is_file()


def check_model_directory(directory: Path) -> None:
    """Refuse a directory that is missing or has no configuration or no safetensors weights."""
    if not directory.is_dir():
        raise TokenshiftError(
            f"there is no model directory {directory}; correct the path, or train or fetch the model"
        )
    inner = sorted(d.parent.name for d in directory.glob(f"*/{ADAPTER}"))
    if inner and not is_adapter(directory) and not (directory / "config.json").is_file():
        raise TokenshiftError(
            f"{directory} holds adapters in folders of their own ({', '.join(inner)}); "
            f"give one of them, as {directory / inner[0]}"
        )
    configuration = ADAPTER if is_adapter(directory) else "config.json"
    for pattern in (configuration, "*.safetensors"):
        if not any(directory.glob(pattern)):
            pickled = sorted(f.name for p in ("*.bin", "*.pth") for f in directory.glob(p))
            cause = "the model is incomplete: train or fetch it again"
            if pickled and pattern != configuration:
                cause = f"{pickled[0]} may hold code and is not read: save it as safetensors"
            raise TokenshiftError(f"the model directory {directory} has no {pattern}; {cause}")
    for file in fingerprinted(directory):
        if file.stat().st_size < 1024 and file.read_bytes().startswith(LFS):
            raise TokenshiftError(
                f"{file} is not the file itself but git-lfs's pointer to it: fetch it (git lfs pull)"
            )


def fingerprinted(directory: Path) -> list[Path]:
    """A model's files that its fingerprint is made of, sorted."""
    return sorted({f for pattern in (*FINGERPRINTED, CODE) for f in directory.glob(pattern)})


def _content(file: Path) -> str:
    """sha256 of a file."""
    file = file.resolve()
    if file.parent.name == "blobs" and len(file.name) == 64:
        return file.name  # the hub's cache names a weight file by its sha256
    return known_checksum(file)


def directory_fingerprint(directory: str | Path) -> str:
    """sha256 over the names and contents of a model's weights, configuration, tokenizer and code."""
    directory = Path(directory)
    check_model_directory(directory)
    digest = hashlib.sha256()
    for file in fingerprinted(directory):
        digest.update(f"{file.name} {_content(file)}\n".encode())
    return digest.hexdigest()


def weights_fingerprint(directory: Path) -> str:
    """sha256 over a model's weights alone."""
    check_model_directory(directory)
    digest = hashlib.sha256()
    for file in sorted(directory.glob("*.safetensors")):
        digest.update(_content(file).encode())
    return digest.hexdigest()


BASE = "base.json"  # in an adapter's directory: which weights it was trained on


def weights_digest(directory: Path) -> str:
    """sha256 over a model's tensors by name: dtypes, shapes and numbers, however they are filed."""
    digest, tensors = hashlib.sha256(), {}
    for file in directory.glob("*.safetensors"):
        status = file.stat()
        tensors |= _tensor_digests(file.resolve(), status.st_size, status.st_mtime_ns)
    for name, content in sorted(tensors.items()):
        digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()


@lru_cache(maxsize=16)
def _tensor_digests(file: Path, size: int, modified_ns: int) -> dict[str, str]:
    """sha256 of each tensor of a file, with its dtype and shape."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        found = {}
        for name, entry in header.items():
            start, stop = entry["data_offsets"]
            stream.seek(8 + length + start)
            content = hashlib.sha256(stream.read(stop - start)).hexdigest()
            found[name] = f"{entry['dtype']} {entry['shape']} {content}"
    return found


def check_trained_on(adapter: Path, base: Path) -> None:
    """Refuse an adapter that says it was trained on other weights than the base's."""
    file = adapter / BASE
    known = read_json(file, "train the adapter again") if file.is_file() else {}
    if not isinstance(known, dict):
        raise TokenshiftError(f"{file} names no weights: train the adapter again, or remove it")
    if known.get("weights_digest") not in (None, weights_digest(base)):
        raise TokenshiftError(
            f"the adapter in {adapter} was trained on weights with the digest "
            f"{known['weights_digest']} ({known.get('label')}), and those in {base} are others: give "
            "that base, or train the adapter again"
        )


def load_generation(directory: Path) -> GenerationConfig | None:
    """A model directory's generation_config.json, which says what ends a response; None without.

    transformers goes on without one that it cannot read, and so without the ends in it; here such
    a one is refused.
    """
    file = directory / "generation_config.json"
    if not file.is_file():
        return None
    content = read_json(file, AGAIN)
    ends = content.get("eos_token_id") if isinstance(content, dict) else content
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not isinstance(content, dict) or any(type(i) is not int for i in ends):
        raise TokenshiftError(
            f"{file} does not say by ids what ends a response; fetch or save the model again"
        )
    try:
        return GenerationConfig.from_pretrained(directory, local_files_only=True)
    except Exception as error:
        raise TokenshiftError(f"{file} cannot be read ({first_line(error)}); {AGAIN}") from error


def load_config(directory: Path, trust_remote_code: bool = False) -> PreTrainedConfig:
    """A model directory's configuration; refuses what is missing or cannot be read."""
    check_model_directory(directory)
    if is_adapter(directory):
        raise TokenshiftError(
            f"{directory} holds a PEFT adapter and no model of its own: give it as the tuned model, "
            "beside the base model that it goes on"
        )
    load_generation(directory)
    try:
        return AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # (what a wrong value of a configuration raises is anything)
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise TokenshiftError(
                f"the model in {directory} needs code that lies beside it, which is not run: read "
                "it, and where you trust it say 'trust_remote_code: true' of the model in the study"
            ) from None
        raise TokenshiftError(
            f"{directory}/config.json cannot be read ({first_line(error)}); fetch or train it again"
        ) from error

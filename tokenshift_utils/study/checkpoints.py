"""What identifies a model's files, read without loading the model."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from tokenshift_utils.errors import TokenshiftError, first_line
from tokenshift_utils.study.tokenizers import check_tokenizer, load_tokenizer

FINGERPRINTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
CODE = "*.py"  # a model's own code, where it has any


ADAPTER = "adapter_config.json"


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds a PEFT adapter, which goes on another model, and no model."""
    return (directory / ADAPTER).is_file()


def check_model_directory(directory: Path) -> None:
    """Refuse a directory that is missing or has no configuration or no safetensors weights."""
    if not directory.is_dir():
        raise TokenshiftError(
            f"there is no model directory {directory}; correct the path, or train or fetch the model"
        )
    configuration = ADAPTER if is_adapter(directory) else "config.json"
    for pattern in (configuration, "*.safetensors"):
        if not any(directory.glob(pattern)):
            raise TokenshiftError(
                f"the model directory {directory} has no {pattern}; the model is incomplete: "
                "train or fetch it again"
            )


@lru_cache(maxsize=4096)
def _file_digest(file: Path, size: int, modified_ns: int) -> str:
    if file.parent.name == "blobs" and len(file.name) == 64:
        return file.name  # the hub's cache names a weight file by its sha256
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def directory_fingerprint(directory: str | Path) -> str:
    """sha256 over the names and contents of a model's weights, configuration, tokenizer and code."""
    directory = Path(directory)
    check_model_directory(directory)
    digest = hashlib.sha256()
    for file in sorted({f for pattern in (*FINGERPRINTED, CODE) for f in directory.glob(pattern)}):
        status = file.stat()
        content = _file_digest(file.resolve(), status.st_size, status.st_mtime_ns)
        digest.update(f"{file.name} {content}\n".encode())
    return digest.hexdigest()


def eos_ids(
    config: PreTrainedConfig,
    generation: GenerationConfig | None,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[int, ...]:
    """Every id that ends a response: by both configurations (or None) and by the tokenizer."""
    named = [config.get_text_config(decoder=True).eos_token_id, tokenizer.eos_token_id]
    named.append(generation.eos_token_id if generation is not None else None)
    ids: set[int] = set()
    for value in named:
        ids.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
    return tuple(sorted(int(i) for i in ids))


def load_config(directory: Path, trust_remote_code: bool = False) -> PreTrainedConfig:
    """A model directory's configuration; refuses what is missing or cannot be read."""
    check_model_directory(directory)
    try:
        return AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (ValueError, KeyError, OSError) as error:
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise TokenshiftError(
                f"the model in {directory} needs code that lies beside it, which is not run: read "
                "it, and where you trust it say 'trust_remote_code: true' of the model in the study"
            ) from None
        raise TokenshiftError(
            f"{directory}/config.json cannot be read ({first_line(error)}); fetch or train it again"
        ) from error


def model_ends(directory: Path) -> tuple[int, ...]:
    """Ids of the tokens that end a model's response, read without its weights."""
    generation = None
    if (directory / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(directory, local_files_only=True)
    return eos_ids(load_config(directory), generation, load_tokenizer(directory))


def check_same_size(base: Path, base_size: int, tuned: Path, tuned_size: int) -> None:
    """Refuse two models that give probabilities to different numbers of tokens."""
    if base_size != tuned_size:
        raise TokenshiftError(
            f"{base} and {tuned} give probabilities to {base_size} and {tuned_size} tokens; compare "
            "models whose vocabularies have one size"
        )


def check_model(directory: Path, trust_remote_code: bool = False) -> int:
    """Refuse a model directory whose configuration, weight files or tokenizer can't be used.

    Of the weights only the headers are read; a file that was cut short doesn't match its header.
    Returns how many tokens the model gives probabilities to.
    """
    config = load_config(directory, trust_remote_code)
    check_weights(directory)
    vocab_size = config.get_text_config(decoder=True).vocab_size
    check_tokenizer(load_tokenizer(directory), vocab_size, directory)
    return vocab_size


def check_weights(directory: Path) -> None:
    """Refuse weight files that are missing or were cut short, by their headers."""
    check_model_directory(directory)
    for index in directory.glob("*.safetensors.index.json"):
        for name in sorted(set(json.loads(index.read_text())["weight_map"].values())):
            if not (directory / name).is_file():
                raise TokenshiftError(
                    f"the model in {directory} lacks {name}, which {index.name} lists; fetch it again"
                )
    for file in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise TokenshiftError(
                f"the weights in {file} are damaged ({error}); fetch or train the model again"
            ) from None

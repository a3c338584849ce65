"""Weight files that hold what their model needs and nothing that it would drop."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.files import read_json
from tokenshift_utils.study.checkpoints import check_model_directory, is_adapter, load_config
from tokenshift_utils.study.tokenizers import check_tokenizer, load_tokenizer

# What a causal language model may drop: the head of a critic, caches of rotary embeddings, masks.
HARMLESS = re.compile(
    r"^score\.|(^|\.)(v_head|value_head|inv_freq|rotary_emb\.\w+_cached|masked_bias)(\.|$)"
)
MASK = re.compile(r"\.attn(ention)?\.bias$")  # a mask, where it has other than one dimension
WRAPPERS = {  # by what wrappers put into the names of tensors
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "module.": "DistributedDataParallel or DeepSpeed",
    "base_model.model.": "PEFT",
}


def check_weights(directory: Path, trust_remote_code: bool = False) -> None:
    """Refuse weights that are missing, cut short, or not those that the model is made of.

    Only names and shapes are read: the model is built without memory. What cannot be built so is
    left to its loading, which looks again.
    """
    check_files(directory)
    if is_adapter(directory):
        return
    try:
        with quiet_loading():
            model, report = AutoModelForCausalLM.from_pretrained(
                directory,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                device_map="meta",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, OSError):
        return
    check_loaded(model, report, directory)


def check_files(directory: Path) -> None:
    """Refuse weight files that are missing, contradict each other or were cut short."""
    check_model_directory(directory)
    listed: set[str] = set()
    for index in directory.glob("*.safetensors.index.json"):
        try:
            listed |= set(read_json(index, "fetch the model again")["weight_map"].values())
        except (KeyError, AttributeError, TypeError) as error:
            raise TokenshiftError(
                f"{index} is no list of weight files ({type(error).__name__}); fetch it again"
            ) from None
        if not all(isinstance(name, str) for name in listed):
            raise TokenshiftError(f"{index} is no list of weight files; fetch it again")
        for name in sorted(listed):
            if not (directory / name).is_file():
                raise TokenshiftError(
                    f"the model in {directory} lacks {name}, which {index.name} lists; fetch it again"
                )
    names = sorted(file.name for file in directory.glob("*.safetensors"))
    stray = [n for n in names if re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", n)]
    if listed and (stray := [n for n in stray if n not in listed]):
        raise TokenshiftError(
            f"the model in {directory} has {stray[0]} beside the files that its index lists, so "
            "there are two sets of weights: remove what is left over, or fetch it again"
        )
    if is_adapter(directory) and stray:
        raise TokenshiftError(
            f"{directory} holds a whole model ({stray[0]}) beside an adapter: remove "
            "adapter_config.json where the model is meant, or the model's weights"
        )
    if not is_adapter(directory) and not listed and "model.safetensors" not in names:
        raise TokenshiftError(
            f"the model in {directory} has neither model.safetensors nor "
            f"model.safetensors.index.json, but {names[0]}; fetch or save it again"
        )
    for name in names:
        try:
            with safe_open(directory / name, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise TokenshiftError(
                f"the weights in {directory / name} are damaged ({error}); "
                "fetch or train the model again"
            ) from None


def check_loaded(model: PreTrainedModel, report: Mapping[str, Any], directory: Path) -> None:
    """Refuse a model that was loaded without all of its files' tensors, by transformers' report.

    Tensors that are known to be harmless may be dropped. Raises ``TokenshiftError``.
    """
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    misshapen = sorted(map(_shapes, report["mismatched_keys"]))
    shapes: dict[str, list[int]] = {}
    for file in directory.glob("*.safetensors") if unexpected else ():
        shapes |= file_shapes(file)
    dropped = [name for name in unexpected if not _is_harmless(name, shapes.get(name))]
    whose = f"the weights in {directory}"
    adapter = re.compile(r"\.lora_|\.base_layer\.|\.modules_to_save")
    if left := list(filter(adapter.search, dropped)):
        raise TokenshiftError(
            f"{whose} hold an adapter that is not merged ({len(left)} tensors, the first {left[0]}): "
            "merge it (PEFT's merge_and_unload) and save the model again"
        )
    if missing and (said := wrapped(dropped, missing)):
        raise TokenshiftError(f"{whose} {said}")
    if missing or misshapen:
        first = (missing + misshapen)[0]
        raise TokenshiftError(
            f"{whose} lack or misshape {len(missing) + len(misshapen)} tensors, the first "
            f"{first}; the directory is incomplete: fetch or train it again"
        )
    if dropped:
        raise TokenshiftError(
            f"{whose} hold {len(dropped)} tensors for which the model of its config.json has no "
            f"place, the first {dropped[0]}; give the weights their own config.json, or save the "
            "model again without what is no part of it"
        )
    if report.get("error_msgs"):
        raise TokenshiftError(
            f"{whose} do not fit the model ({str(report['error_msgs'][0])[:200]}); "
            "fetch or train it again"
        )
    _check_floating(model, directory)
    _check_tied(model, directory)


def wrapped(names: list[str], wanted: list[str]) -> str:
    """What a wrapper added to tensors' names and what to do; "" where it isn't known to."""
    for mark, wrapper in WRAPPERS.items():
        having = [name for name in names if mark in name]
        if having and {name.replace(mark, "") for name in having} & set(wanted):
            return (
                f"have {mark!r} in the names of {len(having)} tensors, the first {having[0]}, as "
                f"{wrapper} puts it there: save the unwrapped model, or take {mark!r} out of the "
                "names"
            )
    for name in names:
        for other in wanted:
            if name.endswith(f".{other}"):
                return (
                    f"have {name.removesuffix(other)!r} before the names of their tensors, the first "
                    f"{name}: save the model that was wrapped so, or take it out of the names"
                )
    return ""


def _shapes(mismatch: Any) -> str:
    """A mismatched tensor of transformers' report, by name and shapes."""
    if isinstance(mismatch, str):
        return mismatch
    name, in_file, in_model = mismatch
    return f"{name} (shape {list(in_file)} in the file, {list(in_model)} in the model)"


def _is_harmless(name: str, shape: list[int] | None) -> bool:
    if MASK.search(name):
        return shape is not None and len(shape) != 1
    return bool(HARMLESS.search(name))


def file_shapes(file: Path) -> dict[str, list[int]]:
    """The shapes of the tensors in a file, by their names."""
    return {name: list(part.get_shape()) for name, part in _slices([file])}


def _slices(files: Iterable[Path]) -> Iterator[tuple[str, Any]]:
    for file in files:
        with safe_open(file, framework="pt") as stream:
            for name in list(stream.keys()):
                yield name, stream.get_slice(name)


def _check_floating(model: PreTrainedModel, directory: Path) -> None:
    """Refuse whole numbers for weights that are none: what a quantiser left, without its scales."""
    if getattr(model.config, "quantization_config", None):
        return
    weights = dict(model.named_parameters())
    for name, part in _slices(directory.glob("*.safetensors")):
        weight = _named(name, weights)
        integers = re.fullmatch(r"[IU]\d+|BOOL", part.get_dtype())
        if integers and weight is not None and weight.is_floating_point():
            raise TokenshiftError(
                f"the weights in {directory} hold {name} as {integers[0]}, whole numbers that only "
                "their quantiser can read, and config.json has no 'quantization_config': give the "
                "weights before they were quantised"
            )


def _named(name: str, things: Mapping[str, Any]) -> Any:
    """What has this name, or the one name that ends as it does: wrappers put more before it."""
    if name in things:
        return things[name]
    end = ".".join(name.split(".")[-2:])
    alike = [key for key in things if key == end or key.endswith(f".{end}")]
    suffixed = [key for key in alike if key.endswith(f".{name}") or name.endswith(f".{key}")]
    found = suffixed if len(suffixed) == 1 else alike
    return things[found[0]] if len(found) == 1 else None


def _check_tied(model: PreTrainedModel, directory: Path) -> None:
    """Refuse weights that contradict the configuration's word that two tensors are one.

    transformers then keeps them apart, other engines use one of them.
    """
    if not model.config.get_text_config(decoder=True).tie_word_embeddings:
        return
    pairs = model.get_expanded_tied_weights_keys(all_submodels=True)
    if not pairs:
        return
    parts = dict(_slices(directory.glob("*.safetensors")))
    for name, other in pairs.items():
        one, two = _named(name, parts), _named(other, parts)
        if one is not None and two is not None and not _equal(one, two):
            raise TokenshiftError(
                f"the weights in {directory} hold another {name} than {other}, though its "
                "config.json says tie_word_embeddings: true; set it to false where the model was "
                f"trained with a head of its own, or remove {name}"
            )


def _equal(a: Any, b: Any, rows: int = 4096) -> bool:
    """Whether two tensors in files are equal, read a few rows at a time."""
    if a.get_shape() != b.get_shape():
        return False
    starts = range(0, a.get_shape()[0], rows)
    return all(torch.equal(a[i : i + rows], b[i : i + rows]) for i in starts)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Load without transformers' bar and report: its faults are raised."""
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def check_same_size(base: Path, base_size: int, tuned: Path, tuned_size: int) -> None:
    """Refuse two models that give probabilities to different numbers of tokens."""
    if base_size != tuned_size:
        raise TokenshiftError(
            f"{base} and {tuned} give probabilities to {base_size} and {tuned_size} tokens; compare "
            "models whose vocabularies have one size"
        )


def check_model(directory: Path, trust_remote_code: bool = False) -> int:
    """Refuse a model directory whose configuration, weight files or tokenizer can't be used.

    Of the weights only the headers are read; a file that was cut short doesn't match its header,
    and every tensor must find its place in the model.
    Returns how many tokens the model gives probabilities to.
    """
    config = load_config(directory, trust_remote_code)
    check_weights(directory, trust_remote_code)
    vocab_size = config.get_text_config(decoder=True).vocab_size
    check_tokenizer(load_tokenizer(directory), vocab_size, directory)
    return vocab_size

"""PEFT adapters as tuned models: each beside the base model, whose weights both use.

An adapter gets a tree of modules of its own over the base's tensors, so that the base stays as it
was, whatever PEFT does to a model, and PEFT loads the adapter as it does by itself.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tokenshift_utils.errors import TokenshiftError, first_line
from tokenshift_utils.files import read_json
from tokenshift_utils.models.teacher_forcing import input_device
from tokenshift_utils.study.checkpoints import (
    ADAPTER,
    directory_fingerprint,
    load_config,
    weights_fingerprint,
)
from tokenshift_utils.study.weights import check_files, file_shapes, wrapped

if TYPE_CHECKING:
    from tokenshift_utils.models.huggingface import HFPolicy

WEIGHTS_FILE = "adapter_model.safetensors"
MAX_ADAPTERS = 4  # adapters that stay on a base
# Types that are shown (in the tests) to give PEFT's own logits here.
TYPES = (
    *("ADALORA", "BOFT", "C3A", "DELORA", "FOURIERFT", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR"),
    *("LORA", "MISS", "OFT", "RANDLORA", "ROAD", "SHIRA", "TRAINABLE_TOKENS", "VBLORA", "VERA"),
    "WAVEFT",
)
PROMPTS = (
    *("ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING"),
    *("PROMPT_TUNING", "P_TUNING"),
)
INITS = (True, False, None, "gaussian", "orthogonal", "eva", "pissa", "olora")
CHANGING_INITS = ("pissa", "olora")  # they change the base's weights too, when they are loaded
PROBE_TEXTS = ("What is 12 + 34? The answer is", "Let x = 3.\n\nThen", "def f(n):\n    return n")
# Options of LoRA that vLLM has no place for, or reads over.
NOT_IN_VLLM = (
    *("use_dora", "modules_to_save", "trainable_token_indices", "target_parameters"),
    *("rank_pattern", "alpha_pattern", "layer_replication", "lora_bias", "use_qalora"),
)


def adapter_rank(directory: Path) -> int:
    """The rank of a LoRA adapter, for vLLM, which takes no other."""
    content = _config(directory)
    if content.get("peft_type") != "LORA":
        raise TokenshiftError(
            f"the adapter in {directory} is of type {content.get('peft_type')}: give a LoRA "
            "adapter, merge it into the base, or use the backend transformers"
        )
    return max([content["r"], *(content.get("rank_pattern") or {}).values()])


def check_adapter(
    directory: Path, base: Path, trust_remote_code: bool = False, vllm: bool = False
) -> None:
    """Refuse an adapter that can't be put on the model in ``base`` just as PEFT would.

    Of the weights only names and shapes are read; each must find its place, and each place its
    tensor. ``vllm`` refuses what that engine can't. Warns where another base is named.
    """
    check_files(directory)
    content = _config(directory)
    _check_kind(directory, content)
    if vllm:
        _check_engine(directory, content)
    shapes = file_shapes(directory / WEIGHTS_FILE)
    _check_base(directory, content, base)
    _check_vocabulary(directory, shapes, load_config(base, trust_remote_code), base)
    peft = _peft(directory)
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            model = AutoModelForCausalLM.from_config(
                load_config(base, trust_remote_code), trust_remote_code=trust_remote_code
            )
            config = peft.PeftConfig.from_pretrained(str(directory))
            if isinstance(getattr(config, "init_lora_weights", None), str):
                config.init_lora_weights = True  # (others compute with weights; there are none)
            wrapped = peft.get_peft_model(model, config, low_cpu_mem_usage=True)
    except ValueError as error:
        raise _misfit(directory, base.name, _said(error)) from error
    except (RuntimeError, KeyError, TypeError, AttributeError, ImportError):
        return  # (some types take weights to be built; their loading looks again)
    _check_places(directory, base.name, _places(wrapped, shapes), shapes)


def load_adapter(base: HFPolicy, directory: Path, name: str) -> HFPolicy:
    """The policy of an adapter on a loaded model; ``base`` stays the model without it.

    Both run the same weights in memory, and the adapter's own beside them. What the adapter's file
    holds is compared with what was loaded, and logits on a few texts: the base's with those before,
    and the tuned model's with those of PEFT's own forward. Raises ``TokenshiftError``.
    """
    fingerprint = directory_fingerprint(directory)
    kept: dict[tuple[str, str], HFPolicy] = vars(base).setdefault("adapted", {})
    if (name, fingerprint) in kept:
        return kept[name, fingerprint]
    peft, content = _peft(directory), _config(directory)
    misfit = partial(_misfit, directory, base.name)
    check_files(directory)
    _check_kind(directory, content)
    if base.directory is not None:
        _check_base(directory, content, base.directory)
    if any(weight.device.type == "meta" for weight in base.model.parameters()):
        raise TokenshiftError(
            f"{base.name} is partly kept off its devices, where no adapter goes on: give it a "
            "device_map of devices with memory enough, or merge the adapter in "
            f"{directory} into it"
        )
    tensors = load_file(directory / WEIGHTS_FILE)
    for key, tensor in tensors.items():
        if content["peft_type"] == "LORA" and not tensor.is_floating_point():
            raise misfit(f"its tensor {key} is of {tensor.dtype}")
        if not torch.isfinite(tensor).all():
            raise misfit(f"its tensor {key} holds NaN or infinity")
    shapes = {key: list(tensor.shape) for key, tensor in tensors.items()}
    _check_vocabulary(directory, shapes, base.model.config, Path(base.name))
    before = _logits(base, base.model)
    copied = content.get("init_lora_weights") in CHANGING_INITS
    own = _beside(base.model, tensors, copied)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # (what it warns of is found below)
            wrapped = peft.PeftModel.from_pretrained(own, str(directory), torch_device="cpu").eval()
    except Exception as error:
        raise misfit(_said(error)) from error
    places = _places(wrapped, shapes)
    _check_places(directory, base.name, places, shapes)
    for key, tensor in tensors.items():
        if not torch.equal(places[key].cpu(), tensor.to(places[key].dtype)):
            raise misfit(f"its tensor {key} is not what PEFT made of it")
    policy = type(base)(wrapped.get_base_model(), base.tokenizer, name)
    try:
        after, alone = _logits(policy, policy.model), _logits(policy, wrapped)
    except Exception as error:
        raise misfit(f"the model with it runs no text ({first_line(error)})") from error
    if not all(torch.isfinite(logits).all() for logits in after):
        raise misfit("the logits with it are NaN or infinity")
    if not _same(_logits(base, base.model), before):
        raise misfit("it changes the base's own weights")
    if not _same(after, alone):
        raise misfit("it works only in PEFT's own forward")
    if _same(after, before):
        warnings.warn(
            f"the adapter in {directory} gives the very logits of {base.name} on a few texts: it "
            "may never have been trained",
            stacklevel=2,
        )
    policy.fingerprint = f"{base.fingerprint}+{fingerprint}"
    while len(kept) >= MAX_ADAPTERS:
        del kept[next(iter(kept))]
    kept[name, fingerprint] = policy
    return policy


def _beside(model: PreTrainedModel, tensors: Iterable[str], copied: bool) -> PreTrainedModel:
    """A tree of modules like ``model``'s over the same weights.

    Copied are vectors (biases and norms, which an adapter may replace), weights that the adapter's
    file holds itself, and all where ``copied``.
    """
    names = {re.sub(r"^base_model\.model\.|\.base_layer(?=\.)", "", key) for key in tensors}
    weights = list(model.named_parameters(remove_duplicate=False))  # (tied ones by each name)
    own = {id(weight) for name, weight in weights if name in names}
    memo: dict[int, Any] = {}
    for _, weight in weights:
        data = weight.detach()
        if copied or weight.dim() < 2 or id(weight) in own:
            data = data.clone()
        memo.setdefault(id(weight), nn.Parameter(data, requires_grad=False))
    beside = copy.deepcopy(model, memo)
    vars(beside).pop("hf_device_map", None)  # (PEFT would spread the model anew)
    return beside


def _places(wrapped: Any, names: Iterable[str]) -> dict[str, Tensor]:
    """An adapter's tensors in a model by their names in a file: what PEFT would save of it.

    And tensors of the base by these ``names``, since a file may hold such (embeddings). "default" is
    PEFT's name of the adapter in the model, which no file has.
    """
    from peft import get_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        places = dict(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    everything = wrapped.state_dict()
    base = [key for key in names if key in everything and ".default" not in key]
    return places | {key: everything[key] for key in base}


def _check_places(
    directory: Path, base: str, places: Mapping[str, Tensor], shapes: Mapping[str, list[int]]
) -> None:
    """Refuse tensors without a place, places without a tensor, and other shapes."""
    unexpected = sorted(shapes.keys() - places.keys())
    missing = sorted(places.keys() - shapes.keys())
    if said := wrapped(unexpected, missing):
        raise _misfit(directory, base, f"its weights {said}")
    if unexpected:
        sought = f" (PEFT looks for {missing[0]})" if missing else ""
        fault = f"{len(unexpected)} of its {len(shapes)} tensors find no module, the first "
        raise _misfit(directory, base, f"{fault}{unexpected[0]}{sought}")
    if missing:
        fault = (
            f"{len(missing)} of {len(places)} tensors that its adapter_config.json asks for are "
        )
        raise _misfit(directory, base, f"{fault}not in its file, the first {missing[0]}")
    for key, shape in shapes.items():
        place = list(places[key].shape)
        if place != shape:
            fault = f"its tensor {key} has shape {shape}, the model a place of shape {place}"
            raise _misfit(directory, base, fault)


def _misfit(directory: Path, base: str, fault: str) -> TokenshiftError:
    return TokenshiftError(
        f"the adapter in {directory} does not fit {base}: {fault}; save it with PEFT's "
        "save_pretrained, on the base model that it was trained on"
    )


def _said(error: BaseException) -> str:
    """PEFT's own words, in one line of a readable length."""
    return f"PEFT says: {' '.join(str(error).split())[:300] or type(error).__name__}"


def _peft(directory: Path) -> Any:
    try:
        import peft
    except ImportError as error:
        raise TokenshiftError(
            f"{directory} holds a PEFT adapter, and peft cannot be imported here "
            f"({first_line(error)}): install the extra 'peft'"
        ) from error
    return peft


def _config(directory: Path) -> dict[str, Any]:
    content = read_json(directory / ADAPTER, "save the adapter again")
    if not isinstance(content, dict) or not isinstance(content.get("peft_type"), str):
        raise TokenshiftError(f"{directory / ADAPTER} names no 'peft_type'; save the adapter again")
    return content


def _check_kind(directory: Path, content: dict[str, Any]) -> None:
    """Refuse adapters that no tree of modules alone is, or that aren't known to be read rightly."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind, merge = content["peft_type"], "merge it into the base (PEFT's merge_and_unload)"
    what = f"the adapter in {directory}"
    if kind in PROMPTS:
        raise TokenshiftError(
            f"{what} is of type {kind}: it puts learned vectors into the prompt in place of "
            "changing modules, so the two models would not read one text; give a LoRA adapter"
        )
    if kind not in TYPES:
        raise TokenshiftError(
            f"{what} is of type {kind}, which is not known to be run here as PEFT runs it; {merge}"
        )
    if content.get("task_type") not in (None, "CAUSAL_LM"):
        raise TokenshiftError(
            f"{what} was made for the task {content['task_type']}; give one of a causal language "
            "model (CAUSAL_LM)"
        )
    if content.get("alora_invocation_tokens"):
        raise TokenshiftError(
            f"{what} is an activated LoRA, which works only behind its invocation tokens; give one "
            "that works everywhere"
        )
    if content.get("init_lora_weights") not in INITS:
        raise TokenshiftError(
            f"{what} was begun by '{content['init_lora_weights']}', which changed the base's weights "
            "in a way that its files do not hold: save it converted (save_pretrained with "
            f"path_initial_model_for_weight_conversion), or {merge}"
        )
    known = PEFT_TYPE_TO_CONFIG_MAPPING[kind].__dataclass_fields__
    foreign = sorted(key for key, value in content.items() if value and key not in known)
    if foreign:
        raise TokenshiftError(
            f"{what} has an option that the installed peft does not know ({foreign[0]}); install "
            f"the peft that saved it, or {merge}"
        )
    if not (directory / WEIGHTS_FILE).is_file():
        raise TokenshiftError(f"{what} has no {WEIGHTS_FILE}; save it again as safetensors")


def _check_engine(directory: Path, content: dict[str, Any]) -> None:
    """Refuse what vLLM doesn't apply as PEFT does."""
    adapter_rank(directory)
    used = [key for key in NOT_IN_VLLM if content.get(key)]
    if content.get("bias", "none") != "none":
        used.append("bias")
    if content.get("init_lora_weights") in CHANGING_INITS:
        used.append("init_lora_weights")
    if used:
        raise TokenshiftError(
            f"the adapter in {directory} uses {', '.join(used)}, which vllm does not apply: merge "
            "it into the base, or use the backend transformers"
        )


def _check_base(directory: Path, content: dict[str, Any], base: Path) -> None:
    """Compare the base that an adapter names with the one it is put on.

    Where the one named is here, its weights must be the same; where only a name is there, another
    one is warned of.
    """
    named, what = content.get("base_model_name_or_path"), f"the adapter in {directory}"
    if named is not None and (not isinstance(named, str) or "\0" in named):
        raise TokenshiftError(
            f"{what} names no model in base_model_name_or_path of its {ADAPTER}: write there the "
            "directory or the name of the base that it was trained on"
        )
    if not named:
        warnings.warn(f"{what} does not say on which base it was trained", stacklevel=3)
        return
    try:
        own, there = Path(named).resolve(), (Path(named) / "config.json").is_file()
    except (OSError, RuntimeError):  # too long for a path, or links in a circle
        own, there = None, False
    if own == base.resolve():
        return
    if there:
        try:
            same = weights_fingerprint(Path(named)) == weights_fingerprint(base)
        except TokenshiftError:
            same = True  # (there are no weights to compare)
        if not same:
            raise TokenshiftError(
                f"{what} was trained on {named}, whose weights are not those of {base}; give that "
                f"base, or correct base_model_name_or_path in its {ADAPTER}"
            )
        return
    names = {base.name, base.resolve().name}
    names |= {p.name.split("--")[-1] for p in base.parents if p.name.startswith("models--")}
    recorded = read_json(base / "config.json", "fetch or save the model again")
    names.add(Path(recorded.get("_name_or_path") or "").name)
    if Path(named).name.casefold() not in {name.casefold() for name in names if name}:
        warnings.warn(
            f"{what} was trained on {named}, and is put on {base}: its numbers mean something "
            "only where these are the same model",
            stacklevel=3,
        )
    revision = content.get("revision") or ""
    if base.parent.name == "snapshots" and len(revision) == 40 and revision != base.name:
        warnings.warn(
            f"{what} was trained on revision {revision} of {named}, and is put on {base.name}",
            stacklevel=3,
        )


def _check_vocabulary(
    directory: Path, shapes: Mapping[str, list[int]], config: Any, base: Path
) -> None:
    """Refuse an adapter that brings embeddings of a vocabulary of another size."""
    size = int(config.get_text_config(decoder=True).vocab_size)
    for key, shape in shapes.items():
        embedding = re.search(r"\.(embed_tokens|lm_head|wte|embed_in|embed_out)\b.*\bweight$", key)
        if embedding and "lora_" not in key and len(shape) == 2 and shape[0] != size:
            raise TokenshiftError(
                f"the adapter in {directory} does not fit {base.name}: its vocabulary was resized "
                f"to {shape[0]} tokens ({key}), the base has {size}; compare it with a base of that "
                "vocabulary"
            )


@torch.inference_mode()
def _logits(policy: HFPolicy, model: Any) -> list[Tensor]:
    """Logits of a few texts, ``[n, V]`` each."""
    device = input_device(policy.model)
    texts = [policy.tokenizer.encode(text, add_special_tokens=False)[:64] for text in PROBE_TEXTS]
    texts.append([i * 7919 % policy.vocab_size for i in range(1, 33)])
    return [
        model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0]
        for ids in texts
        if ids
    ]


def _same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second))

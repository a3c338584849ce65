"""TODO."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from tokenshift_utils.models.policy import Policy
from tokenshift_utils.study.checkpoints import directory_fingerprint, is_adapter
from tokenshift_utils.tasks.prompts import stop_token_ids


def load_policy(study: Study, model_name: str) -> Policy:
    """The policy of a model or checkpoint of the study, which ends on the study's stop tokens too."""
    policy = _policy(study, model_name)
    own = vars(policy).setdefault("own_eos_ids", policy.eos_ids)  # policies stay, for other studies
    policy.eos_ids = tuple(sorted({*own, *stop_token_ids(policy.tokenizer, study.stop_tokens)}))
    return policy


def _policy(study: Study, model_name: str) -> Policy:
    """The last few policies stay loaded; one whose files have changed since is loaded again.

    A PEFT adapter goes on the base model, which is loaded once for both.
    """
    if study.backend == "vllm":
        from tokenshift_utils.models import vllm

        return vllm.load(study, model_name)
    path, trusted = study.model_path(model_name), study.model(model_name).trust_remote_code
    if is_adapter(path):
        from tokenshift_utils.models.adapters import put_on

        return put_on(_policy(study, study.base), path, model_name)
    placed, fingerprint = json.dumps(study.device_map), directory_fingerprint(path)
    return _loaded(path, model_name, study.dtype, placed, trusted, fingerprint)


def _keep_last(load: Callable[..., Policy]) -> Callable[..., Policy]:
    """Keep what the last calls loaded: four policies on a CPU, two on GPUs, whose memory is scarce.

    The one that was unused longest goes before another is loaded.
    """
    kept: dict[tuple, Policy] = {}

    @wraps(load)
    def loaded(*key: Any) -> Policy:
        if key in kept:
            kept[key] = kept.pop(key)
        else:
            while len(kept) >= (2 if torch.cuda.is_available() else 4):
                del kept[next(iter(kept))]
            kept[key] = load(*key)
        return kept[key]

    return loaded


@_keep_last
def _loaded(
    path: Path, name: str, dtype: str, device_map: str, trusted: bool, fingerprint: str
) -> Policy:
    from tokenshift_utils.models.huggingface import HFPolicy

    placed = json.loads(device_map)
    return HFPolicy.load(path, name, dtype, device_map=placed, trust_remote_code=trusted)

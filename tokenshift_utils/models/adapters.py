"""PEFT adapters as tuned models: the base is loaded once, the adapter switched on and off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from tokenshift_utils.errors import TokenshiftError, first_line
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.study.checkpoints import ADAPTER, directory_fingerprint


def adapter_rank(directory: Path) -> int:
    """The rank of a LoRA adapter."""
    content = json.loads((directory / ADAPTER).read_text())
    if content.get("peft_type") != "LORA":
        raise TokenshiftError(
            f"the adapter in {directory} is of type {content.get('peft_type')}: give a LoRA adapter"
        )
    return max([content["r"], *(content.get("rank_pattern") or {}).values()])


class Switched:
    """A module of a model with adapters in it, run with the one named, or without (None).

    The modules in it are switched likewise.
    """

    def __init__(self, module: nn.Module, whole: Any, adapter: str | None) -> None:
        self._module, self._whole, self._adapter = module, whole, adapter

    def __call__(self, *args: Any, **settings: Any) -> Any:
        if self._adapter is None:
            with self._whole.disable_adapter():
                return self._module(*args, **settings)
        if self._whole.active_adapter != self._adapter:
            self._whole.set_adapter(self._adapter)
        return self._module(*args, **settings)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        return self.like(value) if isinstance(value, nn.Module) else value

    def like(self, module: nn.Module) -> Switched:
        """A module in this one, with the same adapter."""
        return Switched(module, self._whole, self._adapter)

    def beside(self, adapter: str) -> Switched:
        """The same module with another adapter."""
        return Switched(self._module, self._whole, adapter)


def put_on(base: HFPolicy, directory: Path, name: str) -> HFPolicy:
    """The policy of a LoRA adapter on a loaded model; ``base`` stays the model without it.

    Both run the same weights in memory, and the adapter's own beside them.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise TokenshiftError(
            f"'{name}' is a PEFT adapter, and peft cannot be imported here ({first_line(error)}): "
            "install the extra 'peft'"
        ) from error
    adapter_rank(directory)
    fingerprint = directory_fingerprint(directory)
    own = f"adapter_{fingerprint[:16]}"
    try:
        if not isinstance(base.model, Switched):
            whole = PeftModel.from_pretrained(base.model, str(directory), own)
            base.model = Switched(base.model, whole, None)
        elif own not in base.model._whole.peft_config:
            base.model._whole.load_adapter(str(directory), own)
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        raise TokenshiftError(
            f"the adapter in {directory} does not fit {base.name} ({first_line(error)}); "
            "put it on the base model that it was trained on"
        ) from error
    policy = HFPolicy(base.model.beside(own), base.tokenizer, name)
    policy.fingerprint = f"{base.fingerprint}+{fingerprint}"
    return policy

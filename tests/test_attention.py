"""Attention without repeated keys: the same numbers as transformers' own, and only where it is alike."""

import pytest
import torch
from transformers import Gemma2Config, LlamaConfig, PreTrainedModel, Qwen3Config
from transformers.models.auto import AutoModelForCausalLM

from tokenshift_utils.models.attention import NAME, group_queries

SIZES = {
    "vocab_size": 64, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6,
    "intermediate_size": 32, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip


def model_of(config: type, shared: int) -> PreTrainedModel:
    torch.manual_seed(0)
    made = config(**SIZES, num_key_value_heads=shared)
    return AutoModelForCausalLM.from_config(made, attn_implementation="eager").eval()


@pytest.mark.parametrize("config", [LlamaConfig, Qwen3Config])
@pytest.mark.parametrize("shared", [1, 2, 3])
def test_logits_stay_with_and_without_mask_and_cache(config, shared):
    model = model_of(config, shared)
    ids = torch.arange(24).view(2, 12) % 64
    padding = torch.ones(2, 12, dtype=torch.long)
    padding[1, :4] = 0

    def logits():
        with torch.inference_mode():
            whole = model(input_ids=ids, attention_mask=padding).logits
            first = model(input_ids=ids[:, :7])
            rest = model(input_ids=ids[:, 7:], past_key_values=first.past_key_values).logits
        return torch.cat([whole, first.logits, rest], dim=1)

    plain = logits()
    group_queries(model)
    assert model.config._attn_implementation == NAME
    torch.testing.assert_close(logits(), plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("config", "shared"), [(LlamaConfig, 6), (Gemma2Config, 3)])
def test_other_models_keep_their_own(config, shared):
    model = model_of(config, shared)  # no shared keys; scores are capped
    group_queries(model)
    assert model.config._attn_implementation == "eager"

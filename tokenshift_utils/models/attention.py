"""Attention of queries that share keys and values, without a copy of these for each query head.

On a CPU, where one token a row is read at a time, transformers' eager attention spends most of its
time on repeating keys and values (Llama 3, Qwen 2 and 3, SmolLM2: three to eight times). Here the
query heads of one key-value head are rows of one product in place of that.
"""

from __future__ import annotations

import inspect
import sys

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.models.llama import modeling_llama

NAME = "tokenshift_grouped"


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Llama's ``eager_attention_forward`` in evaluation: query [b, h, n, d], key and value [b, k, t, d].

    Returns [b, n, h, d] and the weights [b, h, n, t].
    """
    b, heads, n, width = query.shape
    own = key.shape[1]
    grouped = query.reshape(b, own, heads // own * n, width)
    weights = (torch.matmul(grouped, key.transpose(2, 3)) * scaling).view(b, heads, n, -1)
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = torch.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    output = torch.matmul(weights.view(b, own, heads // own * n, -1), value)
    return output.view(b, heads, n, width).transpose(1, 2).contiguous(), weights


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, eager_mask)


def group_queries(model: PreTrainedModel) -> None:
    """Let a model in eager attention use ``grouped_attention``, where it shares keys among queries and
    its own is Llama's word for word (without sinks, capping or biases)."""
    config = model.config.get_text_config(decoder=True)
    shared = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    own = getattr(sys.modules[type(model).__module__], "eager_attention_forward", None)
    if own is None or shared == config.num_attention_heads:
        return
    if inspect.getsource(own) == inspect.getsource(modeling_llama.eager_attention_forward):
        model.set_attn_implementation(NAME)

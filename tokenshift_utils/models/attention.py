"""Attention with fewer key and value heads than queries, without copies of keys and values.

transformers' own attention with a mask repeats keys and values for every query head. One token a row
behind a prompt of 200, that copying is most of a small model's forward on a CPU.
"""

from __future__ import annotations

import inspect
import sys

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask
from transformers.models.llama import modeling_llama

NAME = "grouped_eager"


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, None]:
    """transformers' eager attention: ``query`` [b, heads, n, d] to ``key`` [b, groups, width, d].

    The queries of a group are rows of one product with its keys. Returns ``[b, n, heads, d]``.
    """
    batch, heads, n, size = query.shape
    groups, width = key.shape[1:3]
    scores = query.reshape(batch, groups, -1, size) @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores.view(batch, groups, -1, n, width) + attention_mask[:, :, None]
        scores = scores.view(batch, groups, -1, width)
    shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    shares = nn.functional.dropout(shares, p=dropout, training=module.training)
    return (shares @ value).view(batch, heads, n, size).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, eager_mask)


def group_queries(model: PreTrainedModel) -> None:
    """Let a model that attends eagerly do so by groups, if it has some.

    Only where its own eager attention is Llama's, to the letter: others cap scores or add sinks.
    """
    config = model.config
    heads = getattr(config, "num_attention_heads", 0)
    own = getattr(sys.modules[type(model).__module__], "eager_attention_forward", None)
    if own is None or not getattr(config, "num_key_value_heads", heads) < heads:
        return
    if inspect.getsource(own) == inspect.getsource(modeling_llama.eager_attention_forward):
        model.set_attn_implementation(NAME)

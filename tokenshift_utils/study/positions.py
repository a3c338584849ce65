"""How long a text a model was made for, and how long a one it can read at all."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedConfig

TABLE_EXTRA = 2  # rows that OPT, BART and their kin keep before position 0


def _own_length(config: PreTrainedConfig) -> int | None:
    text = config.get_text_config(decoder=True)
    return getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)


def made_for(config: PreTrainedConfig) -> int | None:
    """Tokens of the longest text that a model was made for; None where nothing limits it.

    Where rotary positions are scaled it is the longer of the configuration's number and the
    original one times the factor: some configurations give the former only, some the latter, and
    vLLM reckons so too.
    """
    length, text = _own_length(config), config.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or {}
    factor = rope.get("factor")  # (where kinds of layers differ, the number is whole already)
    if length is None or not factor:
        return length
    return max(length, int(factor * (rope.get("original_max_position_embeddings") or length)))


def alike_up_to(config: PreTrainedConfig) -> int | None:
    """Tokens up to which transformers turns rotary positions in one way; None where it always does.

    Beyond, the scalings "dynamic" and "longrope" go by the longest text of a batch, and a text that
    grows keeps some of its keys as they were before: its numbers then depend on what it is computed
    with and in which steps (``transformers.modeling_rope_utils.dynamic_rope_update``).
    """
    text = config.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or {}
    lengths = []
    for own in (rope, *(part for part in rope.values() if isinstance(part, dict))):
        if "dynamic" in str(own.get("rope_type")):
            lengths.append(text.max_position_embeddings)
        elif own.get("rope_type") == "longrope":
            lengths.append(own["original_max_position_embeddings"])
    return min(lengths, default=None)


def position_limit(model: nn.Module) -> int | None:
    """How many positions a model has; None where there is no end to them.

    Learned positions stand in a table, and so do some that are computed beforehand: past its end
    there is nothing. Rotary positions go on, if not as the model was trained.
    """
    length = _own_length(model.config)
    if length is None:
        return None
    if model.config.model_type == "mpt":  # its biases (ALiBi) are made for so many at every forward
        return length
    words = model.get_input_embeddings()
    tables = [
        module.num_embeddings
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module is not words
    ]
    tables += [
        buffer.shape[0]
        for name, buffer in model.named_buffers()
        if buffer.dim() > 1 and "pos" in name.rpartition(".")[2]
    ]
    return length if any(0 <= rows - length <= TABLE_EXTRA for rows in tables) else None

"""The records: what every column of every Parquet file means.

One table of column descriptions per kind gives the Arrow schema, the metadata stored in the files
and the data dictionary. Divergences and entropies are in nats, log-probabilities natural. "Full" is
the whole vocabulary at the sampling temperature; "nucleus" is that distribution after top-p
truncation and renormalisation, the one that is sampled from.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tokenshift_utils.measures.table import MEASURES

_TEXT, _FLAG = pa.string(), pa.bool_()
_COUNT, _REAL, _SETTING = pa.int32(), pa.float32(), pa.float64()
_IDS, _REALS = pa.list_(pa.int32()), pa.list_(pa.float32())
_TYPES = {"real": _REAL, "count": _COUNT, "ids": _IDS, "reals": _REALS}  # of measures


class Column(NamedTuple):
    """A column of a record kind."""

    name: str
    type: pa.DataType
    description: str
    nullable: bool = False


_RESPONSE = [
    Column("benchmark", _TEXT, "Benchmark, as the study names it"),
    Column("problem", _TEXT, "Problem id, unique within the benchmark"),
    Column("sample", _COUNT, "Sample number, from 0; with the problem it seeds the noise"),
]
_OUTCOME = [
    Column("prompt_ids", _IDS, "Token ids of the prompt"),
    Column("response_ids", _IDS, "Token ids of the response, the stop token included"),
    Column("finish_reason", _TEXT, "'eos': ended by a stop token; 'length': cut at the limit"),
    Column("n_tokens", _COUNT, "Length of the response in tokens, the stop token included"),
]
_VERDICT = [
    Column("text", _TEXT, "The response decoded, without special tokens"),
    Column(
        "answer",
        _TEXT,
        "Final answer by the study's verifier: content of the one \\boxed{...}, or what follows the"
        " last 'Answer:'; null where there is none",
        True,
    ),
    Column("correct", _FLAG, "Ended by itself, and its final answer equals the problem's"),
    Column(
        "options",
        _IDS,
        "Multiple choice: which of the source's options stood at A, B and so on, 0 the right one, in"
        " an order that hangs on seed, benchmark and problem id (benchmarks.option_order); null"
        " elsewhere",
        True,
    ),
]

_ROLLOUTS = [
    Column("study", _TEXT, "Study that the record belongs to"),
    Column("model", _TEXT, "Model or checkpoint (model@step) that wrote the response"),
    *_RESPONSE,
    *_OUTCOME,
    *_VERDICT,
    Column("temperature", _SETTING, "Sampling temperature"),
    Column("top_p", _SETTING, "Nucleus mass of the sampling, in (0, 1]"),
]

_SHIFTS = [
    Column("base", _TEXT, "Base model"),
    Column("tuned", _TEXT, "Tuned model or checkpoint compared with it"),
    Column("source", _TEXT, "Whose trajectories: a model, or 'mixed:' and a cross-sampling rule"),
    *_RESPONSE,
    Column(
        "position",
        _COUNT,
        "0-based position in the response: all columns concern the two"
        " distributions that emit this token, given the prompt and the tokens before it",
    ),
    Column("n_tokens", _COUNT, "Length of the response in tokens"),
    Column("token", _COUNT, "Id of the token that stands there"),
    *(Column(m.name, _TYPES[m.type], m.doc) for m in MEASURES),
    Column(
        "answer_start",
        _COUNT,
        "Position at which the final answer opens: the last \\boxed{, or the last 'Answer:', as the"
        " study's verifier has it; the same for all rows of a response; null where there is none",
        True,
    ),
]

_UNKNOWN = Column(
    "unknown_mass",
    _REAL,
    "Probability outside the tokens whose log-probs are known under both models, the larger of the"
    " two: 0 but for an engine that gives only the most probable tokens'. Where it is not, measures"
    " of full distributions take the rest as one token: js_full is short by at most ln 2 times it,"
    " tv_full and gains by at most it, entropies and KLs are lower bounds",
)
_SHIFTS.append(_UNKNOWN)

_CROSS_KEY = [
    Column("primary", _TEXT, "Model that the tokens come from where the rule does not fire"),
    Column("intervention", _TEXT, "Model that the tokens come from where it fires"),
    Column(
        "rule",
        _TEXT,
        "Where it fires: a rule of pairs/rules.py, always or never",
    ),
    Column(
        "threshold",
        _SETTING,
        "The rule fires where its value is above this, nats (first: at so many first positions);"
        " null for rules without threshold",
        True,
    ),
    Column(
        "rate",
        _SETTING,
        "Chance that a position is switched under rule random; null otherwise",
        True,
    ),
    Column("budget", _COUNT, "Only so many first firings of a response switch; null: all", True),
    Column(
        "insert",
        _TEXT,
        "What stands at switched positions: the token of the 'intervention', the primary's 'own' by"
        " another noise stream, or one 'extrapolated' beyond the intervention",
    ),
    Column("gain", _SETTING, "Extrapolation's exponent; null otherwise", True),
    Column("direction", _TEXT, "'forward': primary is the base model; 'reverse': it is not"),
    *_RESPONSE,
]

_COUNTED = [
    Column("n_switched", _COUNT, "Positions at which the rule fired"),
    Column(
        "n_effective",
        _COUNT,
        "Effectively replaced positions: switched ones whose token differs"
        " from the one that the primary would have emitted there with the same noise",
    ),
    Column("sum_tv", _REAL, "Total variation distance (nucleus), summed over switched positions"),
    Column(
        "sum_independent",
        _REAL,
        "Chance that independent draws differ, 1 - sum p q (nucleus),"
        " summed over switched positions",
    ),
]

_CROSS_SAMPLING = [
    Column("study", _TEXT, "Study that the record belongs to"),
    *_CROSS_KEY,
    *_OUTCOME,
    *_COUNTED,
    *_VERDICT,
]

_LOGPS = [
    Column("logp_primary_of_primary", _REAL, "Log-prob under primary of token_primary, full"),
    Column(
        "logp_primary_of_intervention", _REAL, "Log-prob under primary of token_intervention, full"
    ),
    Column(
        "logp_intervention_of_primary", _REAL, "Log-prob under intervention of token_primary, full"
    ),
    Column(
        "logp_intervention_of_intervention",
        _REAL,
        "Log-prob under intervention of token_intervention, full",
    ),
]

_SWITCHES = [
    *_CROSS_KEY,
    Column("position", _COUNT, "0-based position in the response"),
    Column("js", _REAL, "JS divergence of the nucleus distributions there, nats"),
    Column("js_full", _REAL, "JS divergence of the full distributions there, nats"),
    Column("entropy_primary", _REAL, "Entropy of the primary's full distribution, nats"),
    Column("entropy_intervention", _REAL, "Entropy of the intervention's full distribution, nats"),
    Column("token_primary", _COUNT, "Token that the primary would have emitted with this noise"),
    Column("token_intervention", _COUNT, "Token that was emitted, by what 'insert' says"),
    *_LOGPS,
    Column("effective", _FLAG, "Whether the two tokens differ"),
    Column("tv", _REAL, "Total variation distance of the nucleus distributions there"),
    _UNKNOWN,
]

_PAIR = [
    Column("base", _TEXT, "Base model, or that which takes over where 'direction' is reverse"),
    Column("tuned", _TEXT, "Tuned model, the other of the pair"),
]
_MIXTURE_TREES = [
    *_PAIR,
    *_RESPONSE,
    Column("key", pa.int64(), "Key of the tree's noise, from seed, benchmark, problem and sample"),
    Column("tree", _COUNT, "The tree's number in its file: one a problem and sample"),
    Column(
        "parent",
        _COUNT,
        "Row of the prefix that is one token shorter, from 0 in the file; -1 for a prompt alone",
    ),
    Column("token", _COUNT, "Last token of the prefix, which the parent lacks; -1 for a prompt"),
    Column("position", _COUNT, "0-based response position of the token that comes next"),
    Column(
        "known",
        _COUNT,
        "What was measured, a sum: 1 base's own, 2 tuned's own, 4 one against the other; 0: no walk"
        " came here. What was not is NaN, or -1 for tokens",
    ),
    Column("js", _REAL, "JS divergence of the nucleus distributions there, nats"),
    Column("js_full", _REAL, "JS divergence of the full distributions there, nats"),
    Column("kl_base_tuned", _REAL, "KL(base || tuned), full, nats; may be inf"),
    Column("kl_tuned_base", _REAL, "KL(tuned || base), full, nats; may be inf"),
    Column("entropy_base", _REAL, "Entropy of base's full distribution, nats"),
    Column("entropy_tuned", _REAL, "Entropy of tuned's full distribution, nats"),
    Column("tv", _REAL, "Total variation distance of the nucleus distributions there"),
    Column("independent", _REAL, "Chance that independent draws differ, 1 - sum p q (nucleus)"),
    _UNKNOWN,
    Column("token_base", _COUNT, "Token that base emits there, with the tree's noise"),
    Column("token_tuned", _COUNT, "Token that tuned emits there, with the same noise"),
    Column("logp_base_of_base", _REAL, "Log-prob under base of token_base, full"),
    Column("logp_tuned_of_base", _REAL, "Log-prob under tuned of token_base, full"),
    Column("logp_base_of_tuned", _REAL, "Log-prob under base of token_tuned, full"),
    Column("logp_tuned_of_tuned", _REAL, "Log-prob under tuned of token_tuned, full"),
    Column(
        "drawn_by",
        pa.list_(_TEXT),
        "Other tokens that some walk took there: insertion, the writing model and gain, as JSON",
    ),
    Column("drawn_token", _IDS, "These tokens"),
    Column("drawn_logp_base", _REALS, "Their log-probs under base, full"),
    Column("drawn_logp_tuned", _REALS, "Their log-probs under tuned, full"),
]
_MIXTURE_RESPONSES = [
    Column("study", _TEXT, "Study that the record belongs to"),
    *_PAIR,
    *_RESPONSE,
    Column("response", _COUNT, "Number of the distinct response in its file: the row, from 0"),
    Column("node", _COUNT, "Row of mixture_trees' file with the prefix before its last token"),
    *_OUTCOME,
    *_VERDICT,
]
_MIXTURE_WALKS = [
    Column("walk", _TEXT, "Direction, rule and insertion of the mixture, as JSON"),
    *_RESPONSE,
    Column("tree", _COUNT, "The tree's number in mixture_trees' file"),
    Column("response", _COUNT, "The mixture's response, by its number in mixture_responses' file"),
    *_COUNTED,
]

_SINGLE_TOKEN = [
    Column("study", _TEXT, "Study that the record belongs to"),
    Column("primary", _TEXT, "Model that wrote the response, and that goes on after either token"),
    Column("intervention", _TEXT, "Model whose token is tried in place of the primary's"),
    Column("direction", _TEXT, "'forward': primary is the base model; 'reverse': it is not"),
    *_RESPONSE,
    Column("position", _COUNT, "0-based position in the primary's response"),
    Column("n_tokens", _COUNT, "Length of that response in tokens"),
    Column("stratum", _COUNT, "Stratum of JS that the position was taken from, from 0"),
    Column("stratum_low", _SETTING, "Lower edge of the stratum, nats, inside"),
    Column("stratum_high", _SETTING, "Upper edge, nats, outside; ln 2, JS's bound, for the last"),
    Column(
        "stratum_positions",
        _COUNT,
        "Positions of the stratum in the pool that these were taken from, for weights",
    ),
    Column("js", _REAL, "JS divergence of the nucleus distributions there, nats"),
    Column("js_full", _REAL, "JS divergence of the full distributions there, nats"),
    Column("kl_base_tuned", _REAL, "KL(base || tuned), full, nats; may be inf"),
    Column("kl_tuned_base", _REAL, "KL(tuned || base), full, nats; may be inf"),
    Column("tv", _REAL, "Total variation distance of the nucleus distributions there"),
    Column("entropy_primary", _REAL, "Entropy of the primary's full distribution, nats"),
    Column("entropy_intervention", _REAL, "Entropy of the intervention's full distribution, nats"),
    Column("margin_primary", _REAL, "Log-prob under primary of its top token minus its second's"),
    Column("margin_intervention", _REAL, "The same under intervention"),
    Column("token_primary", _COUNT, "Token that the primary emitted there"),
    Column(
        "token_intervention", _COUNT, "Token that the intervention would have emitted, same noise"
    ),
    *_LOGPS,
    Column(
        "rank_primary_of_intervention",
        _COUNT,
        "Rank under primary of token_intervention; 1 is the top, ties by lower id",
    ),
    Column("effective", _FLAG, "Whether the two tokens differ"),
    Column(
        "continuations",
        _COUNT,
        "Continuations after each of the two tokens, on noise that both share; 0 where they are"
        " equal",
    ),
    Column(
        "successes_primary",
        _COUNT,
        "Correct responses after the primary's token; null where the tokens are equal",
        True,
    ),
    Column(
        "successes_intervention",
        _COUNT,
        "Correct responses after the intervention's token; null where the tokens are equal",
        True,
    ),
    Column(
        "successes_both",
        _COUNT,
        "Noise streams on which both are correct, for the noise of the effect; null where the tokens"
        " are equal",
        True,
    ),
    Column(
        "effect",
        _SETTING,
        "Success rate after the intervention's token minus that after the primary's; 0 where the"
        " tokens are equal",
    ),
]

_SIDES, _PLACE = ("base", "tuned"), "; null where neither model reads on"
_TREES = {column.name: column for column in _MIXTURE_TREES}
_WHOSE = [_TREES[name] for name in ("base", "tuned", "benchmark", "problem", "sample")]


def _of_trees(name: str) -> Column:
    """What mixture_trees measures at a prefix, where a model reads on."""
    place = f"{_TREES[name].description}, of the token that comes next{_PLACE}"
    return _TREES[name]._replace(description=place, nullable=True)


def _of_whole(name: str) -> Column:
    """What is judged of a response, where the prefix is one."""
    (column,) = (column for column in _ROLLOUTS if column.name == name)
    said = f"{column.description}; null where no response is whole"
    return column._replace(description=said, nullable=True)


_EXPLORER = [
    *_WHOSE,
    Column("node", _COUNT, "Number of the prefix in its tree, from 0: the empty response"),
    Column(
        "parent", _COUNT, "Number of the prefix that is one token shorter; -1 for the empty one"
    ),
    _TREES["token"],
    *(
        Column(
            f"own_{side}",
            _COUNT,
            f"Prefix that {side}'s own token leads to, with the tree's noise; null where it is not"
            " followed",
            True,
        )
        for side in _SIDES
    ),
    *map(_of_trees, ("js", "js_full", "entropy_base", "entropy_tuned")),
    *(
        Column(f"nucleus_{side}", _COUNT, f"Tokens in {side}'s nucleus there{_PLACE}", True)
        for side in _SIDES
    ),
    Column("candidates", _IDS, f"Both models' most probable tokens, surest first{_PLACE}", True),
    *(
        Column(
            f"candidates_p_{side}",
            _REALS,
            f"Their probabilities under {side}, full; null inside where they are not among its"
            f" top_k{_PLACE}",
            True,
        )
        for side in _SIDES
    ),
    Column(
        "candidates_nuclei",
        _IDS,
        f"The nuclei that they are in, a sum: 1 base's, 2 tuned's{_PLACE}",
        True,
    ),
    *map(_of_whole, ("finish_reason", "answer", "correct")),
]
_EXPLORER_MIXTURES = [
    *_WHOSE,
    *(column for column in _MIXTURE_WALKS if column.name == "walk"),
    Column("node", _COUNT, "The whole response, by its number in explorer's tree"),
    Column("switched", _IDS, "0-based positions at which the rule fired"),
]

KINDS: dict[str, list[Column]] = {
    "rollouts": _ROLLOUTS,
    "shifts": _SHIFTS,
    "cross_sampling": _CROSS_SAMPLING,
    "switches": _SWITCHES,
    "mixture_trees": _MIXTURE_TREES,
    "mixture_responses": _MIXTURE_RESPONSES,
    "mixture_walks": _MIXTURE_WALKS,
    "single_token": _SINGLE_TOKEN,
    "explorer": _EXPLORER,
    "explorer_mixtures": _EXPLORER_MIXTURES,
}  # fmt: skip


def describe(kind: str) -> list[Column]:
    """The data dictionary of a record kind: name, Arrow type, description and nullability."""
    return list(KINDS[kind])


def schema(kind: str) -> pa.Schema:
    """The Arrow schema of a record kind, each field carrying its description as metadata."""
    return pa.schema(
        [
            pa.field(c.name, c.type, c.nullable, metadata={"description": c.description})
            for c in KINDS[kind]
        ]
    )


def _array(values, column: Column) -> pa.Array:
    if isinstance(values, np.ndarray) and values.ndim == 2 and pa.types.is_list(column.type):
        rows, width = values.shape
        offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * width)
        inner = pa.array(values.reshape(-1)).cast(column.type.value_type)
        return pa.ListArray.from_arrays(offsets, inner).cast(column.type)
    if isinstance(values, pa.Array):
        return values.cast(column.type)
    if isinstance(values, np.ndarray):
        return pa.array(values).cast(column.type)
    return pa.array(values, type=column.type)


def table(kind: str, columns: dict) -> pa.Table:
    """A table of a record kind from a dict of columns.

    A column is an array or list, a ``[rows, width]`` array for list columns, or one string, number,
    flag or None that all rows share. Exactly the columns of the kind are expected.
    """
    names = [c.name for c in KINDS[kind]]
    if set(columns) != set(names):
        raise ValueError(f"{kind}: columns differ by {sorted(set(columns) ^ set(names))}")
    rows = max(len(v) for v in columns.values() if isinstance(v, (list, np.ndarray, pa.Array)))
    arrays = []
    for column in KINDS[kind]:
        values = columns[column.name]
        if not isinstance(values, (list, np.ndarray, pa.Array)):
            values = [values] * rows
        arrays.append(_array(values, column))
    return pa.Table.from_arrays(arrays, schema=schema(kind))

"""The records: what every column of every Parquet file means.

One text, `_TEXT`, gives the Arrow schemas, the metadata stored in the files and the data dictionary.
Divergences and entropies are in nats, log-probabilities natural. "Full" is the whole vocabulary at
the sampling temperature; "nucleus" is that distribution after top-p truncation and renormalisation,
the one that is sampled from.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tokenshift_utils.measures.table import MEASURES

_TYPES = {
    "text": pa.string(),
    "flag": pa.bool_(),
    "setting": pa.float64(),
    "real": pa.float32(),
    "count": pa.int32(),
    "key": pa.int64(),
    "ids": pa.list_(pa.int32()),
    "reals": pa.list_(pa.float32()),
    "texts": pa.list_(pa.string()),
}


class Column(NamedTuple):
    """A column of a record kind."""

    name: str
    type: pa.DataType
    description: str
    nullable: bool = False


# A block a record kind, which says what a row is, or a group of columns that several kinds have. Then
# a line a column: name, type (with "?": or null) and description; "@" stands for a group's columns.
# A line that begins with spaces goes on with the one before.
_TEXT = r"""
[response]
benchmark (text) Benchmark, as the study names it
problem (text) Problem id, unique within the benchmark
sample (count) Sample number, from 0; with the problem it seeds the noise

[outcome]
prompt_ids (ids) Token ids of the prompt
response_ids (ids) Token ids of the response, the stop token included
finish_reason (text) 'eos': ended by a stop token; 'length': cut at the limit
n_tokens (count) Length of the response in tokens, the stop token included

[verdict]
text (text) The response decoded, without special tokens
answer (text?) Final answer by the study's verifier: content of the one \boxed{...}, or what follows
    the last 'Answer:'; null where there is none
correct (flag) Ended by itself, and its final answer equals the problem's
options (ids?) Multiple choice: which of the source's options stood at A, B and so on, 0 the right
    one, in an order that hangs on seed, benchmark and problem id (benchmarks.option_order); null
    elsewhere

[unknown]
unknown_mass (real) Probability outside the tokens whose log-probs are known under both models, the
    larger of the two: 0 but for an engine that gives only the most probable tokens'. Where it is
    not, measures of full distributions take the rest as one token: js_full is short by at most ln 2
    times it, tv_full and gains by at most it, entropies and KLs are lower bounds

[cross_key]
primary (text) Model that the tokens come from where the rule does not fire
intervention (text) Model that the tokens come from where it fires
rule (text) Where it fires: a rule of pairs/rules.py
threshold (setting?) The rule fires where its value is above this, nats (first: at so many first
    positions); null for rules without threshold
rate (setting?) Chance that a position is switched under rule random; null otherwise
budget (count?) Only so many first firings of a response switch; null: all
insert (text) What stands at switched positions: the token of the 'intervention', the primary's
    'own' by another noise stream, or one 'extrapolated' beyond the intervention
gain (setting?) Extrapolation's exponent; null otherwise
direction (text) 'forward': primary is the base model; 'reverse': it is not
@response

[counted]
n_switched (count) Positions at which the rule fired
n_effective (count) Effectively replaced positions: switched ones whose token differs from the one
    that the primary would have emitted there with the same noise
sum_tv (real) Total variation distance (nucleus), summed over switched positions
sum_independent (real) Chance that independent draws differ, 1 - sum p q (nucleus), summed over
    switched positions

[rollouts] One row a response that a model wrote by itself.
study (text) Study that the record belongs to
model (text) Model or checkpoint (model@step) that wrote the response
@response
@outcome
@verdict
temperature (setting) Sampling temperature
top_p (setting) Nucleus mass of the sampling, in (0, 1]

[shifts] One row a token position of a response, whoever wrote it: how base and tuned differ in the
    distributions that emit this token.
base (text) Base model
tuned (text) Tuned model or checkpoint compared with it
source (text) Whose trajectories: a model, 'mixed:' and a cross-sampling rule, or 'given' in a file
@response
position (count) 0-based position in the response: all columns concern the two distributions that
    emit this token, given the prompt and the tokens before it
n_tokens (count) Length of the response in tokens
token (count) Id of the token that stands there
@measures
answer_start (count?) Position at which the final answer opens: the last \boxed{, or the last
    'Answer:', as the study's verifier has it; the same for all rows of a response; null where there
    is none
@unknown

[cross_sampling] One row a response that two models wrote together.
study (text) Study that the record belongs to
@cross_key
@outcome
@counted
@verdict

[switches] One row a position of such a response at which the rule fired.
@cross_key
position (count) 0-based position in the response
js (real) JS divergence of the nucleus distributions there, nats
js_full (real) JS divergence of the full distributions there, nats
entropy_primary (real) Entropy of the primary's full distribution, nats
entropy_intervention (real) Entropy of the intervention's full distribution, nats
token_primary (count) Token that the primary would have emitted with this noise
token_intervention (count) Token that was emitted, by what 'insert' says
logp_primary_of_primary (real) Log-prob under primary of token_primary, full
logp_primary_of_intervention (real) Log-prob under primary of token_intervention, full
logp_intervention_of_primary (real) Log-prob under intervention of token_primary, full
logp_intervention_of_intervention (real) Log-prob under intervention of token_intervention, full
effective (flag) Whether the two tokens differ
tv (real) Total variation distance of the nucleus distributions there
@unknown

[mixture_trees] One row a distinct prefix of the mixtures of a pair: what both models say after it,
    once. Rows of `cross_sampling` and `switches` are read off these and the two kinds below.
base (text) Base model, or that which takes over where 'direction' is reverse
tuned (text) Tuned model, the other of the pair
@response
key (key) Key of the tree's noise, from seed, benchmark, problem and sample
tree (count) The tree's number in its file: one a problem and sample
parent (count) Row of the prefix that is one token shorter, from 0 in the file; -1 for a prompt
    alone
token (count) Last token of the prefix, which the parent lacks; -1 for a prompt
position (count) 0-based response position of the token that comes next
known (count) What was measured, a sum: 1 base's own, 2 tuned's own, 4 one against the other; 0: no
    walk came here. What was not is NaN, or -1 for tokens
js (real) JS divergence of the nucleus distributions there, nats
js_full (real) JS divergence of the full distributions there, nats
kl_base_tuned (real) KL(base || tuned), full, nats; may be inf
kl_tuned_base (real) KL(tuned || base), full, nats; may be inf
entropy_base (real) Entropy of base's full distribution, nats
entropy_tuned (real) Entropy of tuned's full distribution, nats
tv (real) Total variation distance of the nucleus distributions there
independent (real) Chance that independent draws differ, 1 - sum p q (nucleus)
@unknown
token_base (count) Token that base emits there, with the tree's noise
token_tuned (count) Token that tuned emits there, with the same noise
logp_base_of_base (real) Log-prob under base of token_base, full
logp_tuned_of_base (real) Log-prob under tuned of token_base, full
logp_base_of_tuned (real) Log-prob under base of token_tuned, full
logp_tuned_of_tuned (real) Log-prob under tuned of token_tuned, full
drawn_by (texts) Other tokens that some walk took there: insertion, the writing model and gain, as
    JSON
drawn_token (ids) These tokens
drawn_logp_base (reals) Their log-probs under base, full
drawn_logp_tuned (reals) Their log-probs under tuned, full

[mixture_responses] One row a distinct response of these mixtures.
study (text) Study that the record belongs to
base (text) Base model, or that which takes over where 'direction' is reverse
tuned (text) Tuned model, the other of the pair
@response
response (count) Number of the distinct response in its file: the row, from 0
node (count) Row of mixture_trees' file with the prefix before its last token
@outcome
@verdict

[mixture_walks] One row a mixture and sample: which response it is.
walk (text) Direction, rule and insertion of the mixture, as JSON
@response
tree (count) The tree's number in mixture_trees' file
response (count) The mixture's response, by its number in mixture_responses' file
@counted

[single_token] One row a position of a model's own response at which another model's token was
    tried: how often each of the two tokens leads to a correct answer.
study (text) Study that the record belongs to
primary (text) Model that wrote the response, and that goes on after either token
intervention (text) Model whose token is tried in place of the primary's
direction (text) 'forward': primary is the base model; 'reverse': it is not
@response
position (count) 0-based position in the primary's response
n_tokens (count) Length of that response in tokens
stratum (count) Stratum of JS that the position was taken from, from 0
stratum_low (setting) Lower edge of the stratum, nats, inside
stratum_high (setting) Upper edge, nats, outside; ln 2, JS's bound, for the last
stratum_positions (count) Positions of the stratum in the pool that these were taken from, for
    weights
js (real) JS divergence of the nucleus distributions there, nats
js_full (real) JS divergence of the full distributions there, nats
kl_base_tuned (real) KL(base || tuned), full, nats; may be inf
kl_tuned_base (real) KL(tuned || base), full, nats; may be inf
tv (real) Total variation distance of the nucleus distributions there
entropy_primary (real) Entropy of the primary's full distribution, nats
entropy_intervention (real) Entropy of the intervention's full distribution, nats
margin_primary (real) Log-prob under primary of its top token minus its second's
margin_intervention (real) The same under intervention
token_primary (count) Token that the primary emitted there
token_intervention (count) Token that the intervention would have emitted, same noise
logp_primary_of_primary (real) Log-prob under primary of token_primary, full
logp_primary_of_intervention (real) Log-prob under primary of token_intervention, full
logp_intervention_of_primary (real) Log-prob under intervention of token_primary, full
logp_intervention_of_intervention (real) Log-prob under intervention of token_intervention, full
rank_primary_of_intervention (count) Rank under primary of token_intervention; 1 is the top, ties by
    lower id
effective (flag) Whether the two tokens differ
continuations (count) Continuations after each of the two tokens, on noise that both share; 0 where
    they are equal
successes_primary (count?) Correct responses after the primary's token; null where the tokens are
    equal
successes_intervention (count?) Correct responses after the intervention's token; null where the
    tokens are equal
successes_both (count?) Noise streams on which both are correct, for the noise of the effect; null
    where the tokens are equal
effect (setting) Success rate after the intervention's token minus that after the primary's; 0 where
    the tokens are equal

[explorer] One row a distinct prefix of the responses that the explorer shows of a pair: what both
    models may say after it, and how each goes on by itself.
base (text) Base model, or that which takes over where 'direction' is reverse
tuned (text) Tuned model, the other of the pair
@response
node (count) Number of the prefix in its tree, from 0: the empty response
parent (count) Number of the prefix that is one token shorter; -1 for the empty one
token (count) Last token of the prefix, which the parent lacks; -1 for a prompt
own_base (count?) Prefix that base's own token leads to, with the tree's noise; null where it is not
    followed
own_tuned (count?) Prefix that tuned's own token leads to, with the tree's noise; null where it is
    not followed
js (real?) JS divergence of the nucleus distributions there, nats, of the token that comes next;
    null where neither model reads on
js_full (real?) JS divergence of the full distributions there, nats, of the token that comes next;
    null where neither model reads on
entropy_base (real?) Entropy of base's full distribution, nats, of the token that comes next; null
    where neither model reads on
entropy_tuned (real?) Entropy of tuned's full distribution, nats, of the token that comes next; null
    where neither model reads on
nucleus_base (count?) Tokens in base's nucleus there; null where neither model reads on
nucleus_tuned (count?) Tokens in tuned's nucleus there; null where neither model reads on
candidates (ids?) Both models' most probable tokens, surest first; null where neither model reads on
candidates_p_base (reals?) Their probabilities under base, full; null inside where they are not
    among its top_k; null where neither model reads on
candidates_p_tuned (reals?) Their probabilities under tuned, full; null inside where they are not
    among its top_k; null where neither model reads on
candidates_nuclei (ids?) The nuclei that they are in, a sum: 1 base's, 2 tuned's; null where neither
    model reads on
finish_reason (text?) 'eos': ended by a stop token; 'length': cut at the limit; null where no
    response is whole
answer (text?) Final answer by the study's verifier: content of the one \boxed{...}, or what follows
    the last 'Answer:'; null where there is none; null where no response is whole
correct (flag?) Ended by itself, and its final answer equals the problem's; null where no response
    is whole

[explorer_mixtures] One row a mixture of two models that the explorer shows, and sample: which
    response it is, and where it was switched.
base (text) Base model, or that which takes over where 'direction' is reverse
tuned (text) Tuned model, the other of the pair
@response
walk (text) Direction, rule and insertion of the mixture, as JSON
node (count) The whole response, by its number in explorer's tree
switched (ids) 0-based positions at which the rule fired
"""


def _parsed(text: str) -> tuple[dict[str, list[Column]], dict[str, str]]:
    """Columns of every group and kind, and what a row of each kind is."""
    columns = {"measures": [Column(m.name, _TYPES[m.type], m.doc) for m in MEASURES]}
    rows = {}
    for block in re.sub(r"\n +", " ", text).strip().split("\n\n"):
        heading, *lines = block.splitlines()
        name, said = re.fullmatch(r"\[(\w+)\] ?(.*)", heading).groups()
        rows |= {name: said} if said else {}
        columns[name] = []
        for line in lines:
            if line.startswith("@"):
                columns[name] += columns[line[1:]]
            else:
                parts = re.fullmatch(r"(\w+) \((\w+)(\??)\) (.+)", line).groups()
                column, kind, null, description = parts
                columns[name].append(Column(column, _TYPES[kind], description, bool(null)))
    return columns, rows


_COLUMNS, ROWS = _parsed(_TEXT)  # ROWS: what a row is, by kind
RECORD_KINDS: dict[str, list[Column]] = {kind: _COLUMNS[kind] for kind in ROWS}


def describe(kind: str) -> list[Column]:
    """The data dictionary of a record kind: name, Arrow type, description and nullability."""
    return list(RECORD_KINDS[kind])


def schema(kind: str) -> pa.Schema:
    """The Arrow schema of a record kind, each field carrying its description as metadata."""
    return pa.schema(
        [
            pa.field(c.name, c.type, c.nullable, metadata={"description": c.description})
            for c in RECORD_KINDS[kind]
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
    names = [c.name for c in RECORD_KINDS[kind]]
    if set(columns) != set(names):
        raise ValueError(f"{kind}: columns differ by {sorted(set(columns) ^ set(names))}")
    rows = max(len(v) for v in columns.values() if isinstance(v, (list, np.ndarray, pa.Array)))
    arrays = []
    for column in RECORD_KINDS[kind]:
        values = columns[column.name]
        if not isinstance(values, (list, np.ndarray, pa.Array)):
            values = [values] * rows
        arrays.append(_array(values, column))
    return pa.Table.from_arrays(arrays, schema=schema(kind))

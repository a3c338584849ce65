"""Lanes: whatever the prompts, limits, batches, stops and refills, each text is what it would be
alone. First the bookkeeping by itself, on made-up next tokens, then with a model."""

import copy
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from test_cross_sample import plain_cross
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures.noise import row_key
from tokenshift_utils.measures.nucleus import log_softmax32, truncate
from tokenshift_utils.models.decoding import Lanes
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.models.policy import Sampling
from tokenshift_utils.models.sessions import UncachedSession
from tokenshift_utils.pairs.cross_sample import cross_sample
from tokenshift_utils.pairs.rules import Rule

STOPS = (0, 7)


def next_token(text: list[int], key: int, position: int) -> int:
    """A next token that depends on everything that it may depend on; a stop id now and then."""
    return hash((*text, key, position)) % 23


def alone(prompt: list[int], key: int, first: int, limit: int) -> list[int]:
    """The response to one prompt, written by itself."""
    ids = []
    for position in range(first, limit):
        ids.append(next_token(prompt + ids, key, position))
        if ids[-1] in STOPS:
            break
    return ids


class TextSession:
    """A session that holds its rows' texts and nothing else: what lanes tell sessions to do."""

    device = torch.device("cpu")

    def __init__(self, rows: int) -> None:
        self.texts: list[list[int]] = [[] for _ in range(rows)]
        self.most = 0  # tokens that a row has held

    def enter(self, rows, texts) -> None:
        for row, text in zip(rows.tolist(), texts, strict=True):
            self.texts[row] = list(text)

    def read(self, tokens) -> None:
        for text, new in zip(self.texts, tokens.tolist(), strict=True):
            text += new
            self.most = max(self.most, len(text))

    def rewind(self, length) -> None:
        for text, n in zip(self.texts, length.tolist(), strict=True):
            assert n <= len(text)
            del text[n:]

    def keep(self, rows) -> None:
        self.texts = [self.texts[row] for row in rows.tolist()]


class LanesMachine(RuleBasedStateMachine):
    """Blocks of any width are drafted, taken in part or as a whole, and read, in any order of
    moves; texts end by stops and limits; others enter."""

    @initialize(data=st.data())
    def begin(self, data):
        self.limit = data.draw(st.integers(1, 12), "limit")
        one = st.tuples(
            st.lists(st.integers(1, 6), min_size=1, max_size=9),
            st.integers(0, 5),
            st.integers(0, self.limit - 1) if data.draw(st.booleans(), "goes on") else st.just(0),
        )
        self.prompts, self.keys, self.first = zip(
            *data.draw(st.lists(one, min_size=1, max_size=14), "rows")
        )
        rows = data.draw(st.integers(1, 16), "batch")
        self.lanes = Lanes(
            self.prompts, self.keys, self.first, self.limit, STOPS, rows, torch.device("cpu")
        )
        self.eager, self.lagging = TextSession(len(self.lanes)), TextSession(len(self.lanes))
        self.going = self.lanes.refill([self.eager], [self.lagging])

    @precondition(lambda self: not self.going)
    @rule(data=st.data())
    def begin_again(self, data):
        self.check_results()
        self.begin(data)

    def text(self, row: int) -> list[int]:
        return self.lanes.text[row, : int(self.lanes.size[row])].tolist()

    def drafts(self, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens ``[B, width]`` that busy lanes go on with, junk in idle ones, and how many of a
        row come before or at its first stop."""
        tokens = torch.full((len(self.lanes), width), 99)
        counts = torch.full((len(self.lanes),), width)
        for row in self.lanes.busy.nonzero().squeeze(-1).tolist():
            text, key = self.text(row), int(self.lanes.keys[row])
            made: list[int] = []
            for i in range(width):
                made.append(next_token(text + made, key, int(self.lanes.position[row]) + i))
            tokens[row] = torch.tensor(made)
            stops = [i for i, token in enumerate(made) if token in STOPS]
            counts[row] = stops[0] + 1 if stops else width
        return tokens, counts

    @precondition(lambda self: self.going)
    @rule(data=st.data())
    def write_a_block(self, data):
        """Draft a block, past the ends too; each row takes some of it."""
        beyond = data.draw(st.booleans(), "past the end")
        width = data.draw(st.integers(1, 40 if beyond else self.lanes.room), "width")
        tokens, counts = self.drafts(width)
        pieces = data.draw(
            st.lists(st.integers(1, width), min_size=len(counts), max_size=len(counts)), "taken"
        )
        counts = torch.minimum(counts, torch.tensor(pieces))
        if not beyond:  # (what a session reads is bounded by `room`)
            self.eager.read(torch.cat([self.lanes.pending[:, None], tokens[:, :-1]], dim=1))
        else:
            for row, text in enumerate(self.eager.texts):
                ahead = [int(self.lanes.pending[row]), *tokens[row, : counts[row] - 1].tolist()]
                text += ahead
        before = self.lanes.busy.clone()
        done = self.lanes.advance(tokens, counts, tokens.double() / 2)
        assert done == int((before & ~self.lanes.busy).sum())
        assert not bool((self.lanes.busy & ~before).any())
        self.going = self.lanes.refill([self.eager], [self.lagging])

    @precondition(lambda self: self.going)
    @rule(data=st.data())
    def only_look_ahead(self, data):
        """Put a block behind the texts, as a lagging session is shown it, and take none of it."""
        texts = [self.text(row) for row in range(len(self.lanes))]
        self.lanes.write(torch.full((len(self.lanes), data.draw(st.integers(1, 40))), 98))
        assert [self.text(row) for row in range(len(self.lanes))] == texts

    @precondition(lambda self: self.going)
    @rule()
    def refill_again(self):
        self.going = self.lanes.refill([self.eager], [self.lagging])

    @invariant()
    def sessions_have_read_all_but_the_last_token(self):
        if not hasattr(self, "lanes") or not self.going:
            return
        for row, busy in enumerate(self.lanes.busy.tolist()):
            if busy:
                assert self.eager.texts[row] == self.text(row)[:-1]
                assert self.lanes.pending[row] == self.text(row)[-1]
            else:  # nothing is kept of a finished text that could grow
                assert self.eager.texts[row] == []

    @invariant()
    def texts_are_what_they_would_be_alone(self):
        if not hasattr(self, "lanes"):
            return
        busy = self.lanes.busy.nonzero().squeeze(-1).tolist()
        assert len({int(self.lanes.item[row]) for row in busy}) == len(busy)
        for row in busy:
            i = int(self.lanes.item[row])
            whole = alone(list(self.prompts[i]), self.keys[i], self.first[i], self.limit)
            written = self.text(row)[len(self.prompts[i]) :]
            assert self.text(row)[: len(self.prompts[i])] == list(self.prompts[i])
            assert written == whole[: len(written)] and len(written) < len(whole)
            assert int(self.lanes.keys[row]) == self.keys[i]
            assert int(self.lanes.position[row]) == self.first[i] + len(written)
        # A session holds no more than the texts are long: a position that a model may not have.
        longest = max(len(p) - f for p, f in zip(self.prompts, self.first)) + self.limit
        assert self.eager.most < longest

    def teardown(self):
        if not hasattr(self, "lanes"):
            return
        while self.going:
            tokens, counts = self.drafts(1)
            self.eager.read(self.lanes.pending[:, None])
            self.lanes.advance(tokens, counts, tokens.double() / 2)
            self.going = self.lanes.refill([self.eager], [self.lagging])
        self.check_results()

    def check_results(self):
        for i, prompt in enumerate(self.prompts):
            whole = alone(list(prompt), self.keys[i], self.first[i], self.limit)
            assert self.lanes.ids[i] == whole
            assert self.lanes.values[i] == [token / 2 for token in whole]
            assert self.lanes.reasons()[i] == ("eos" if whole[-1] in STOPS else "length")


TestLanes = LanesMachine.TestCase
TestLanes.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)


# With models ------------------------------------------------------------------------------------

POSITIONS = 21  # of all models below: the learned table of one of them ends there
RULES = [
    Rule("js", 0.02),
    Rule("js", 0.02, budget=2),
    Rule("random", None, 0.3),
    Rule("entropy", 2.0),
    Rule("always"),
    Rule("never"),
]


class NoTokenizer:
    eos_token_id = None


@cache
def pair(kind: str) -> tuple[HFPolicy, HFPolicy]:
    """Two random models in float64: with rotary or learned positions, or read anew every time."""
    common = {"vocab_size": 40, "bos_token_id": None, "eos_token_id": None}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if kind == "learned":
            config = GPT2Config(
                n_positions=POSITIONS,
                n_embd=16,
                n_layer=2,
                n_head=2,
                initializer_range=0.4,
                **common,
            )
            base = GPT2LMHeadModel(config)
        else:
            config = LlamaConfig(
                max_position_embeddings=POSITIONS, hidden_size=16, intermediate_size=24,
                num_hidden_layers=2, num_attention_heads=2, initializer_range=0.4, **common
            )  # fmt: skip
            base = LlamaForCausalLM(config)
        base = base.eval().double()
        tuned = copy.deepcopy(base)
        with torch.no_grad():
            for weight in tuned.parameters():
                weight += 0.05 * torch.randn_like(weight)
    policies = tuple(HFPolicy(m, NoTokenizer(), n) for m, n in ((base, "base"), (tuned, "tuned")))
    for policy in policies:
        if kind == "uncached":
            policy._windows = None
        assert isinstance(policy.open(1), UncachedSession) == (kind == "uncached")
    return policies


@st.composite
def batches(draw):
    """Prompts of which the longest with its response may be as long as the models can read."""
    token = st.integers(0, 39)
    prompts = draw(st.lists(st.lists(token, min_size=1, max_size=9), min_size=1, max_size=9))
    room = POSITIONS - max(map(len, prompts))
    limit = draw(st.one_of(st.integers(1, 12), st.just(room)))
    stops = draw(st.sets(token, max_size=6))
    sampling = Sampling(draw(st.floats(0.5, 2.0)), draw(st.sampled_from([0.5, 0.9, 1.0])), limit)
    return prompts, sampling, tuple(sorted(stops)), draw(st.integers(1, 10))


KEYS = [row_key(2, "lanes", f"p{i}", 0) for i in range(9)]


def plain_response(policy, prompt, key, sampling, stops, first=0):
    """One response, one forward over the whole prefix a token."""
    ids, values = [], []
    for position in range(first, sampling.max_new_tokens):
        with torch.no_grad():
            logits = policy.model(torch.tensor([prompt + ids]), use_cache=False).logits[:, -1]
        logp = log_softmax32(logits, sampling.temperature)
        drawn = truncate(logp, sampling.top_p).draw(torch.tensor([key]), torch.tensor([position]))
        ids.append(int(drawn))
        values.append(float(logp[0, ids[-1]]))
        if ids[-1] in stops:
            return ids, values, "eos"
    return ids, values, "length"


@pytest.mark.parametrize("kind", ["rotary", "learned", "uncached"])
@settings(max_examples=20, deadline=None)
@given(case=batches(), data=st.data())
def test_samples_are_those_of_each_prompt_alone(kind, case, data):
    policy, (prompts, sampling, stops, size) = pair(kind)[1], case
    first = None
    if data.draw(st.booleans()):
        within = st.integers(0, sampling.max_new_tokens - 1)
        first = [data.draw(within) for _ in prompts]
    made = policy.sample(prompts, KEYS[: len(prompts)], sampling, stops, size, first)
    for i, (response, prompt) in enumerate(zip(made, prompts, strict=True)):
        begin = first[i] if first else 0
        ids, values, reason = plain_response(policy, prompt, KEYS[i], sampling, stops, begin)
        assert (response.ids, response.finish_reason) == (ids, reason)
        assert response.logprobs == pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize("kind", ["rotary", "learned", "uncached"])
@settings(max_examples=20, deadline=None)
@given(
    case=batches(),
    rule=st.sampled_from(RULES),
    block=st.sampled_from([1, 2, 5, 32, "auto"]),
)
def test_mixed_responses_are_those_of_each_prompt_alone(kind, case, rule, block):
    policies, (prompts, sampling, stops, size) = pair(kind), case
    for policy in policies:
        policy.eos_ids = stops
    runs, switches = cross_sample(
        *policies, prompts, KEYS[: len(prompts)], rule, sampling, size, block
    )
    for i, (run, prompt) in enumerate(zip(runs, prompts, strict=True)):
        ids, expected = plain_cross(policies, prompt, KEYS[i], rule_of(rule), sampling)
        assert run.ids == ids
        assert run.finish_reason == ("eos" if ids[-1] in stops else "length")
        mine = switches["row"] == i
        for name, column in (("position", 0), ("token_primary", 1), ("token_intervention", 2)):
            assert switches[name][mine].tolist() == [at[column] for at in expected]


def rule_of(rule: Rule) -> Rule:
    """The same rule in the words of the definition."""
    return {"always": Rule("random", None, 1.0), "never": Rule("random", None, 0.0)}.get(
        rule.name, rule
    )


@pytest.mark.parametrize("kind", ["rotary", "learned", "uncached"])
def test_given_responses_of_any_lengths_are_scored_up_to_the_last_position(kind):
    """What fills up rows of a batch has no place of its own where positions end."""
    policy = pair(kind)[0]
    prompts = [[3] * 15, [5, 6], [7]]
    responses = [[4] * 6, [8, 9], [int(i) for i in range(20)]]
    scorer = policy.scorer(prompts, responses)
    blocks = list(policy.score(prompts, responses, block=7))
    logits = torch.cat([part for _, part in blocks], dim=1)
    for row, (prompt, response) in enumerate(zip(prompts, responses)):
        with torch.no_grad():
            whole = policy.model(torch.tensor([prompt + response]), use_cache=False).logits[0]
        want = whole[len(prompt) - 1 : -1]
        rows, positions = torch.full((len(response),), row), torch.arange(len(response))
        for mine in (logits[row, : len(response)], scorer(rows, positions)):
            torch.testing.assert_close(mine, want, rtol=0, atol=1e-6)


def test_texts_longer_than_a_table_of_positions_are_refused():
    policies, sampling = pair("learned"), Sampling(1.0, 1.0, POSITIONS - 4)
    said = (
        f"a text of {POSITIONS + 1} tokens, prompt and response, is asked of .*which has positions"
    )
    for ask in (
        lambda: policies[0].sample([[1, 2], [1] * 5], KEYS[:2], sampling),
        lambda: cross_sample(*policies, [[1] * 5], KEYS[:1], Rule("never"), sampling, 4),
        lambda: list(policies[0].score([[1] * 5], [[2] * (POSITIONS - 4)])),
        lambda: policies[0].scorer([[1] * 5], [[2] * (POSITIONS - 4)]),
    ):
        with pytest.raises(TokenshiftError, match=said):
            ask()
    shorter = policies[0].sample([[1] * 5], KEYS[:1], sampling, first=[1])
    assert len(shorter[0].ids) <= POSITIONS - 5
    longer = pair("rotary")[0].sample([[1] * 5], KEYS[:1], sampling, stop_ids=())
    assert len(longer[0].ids) == POSITIONS - 4

"""Trees grown by engines that draw inside: each walk against the single engine on transformers."""

import numpy as np
import pytest
from engines import Listing
from hypothesis import HealthCheck, given, settings
from test_cross_sample import NoTokenizer
from test_tree import SWEEP, N, alone, assert_same, sweeps, take

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.models.policy import Sampling
from tokenshift_utils.pairs.cross_sample import cross_sample
from tokenshift_utils.pairs.mixer import Insertion
from tokenshift_utils.pairs.rules import Rule
from tokenshift_utils.pairs.walks import Walk

PLAIN = Sampling(1.0, 0.7, 24)  # what lists suffice for


@pytest.fixture(scope="module")
def swept(pair, prompts):
    return take([Listing(policy) for policy in pair], prompts, SWEEP)


@pytest.mark.parametrize("index", range(len(SWEEP)), ids=lambda i: SWEEP[i].rule.label)
def test_a_walk_is_the_mixture_decoded_by_itself(pair, prompts, swept, index):
    assert_same(swept, index, alone(pair, prompts, SWEEP[index]))


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(sweeps())
def test_walks_emit_what_mixtures_decoded_by_themselves_emit(case):
    both, walks, prompts, sampling, batch_size, block = case
    pair = [HFPolicy(model, NoTokenizer(), name) for model, name in zip(both, ("p", "q"))]
    engines = [Listing(policy) for policy in pair]
    walkers = take(engines, prompts, walks, sampling, batch_size, block=block)
    for index, walk in enumerate(walks):
        assert_same(walkers, index, alone(pair, prompts, walk, sampling))


def test_lists_of_the_most_probable_tokens_give_the_same_responses(pair, prompts):
    """Nuclei are exact; what is of full distributions is a lower bound that says how loose."""
    walks = [Walk(Rule("js", t), f) for t in (-1.0, 0.02, 0.05, 0.2) for f in (True, False)]
    walks += [
        Walk(Rule(*r), f) for r in (("random", None, 0.3), ("first", 3)) for f in (True, False)
    ]
    walks.append(Walk(Rule("js", 0.05), True, Insertion("own")))
    whole = take(pair, prompts, walks, PLAIN)
    listed = take([Listing(policy, 4) for policy in pair], prompts, walks, PLAIN)
    (runs, of_whole), (same, of_listed) = whole.result(), listed.result()
    assert [run.ids for run in same] == [run.ids for run in runs]
    exact = ("row", "position", "token_primary", "token_intervention", "js", "tv", "independent")
    logps = [name for name in of_whole if name.startswith("logp_")]
    for name in (*exact, *logps):
        np.testing.assert_allclose(of_listed[name], of_whole[name], atol=2e-6)
    unknown = of_listed["unknown_mass"]
    assert (unknown > 0).any() and (of_whole["unknown_mass"] == 0).all()
    short = of_whole["js_full"] - of_listed["js_full"]
    assert (short > -2e-6).all() and (short <= np.log(2) * unknown + 2e-6).all()
    assert short.max() > 1e-3
    trees = listed.trees
    for name in ("kl_base_tuned", "kl_tuned_base", "entropy_base", "entropy_tuned"):
        assert np.isfinite(trees.values[:N, trees_column(name)]).all(), name


def trees_column(name):
    from tokenshift_utils.pairs.tree import NODE_VALUES

    return NODE_VALUES.index(name)


def test_what_is_there_is_not_asked_again(pair, prompts):
    engines = [Listing(policy) for policy in pair]

    def asked():
        total = sum(engine.asked for engine in engines)
        for engine in engines:
            engine.asked = 0
        return total

    coarse = [Walk(Rule("js", t), f) for t in (-1.0, 0.02, 0.2) for f in (True, False)]
    trees = take(engines, prompts, coarse).trees
    first = asked()
    fine = Walk(Rule("js", 0.05))
    assert take(engines, prompts, coarse, trees=trees).done.all() and asked() == 0
    walkers = take(engines, prompts, [*coarse, fine], trees=trees)
    assert 0 < asked() < first / 2
    assert_same(walkers, len(coarse), alone(pair, prompts, fine))
    each = sum(
        len(run.ids) for walk in coarse for run in alone(engines, prompts, walk, batch_size=8)[0]
    )
    assert asked() > 2 * each > first  # one by one they ask for more than the trees did


def test_rules_of_one_model_leave_the_other_alone(pair, prompts):
    engines = [Listing(policy) for policy in pair]
    take(engines, prompts, [Walk(Rule("never")), Walk(Rule("random", None, 0.0))])
    assert engines[0].asked > 0 and engines[1].asked == 0


def test_a_mixture_by_itself_on_engines(pair, prompts):
    walk = Walk(Rule("js", 0.05), False)
    engines = [Listing(policy) for policy in pair]
    runs, switches = alone(engines, prompts, walk)
    expected, found = alone(pair, prompts, walk)
    assert runs[0].ids == expected[0].ids and [r.ids for r in runs] == [r.ids for r in expected]
    np.testing.assert_allclose(switches["js"], found["js"], atol=2e-6)


@pytest.mark.parametrize(
    ("walk", "message"),
    [
        (Walk(Rule("js_full", 0.1)), "'js_full' takes full distributions, and vllm returns 4"),
        (Walk(Rule("js", 0.1), True, Insertion("extrapolated", 1.0)), "'extrapolated' takes full"),
    ],
)
def test_what_lists_do_not_give_is_refused(pair, prompts, walk, message):
    engines = [Listing(policy, 4) for policy in pair]
    with pytest.raises(TokenshiftError, match=message):
        take(engines, prompts, [walk], PLAIN)
    with pytest.raises(TokenshiftError, match=message):
        cross_sample(*engines, prompts, range(N), walk.rule, PLAIN, 4, insertion=walk.insertion)
    with pytest.raises(TokenshiftError, match="whole vocabulary"):
        take(engines, prompts, [Walk(Rule("js", 0.1))], Sampling(0.6, 0.7, 24))

"""Log-probabilities read from the tree of rows' prefixes; draws by one uniform number a token."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trainers import loss_and_gradient, make, micro_batch
from transformers import LlamaForCausalLM
from trl import GRPOTrainer

from tokenshift_utils.training.recipe import prefix_sharing
from tokenshift_utils.training.recipe.sampler import draw_by_cdf

ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8)


def test_a_tree_by_hand():
    tree = prefix_sharing.prefix_tree([[7, 8, 9], [7, 8, 5], [7, 8], [6, 8]])
    assert tree.tokens.tolist() == [7, 8, 9, 5, 6, 8]
    assert tree.positions.tolist() == [0, 1, 2, 2, 0, 1]
    assert tree.paths == [[0, 1, 2], [0, 1, 3], [0, 1], [4, 5]]
    assert tree.seen.long().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]


@given(ROWS)
def test_every_token_sees_its_own_row_alone(rows):
    tree = prefix_sharing.prefix_tree(rows)
    assert len(tree.tokens) == len({tuple(row[: i + 1]) for row in rows for i in range(len(row))})
    for row, path in zip(rows, tree.paths):
        assert tree.tokens[path].tolist() == row
        for i, node in enumerate(path):
            assert tree.seen[node].nonzero().squeeze(-1).tolist() == sorted(path[: i + 1])
            assert tree.positions[node] == i


@given(ROWS, st.integers(1, 20))
def test_lots_hold_every_row_once_and_few_nodes(rows, limit):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_sharing, "NODES", limit)
        lots = prefix_sharing.lots_by_prefix(rows)
    assert sorted(row for lot in lots for row in lot) == list(range(len(rows)))
    for lot in lots:
        tree = prefix_sharing.prefix_tree([rows[row] for row in lot])
        assert len(lot) == 1 or len(tree.tokens) <= limit


class Shared(prefix_sharing.ReadsPrefixesOnce):
    """As adapters have it; the weighting of ``trainers.make`` is not taken."""

    def __init__(self, *args, weighting=None, **kwargs):
        super().__init__(*args, **kwargs)


def padded_batch(pair):
    """Two prompts of two lengths, each with two responses that begin alike."""
    inputs = micro_batch(pair)
    for rows in (slice(0, 2), slice(2, 4)):
        inputs["prompt_ids"][rows] = inputs["prompt_ids"][rows][0]
        inputs["completion_ids"][rows, :2] = inputs["completion_ids"][rows][0, :2]
    inputs["prompt_mask"][2:, 0] = 0
    inputs["prompt_ids"][2:, 0] = 0
    return inputs


@pytest.mark.parametrize("nodes", [1, 12, 700])
@pytest.mark.parametrize("settings", [{"loss_type": "dapo"}, {"loss_type": "grpo", "beta": 0.02}])
def test_loss_and_gradient_are_trls(tiny_pair, tmp_path, monkeypatch, nodes, settings):
    monkeypatch.setattr(prefix_sharing, "NODES", nodes)
    settings |= {"temperature": 0.7}
    inputs = padded_batch(tiny_pair)
    loss, gradient = loss_and_gradient(make(tiny_pair, tmp_path, cls=Shared, **settings), inputs)
    theirs = make(tiny_pair, tmp_path, cls=GRPOTrainer, **settings)
    expected, slope = loss_and_gradient(theirs, inputs)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradient, slope, rtol=1e-3, atol=1e-5)
    assert slope.abs().max() > 1e-3


def test_values_are_those_of_each_row_alone(tiny_pair, tmp_path):
    inputs, trainer = padded_batch(tiny_pair), make(tiny_pair, tmp_path, cls=Shared)
    model = LlamaForCausalLM.from_pretrained(tiny_pair.base)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    seen = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    width = inputs["completion_ids"].shape[1]
    with torch.no_grad():
        logps, entropies, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, seen, width, compute_entropy=True
        )
        for row, mask, logp, entropy in zip(ids, seen.bool(), logps, entropies):
            text, length = row[mask], int(mask[-width:].sum())
            alone = model(text[None]).logits[0, -length - 1 : -1].log_softmax(-1)
            own = alone.gather(-1, text[-length:, None]).squeeze(-1)
            torch.testing.assert_close(logp[:length], own, rtol=0, atol=1e-5)
            torch.testing.assert_close(
                entropy[:length], -(alone.exp() * alone).sum(-1), rtol=0, atol=1e-4
            )
            assert not logp[length:].any() and not entropy[length:].any()


def test_draws_by_one_number():
    probabilities = torch.tensor([0.2, 0.0, 0.5, 0.3, 0.0])
    uniforms = torch.tensor([1e-9, 0.19, 0.21, 0.69, 0.71, 1 - 1e-12], dtype=torch.float64)
    logp = probabilities.log().expand(len(uniforms), -1)
    assert draw_by_cdf(logp, uniforms).tolist() == [0, 0, 2, 2, 3, 3]
    many = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    drawn = draw_by_cdf(probabilities.log().expand(len(many), -1), many)
    assert drawn.bincount(minlength=5).tolist() == pytest.approx([2e4, 0, 5e4, 3e4, 0], abs=2)

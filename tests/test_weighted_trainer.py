"""The weighted trainer beside TRL's own: losses and gradients, every loss type and signal."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import CHECKOUT
from datasets import Dataset
from trainers import HIGH, loss_and_gradient, make, micro_batch, new_logps, rewards
from transformers import LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures import divergences
from tokenshift_utils.measures.weighting import SIGNALS, Weighting, k3
from tokenshift_utils.training.weighted_trainer import DivergenceWeightedGRPOTrainer

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")
ZERO = Weighting(alpha=1e3, scale=0.0)


@pytest.fixture
def inputs(tiny_pair):
    return micro_batch(tiny_pair)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_without_strength_loss_and_gradient_are_trls_own(tiny_pair, tmp_path, inputs, loss_type):
    level = "sequence" if loss_type == "luspo" else "token"
    settings = {"loss_type": loss_type, "importance_sampling_level": level, "beta": 0.02}
    theirs = make(tiny_pair, tmp_path, cls=GRPOTrainer, **settings)
    ours = make(tiny_pair, tmp_path, ZERO, **settings)
    expected, got = loss_and_gradient(theirs, inputs), loss_and_gradient(ours, inputs)
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])
    assert got[1].abs().max() > 0
    weighted = make(tiny_pair, tmp_path, replace(HIGH, scale=1.9), **settings)
    assert not torch.equal(loss_and_gradient(weighted, inputs)[1], expected[1])


def test_the_weighted_dapo_loss_by_hand(tiny_pair, tmp_path, inputs):
    trainer = make(tiny_pair, tmp_path, HIGH, loss_type="dapo", epsilon_high=0.28)
    loss, _ = loss_and_gradient(trainer, inputs)
    _, new = new_logps(trainer, inputs)
    log_ratio = (new - inputs["old_per_token_logps"]).double()
    ratio = log_ratio.exp()
    divergence = ratio - 1 - log_ratio
    weights = 1 + 1.0 * (torch.sigmoid(1e3 * divergence) - 0.5)
    advantages = inputs["advantages"][:, None] * weights
    tokens = torch.min(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)
    # TRL's denominator spans the generation batch: two steps of one micro-batch each.
    expected = -(tokens * inputs["completion_mask"]).sum() / (inputs["num_items_in_batch"] / 2)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    mask = inputs["completion_mask"].bool()
    logged = trainer._metrics["train"]
    assert logged["weights/mean"][-1] == pytest.approx(weights[mask].mean().item(), rel=1e-4)
    spread = weights[mask].std(correction=0).item()
    assert logged["weights/std"][-1] == pytest.approx(spread, rel=1e-3) and spread > 0.01
    assert logged["weights/share_above_1"][-1] == 1.0  # a boost of high KL lowers nobody
    assert logged["k3/mean"][-1] == pytest.approx(divergence[mask].mean().item(), rel=1e-3)


def _signal(name, trainer, inputs, reference):
    logp, new = new_logps(trainer, inputs)
    logq, _ = new_logps(reference, inputs)
    return {
        "k3": lambda: k3(new, inputs["old_per_token_logps"]),
        "kl_ref": lambda: divergences.kl(logp, logq),
        "js_ref": lambda: divergences.js(logp, logq),
        "entropy": lambda: divergences.entropy(logp),
        "one_minus_p": lambda: 1 - new.exp(),
    }[name]()


class _Holder:
    def __init__(self, model):
        self.model = model


@pytest.mark.parametrize("name", SIGNALS)
def test_every_signal_weighs_by_what_it_says(tiny_pair, tmp_path, inputs, name):
    reference = LlamaForCausalLM.from_pretrained(tiny_pair.tuned)
    weighting = Weighting(alpha=2.0, scale=1.0, signal=name)
    trainer = make(tiny_pair, tmp_path, weighting, extra={"reference": reference}.items())
    seen = []
    trainer._observe = lambda mask, divergence, weights: seen.append(weights)
    loss_and_gradient(trainer, inputs)
    expected = 1 + torch.sigmoid(2.0 * _signal(name, trainer, inputs, _Holder(reference))) - 0.5
    mask = inputs["completion_mask"].bool()
    torch.testing.assert_close(seen[0][mask], expected[mask], rtol=1e-4, atol=1e-5)
    assert seen[0][mask].std() > 1e-5 and not seen[0].requires_grad


def test_trls_own_reference_serves_where_beta_is_not_0(tiny_pair, tmp_path, inputs):
    weighting = Weighting(alpha=2.0, scale=1.0, signal="js_ref")
    trainer = make(tiny_pair, tmp_path, weighting, beta=0.01)
    loss_and_gradient(trainer, inputs)
    assert trainer._metrics["train"]["weights/std"] == [pytest.approx(0, abs=1e-6)]  # same model
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    loss_and_gradient(trainer, inputs)
    assert trainer._metrics["train"]["weights/std"][-1] > 1e-4


def test_normalised_weights_have_mean_1_over_the_tokens(tiny_pair, tmp_path, inputs):
    for alpha in (1e3, -1e3):
        trainer = make(tiny_pair, tmp_path, Weighting(alpha, 1.0, normalise=True))
        loss_and_gradient(trainer, inputs)
        logged = trainer._metrics["train"]
        assert logged["weights/mean"] == [pytest.approx(1, abs=1e-6)]
        assert logged["weights/std"][0] > 0.01 and 0 < logged["weights/share_above_1"][0] < 1


def test_shuffled_weights_are_the_same_ones_elsewhere(tiny_pair, tmp_path, inputs):
    mask, seen = inputs["completion_mask"].bool(), []
    for weighting in (HIGH, replace(HIGH, shuffle=True), replace(HIGH, shuffle=True)):
        trainer = make(tiny_pair, tmp_path, weighting)
        trainer._observe = lambda mask, divergence, weights: seen.append(weights[mask])
        loss_and_gradient(trainer, inputs)
    own, shuffled, again = seen
    assert torch.equal(shuffled, again)  # drawn from seed and step: a resumed run has the same
    assert not torch.equal(shuffled, own) and torch.equal(shuffled.sort()[0], own.sort()[0])
    loss_and_gradient(trainer, inputs)  # the step's next micro-batch
    assert not torch.equal(seen[-1], shuffled)
    trainer.state.global_step += 1
    loss_and_gradient(trainer, inputs)
    assert not torch.equal(seen[-1], shuffled) and mask.sum() == len(seen[-1])


def test_inputs_that_trl_hands_out_again_are_left_as_they_were(tiny_pair, tmp_path, inputs):
    before = {name: value.clone() for name, value in inputs.items()}
    trainer = make(tiny_pair, tmp_path, HIGH)
    first = loss_and_gradient(trainer, inputs)
    second = loss_and_gradient(trainer, inputs)
    assert inputs.keys() == before.keys()
    assert all(torch.equal(inputs[name], before[name]) for name in before)
    assert torch.equal(first[1], second[1])


def test_a_run_of_two_iterations_a_rollout(tiny_pair, tmp_path):
    seen = []

    class Watched(DivergenceWeightedGRPOTrainer):
        def _compute_loss(self, model, inputs):
            seen.append(inputs["advantages"].clone())
            return super()._compute_loss(model, inputs)

    make(tiny_pair, tmp_path, HIGH, cls=Watched, num_iterations=2, steps_per_generation=1).train()
    assert len(seen) == 4 and all(advantages.dim() == 1 for advantages in seen)
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3])


def test_accumulating_gradients_is_one_large_batch(tiny_pair, tmp_path, inputs):
    whole = make(tiny_pair, tmp_path, HIGH, loss_type="dapo", steps_per_generation=2)
    _, expected = loss_and_gradient(whole, inputs)
    parts = make(
        tiny_pair, tmp_path, HIGH, loss_type="dapo", per_device_train_batch_size=2,
        num_generations=2, gradient_accumulation_steps=2, steps_per_generation=4,
    )  # fmt: skip
    total = 0
    for rows in (slice(0, 2), slice(2, 4)):
        some = {k: v[rows] if v.dim() else v for k, v in inputs.items()}
        total = total + loss_and_gradient(parts, some)[1]
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-7)


def test_a_micro_batch_without_a_token_stays_finite(tiny_pair, tmp_path, inputs):
    empty = inputs | {"completion_mask": torch.zeros_like(inputs["completion_mask"])}
    trainer = make(tiny_pair, tmp_path, replace(HIGH, normalise=True), loss_type="dapo")
    loss, gradient = loss_and_gradient(trainer, empty)
    assert loss == 0 and torch.isfinite(gradient).all()


# Known faults of existing tools -------------------------------------------------------------------


def test_fault_14_a_mean_weight_other_than_1_changes_the_size_of_the_step(
    tiny_pair, tmp_path, inputs
):
    """... so it is logged, and normalisation takes it out: with equal weights nothing is left."""
    saturated = Weighting(alpha=1e12, scale=1.0)  # every token that moved weighs 1.5
    plain = loss_and_gradient(make(tiny_pair, tmp_path, ZERO), inputs)[1].norm()
    trainer = make(tiny_pair, tmp_path, saturated)
    boosted = loss_and_gradient(trainer, inputs)[1].norm()
    assert trainer._metrics["train"]["weights/mean"] == [pytest.approx(1.5, rel=1e-3)]
    assert boosted / plain == pytest.approx(1.5, rel=1e-3)
    normalised = make(tiny_pair, tmp_path, replace(saturated, normalise=True))
    assert loss_and_gradient(normalised, inputs)[1].norm() / plain == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("loss_type", ["dapo", "bnpo"])
def test_fault_15_an_entropy_mask_is_divided_by_the_tokens_it_keeps(
    tiny_pair, tmp_path, inputs, loss_type
):
    settings = {"loss_type": loss_type, "top_entropy_quantile": 0.2}
    shrunk = make(tiny_pair, tmp_path, **settings)
    honest = make(tiny_pair, tmp_path, extra={"honest_mask": True}.items(), **settings)
    small, full = loss_and_gradient(shrunk, inputs), loss_and_gradient(honest, inputs)
    tokens = int(inputs["completion_mask"].sum())
    kept = tokens - math.ceil(0.8 * (tokens - 1))  # at or above the interpolated 80% quantile
    torch.testing.assert_close(full[1], small[1] * tokens / kept, rtol=1e-4, atol=1e-5)
    assert kept / tokens < 0.25


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weighting, settings, said",
    [
        (HIGH, {"steps_per_generation": 1}, "k3 is 0 and every weight 1; set steps_per_generation"),
        (
            HIGH,
            {"steps_per_generation": 2, "gradient_accumulation_steps": 2},
            r"more than gradient_accumulation_steps \(2\)",
        ),
        ({"alpha": 1.0}, {}, "must be a Weighting .* got dict"),
        (Weighting(1.0, 1.0, "js_ref"), {}, "TRL loads none while beta is 0; pass reference=MODEL"),
    ],
)
def test_settings_that_would_weigh_nothing_are_refused(
    tiny_pair, tmp_path, weighting, settings, said
):
    with pytest.raises(TokenshiftError, match=said):
        make(tiny_pair, tmp_path, weighting, **settings)


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_vllm_modes_are_checked_before_an_engine_starts(tiny_pair, tmp_path, mode):
    settings = {"use_vllm": True, "vllm_mode": mode, "steps_per_generation": 1}
    with pytest.raises(TokenshiftError, match="every optimiser step has freshly sampled"):
        make(tiny_pair, tmp_path, HIGH, **settings)


def test_signals_of_the_policy_alone_need_no_old_log_probabilities(tiny_pair, tmp_path, inputs):
    weighting = Weighting(alpha=5.0, scale=1.0, signal="one_minus_p")
    trainer = make(tiny_pair, tmp_path, weighting, steps_per_generation=1)
    del inputs["old_per_token_logps"]
    loss_and_gradient(trainer, inputs)
    assert trainer._metrics["train"]["weights/mean"][0] > 1


def test_inputs_without_old_log_probabilities_are_refused(tiny_pair, tmp_path, inputs):
    trainer = make(tiny_pair, tmp_path, HIGH)
    del inputs["old_per_token_logps"]
    with pytest.raises(TokenshiftError, match="no old log-probabilities"):
        loss_and_gradient(trainer, inputs)


def test_old_log_probabilities_of_another_shape_are_refused(tiny_pair, tmp_path, inputs):
    trainer = make(tiny_pair, tmp_path, HIGH)
    inputs["old_per_token_logps"] = inputs["old_per_token_logps"][:, :1]  # would broadcast
    with pytest.raises(TokenshiftError, match=r"logp_new \(4, 7\), logp_old \(4, 1\)"):
        loss_and_gradient(trainer, inputs)


def test_the_readmes_lines_train(tiny_pair, tmp_path):
    section = (CHECKOUT / "README.md").read_text().split("### The weighted objective")[1]
    lines = section.split("```python\n")[1].split("```")[0]
    names = {
        "GRPOConfig": partial(
            GRPOConfig, str(tmp_path), per_device_train_batch_size=2, num_generations=2,
            max_completion_length=4, max_steps=5, bf16=False, use_cpu=True, report_to="none",
            disable_tqdm=True, logging_steps=1, save_strategy="no",
        ),
        "model": str(tiny_pair.base),
        "rewards": rewards,
        "data": Dataset.from_dict({"prompt": ["question: what is 1+2?\n"] * 64}),
    }  # fmt: skip
    exec(lines, names)  # noqa: S102  what a reader would run
    log = names["trainer"].state.log_history
    assert log[0]["weights/mean"] == pytest.approx(1, abs=1e-3)  # the first update of a rollout
    assert log[3]["weights/mean"] > 1 and log[3]["weights/std"] > 0

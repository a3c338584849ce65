"""The policy loss for verl beside the TRL trainer, on shared tensors.

verl wants another transformers than this package, so these tests are skipped where it is not
installed. They run in an environment of their own, or beside this one::

    pip install --no-deps --target verl-only verl==0.9.1 ray "tensordict<=0.10.0,!=0.9.0" \
        hydra-core omegaconf antlr4-python3-runtime==4.9.3 codetiming torchdata protobuf orjson
    PYTHONPATH=verl-only python -m pytest tests/test_verl_loss.py
"""

import importlib
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from trainers import HIGH, loss_and_gradient, make, micro_batch

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures.weighting import Weighting
from tokenshift_utils.training.verl_loss import register


@pytest.mark.parametrize(
    "weighting, asked",
    [
        (Weighting(1.0, 1.0, "entropy"), "signal 'entropy'"),
        (replace(HIGH, shuffle=True), "shuffled"),
    ],
)
def test_what_verl_cannot_give_is_refused(weighting, asked):
    with pytest.raises(TokenshiftError, match=f"{asked}.* can't be had in a policy loss of verl"):
        register("never", weighting)


@pytest.fixture
def algorithms():
    pytest.importorskip("verl", reason="verl has an environment of its own")
    return importlib.import_module("verl.trainer.ppo.core_algos")


@pytest.fixture
def config(algorithms):
    actor = importlib.import_module("verl.workers.config").ActorConfig
    return actor(
        strategy="fsdp",
        rollout_n=4,
        ppo_micro_batch_size_per_gpu=4,
        clip_ratio=0.2,
        clip_ratio_low=0.2,
        clip_ratio_high=0.28,
        clip_ratio_c=1e9,  # verl's second clip, which TRL lacks
    )


@pytest.mark.parametrize(
    "weighting",
    [
        replace(HIGH, scale=0.0),
        HIGH,
        replace(HIGH, alpha=-1e3),
        replace(HIGH, normalise=True),
        Weighting(5.0, 1.5, "one_minus_p"),
    ],
)
def test_loss_and_gradient_are_the_trainers(
    tiny_pair,
    tmp_path,
    algorithms,
    config,
    weighting,
):
    register("weighted", weighting)
    inputs = micro_batch(tiny_pair)
    trainer = make(tiny_pair, tmp_path, weighting, loss_type="dapo", epsilon_high=0.28)
    expected, expected_gradient = loss_and_gradient(trainer, inputs)
    captured = []
    trainer.model.zero_grad()
    original = trainer._get_per_token_logps_and_entropies

    def keep(*args, **kwargs):
        outputs = original(*args, **kwargs)
        captured.append(outputs[0])
        return outputs

    trainer._get_per_token_logps_and_entropies = keep
    trainer._compute_loss(trainer.model, inputs)
    mask = inputs["completion_mask"]
    loss, metrics = algorithms.get_policy_loss_fn("weighted")(
        old_log_prob=inputs["old_per_token_logps"],
        log_prob=captured[0],
        advantages=inputs["advantages"][:, None].expand_as(mask),
        response_mask=mask,
        loss_agg_mode="token-mean",
        config=config,
    )
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
    logged = trainer._metrics["train"]["weights/mean"][-1]
    assert metrics["actor/weights_mean"] == pytest.approx(logged, rel=1e-5)
    assert "actor/pg_clipfrac" in metrics


def test_shapes_that_would_broadcast_are_refused(algorithms, config):
    register("weighted", HIGH)
    some = torch.zeros(2, 3)
    with pytest.raises(TokenshiftError, match=r"advantages \(2, 1\)"):
        algorithms.get_policy_loss_fn("weighted")(some, some, some[:, :1], some + 1, config=config)


def test_verl_finds_the_loss_by_the_module_named_in_its_environment(algorithms, tmp_path):
    (tmp_path / "my_losses.py").write_text(
        "from tokenshift_utils.training.verl_loss import register\n"
        "from tokenshift_utils.measures.weighting import Weighting\n"
        "register('high-kl', Weighting(alpha=1e5, scale=1.0))\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    script = "from verl.trainer.ppo.core_algos import get_policy_loss_fn as f; print(f('high-kl').__name__)"
    run = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": path, "VERL_USE_EXTERNAL_MODULES": "my_losses"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.split()[-1:] == ["divergence_weighted"], run.stderr[-2000:]

"""The ``trl`` settings of a study's training: which may be there, and the sizes that they make."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib import import_module

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.study.study import Study

# Of GRPOConfig: what follows from other keys of the study.
OURS = {
    "output_dir": "the study's name",
    "seed": "--seed",
    "shuffle_dataset": "--seed",
    "max_steps": "'training.rollouts'",
    "num_train_epochs": "'training.rollouts'",
    "save_steps": "'training.save_every'",
    "save_strategy": "'training.save_every'",
    "generation_batch_size": "'steps_per_generation'",
    "use_vllm": "'training.server'",
    "vllm_mode": "'training.server'",
    "vllm_server_host": "'training.server'",
    "vllm_server_port": "'training.server'",
}
# Of GRPOConfig: what makes the sizes of a rollout, which are the same for all arms.
SIZES = {
    "gradient_accumulation_steps", "per_device_train_batch_size", "steps_per_generation",
    "num_generations", "num_iterations", "max_completion_length",
}  # fmt: skip
# Of GRPOConfig: what else a training on the embedded task takes -> its name in ``recipes.RLRecipe``.
TASK_SETTINGS = {
    "loss_type": "loss_type",
    "epsilon": "clip_low",
    "epsilon_high": "clip_high",
    "beta": "kl_coefficient",
    "top_entropy_quantile": "top_entropy_share",
    "learning_rate": "learning_rate",
}


# By the kind of an arm: what its settings go to.
CONFIGS = {"rl": "GRPOConfig", "sft": "SFTConfig", "dpo": "DPOConfig"}


@dataclass(frozen=True)
class Sizes:
    """How responses are divided; ``group``, ``update`` and ``rollout`` count responses."""

    group: int  # to one problem
    update: int  # that one optimiser update trains on
    rollout: int  # sampled from one policy
    updates: int  # a rollout, over all its iterations
    iterations: int  # how often a rollout is trained on
    longest: int  # tokens of a response, at most

    @property
    def problems(self) -> int:
        """Problems a rollout."""
        return self.rollout // self.group

    @property
    def said(self) -> str:
        """In words."""
        return (
            f"{self.problems} problems x {self.group} responses, then {self.updates} "
            f"updates of {self.update // self.group} x {self.group}"
        )


def check_settings(study: Study) -> Sizes:
    """Refuse settings that TRL doesn't know or that leave a part of a rollout over."""
    training = study.training
    if training.task is None:
        trl, what = trl_fields("trl", "GRPOConfig").keys(), "trl.GRPOConfig"
    else:
        trl, what = (SIZES - {"num_iterations"}) | {*TASK_SETTINGS}, "a training on a task"
        for name in sorted(trl - {"top_entropy_quantile"} - training.trl.keys()):
            raise TokenshiftError(f"study {study.name}: 'training.trl' lacks '{name}': give it")
    places = {"trl": (training.trl, trl, what)}
    offline = set()
    for name, arm in training.arms.items():
        place = f"arms.{name}.trl"
        places[place] = arm.trl, trl, what
        if arm.kind != "rl":
            offline.add(place)
            config = CONFIGS[arm.kind]
            places[place] = arm.trl, trl_fields("trl", config).keys(), f"trl.{config}"
    if training.server:
        known = trl_fields("trl.scripts.vllm_serve", "ScriptArguments").keys()
        places["server"] = training.server, known, "trl vllm-serve"
    for key, (given, known, owner) in places.items():
        for name in given:
            if name not in known:
                raise TokenshiftError(
                    f"study {study.name}: 'training.{key}' has '{name}', which {owner} doesn't know"
                )
            if key in offline:
                continue  # sizes of its own
            if key != "server" and name in OURS:
                raise TokenshiftError(
                    f"study {study.name}: 'training.{key}' has '{name}', which follows from "
                    f"{OURS[name]}"
                )
            if key.startswith("arms") and name in SIZES:
                raise TokenshiftError(
                    f"study {study.name}: 'training.{key}' has '{name}', which is the same for all "
                    "arms: set it in 'training.trl'"
                )
    if "model" in (training.server or {}):
        raise TokenshiftError(
            f"study {study.name}: 'training.server' has 'model', which is the study's base"
        )
    for name, arm in training.arms.items() if training.lora is not None else ():
        if arm.weighting is not None and (training.trl | arm.trl).get("bf16"):
            raise TokenshiftError(
                f"study {study.name}: 'training.arms.{name}' weighs by k3 in bfloat16, whose rounding is "
                "more than k3: give it 'bf16: false' in its 'trl'"
            )
    sizes = sizes_of(study)
    for buffer in (training.overlong_buffer, *(a.overlong_buffer for a in training.arms.values())):
        if (buffer or 0) > sizes.longest:
            raise TokenshiftError(
                f"study {study.name}: 'training.overlong_buffer' is {buffer}, more than the "
                f"{sizes.longest} tokens of 'max_completion_length'"
            )
    return sizes


def sizes_of(study: Study) -> Sizes:
    """The sizes of a study's rollouts; TRL is asked only for what the study leaves to it.

    Raises
    ------
    TokenshiftError
        Where a part of a rollout is left over.
    """
    training = study.training

    def of(name: str) -> int:
        given = {"num_iterations": 1} | training.trl  # TRL's own
        return given[name] if name in given else trl_fields("trl", "GRPOConfig")[name].default

    accumulated, group = of("gradient_accumulation_steps"), of("num_generations")
    step = of("per_device_train_batch_size") * training.accelerate.get("num_processes", 1)
    held = training.trl.get("steps_per_generation", accumulated)
    if step * accumulated % group or held % accumulated:
        raise TokenshiftError(
            f"study {study.name}: an update of {step * accumulated} responses must be whole groups "
            f"of {group}, and 'steps_per_generation' ({held}) whole updates of {accumulated} steps"
        )
    iterations, longest = of("num_iterations"), of("max_completion_length")
    updates = held // accumulated * iterations
    return Sizes(group, step * accumulated, step * held, updates, iterations, longest)


def trl_fields(module: str, name: str) -> dict[str, dataclasses.Field]:
    """The settings of a dataclass of TRL's."""
    found = dataclasses.fields(getattr(import_module(module), name))
    return {field.name: field for field in found}

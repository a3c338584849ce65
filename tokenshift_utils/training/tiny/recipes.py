"""Every training setting of the tiny study's shipped models, in one place, as data; those of the
comparison of objectives are in the study file.

The RL recipes follow the papers they are named after (DAPO: Yu et al. 2025; SimpleRL-Zoo: Zeng et
al. 2025) in objective; sizes and learning rates are the tiny study's own.
"""

from dataclasses import asdict, dataclass, field, replace

from tokenshift_utils.measures.weighting import Weighting

SEED = 20260322

ARCHITECTURE = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "intermediate_size": 384,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "initializer_range": 0.04,
}


# As of the confirmatory arms of notebook 04, whose study file says where alpha is from.
HIGH_KL = Weighting(alpha=3.0e5, scale=1.0)
LOW_KL = Weighting(alpha=-3.0e5, scale=1.0)
_RL_MIX = {"easy": 0.2, "medium": 0.45, "hard": 0.35}


@dataclass(frozen=True)
class SupervisedRecipe:
    """Next-token training on documents; loss on what follows the prompt."""

    documents: int
    epochs: int
    learning_rate: float
    tier_mix: dict[str, float]
    exercise_share: float = 0.0  # share of documents that are error-free exercise pages
    batch_tokens: int = 4096  # padding included
    warmup_steps: int = 50
    weight_decay: float = 0.01


@dataclass(frozen=True)
class OwnAnswersRecipe:
    """Learning from base's own answers until the model has had ``like``'s accuracy and KL to base.

    The model is kept where it has the KL and, where the study has a ``<name>-accuracy``, as that where
    it has the accuracy.

    As many responses are drawn as that RL run trains on, an update is on as many, and its learning
    rate is RL's.
    """

    method: str  # "sft" on right ones (rejection sampling), or "dpo" on right against wrong
    like: str = "dapo"
    most_updates: int = 288  # thrice RL's
    beta: float | None = None  # of DPO
    problems: int = 1536
    responses_per_prompt: int = 8
    kept: int = 4  # a problem
    update: int = 128  # responses
    learning_rate: float = 2e-5
    max_new_tokens: int = 288
    evaluate_every: int = 12  # updates
    validation: int = 40  # problems of each tier, in no benchmark, on which it is measured
    tier_mix: dict[str, float] = field(default_factory=_RL_MIX.copy)


@dataclass(frozen=True)
class RLRecipe:
    """One RLVR run; every run makes ``rollouts * updates_per_rollout`` optimiser updates."""

    loss_type: str  # TRL's name: "dapo" is the token mean, "grpo" the sample mean
    prompts_per_rollout: int
    responses_per_prompt: int
    clip_low: float
    clip_high: float
    kl_coefficient: float
    dynamic_sampling: bool
    overlong_buffer: int | None  # tokens over which DAPO's length penalty grows from 0 to 1
    weighting: Weighting | None = None  # paper section 4
    refill_whole: bool = True  # later sampling rounds are as large as the first; else, as needed
    top_entropy_share: float = 1.0  # of the tokens; the others' loss is dropped ("80/20")
    rollouts: int = 24
    updates_per_rollout: int = 4
    learning_rate: float = 2e-5
    max_new_tokens: int = 288
    tier_mix: dict[str, float] = field(default_factory=_RL_MIX.copy)

    @property
    def updates(self) -> int:
        """Optimiser updates of a run."""
        return self.rollouts * self.updates_per_rollout


_DAPO = RLRecipe(
    loss_type="dapo",
    prompts_per_rollout=32,
    responses_per_prompt=16,
    clip_low=0.2,
    clip_high=0.28,
    kl_coefficient=0.0,
    dynamic_sampling=True,
    overlong_buffer=32,
)
_SIMPLERL = RLRecipe(
    loss_type="grpo",
    prompts_per_rollout=64,
    responses_per_prompt=8,
    clip_low=0.2,
    clip_high=0.2,
    kl_coefficient=1e-3,
    dynamic_sampling=False,
    overlong_buffer=None,
)


@dataclass(frozen=True)
class Plan:
    """All the models of a study, by name, and when checkpoints are taken (in rollouts)."""

    base: SupervisedRecipe
    sft: dict[str, SupervisedRecipe]
    rl: dict[str, RLRecipe]
    checkpoints: dict[str, tuple[int, ...]]
    evaluations: tuple[int, ...]  # rollouts after which an RL run is evaluated
    evaluation_samples: int = 4
    seed: int = SEED
    replicates: dict[str, tuple[int, ...]] = field(default_factory=dict)  # more seeds of a model
    own: dict[str, OwnAnswersRecipe] = field(default_factory=dict)

    @property
    def recipes(self) -> dict[str, SupervisedRecipe | RLRecipe | OwnAnswersRecipe]:
        """Of all models but the base, replicates left out."""
        return self.rl | self.sft | self.own

    @property
    def names(self) -> list[str]:
        """Of all models but the base: RL, then its replicates ``dapo-seed-2``, then the controls."""
        more = [f"{name}-seed-{seed}" for name, seeds in self.replicates.items() for seed in seeds]
        return [*self.rl, *more, *self.sft, *self.own]


TINY = Plan(
    base=SupervisedRecipe(
        documents=100_000,
        epochs=1,
        learning_rate=3e-3,
        tier_mix={"easy": 0.3, "medium": 0.4, "hard": 0.3},
        exercise_share=0.25,
        warmup_steps=100,
    ),
    sft={
        "sft-far": SupervisedRecipe(12_000, 2, 1.5e-3, _RL_MIX, warmup_steps=20),
        "sft-near": SupervisedRecipe(8_000, 2, 1e-3, _RL_MIX, warmup_steps=20),
    },
    rl={
        "dapo": _DAPO,
        "simplerl": _SIMPLERL,
        "dapo-high-kl": replace(_DAPO, weighting=HIGH_KL),
        "dapo-low-kl": replace(_DAPO, weighting=LOW_KL),
    },
    checkpoints={"dapo": (1, 2, 4, 8, 12, 16, 20)},
    evaluations=(0, 6, 12, 18, 24),
    replicates={"dapo": (2, 3), "simplerl": (2, 3)},
    own={"sft-own": OwnAnswersRecipe("sft"), "dpo": OwnAnswersRecipe("dpo", beta=0.1)},
)


# Settings that came after models were trained and shipped, with the values that those had.
_LATER = {
    "refill_whole": True,
    "top_entropy_share": 1.0,
    "signal": "k3",
    "normalise": False,
    "shuffle": False,
}


def settings(recipe: SupervisedRecipe | RLRecipe | OwnAnswersRecipe) -> dict:
    """A recipe as plain data, from which keys are made.

    A later setting is left out at the value that earlier models had, so that their keys stay.
    """

    def known(values: dict) -> dict:
        return {
            name: known(value) if isinstance(value, dict) else value
            for name, value in values.items()
            if name not in _LATER or value != _LATER[name]
        }

    return known(asdict(recipe))

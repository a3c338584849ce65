"""Every training setting of the tiny study, in one place, as data.

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


# On the last minibatch after a rollout plain dapo's k3 has a 90th percentile near 8e-6 and a 99th near
# 2e-4 nats (results/tiny/training/dapo/log.csv). With |alpha| = 10000 the upper percent of tokens gets
# most of the boost, the bulk next to none.
HIGH_KL = Weighting(alpha=10_000.0, scale=1.0)
LOW_KL = Weighting(alpha=-10_000.0, scale=1.0)

# Of the comparison of objectives. Fixed from its plain run of seed 1 (log.csv of arm dapo), before any
# weighted run of it was made: over all updates but the first of each rollout, k3 has a mean 50th
# percentile of 9e-13, a 90th of 3.2e-6 and a 99th of 1.1e-4 nats. With alpha = 1 / (90th percentile) a
# token there has 46% of the boost, the upper percent all of it and the lower half nothing: weights
# tell an upper tenth from the rest, and don't yet count every token that moved at all. (HIGH_KL above,
# of the shipped models, reaches little more than the upper percent.)
ALPHA = 300_000.0


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
    tier_mix: dict[str, float] = field(
        default_factory=lambda: {"easy": 0.2, "medium": 0.45, "hard": 0.35}
    )


_RL_MIX = {"easy": 0.2, "medium": 0.45, "hard": 0.35}
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
)


# Settings that came after models were trained and shipped, with the values that those had.
_LATER = {
    "refill_whole": True,
    "top_entropy_share": 1.0,
    "signal": "k3",
    "normalise": False,
    "shuffle": False,
}


def settings(recipe: SupervisedRecipe | RLRecipe) -> dict:
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


# The comparison of objectives (paper section 4) ---------------------------------------------------


ROLES = ("confirmatory", "control", "exploratory")


@dataclass(frozen=True)
class Arm:
    """One objective of the comparison; it is trained once a seed, 1 to ``seeds``."""

    label: str
    role: str  # one of ROLES
    seeds: int
    recipe: RLRecipe


@dataclass(frozen=True)
class Comparison:
    """All runs of the comparison and how each is measured.

    Runs of one seed share problems and noise, in training and in evaluation, whatever their arm.
    """

    arms: dict[str, Arm]
    evaluations: tuple[int, ...]  # rollouts after which a run is evaluated, the last one apart
    evaluation_samples: int  # a problem, along training
    final_samples: int  # a problem, at the end
    shift_samples: int  # responses a problem on which the shift from base is measured
    token_tables: tuple[tuple[int, ...], tuple[int, ...]]  # rollouts counted as early and as late

    def runs(self) -> list[tuple[str, int]]:
        """(arm, seed) by priority: role by role, and within a role seed by seed over all arms."""
        found = []
        for role in ROLES:
            arms = {name: arm for name, arm in self.arms.items() if arm.role == role}
            for seed in range(1, 1 + max((arm.seeds for arm in arms.values()), default=0)):
                found += [(name, seed) for name, arm in arms.items() if seed <= arm.seeds]
        return found


_RUN = replace(_DAPO, prompts_per_rollout=16, rollouts=20, refill_whole=False)
_GRPO = replace(
    _RUN,
    loss_type="grpo",
    clip_high=0.2,
    kl_coefficient=0.04,  # GRPO's own (Shao et al. 2024)
    dynamic_sampling=False,
    overlong_buffer=None,
)
_HIGH = Weighting(alpha=ALPHA, scale=1.0)
_LOW = Weighting(alpha=-ALPHA, scale=1.0)


def _weighted(weighting: Weighting, recipe: RLRecipe = _RUN) -> RLRecipe:
    return replace(recipe, weighting=weighting)


ARMS = Comparison(
    arms={
        "dapo": Arm("DAPO", "confirmatory", 8, _RUN),
        "high-kl": Arm("High-KL boost", "confirmatory", 8, _weighted(_HIGH)),
        "low-kl": Arm("Low-KL boost", "confirmatory", 8, _weighted(_LOW)),
        "high-kl-mean1": Arm(
            "High-KL, mean 1", "control", 5, _weighted(replace(_HIGH, normalise=True))
        ),
        "low-kl-mean1": Arm(
            "Low-KL, mean 1", "control", 5, _weighted(replace(_LOW, normalise=True))
        ),
        "placebo": Arm("Placebo (shuffled)", "control", 5, _weighted(replace(_HIGH, shuffle=True))),
        "high-kl-strong": Arm(
            "High-KL, s = 1.9", "exploratory", 3, _weighted(replace(_HIGH, scale=1.9))
        ),
        "low-kl-strong": Arm(
            "Low-KL, s = 1.9", "exploratory", 3, _weighted(replace(_LOW, scale=1.9))
        ),
        "grpo": Arm("GRPO with KL penalty", "exploratory", 3, _GRPO),
        "grpo-high-kl": Arm("GRPO, high-KL boost", "exploratory", 3, _weighted(_HIGH, _GRPO)),
        "entropy-mask": Arm(
            "Top 20% entropy", "exploratory", 3, replace(_RUN, top_entropy_share=0.2)
        ),
        "low-p": Arm(
            "1 - p",
            "exploratory",
            3,
            _weighted(Weighting(alpha=5.0, scale=1.0, signal="one_minus_p")),
        ),
        "dapo-lr-0.8": Arm(
            "DAPO, rate x 0.8",
            "exploratory",
            3,
            replace(_RUN, learning_rate=0.8 * _RUN.learning_rate),
        ),
        "dapo-lr-1.2": Arm(
            "DAPO, rate x 1.2",
            "exploratory",
            3,
            replace(_RUN, learning_rate=1.2 * _RUN.learning_rate),
        ),
    },
    evaluations=(0, 5, 10, 15),
    evaluation_samples=4,
    final_samples=32,
    shift_samples=2,
    token_tables=((2, 3, 4, 5), (17, 18, 19, 20)),
)

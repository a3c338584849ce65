"""The ``training`` section of a study: how its tuned models are made from its base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.study.schema import DISTINCT, SOME, Count, DataSet, Name, Part, refuse

if TYPE_CHECKING:
    from tokenshift_utils.measures.weighting import Weighting


Seeds = Annotated[tuple[int, ...], SOME, DISTINCT]
WEIGHTING = ("alpha", "scale", "signal", "normalise", "shuffle")
# Of an arm: what determines a run where adapters are trained, but for seed and ``overlong_buffer``.
ADAPTER_ARM = {*WEIGHTING, "kind", "dynamic_sampling", "solution", "trl", "rollouts"}


class TrainingData(DataSet):
    """Problems to train on. Dots lead into nested columns, as ``prompt.0.content``.

    ``prompt`` holds all that the user says, or ``problem`` what the study's template asks about.
    Repeated ones count once; prompts of more than ``max_prompt_tokens`` are left out.
    """

    prompt: str | None = None
    problem: str | None = None
    answer: str
    max_prompt_tokens: Count | None = None

    @model_validator(mode="after")
    def _one_text(self):
        one = (self.prompt is None) != (self.problem is None)
        refuse(not one, "needs either 'prompt' or 'problem', and not both")
        return self


class Lora(Part):
    """Adapters in place of whole models: LoRA of this rank on all linear layers but the head.

    An update is scaled by ``alpha / rank``.
    """

    rank: Count
    alpha: Count


class Answers(Part):
    """What base answers, once for all arms that learn from it: so many responses, drawn as the study
    samples, to the first problems of the data, of which at most ``kept`` right ones a problem are learnt from."""

    problems: Count
    samples: Count
    kept: Count


class Evaluate(Part):
    """Accuracy on the benchmarks: of ``samples`` responses a problem every so many rollouts, and of
    ``final_samples`` at the end. Of adapters the former are on each one's first ``problems``."""

    every: Count
    problems: Count | None = None
    samples: Count
    final_samples: Count


class TrainingArm(Part):
    """An objective: plain, or with ``alpha`` and ``scale`` its advantages are weighed (the names are
    those of ``weighting.Weighting``).

    Notebook 04 compares it with ``against``, by default the training's baseline. Confirmatory arms are
    tested, each once; of controls and exploratory ones there are intervals only. ``label`` None: the
    model's. ``trl`` goes before the study's, ``seeds`` and ``overlong_buffer`` (0: none) stand in for
    it. ``dynamic_sampling`` drops groups whose rewards are all equal and samples others.

    Where the study trains adapters, an arm may be of another ``kind`` than rl: ``sft`` learns the
    base's own right answers (rejection sampling), or with ``solution`` a column of the data; ``dpo``
    prefers the base's right answers to its wrong ones. Their ``trl`` alone goes to ``trl.SFTConfig``
    or ``trl.DPOConfig``. ``rollouts`` stand in for the training's.
    """

    kind: Literal["rl", "sft", "dpo"] = "rl"
    label: str | None = None
    role: Literal["confirmatory", "control", "exploratory"] = "confirmatory"
    against: str | None = None
    seeds: Seeds | None = None
    dynamic_sampling: bool = False
    overlong_buffer: Annotated[int, Field(ge=0)] | None = None
    trl: dict[str, Any] = Field(default_factory=dict)
    alpha: float | None = None
    scale: float | None = None
    signal: str = "k3"
    normalise: bool = False
    shuffle: bool = False
    solution: str | None = None
    rollouts: Count | None = None

    @model_validator(mode="after")
    def _settings_fit(self):
        weighed = self.alpha is not None
        refuse(weighed != (self.scale is not None), "'alpha' and 'scale' go together")
        more = (self.signal, self.normalise, self.shuffle) != ("k3", False, False)
        none = not weighed and more
        refuse(none, "without 'alpha' and 'scale' there are no weights to say more of")
        refuse(
            self.kind != "rl" and (weighed or self.dynamic_sampling or self.rollouts is not None),
            "weights, dynamic sampling and rollouts are of arms of kind rl",
        )
        solved = self.solution is not None and self.kind != "sft"
        refuse(solved, "'solution' is for an arm of kind sft")
        try:
            _ = self.weighting
        except TokenshiftError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def weighting(self) -> Weighting | None:
        """The weights of the advantage; None for a plain run."""
        from tokenshift_utils.measures.weighting import Weighting

        return None if self.alpha is None else Weighting(**self.model_dump(include={*WEIGHTING}))


class Gpus(Part):
    """Which GPUs of the machine train, and which the vLLM server has, by their numbers."""

    train: Annotated[tuple[int, ...], SOME]
    serve: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _apart(self):
        named = (*self.train, *self.serve)
        refuse(len(set(named)) < len(named), "names something twice")
        return self


class Training(Part):
    """How ``tokenshift train`` makes the arms of a study from its base, with TRL.

    Of ``data``: each of ``arms`` is named like the model that it makes, ``accelerate`` is accelerate's
    config file and ``server`` the arguments of ``trl vllm-serve`` (None: responses are drawn by the
    processes that train). Of a ``task``, whose problems are made up as they are needed: an arm leaves
    no model, but what ``evaluate`` asks for; one process trains it on a CPU.

    With ``lora`` adapters are trained, each in one process, several of them at a time where wanted,
    on a GPU where there is one; responses are then drawn by the process itself, from the base with
    the adapter merged, in bfloat16.

    ``trl`` goes to ``trl.GRPOConfig``. ``save_every`` counts rollouts between checkpoints to go on
    from. ``overlong_buffer`` is how many last tokens DAPO's length penalty takes to grow from 0 to 1.
    ``baseline`` is the arm that the others are compared with; None: the first one without weights.
    """

    data: TrainingData | None = None
    task: Literal["arithmetic"] | None = None
    lora: Lora | None = None
    evaluate: Evaluate | None = None
    answers: Answers | None = None
    arms: Annotated[dict[Name, TrainingArm], SOME]
    baseline: str | None = None
    seeds: Seeds
    rollouts: Count
    save_every: Count
    overlong_buffer: Count | None = None
    trl: dict[str, Any]
    accelerate: dict[str, Any] = Field(default_factory=dict)
    gpus: Gpus | None = None
    server: dict[str, Any] | None = None

    @property
    def plain(self) -> str:
        """The arm that others are compared with."""
        arms = self.arms.items()
        plain = [name for name, arm in arms if arm.weighting is None and arm.kind == "rl"]
        return self.baseline or [*plain, *self.arms][0]

    @model_validator(mode="after")
    def _parts_fit(self):
        processes = self.accelerate or self.gpus or self.server
        one = (self.data is None) != (self.task is None)
        refuse(not one, "needs either 'data' or 'task', and not both")
        if self.task is not None:
            refuse(self.evaluate is None, "a 'task' needs 'evaluate'")
            refuse(processes, "'accelerate', 'gpus' and 'server' are for a training on 'data'")
            refuse(self.lora is not None, "'lora' is for a training on 'data'")
        elif self.lora is None:
            refuse(not self.accelerate, "a training on 'data' needs 'accelerate'")
            refuse(
                self.evaluate or any(arm.dynamic_sampling for arm in self.arms.values()),
                "'evaluate' and 'dynamic_sampling' are for a training on a 'task' or of adapters "
                "('lora')",
            )
        if self.lora is None:
            for name, arm in self.arms.items():
                refuse(
                    (arm.kind, arm.rollouts) != ("rl", None),
                    f"the arm '{name}' has 'kind' or 'rollouts' of its own, which only a training of "
                    "adapters ('lora') takes",
                )
            refuse(
                self.answers or (self.evaluate and self.evaluate.problems),
                "'answers' and 'evaluate.problems' are for a training of adapters ('lora')",
            )
        else:
            less = self.evaluate is None or self.evaluate.problems is None
            refuse(less, "'lora' needs 'evaluate', and its 'problems'")
            refuse(processes, "'accelerate', 'gpus' and 'server' don't go with 'lora'")
        for name, arm in self.arms.items():
            learns = arm.kind == "dpo" or (arm.kind, arm.solution) == ("sft", None)
            refuse(
                learns and self.answers is None,
                f"the arm '{name}' learns from base's 'answers', which are not given",
            )
        against = {f"arms.{name}.against": arm.against for name, arm in self.arms.items()}
        for key, name in {"baseline": self.baseline, **against}.items():
            unknown = name is not None and name not in self.arms
            refuse(unknown, f"'{key}' names '{name}', which is not in 'arms'")
        return self

    @model_validator(mode="after")
    def _gpus_are_used(self):
        if self.gpus is None:
            return self
        server = self.server or {}
        engines = server.get("tensor_parallel_size", 1) * server.get("data_parallel_size", 1)
        for key, wanted in (
            ("train", self.accelerate.get("num_processes", 1)),
            ("serve", engines if self.server is not None else 0),
        ):
            named = len(getattr(self.gpus, key))
            sentence = f"'gpus.{key}' names {named} GPUs, but {wanted} would be used"
            refuse(named != wanted, sentence)
        return self

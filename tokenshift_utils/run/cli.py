"""The command ``tokenshift``. Heavy imports wait for the command that needs them."""

import sys
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer
import yaml

from tokenshift_utils import paths
from tokenshift_utils.errors import REPORT, TokenshiftError, sentence_of

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Where RLVR changes a language model, token by token.",
)

bench = typer.Typer(no_args_is_help=True, help="Measure speed on the machine at hand.")
app.add_typer(bench, name="bench")

store = typer.Typer(
    no_args_is_help=True, help="Look after the records under results/<study>/records."
)
app.add_typer(store, name="store")

StudyOption = Annotated[str, typer.Option("--study", help="A study's name, or a study file.")]
Base = Annotated[Path, typer.Option(readable=False, help="Directory of the base model.")]
Tuned = Annotated[
    Path, typer.Option(readable=False, help="Directory of the tuned model, or of a PEFT adapter.")
]


def _load(name: str):
    """The study of that name, or of that file."""
    from tokenshift_utils.study.study import load_study

    return load_study(name)


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
    arm: Annotated[
        str | None, typer.Option(help="Instead: the runs of this arm, or of several as A,B.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="With --arm or --arms: only this seed.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be run, no more.")
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Runs that go side by side: by default 1, of the tiny study's 2."),
    ] = None,
) -> None:
    """Train the models that a study says how to make: the tiny study's from nothing, on a CPU; resumable.

    With --arms or --arm: the runs of the study's 'training' section, by arm and seed. On data of its
    own they make the tuned models; of the embedded study they compare objectives and leave logs.
    """
    loaded = _load(study)
    adapters = bool(loaded.training and loaded.training.lora)
    comparing = arms or arm is not None or adapters
    if comparing and only:
        raise TokenshiftError(
            f"study {loaded.name} trains by arm: give --arm in place of --only"
            if adapters
            else "--only names shipped models; it doesn't go with --arms or --arm."
        )
    if seed is not None and not comparing:
        raise TokenshiftError("--seed goes with --arm or --arms; shipped models have one seed.")
    if comparing:
        from tokenshift_utils.run.reproduce import study_argument
        from tokenshift_utils.training.manager import train_arms

        train_arms(loaded, arm, seed, fresh, dry_run, study_argument(study), processes)
        return
    if loaded.training is not None and loaded.training.data is not None:
        raise TokenshiftError(
            f"study {loaded.name} trains by arm: give --arm with one of "
            f"{', '.join(loaded.training.arms)}, or --arms"
        )
    from tokenshift_utils.training.tiny.models import train

    train(loaded, only, fresh, dry_run, processes)


@app.command("word-problems")
def word_problems(
    out: Annotated[Path, typer.Option(help="The folder to write the problems to.")],
) -> None:
    """Write the word problems of the study smollm2: its benchmarks, and those to train on."""
    from tokenshift_utils.tasks.word_problems import write_sets

    for file in write_sets(out):
        typer.echo(f"wrote {file}")


@app.command()
def shifts(
    base: Base,
    tuned: Tuned,
    responses: Annotated[
        Path,
        typer.Option(readable=False, help="JSON lines: prompt and response, as text or token ids."),
    ],
    out: Annotated[Path, typer.Option(help="The Parquet file to write.")],
) -> None:
    """Measure the shifts of any pair of checkpoints on any responses; no answers needed."""
    from tokenshift_utils.records.shifts_of_files import shifts_of_files

    shifts_of_files(base, tuned, responses, out)


@app.command()
def pair(
    base: Base,
    tuned: Tuned,
    problems: Annotated[Path, typer.Option(readable=False, help="JSON lines: problem and answer.")],
    name: Annotated[str | None, typer.Option(help="The study's name.")] = None,
) -> None:
    """Write a study of any pair of checkpoints on any problems, or say why they can't be compared."""
    from tokenshift_utils.run.pair import write_pair

    file = write_pair(base, tuned, problems, name)
    typer.echo(f"wrote {paths.display(file)}; next: tokenshift reproduce --study {file.stem}")


@app.command()
def pin(study: StudyOption) -> None:
    """Write the commits of the day in place of a study's unpinned revisions. Asks the hub."""
    from tokenshift_utils.study import pins
    from tokenshift_utils.study.study import study_file

    _load(study)
    file = study_file(study)
    commits = pins.pin(file)
    for repository, commit in commits.items():
        typer.echo(f"{repository} is at {commit}")
    typer.echo(f"{paths.display(file)} is pinned" + ("" if commits else " already"))


@app.command()
def plan(
    study: StudyOption,
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

    speeds = generate_tflops, score_tflops, mix_factor
    assumed = Assumptions(*speeds, mean_tokens, gpu_memory, distinct)
    typer.echo(plan(_load(study), assumed))


@app.command()
def claims(study: StudyOption = "tiny") -> None:
    """Print the verdicts on the paper's claims, from a study's last run, as Markdown."""
    from tokenshift_utils.sections.overview import claims_markdown

    typer.echo(claims_markdown(_load(study).name), nl=False)


@app.command()
def explore(study: StudyOption = "tiny") -> None:
    """Write the explorer: one page on which the threshold moves and the mixed response with it."""
    from tokenshift_utils.run.checks import check_inputs
    from tokenshift_utils.sections.explorer.page import write_explorer

    loaded = _load(study)
    check_inputs(loaded)
    typer.echo(f"wrote {paths.display(write_explorer(loaded))}")


@app.command()
def book(study: StudyOption = "tiny") -> None:
    """Render guide, executed notebooks and API as one site that needs no network (extra 'book')."""
    from tokenshift_utils.run.book import book

    typer.echo(f"wrote {paths.display(book(_load(study)))}")


@app.command("data-dictionary")
def data_dictionary(study: StudyOption = "tiny") -> None:
    """Write the data dictionary of the records, and samples of a study's records."""
    from tokenshift_utils.run.data_dictionary import write_dictionary, write_samples

    for file in [write_dictionary(), *write_samples(_load(study))]:
        typer.echo(f"wrote {file}")


@app.command()
def verify(study: StudyOption = "tiny") -> None:
    """Prove that figures, tables and notebooks are what the manifest says, and of one run."""
    from tokenshift_utils.run import provenance

    loaded = _load(study)
    if found := provenance.verify(loaded):
        raise TokenshiftError(
            f"{'; '.join(found)}: restore the files, or run tokenshift reproduce --study {study}"
        )
    typer.echo(f"the results of study {loaded.name} are what its manifest says, and of one run")


@app.command()
def explain(
    file: Annotated[Path, typer.Argument(help="A figure, table, executed notebook or record.")],
) -> None:
    """Print the chain from study to a file: models, code, records, notebook, with checksums."""
    from tokenshift_utils.run.provenance import explain

    typer.echo(explain(file))


@store.command("ls")
def store_ls() -> None:
    """List the records of every study: what they are, shards, bytes, when last read."""
    from tokenshift_utils.run.store_care import list_records

    typer.echo(list_records())


@store.command("verify")
def store_verify() -> None:
    """Check every shard against its checksum; one that differs is computed anew when asked for."""
    from tokenshift_utils.run.store_care import broken_shards

    checked, broken = broken_shards()
    if broken:
        raise TokenshiftError(
            f"{len(broken)} of {checked} shards do not match their checksum ({', '.join(broken)}): "
            "the next run computes them anew; look after the disk that holds them"
        )
    typer.echo(f"all {checked} shards match their checksums")


@store.command("prune")
def store_prune(
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove them; else they are only named.")
    ] = False,
) -> None:
    """Remove the records that no study file's last run read, and what stopped runs left."""
    from tokenshift_utils.run.store_care import prune

    typer.echo(prune(yes))


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, a list of cases.")]
Quick = Annotated[bool, typer.Option("--quick", help="A rough table, in a fraction of the time.")]
Pairs = Annotated[
    list[str] | None, typer.Option(help="Pairs of models to measure; all that can be here.")
]


@bench.command("cross-sampling")
def bench_cross_sampling(
    as_json: AsJson = False,
    quick: Quick = False,
    pair: Pairs = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batch sizes to measure; all.")] = None,
) -> None:
    """What cross-sampling costs beside plain generation by the primary alone.

    Takes half an hour on an idle CPU; every row is printed when it is measured. Pairs of GPU size
    are measured where there is a CUDA device.
    """
    from tokenshift_utils.bench import cross_sampling, harness

    rows = cross_sampling.bench(pair or (), batch or (), quick)
    harness.show(cross_sampling.COLUMNS, rows, as_json)


@bench.command("sweep")
def bench_sweep(as_json: AsJson = False, quick: Quick = False, pair: Pairs = None) -> None:
    """What a whole sweep of mixtures costs, from one tree and each by itself.

    Costs are those of as many responses by plain generation. Takes some minutes on an idle CPU;
    every row is printed when it is measured.
    """
    from tokenshift_utils.bench import harness, sweep

    harness.show(sweep.COLUMNS, sweep.bench(pair or (), quick), as_json)


@bench.command("weighting")
def bench_weighting(as_json: AsJson = False, quick: Quick = False) -> None:
    """What each signal of the weighted trainer costs a training step; a minute on an idle CPU."""
    from tokenshift_utils.bench import harness, weighting

    harness.show(weighting.COLUMNS, weighting.bench(quick=quick), as_json)


@bench.command("scoring")
def bench_scoring(as_json: AsJson = False, quick: Quick = False, pair: Pairs = None) -> None:
    """What comparing two models on long responses costs beside a bare pass of each.

    Takes some minutes on an idle CPU; every row is printed when it is measured. Pairs of GPU size
    are measured where there is a CUDA device.
    """
    from tokenshift_utils.bench import harness, scoring

    harness.show(scoring.COLUMNS, scoring.bench(pair or (), quick), as_json)


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
    """Run the command; a user's mistake, or their machine's, is one sentence and exit code 2.

    A fault of this package keeps its traceback, says where to report it and ends with 1.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # whatever the locale can't write
    try:
        app(spread_lists(arguments), standalone_mode=True)
    except TokenshiftError as error:
        if fault := getattr(error, "traceback", ""):
            typer.echo(fault, err=True)
            _end(f"{error}; {REPORT}", 1)
        _end(str(error), 2)
    except KeyboardInterrupt:
        _end("interrupted; the same command goes on from what is finished", 130)
    except Exception as error:  # noqa: BLE001  nothing leaves a command bare
        if said := sentence_of(error):
            _end(said, 2)
        typer.echo(traceback.format_exc(), err=True)
        _end(f"{type(error).__name__}: {error}; {REPORT}", 1)


def _end(sentence: str, status: int) -> NoReturn:
    typer.echo(f"error: {' '.join(sentence.splitlines())}", err=True)
    sys.exit(status)

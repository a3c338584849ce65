"""The data dictionary of the records, and a sample of each kind to look at without computing."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tokenshift_utils import paths
from tokenshift_utils.files import write_bytes, write_text
from tokenshift_utils.pairs.rules import Rule
from tokenshift_utils.records.cross_sampling import CrossSampling
from tokenshift_utils.records.fetch import fetch
from tokenshift_utils.records.mixture_trees import MixtureTrees
from tokenshift_utils.records.rollouts import Rollouts
from tokenshift_utils.records.shifts import Shifts
from tokenshift_utils.records.single_token import SingleToken
from tokenshift_utils.sections.explorer.records import requests as explorer_requests
from tokenshift_utils.sections.explorer.responses import ExplorerResponses
from tokenshift_utils.store import columns, executor
from tokenshift_utils.study.study import Study

PROBLEMS = 2  # of each benchmark, in a sample
SAMPLES = 2  # of each problem

_OPENING = """# Data dictionary

Every record is a table of one of the kinds below, kept as parquet. Divergences and entropies are in
nats, log-probabilities natural. *Full* is the whole vocabulary at the sampling temperature;
*nucleus* is that distribution after top-p truncation, renormalised: the one that is sampled from.
Token ids are those of the models' shared tokenizer.

This page is written by `tokenshift data-dictionary`, from the descriptions that each file also
carries in its schema. Samples of the tiny study's records are in [samples](samples).
"""


def dictionary_file() -> Path:
    """Where the data dictionary is."""
    return paths.root() / "results" / "DATA_DICTIONARY.md"


def sample_file(kind: str) -> Path:
    """Where the sample of a record kind is."""
    return paths.root() / "results" / "samples" / f"{kind}.parquet"


def render_dictionary() -> str:
    """The data dictionary as Markdown."""
    parts = [_OPENING]
    for kind in columns.RECORD_KINDS:
        heading = "| column | type | meaning |\n|---|---|---|\n"
        parts.append(f"\n## {kind}\n\n{columns.ROWS[kind]}\n\n{heading}")
        for name, type_, description, nullable in columns.describe(kind):
            values = str(type_).replace("item: ", "") + (" or null" if nullable else "")
            meaning = description.replace("|", "\\|")
            parts.append(f"| `{name}` | {values} | {meaning} |\n")
    return "".join(parts)


def write_dictionary() -> Path:
    """Write the data dictionary; returns its file."""
    file = dictionary_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, render_dictionary())
    return file


def write_samples(study: Study) -> list[Path]:
    """Write a sample of each kind of record of the study's first RL model; returns the files.

    Records that aren't there are computed. A sample has the first samples of the first problems of
    every benchmark.
    """
    tuned = study.cross_sampling.pairs[0]
    rule = Rule("js", study.thresholds.high_js)
    mixed = CrossSampling.of(study, study.base, tuned, rule)
    wanted = {
        "rollouts": Rollouts.of(study, tuned, samples=SAMPLES),
        "shifts": Shifts.of(study, tuned),
        "cross_sampling": mixed,
        "switches": mixed,
    }
    if trees := [tree for request in mixed if (tree := request.underlying(study)) is not None]:
        wanted |= dict.fromkeys(MixtureTrees.kinds, trees)
    if study.cross_sampling.single_token:
        wanted["single_token"] = SingleToken.of(study, study.base, tuned)
    if shown := [request for request in explorer_requests(study) if request.tuned == tuned]:
        wanted |= dict.fromkeys(ExplorerResponses.kinds, shown)
    executor.run(study, [r for some in wanted.values() for r in some])  # trees grow once, for all
    return [_write_sample(k, fetch(study, requests, k)) for k, requests in wanted.items()]


def _write_sample(kind: str, frame: pd.DataFrame) -> Path:
    first = frame.groupby("benchmark")["problem"].transform(
        lambda problems: problems.isin(problems.unique()[:PROBLEMS])
    )
    rows = frame[first]
    rows = rows[rows["sample"].isin(sorted(rows["sample"].unique())[:SAMPLES])]
    schema = columns.schema(kind)
    arrays = [  # not known (NaN) is no null where the column has none
        pa.array(rows[field.name].to_numpy(), field.type, from_pandas=field.nullable)
        if pa.types.is_floating(field.type)
        else pa.Array.from_pandas(rows[field.name], type=field.type)
        for field in schema
    ]
    table = pa.Table.from_arrays(arrays, schema=schema)
    file = sample_file(kind)
    file.parent.mkdir(parents=True, exist_ok=True)
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(None), sink, compression="zstd")
    write_bytes(file, sink.getvalue().to_pybytes())
    return file

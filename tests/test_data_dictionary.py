"""The data dictionary and the samples are those of the records as they are now."""

import pyarrow.parquet as pq
import pytest
from conftest import CHECKOUT

from tokenshift_utils.run.data_dictionary import (
    dictionary_file,
    render_dictionary,
    sample_file,
    write_dictionary,
    write_samples,
)
from tokenshift_utils.store import columns
from tokenshift_utils.study.study import load_study


def test_dictionary_is_current():
    assert (CHECKOUT / "results/DATA_DICTIONARY.md").read_text() == render_dictionary(), (
        "run: tokenshift data-dictionary"
    )


@pytest.mark.parametrize("kind", columns.RECORD_KINDS)
def test_every_column_is_described(kind):
    section = render_dictionary().split(f"\n## {kind}\n")[1].split("\n## ")[0]
    for column in columns.describe(kind):
        assert f"| `{column.name}` |" in section and len(column.description) > 5


@pytest.mark.parametrize("kind", columns.RECORD_KINDS)
def test_committed_sample_has_the_columns_of_its_kind(kind):
    table = pq.read_table(CHECKOUT / f"results/samples/{kind}.parquet")
    assert table.num_rows > 0
    assert table.schema.equals(columns.schema(kind))


def test_committed_samples_are_small():
    files = list((CHECKOUT / "results/samples").iterdir())
    assert {file.stem for file in files} == set(columns.RECORD_KINDS)
    assert sum(file.stat().st_size for file in files) <= 2_000_000


def test_samples_of_a_study_are_written_the_same_again(mini_root):
    study = load_study("mini")
    contents = []
    for _ in range(2):
        write_dictionary()
        files = write_samples(study)
        contents.append([file.read_bytes() for file in (dictionary_file(), *files)])
    assert contents[0] == contents[1]
    for kind in columns.RECORD_KINDS:
        assert sample_file(kind).is_relative_to(mini_root)
        table = pq.read_table(sample_file(kind))
        assert table.schema.equals(columns.schema(kind))
        for field, column in zip(table.schema, columns.describe(kind), strict=True):
            assert field.metadata[b"description"].decode() == column.description
        assert len(set(table["problem"].to_pylist())) <= 2

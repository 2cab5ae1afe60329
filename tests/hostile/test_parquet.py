"""Data sets in Parquet, mutated."""

import json

import pytest
from hypothesis import given

from jaxcxr.data.ledger import Ledger
from jaxcxr.data.records import NotSelected, Rejected, make_record
from jaxcxr.data.source import open_source
from tests.data.test_parquet import settings, table, write
from tests.hostile.mutations import byte_variants, json_variants, one_line_or_fine

pa = pytest.importorskip("pyarrow", reason="is of jaxcxr[data]")
pq = pytest.importorskip("pyarrow.parquet", reason="is of jaxcxr[data]")


def made(folder):
    """Lists a data set and makes its records."""
    source = open_source(folder, settings())
    for candidate in source.candidates(Ledger()):
        try:
            make_record(candidate, source.fields(candidate), source.settings, source.picture)
        except (Rejected, NotSelected):
            continue


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    write(folder, "train.parquet", range(5), patient=list("abcde"))
    return (folder / "train.parquet").read_bytes()


def test_a_mutated_table_is_read_or_refused_in_one_line(tmp_path, valid):
    @given(byte_variants(valid))
    def refused(data):
        (tmp_path / "train.parquet").write_bytes(data)
        one_line_or_fine(made, tmp_path)

    refused()


FEATURES = {"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}


@given(json_variants(FEATURES))
def test_a_mutated_description_is_read_or_refused_in_one_line(tmp_path, data):
    described = json.dumps(data).encode("utf-8", "replace")
    rows = table([1], text=["a text of it"], label=[1]).replace_schema_metadata({b"huggingface": described})
    pq.write_table(rows, tmp_path / "train.parquet")
    one_line_or_fine(made, tmp_path)

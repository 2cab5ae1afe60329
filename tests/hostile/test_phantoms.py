import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from safetensors.numpy import save_file

from jaxcxr import parsing
from jaxcxr.evaluation import sets
from jaxcxr.phantoms import prompts
from jaxcxr.phantoms.classifier import _MARK, Classifier, read, see, to_bytes
from jaxcxr.phantoms.prompts import Asked
from jaxcxr.phantoms.truth import present
from tests.hostile.mutations import byte_variants, json_variants, one_line_or_fine
from tests.phantoms.classifiers import untrained

UNTRAINED = untrained("placed")
ROW = prompts.prompt_rows(1, 0, prompts.parse_asked("left nodule, effusion"), paired=True)[0] | {"effusion": "both"}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("classifier") / "mine.safetensors"


def seen(file):
    """What a classifier sees, if it is read."""
    classifier = one_line_or_fine(read, file)
    if isinstance(classifier, Classifier):
        assert set(map(str, classifier.sizes)) <= {"64", "128"}
        one_line_or_fine(see, classifier, np.zeros((1, 64, 64), np.uint8))


@settings(max_examples=40)
@given(json_variants(json.loads(json.dumps(dataclasses.asdict(UNTRAINED.about)))))
def test_classifiers_that_say_something_else_are_read_or_refused_in_one_line(file, about):
    save_file(dict(UNTRAINED.parameters), file, {_MARK: json.dumps(about)})
    seen(file)


@settings(max_examples=40)
@given(byte_variants(to_bytes(UNTRAINED)))
def test_damaged_classifiers_are_read_or_refused_in_one_line(file, data):
    file.write_bytes(data)
    seen(file)


def asked_for(row):
    where = "manifest.jsonl: image 1"
    return sets._asked(parsing.convert(row, sets._Generated, where), where)


@given(json_variants(ROW))
def test_what_was_asked_for_is_read_or_refused_in_one_line(row):
    asked = one_line_or_fine(asked_for, row)
    if isinstance(asked, Asked):
        assert present(asked.findings).sum() >= len(asked.findings) > 0 or not asked.findings

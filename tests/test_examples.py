"""The worked examples in docstrings are run, wherever in the package they stand."""

import doctest
import importlib
from pathlib import Path

import pytest

import tokenshift_utils

PACKAGE = Path(tokenshift_utils.__file__).parent
MODULES = sorted(
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    for file in PACKAGE.rglob("*.py")
    if ">>> " in file.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("module", MODULES)
def test_examples_come_out_as_they_say(module):
    found = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert found.failed == 0

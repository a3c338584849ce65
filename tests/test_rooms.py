"""The order of the package's rooms, as its docstring and pyproject.toml say."""

import re
import tomllib
from pathlib import Path

from importlinter import cli

import tokenshift_utils

CHECKOUT = Path(__file__).resolve().parents[1]


def test_no_room_imports_what_stands_above_it():
    assert cli.lint_imports(config_filename=str(CHECKOUT / "pyproject.toml"), no_cache=True) == 0


def test_the_docstring_lists_the_rooms_of_the_contract_in_order():
    settings = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    [contract] = settings["tool"]["importlinter"]["contracts"]
    listed = re.findall(
        r"^([a-z]+(?:, [a-z]+)*)  +\S", tokenshift_utils.__doc__, flags=re.MULTILINE
    )
    rooms = [room for line in listed for room in line.split(", ")]
    assert rooms == contract["layers"][::-1]

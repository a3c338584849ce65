"""The code behind a record: all modules that computing it reaches, found from their imports.

Nothing is listed by hand, so nothing can be forgotten: a change in any of them makes a new key.
What enters a key by value (settings, the keys of other records), or does not bear on what is
computed (where files lie, how tables look), is not followed: see ``BY_VALUE``.
"""

from __future__ import annotations

import ast
import hashlib
from functools import lru_cache
from pathlib import Path

PACKAGE = "tokenshift_utils"
ROOT = Path(__file__).resolve().parents[1]

# Rooms and modules that records do not depend on but by values that their keys hold already.
BY_VALUE = ("errors", "files", "paths", "records", "report", "store", "study")
# Modules of those rooms that do decide what is computed.
FOLLOWED = (
    *("records.mixture_trees", "records.requests", "store.columns", "study.checkpoints"),
    *("study.positions", "study.tokenizer_probes", "study.tokenizers"),
)


def source_digest(source: str) -> str:
    """A hash of what Python code does: comments, docstrings and layout do not count."""
    tree = ast.parse(source)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()


def _file(module: str) -> Path | None:
    file = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return file if file.is_file() else None


def _imports(tree: ast.AST) -> set[str]:
    """Modules of the package that a tree imports or names in full in a string (as for ``python -m``),
    wherever in it, but for type checking."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value.partition(":")[0]]
        inside = [n.removeprefix(f"{PACKAGE}.") for n in names if n.startswith(f"{PACKAGE}.")]
        found |= {name for name in inside if _file(name)} | _imports(node)
    return found


def _followed(module: str) -> bool:
    return module in FOLLOWED or module.partition(".")[0] not in BY_VALUE


@lru_cache(maxsize=256)
def _read(module: str) -> tuple[str, frozenset[str]]:
    source = _file(module).read_text(encoding="utf-8")
    imports = frozenset(name for name in _imports(ast.parse(source)) if _followed(name))
    return source_digest(source), imports


@lru_cache(maxsize=64)
def reached(*modules: str) -> tuple[str, ...]:
    """The modules that these reach by imports, themselves included, sorted.

    >>> reached("measures.noise")
    ('measures.noise',)
    """
    seen: set[str] = set()
    waiting = set(modules)
    while waiting:
        seen |= waiting
        waiting = {name for module in waiting for name in _read(module)[1]} - seen
    return tuple(sorted(seen))


@lru_cache(maxsize=64)
def code_version(*modules: str) -> str:
    """A hash of all that these modules reach, for the keys of what they compute; 16 hex digits.

    Modules are named as in ``records.shifts``, or by ``__name__``.
    """
    own = [module.removeprefix(f"{PACKAGE}.") for module in modules]
    lines = [f"{module} {_read(module)[0]}\n" for module in reached(*own)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]

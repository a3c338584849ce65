"""The book of a study as one static site: the story, executed notebooks, the explorer, the guide, methods,
API and data dictionary.

Sphinx and myst-nb render it; nothing is fetched, and the pages fetch nothing. The sources lie in a
temporary copy that keeps the checkout's layout, so that the pages' relative links hold.
"""

import ast
import importlib
import inspect
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import tokenshift_utils
from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.files import read_text, write_text
from tokenshift_utils.sections.explorer.page import file_of
from tokenshift_utils.study.study import Study

PACKAGE = "tokenshift_utils"
NEEDED = ("sphinx", "myst_nb", "sphinx_book_theme")
GUIDE = "notebooks/guide"
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]+)?\)")

# The explorer is a page of its own, with a style of its own.
EXPLORER = """# The explorer

Move the threshold, and the mixed response changes with it: at how many tokens does the other model have
to step in, and which are they? Choose a token to see what both models would have written there, how
probable each candidate was, and how each model goes on alone from that place.

<a href="{file}">The explorer as a page by itself</a>, for a larger view and for an address that says what it shows.

<iframe src="{file}" title="Explorer" style="width:100%;height:1000px;border:1px solid #c9c9c9"></iframe>
"""

# Equations become MathML, which browsers draw themselves: MathJax would be fetched.
CONF = """
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

project, html_title, language = "tokenshift", {title!r}, "en"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
include_patterns = {pages!r}
html_theme = "sphinx_book_theme"
html_theme_options = {{"show_toc_level": 2, "use_download_button": False}}
html_context = {{"default_mode": "auto"}}  # light or dark, as the reader's system is
html_copy_source = html_show_sourcelink = html_use_index = html_domain_indices = False
html_math_renderer = "mathml"
html_extra_path = ["extra"]
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_typehints = "none"
napoleon_google_docstring, napoleon_use_ivar, napoleon_use_rtype = False, True, False


def _math(block):
    def visit(self, node):
        self.body.append(tex2mathml(node.astext(), as_block=block))
        raise nodes.SkipNode

    return visit, None


def setup(app):
    app.add_html_math_renderer("mathml", _math(False), _math(True))
"""


def book(study: Study, strict: bool = False) -> Path:
    """Render the book of a study to ``results/<study>/book``; returns its first page.

    With ``strict`` a warning of Sphinx's is an error.

    Raises
    ------
    TokenshiftError
        Where the extra ``book`` is not installed, the study's notebooks have not been run, or a page
        cannot be rendered.
    """
    if lacking := [name for name in NEEDED if find_spec(name) is None]:
        raise TokenshiftError(
            f"the book needs {', '.join(lacking)}: install the extra 'book' (pip install -e '.[book]')"
        )
    executed = sorted((paths.results(study.name) / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    executed = [file for file in executed if not file.name.endswith(".partial.ipynb")]
    if not executed:
        raise TokenshiftError(
            f"study {study.name} has no executed notebooks to put into a book: run tokenshift "
            f"reproduce --study {study.name} first"
        )
    target = paths.results(study.name) / "book"
    with tempfile.TemporaryDirectory() as scratch:
        source, made = Path(scratch) / "source", Path(scratch) / "book"
        _write_sources(study, source, [file.relative_to(paths.root()) for file in executed])
        command = [sys.executable, "-m", "sphinx", "-q", "-E", "-b", "html"]
        command += ["-W", "--keep-going"] if strict else []
        command += ["-d", f"{scratch}/doctrees", str(source), str(made)]
        run = subprocess.run(command, check=False, capture_output=True, text=True, encoding="utf-8")
        if run.returncode:
            said = [line for line in run.stderr.replace(f"{source}/", "").splitlines() if line]
            raise TokenshiftError(
                f"the book of study {study.name} cannot be rendered ({'; '.join(said[:20])}): mend "
                "these pages"
            )
        if run.stderr:
            print(run.stderr.replace(f"{source}/", ""), file=sys.stderr, end="")
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(made, target, ignore=shutil.ignore_patterns(".buildinfo*", "objects.inv"))
    return target / "index.html"


def _write_sources(study: Study, source: Path, executed: list[Path]) -> None:
    """Everything that Sphinx reads, in the checkout's layout below ``source``."""
    root = paths.root()
    for notebook in executed:
        (source / notebook).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / notebook, source / notebook)
    index = read_text(root / GUIDE / "index.md")
    listed = re.findall(r"\]\(([\w-]+\.md)\)", index)  # the guide's own order
    guide = [f"{GUIDE}/{name}" for name in dict.fromkeys(["index.md", *listed])]
    for page in (*guide, "results/DATA_DICTIONARY.md"):
        _copy_page(source, Path(page))
    write_text(source / "api.md", _api())
    story, methods = f"{GUIDE}/story.md", f"{GUIDE}/methods.md"
    chapters = {
        "What came out": [story],
        "Notebooks": [notebook.as_posix() for notebook in executed],
        "Explorer": _explorer(study, source),
        "Guide": [page for page in guide if page not in (story, methods)],
        "Reference": [methods, "api.md", "results/DATA_DICTIONARY.md"],
    }
    chapters = {caption: pages for caption, pages in chapters.items() if pages}
    write_text(source / "index.md", _front(study, chapters))
    named = ["index.md", *(page for chapter in chapters.values() for page in chapter)]
    write_text(source / "conf.py", CONF.format(title=f"tokenshift: {study.title}", pages=named))


def _explorer(study: Study, source: Path) -> list[str]:
    """The page that shows the study's explorer; none where there is no explorer."""
    file = file_of(study.name)
    extra = source / "extra"
    extra.mkdir()
    if not file.is_file():
        return []
    copy = extra / file.relative_to(paths.root())
    copy.parent.mkdir(parents=True)
    shutil.copyfile(file, copy)
    write_text(source / "explorer.md", EXPLORER.format(file=paths.display(file)))
    return ["explorer.md"]


def _front(study: Study, chapters: dict[str, list[str]]) -> str:
    """The first page: the README's opening, the study, and the table of contents."""
    opening = read_text(paths.root() / "README.md").partition("\nWith Python")[0].strip()
    parts = [opening, f"These pages are of the study *{study.title}*. {study.note}"]
    for caption, pages in chapters.items():
        listed = "\n".join(pages)
        parts.append(f"```{{toctree}}\n:caption: {caption}\n:maxdepth: 1\n\n{listed}\n```")
    return "\n\n".join(parts) + "\n"


def _copy_page(source: Path, page: Path) -> None:
    """A page with the files of the checkout that it links; links to folders become text."""
    root = paths.root()

    def link(found: re.Match) -> str:
        shown, target = found[2], (root / page.parent / found[3]).resolve()
        if not target.is_file() or not target.is_relative_to(root):
            return shown
        if target.parent.name == "tables":
            return shown  # (a table's Markdown is no page of the book)
        if target.suffix != ".md":
            copy = source / target.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(target, copy)
        return found[0]

    (source / page).parent.mkdir(parents=True, exist_ok=True)
    write_text(source / page, LINK.sub(link, read_text(root / page)))


def _api() -> str:
    """The page of what notebooks call, by module."""
    parts = ["# What notebooks call\n"]
    for module, names in sorted(called().items()):
        lines = [f".. automodule:: {PACKAGE}.{module}", f"   :members: {', '.join(sorted(names))}"]
        directive = "\n".join([*lines, "   :member-order: bysource"])
        parts.append(f"## {module}\n\n```{{eval-rst}}\n{directive}\n```\n")
    return "\n".join(parts)


def called() -> dict[str, set[str]]:
    """The public names that notebooks use, and those that the package exports, by module."""
    found: dict[str, set[str]] = {}
    for name, module in tokenshift_utils._EXPORTS.items():
        found.setdefault(module, set()).add(name)
    for file in sorted(paths.notebooks().glob("[0-9][0-9]_*.py")):
        for module, name in _used(ast.parse(read_text(file))):
            found.setdefault(module, set()).add(name)
    return found


def _used(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(module, name) of the functions and classes of the package that a notebook calls, where they
    are defined: it may take them by name, from a module, or from a section that offers modules."""
    taken = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            room = importlib.import_module(node.module)
            for alias in node.names:
                full_name = f"{node.module}.{alias.name}"
                found = getattr(room, alias.name, None) or importlib.import_module(full_name)
                taken[alias.asname or alias.name] = found
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            root, *names = ast.unparse(node).split(".")
            found = taken.get(root)
            for name in names:
                found = getattr(found, name, None) if inspect.ismodule(found) else None
            if inspect.isfunction(found) or inspect.isclass(found):
                yield found.__module__.removeprefix(f"{PACKAGE}."), found.__name__

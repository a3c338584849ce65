"""The repository as a package: what it declares, says and promises agree with what it does."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest
import yaml
from conftest import CHECKOUT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tokenshift_utils.sections.overview import claims_markdown

PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
README = (CHECKOUT / "README.md").read_text()

# Declared, but run rather than imported: what runs it, and the file that says so.
RUN_NOT_IMPORTED = {
    "accelerate": ("accelerate.commands.launch", "tokenshift_utils/training/recipe/launch.py"),
    "gguf": ("gguf_file", "tokenshift_utils/study/gguf_wheel.py"),  # transformers reads with it
    "ipykernel": ("python3", "notebooks/00_overview.py"),  # the kernel the notebooks name
    "jupyterlab": ("jupyter lab", "README.md"),
    "jupytext": ("jupytext --sync", "notebooks/guide/tests.md"),
    "myst-nb": ('"myst_nb"', "tokenshift_utils/run/book.py"),
    "pytest-xdist": ("--dist loadfile", "pyproject.toml"),
    "nbval": ("--nbval-lax", "tests/test_smoke.py"),
    "ruff": ('"ruff"', "tests/test_packaging.py"),
    "sphinx": ('"-m", "sphinx"', "tokenshift_utils/run/book.py"),
    "sphinx-book-theme": ('"sphinx_book_theme"', "tokenshift_utils/run/book.py"),
}


def declared(extra: str | None = None) -> set[str]:
    listed = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    return {canonicalize_name(Requirement(line).name) for line in listed}


def imported(*patterns: str) -> set[str]:
    """Distributions that files import, at any depth of their code."""
    modules = set()
    for pattern in patterns:
        for file in CHECKOUT.glob(pattern):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    modules.update(alias.name.split(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    modules.add(node.module.split(".")[0])
    local = {"tokenshift_utils"} | {file.stem for file in (CHECKOUT / "tests").glob("*.py")}
    owners = packages_distributions()
    found = modules - local - sys.stdlib_module_names
    # what only an extra brings need not be installed here: its module has the distribution's name
    return {canonicalize_name(owners.get(module, [module])[0]) for module in found}


def test_every_import_is_declared():
    extras = set().union(*map(declared, PROJECT["optional-dependencies"].keys() - {"test"}))
    assert imported("tokenshift_utils/**/*.py", "notebooks/*.py") <= declared() | extras
    assert imported("tests/*.py", "tests/benchmarks/*.py") <= declared() | declared("test")


def test_nothing_is_declared_that_is_not_used():
    used = imported("tokenshift_utils/**/*.py", "notebooks/*.py")
    assert declared() - used <= set(RUN_NOT_IMPORTED)
    assert declared("test") - imported("tests/*.py") <= set(RUN_NOT_IMPORTED)
    for name, (words, file) in RUN_NOT_IMPORTED.items():
        assert words in (CHECKOUT / file).read_text(), name


def test_pins_are_those_that_belong_together():
    pins = {Requirement(line).name: Requirement(line).specifier for line in PROJECT["dependencies"]}
    assert pins["torch"] == SpecifierSet("==2.13.0")
    assert pins["transformers"] == SpecifierSet(">=5.16.1,<5.20")
    assert pins["trl"] == SpecifierSet(">=1.16,<1.17")
    assert PROJECT["optional-dependencies"]["vllm"] == ["vllm==0.32.0"]


def test_environment_gives_what_the_package_declares():
    environment = yaml.safe_load((CHECKOUT / "environment.yml").read_text())
    assert environment["name"] == "tokenshift"
    *conda, pip = environment["dependencies"]
    version = next(line for line in conda if line.startswith("python=")).removeprefix("python=")
    assert SpecifierSet(PROJECT["requires-python"]).contains(version)
    # all packages come from pyproject.toml, through the editable install: no second list to drift
    assert [line for line in conda if not line.startswith("python=")] == ["pip"]
    assert [line for line in pip["pip"] if not line.startswith("--")] == ["-e ."]


def test_citation_is_of_this_version_and_names_the_paper():
    citation = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert "2603.22446" in str(citation["references"])


def one_line_commands() -> list[str]:
    """Commands of the README's first screen that make a virtual environment and go on."""
    first_screen = "\n".join(README.splitlines()[:40])
    return re.findall(r"^python3\.11 -m venv .*&&.*&&.*$", first_screen, flags=re.MULTILINE)


def test_readme_opens_with_the_two_commands():
    reproduce, test = one_line_commands()
    assert reproduce.endswith("tokenshift reproduce") and "install -e ." in reproduce
    assert test.endswith("-m pytest") and "install -e '.[test]'" in test


def test_ci_runs_the_readmes_test_command():
    script = (CHECKOUT / ".ci/run").read_text()
    assert one_line_commands()[1] in script.splitlines()
    assert "rm -rf .venv-test" in script and "torch==2.13.0" in script


def test_readme_is_one_page():
    assert len(README.splitlines()) <= 130


PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "notebooks/guide").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_readme_and_guide_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]+)?\)", page.read_text())
    assert links or page.name not in ("README.md", "index.md")
    for target, anchor in links:
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
            assert anchor[1:] in slugs, anchor


def test_readme_and_index_lead_to_every_page_of_the_guide():
    index = (CHECKOUT / "notebooks/guide/index.md").read_text()
    for page in PAGES[1:]:
        if page.name != "index.md":
            assert f"(notebooks/guide/{page.name})" in README and f"({page.name})" in index


@pytest.mark.parametrize("command", [["check"], ["format", "--check", "--diff"]])
def test_code_and_notebooks_are_linted_and_formatted(command):
    run = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--no-cache", str(CHECKOUT)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr


def test_the_story_shows_the_verdicts_of_the_committed_run():
    story = (CHECKOUT / "notebooks/guide/story.md").read_text()
    shown = story.split("<!-- claims: printed by `tokenshift claims` -->\n")[1]
    assert shown.split("\n<!-- /claims -->")[0] == claims_markdown("tiny").strip()

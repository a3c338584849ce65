"""The book: rendered without a warning, in its order, with links that hold and nothing fetched; and
how three of its pages look in a browser."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import CHECKOUT
from test_explorer import chromium  # noqa: F401  a fixture

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.files import write_text
from tokenshift_utils.run import book as books
from tokenshift_utils.run.book import book, called
from tokenshift_utils.run.cli import main
from tokenshift_utils.study.study import load_study

COPIED = (
    *("notebooks", "tokenshift_utils", "figures/tiny", "figures/smollm2"),
    "results/tiny/notebooks",
)
EXPLORER = "results/tiny/explorer.html"
COPIED += ("results/tiny/tables", "results/DATA_DICTIONARY.md", "README.md")


class Page(HTMLParser):
    """What a page links (``href``), loads (``src`` and style sheets), and can be linked at."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links, self.loads, self.ids = [], [], set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag == "link" and given.get("href"):
            self.loads.append(given["href"])
        elif tag != "a" and given.get("src"):
            self.loads.append(given["src"])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A root of its own with what the tiny study's book is made of."""
    root = tmp_path_factory.mktemp("book")
    for name in COPIED:
        source, copy = CHECKOUT / name, root / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, copy)
    if (CHECKOUT / EXPLORER).is_file():
        shutil.copyfile(CHECKOUT / EXPLORER, root / EXPLORER)
    else:  # (before the first run of a checkout whose notebook 02 makes it)
        write_text(root / EXPLORER, "<!doctype html><title>Explorer</title><body data-ready>")
    return root


@pytest.fixture(scope="module")
def made(root):
    """The directory of the rendered book."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TOKENSHIFT_HOME", str(root))
        first = book(load_study("tiny"), strict=True)
    assert first == root / "results/tiny/book/index.html"
    return first.parent


@pytest.fixture(scope="module")
def pages(made):
    """The parsed pages, by file."""
    return {file: Page(file) for file in made.rglob("*.html") if "_static" not in file.parts}


def test_every_link_within_the_book_leads_somewhere(made, pages):
    checked, wrong = 0, []
    for file, page in pages.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            checked += 1
            inside = target.is_file() and target.is_relative_to(made.resolve())
            anchored = not parts.fragment or target not in pages
            if not inside or not (anchored or unquote(parts.fragment) in pages[target].ids):
                wrong.append((file.name, link))
    assert checked > 500 and wrong == []


def test_nothing_is_fetched(made, pages):
    loaded = {load for page in pages.values() for load in page.loads}
    assert loaded and not [x for x in loaded if urlsplit(x).scheme not in ("", "data")]
    styles = "".join(f.read_text(encoding="utf-8") for f in made.rglob("*.css"))
    assert not re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)\"']+", styles)
    assert "<math" in (made / "notebooks/guide/methods.html").read_text(encoding="utf-8")


def test_the_order_is_story_notebooks_explorer_guide_methods_api_dictionary(made):
    text = (made / "index.html").read_text(encoding="utf-8")
    listed = re.findall(r'class="toctree-l1"><a class="reference internal" href="([^"#]+)"', text)
    order = list(dict.fromkeys(listed))
    assert order[0] == "notebooks/guide/story.html"
    assert order[1:7] == [
        f"results/tiny/notebooks/{file.stem}.html"
        for file in sorted((CHECKOUT / "notebooks").glob("0*.py"))
    ]
    assert order[7:9] == ["explorer.html", "notebooks/guide/index.html"]
    last = ["notebooks/guide/methods.html", "api.html", "results/DATA_DICTIONARY.html"]
    assert order[-3:] == last
    guide = {f"notebooks/guide/{f.stem}.html" for f in (CHECKOUT / "notebooks/guide").glob("*.md")}
    assert set(order[8:-3]) == guide - {order[0], last[0]}


def test_the_explorer_is_a_page_and_a_file_of_the_book(root, made, pages):
    page = pages[made / "explorer.html"]
    assert EXPLORER in page.loads and EXPLORER in page.links
    assert (made / EXPLORER).read_bytes() == (root / EXPLORER).read_bytes()


def test_the_story_shows_four_figures(pages, made):
    loads = pages[made / "notebooks/guide/story.html"].loads
    assert len([load for load in loads if load.endswith(".png")]) == 4


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize(
    "name",
    ["notebooks/guide/story", "results/tiny/notebooks/02_cross_sampling", "explorer"],
)
def test_three_pages_in_a_browser(chromium, made, name, width):  # noqa: F811
    context = chromium.new_context(viewport={"width": width, "height": 900})
    page, wrong, loaded = context.new_page(), [], []
    page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: loaded.append(urlsplit(request.url).scheme))
    page.goto((made / f"{name}.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for image in page.locator("main img").all():
        image.scroll_into_view_if_needed()
        width_of = "i => i.decode().then(() => [i.naturalWidth, i.getBoundingClientRect().width])"
        natural, shown = image.evaluate(width_of)
        assert natural > 0 and shown <= width
    if name == "explorer":
        framed = page.frame_locator("main iframe")
        framed.locator("body[data-ready]").wait_for()
        assert page.locator("main iframe").bounding_box()["width"] <= width
    context.close()
    assert wrong == [] and set(loaded) <= {"file", "data", "blob", "about"}


def test_notebooks_are_there_with_their_outputs_and_the_api_with_what_they_call(made, pages):
    figures = [load for page in pages.values() for load in page.loads if load.endswith(".png")]
    assert len(figures) > 20
    ids = pages[made / "api.html"].ids
    names = {f"tokenshift_utils.{m}.{name}" for m, some in called().items() for name in some}
    assert {"tokenshift_utils.records.fetch.fetch", "tokenshift_utils.run.notebook.start"} <= names
    functions = {n for n in names if not n.rpartition(".")[2].isupper()}
    assert len(functions) > 50 and functions - ids == set()


def test_a_study_that_was_not_run_has_no_book(mini_root, capsys):
    with pytest.raises(SystemExit) as end:
        main(["book", "--study", "mini"])
    assert end.value.code == 2
    assert "run tokenshift reproduce --study mini first" in capsys.readouterr().err


def test_without_the_extra_it_is_named(mini_root, monkeypatch):
    monkeypatch.setattr(books, "find_spec", lambda name: None)
    with pytest.raises(TokenshiftError, match="install the extra 'book'"):
        book(load_study("mini"))

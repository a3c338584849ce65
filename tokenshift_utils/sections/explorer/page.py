"""The explorer's page: content, style and script in one file that needs nothing else."""

from __future__ import annotations

import base64
import gzip
import json
from html import escape
from importlib.resources import files
from pathlib import Path

from tokenshift_utils import paths
from tokenshift_utils.files import read_text, write_text
from tokenshift_utils.sections.cross_sampling.records import CrossRecords, cross_records
from tokenshift_utils.sections.explorer.content import content
from tokenshift_utils.study.study import Study

MAX_BYTES = 4_500_000  # bytes of a page
HEIGHT = 900  # pixels, inside a notebook


def file_of(study_name: str) -> Path:
    """Where a study's explorer is."""
    return paths.results(study_name) / "explorer.html"


def write_explorer(study: Study, data: CrossRecords | None = None) -> Path:
    """Write ``results/<study>/explorer.html``, one file that needs no network; returns its path.

    Shown are the first problems and samples of every benchmark, as many as keep the page below
    ``MAX_BYTES`` bytes. Records are computed where the store lacks them.
    """
    shared, rounds = content(study, cross_records(study) if data is None else data)
    shown, page = [(some, len(shared["strings"])) for some in rounds], ""
    for problems in range(len(shown), 0, -1):
        responses = [response for some, _ in shown[:problems] for response in some]
        strings = list(shared["strings"])[: shown[problems - 1][1]]
        rest = {"problems": problems, "strings": strings, "responses": responses}
        page = render_page(study, shared | rest)
        if len(page.encode()) <= MAX_BYTES:
            break
    target = file_of(study.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, page)
    return target


def render_page(study: Study, content: dict) -> str:
    """The page with this content; equal contents are equal pages."""
    source = files(__package__)
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    packed = base64.b64encode(gzip.compress(data.encode(), mtime=0)).decode()
    parts = {name: source.joinpath(f"page.{name}").read_text("utf-8") for name in ("css", "js")}
    page = source.joinpath("page.html").read_text("utf-8")
    parts |= {"title": escape(f"Explorer: {study.title}"), "data": packed}
    for name, text in parts.items():
        page = page.replace(f"{{{{{name}}}}}", text)
    return page


def content_of(page: str) -> dict:
    """What a page was rendered with."""
    packed = page.partition('id="content">')[2].partition("</script>")[0]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def framed(page: Path, height: int = HEIGHT):
    """The page inside a notebook or the book, as ``IPython.display.HTML`` that holds all of it."""
    from IPython.display import HTML

    where = escape(paths.display(page))
    return HTML(
        f'<iframe title="Explorer" loading="lazy" style="width:100%;height:{height}px;border:0" '
        f'srcdoc="{escape(read_text(page))}"></iframe>'
        f"<p>The same page by itself: <code>{where}</code>.</p>"
    )

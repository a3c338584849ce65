"""The explorer: what it shows is what the records hold, in one file that needs nothing else."""

import json
import re
import shutil
import tomllib
from urllib.parse import parse_qs

import pytest
import yaml
from conftest import CHECKOUT, write_mini_root

from tokenshift_utils import paths
from tokenshift_utils.models import huggingface
from tokenshift_utils.models.load import load_policy
from tokenshift_utils.records.fetch import fetch
from tokenshift_utils.records.requests import items
from tokenshift_utils.records.tokens import tokenizer
from tokenshift_utils.run.cli import main
from tokenshift_utils.sections.cross_sampling.numbers import MixtureEstimates, run_table
from tokenshift_utils.sections.cross_sampling.records import cross_records, setting_requests
from tokenshift_utils.sections.explorer import page as pages
from tokenshift_utils.sections.explorer.content import mixtures
from tokenshift_utils.sections.explorer.page import content_of, write_explorer
from tokenshift_utils.sections.explorer.records import requests
from tokenshift_utils.sections.explorer.responses import ExplorerResponses
from tokenshift_utils.store import executor
from tokenshift_utils.study.study import load_study
from tokenshift_utils.tasks.benchmarks import load_benchmark

KINDS = ExplorerResponses.kinds
RULES = {"entropy": [1.0], "first": [2]}


class Made:
    """A study's explorer, and what is behind it."""

    def __init__(self):
        self.study = load_study("mini")
        self.data = cross_records(self.study)
        self.file = write_explorer(self.study, self.data)
        self.page = self.file.read_text(encoding="utf-8")
        self.content = content_of(self.page)
        self.mixed = mixtures(self.study, self.data)

    def rows(self):
        """(setting, stop, row of the runs, response of the page) of all that is shown."""
        shown = {(r["benchmark"], r["problem"], r["sample"]): r for r in self.content["responses"]}
        stops = {}
        for setting, frame in self.mixed.items():
            way = setting.direction, setting.rule
            stops[way] = stops.get(way, 0) + 1
            for row in frame.itertuples():
                if (row.benchmark, row.problem, row.sample) in shown:
                    yield setting, stops[way], row, shown[row.benchmark, row.problem, row.sample]


def path(response, node):
    """The nodes that lead to one."""
    nodes = []
    while node:
        nodes.append(node)
        node -= response["parent"][node]
    return nodes[::-1]


def way(response, side, node):
    """The nodes of a model's own way from one."""
    nodes = []
    while node := response["own"][side][node]:
        nodes.append(node)
    return nodes


def text(content, response, nodes):
    return "".join(content["strings"][response["piece"][node]] for node in nodes)


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_pair):
    root = tmp_path_factory.mktemp("explorer")
    cross = yaml.safe_load((CHECKOUT / "notebooks/studies/smoke.yaml").read_text())[
        "cross_sampling"
    ]
    cross |= {"pairs": ["tuned"], "thresholds": [-1, 0.02, 0.1, 0.2], "benchmark": None}
    cross |= {"controls": None, "rules": RULES, "single_token": None, "extrapolation": None}
    write_mini_root(root, tiny_pair, cross_sampling=cross)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TOKENSHIFT_HOME", str(root))
        yield Made()


def test_the_page_is_one_small_file_that_loads_nothing(made):
    assert made.file == pages.file_of("mini") and len(made.page.encode()) < 5_000_000
    written = re.sub(r'(id="content">)[^<]*', r"\1", made.page)
    written = written.replace("http://www.w3.org/2000/svg", "")  # the name of SVG, not an address
    assert not re.search(r"https?:|//cdn|@import|url\(|fetch\(|XMLHttp|<link|<img|src=", written)
    assert "{{" not in written


def test_every_mixed_text_is_the_recorded_one(made):
    decode = tokenizer(made.study).decode
    seen = set()
    for setting, stop, row, response in made.rows():
        leaf, _ = response["mixtures"][setting.direction][setting.rule][stop]
        nodes = path(response, leaf)
        assert text(made.content, response, nodes) == decode(row.response_ids.tolist())
        [right] = [right for node, _, right in response["ends"] if node == leaf]
        assert right == row.correct
        seen.add((setting.direction, setting.rule))
    rules = {"js", "random", *RULES}
    assert seen == {(way, rule) for way in ("forward", "reverse") for rule in rules}


def test_tokens_put_in_are_the_recorded_switches_and_the_other_models_own(made):
    switched = 0
    for setting, stop, row, response in made.rows():
        records = fetch(made.study, setting_requests(made.study, setting), "switches")
        mine = records[(records["problem"] == row.problem) & (records["sample"] == row.sample)]
        leaf, put = response["mixtures"][setting.direction][setting.rule][stop]
        assert put == sorted(mine["position"])
        primary = 0 if setting.direction == "forward" else 1
        replaced = 0
        for position, node in enumerate(path(response, leaf)):
            before = node - response["parent"][node]
            writer = 1 - primary if position in put else primary
            assert response["own"][writer][before] == node
            replaced += position in put and response["own"][primary][before] != node
        assert replaced == row.n_effective
        switched += len(put)
    assert switched > 100


def test_without_a_switch_it_is_the_models_own_response_and_ways_go_on_to_an_end(made):
    decode = tokenizer(made.study).decode
    for response in made.content["responses"]:
        ends = {node for node, *_ in response["ends"]}
        for side, model in enumerate(("base", "tuned")):
            own = made.data.rollouts[model]
            own = own[
                (own["problem"] == response["problem"]) & (own["sample"] == response["sample"])
            ]
            whole = decode(own["response_ids"].iloc[0].tolist())
            assert text(made.content, response, way(response, side, 0)) == whole
            direction = ("forward", "reverse")[side]
            leaf, put = response["mixtures"][direction]["js"][0]
            assert put == [] and text(made.content, response, path(response, leaf)) == whole
            for node in response["at"]:
                assert way(response, side, node)[-1] in ends


def test_a_models_way_from_a_place_is_its_own_draw_with_the_same_noise(made):
    study, checked = made.study, 0
    policies = [load_policy(study, name) for name in ("base", "tuned")]
    keys = {
        (item.problem.id, item.sample): item
        for item in items(study, policies[0], "sums", load_benchmark(study, "sums"), 2)
    }
    decode = tokenizer(study).decode
    stops = sorted({i for policy in policies for i in policy.eos_ids})
    for setting, stop, row, response in made.rows():
        if (setting.rule, setting.level) != ("js", 0.1) or row.n_switched == 0:
            continue
        leaf, put = response["mixtures"][setting.direction]["js"][stop]
        node = path(response, leaf)[put[-1]]
        item = keys[row.problem, row.sample]
        written = row.response_ids[: put[-1]].tolist()
        sampling = setting_requests(study, setting)[0].sampling
        for side, policy in enumerate(policies):
            [made_now] = policy.sample(
                [[*item.prompt_ids, *written]], [item.key], sampling, stops, first=[len(written)]
            )
            shown = way(response, side, node - response["parent"][node])
            assert text(made.content, response, shown) == decode(made_now.ids)
            checked += 1
    assert checked >= 4


def test_candidates_are_the_models_probabilities_and_nuclei(made):
    for response in made.content["responses"]:
        for sizes, rows in zip(response["nuclei"], response["candidates"]):
            for side, size in enumerate(sizes):
                probs = [row[1 + side] for row in rows if row[1 + side] is not None]
                assert 0 < sum(probs) <= 1.0005
                inside = sorted((r[1 + side] for r in rows if r[3] >> side & 1), reverse=True)
                assert inside == sorted(probs, reverse=True)[: len(inside)]
                if len(inside) == size:
                    assert sum(inside) >= made.content["topP"] - 1e-3 > sum(inside[:-1]) - 2e-3


def test_accuracies_are_those_of_the_whole_study(made):
    table = run_table(MixtureEstimates(made.study, made.mixed, made.data.rollouts))
    checked = 0
    for row in table.itertuples():
        curve = made.content["curves"][row.model][row.direction]
        curve = curve[row.rule]
        [stop] = [s for s in curve["stops"] if s["t"] == row.threshold]
        assert stop["accuracy"][0] == pytest.approx(row.after, abs=1e-5)
        assert stop["share"][0] == pytest.approx(row.effective_share, abs=1e-5)
        assert curve["stops"][0]["accuracy"][0] == pytest.approx(row.before, abs=1e-5)
        assert curve["goal"][0] == pytest.approx(row.goal, abs=1e-5)
        checked += row.benchmark == table["benchmark"].iloc[-1]
    assert checked == 2 * (4 + 2 + 1 + 1)


def test_the_command_writes_the_same_page(made, capsys):
    before = made.file.read_bytes()
    made.file.unlink()
    main_ends_well(["explore", "--study", "mini"])
    assert "wrote results/mini/explorer.html" in capsys.readouterr().out
    assert made.file.read_bytes() == before


def main_ends_well(arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert not end.value.code


# The records behind it ----------------------------------------------------------------------------


def no_model(*arguments):
    raise AssertionError(f"a model was loaded: {arguments}")


def files_of():
    """The files of the explorer's records, and when each was written."""
    root = paths.records("mini")
    return {f: f.stat().st_mtime_ns for kind in KINDS for f in root.glob(f"{kind}/*/*.parquet")}


def test_what_was_drawn_is_read_without_a_model(made, monkeypatch):
    monkeypatch.setattr(huggingface, "load", no_model)
    before = files_of()
    assert {file.parent.parent.name for file in before} == set(KINDS)
    made.file.unlink()
    assert write_explorer(made.study).read_text(encoding="utf-8") == made.page
    assert files_of() == before
    for file in before:  # and what is not there is drawn, which takes models
        shutil.rmtree(file.parent)
    with pytest.raises(AssertionError, match="a model was loaded"):
        write_explorer(made.study, made.data)
    monkeypatch.undo()
    assert write_explorer(made.study, made.data).read_text(encoding="utf-8") == made.page
    assert files_of().keys() == before.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_record_is_drawn_anew(made, kind):
    [file] = [file for file in files_of() if file.parent.parent.name == kind]
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    assert write_explorer(made.study, made.data).read_text(encoding="utf-8") == made.page
    assert file.read_bytes() == whole


def test_another_choice_of_responses_is_another_record_and_nothing_else_is(made):
    def keys(study):
        own = requests(study)
        beside = {
            executor.key_of(study, need.artefact.underlying(study) if of_trees else need.artefact)
            for request in own
            for need in request.needs(study, 0)
            for of_trees in [isinstance(need.artefact, executor.View)]
        }
        return {executor.key_of(study, request) for request in own}, beside

    shown, needed = keys(made.study)
    for changed in (
        {"explorer.responses": 4},
        {"explorer.rules": ("js",)},
        {"top_k": made.study.top_k - 1},
        {"batch.score": 1},
        {"cross_sampling.budgets": [1, 7]},  # of trees that they are read off
    ):
        others, same = keys(made.study.with_overrides(**changed))
        assert others and not others & shown and same == needed, changed
    assert keys(made.study.with_overrides(workers=2, note="Other words.")) == (shown, needed)


def test_only_the_problems_shown_are_computed(mini_root):
    study = load_study("mini").with_overrides(
        **{"explorer.responses": 4, "problems_per_shard": 1, "samples.cross_sampling": 2}
    )
    executor.run(study, requests(study))
    for kind in (*KINDS, "mixture_trees", "rollouts"):
        found = {file.stem for file in paths.records("mini").glob(f"{kind}/*/*.parquet")}
        assert found == {"0000", "0001"}, kind  # of three
    [request] = requests(study)
    rows = executor.read(study, request, "explorer").to_pandas()
    shown = rows[["problem", "sample"]].drop_duplicates().to_numpy().tolist()
    assert shown == [["p0", 0], ["p0", 1], ["p1", 0], ["p1", 1]]


def test_a_page_that_grows_too_large_shows_fewer_problems(made, monkeypatch):
    monkeypatch.setattr(pages, "MAX_BYTES", len(made.page.encode()) - 1)
    try:
        fewer = content_of(write_explorer(made.study, made.data).read_text(encoding="utf-8"))
    finally:
        made.file.write_text(made.page, encoding="utf-8")
    assert made.content["problems"] == 3 and fewer["problems"] == 2
    assert fewer["responses"] == made.content["responses"][:4]


def test_a_notebook_shows_the_whole_page(made):
    shown = pages.framed(made.file).data
    assert (
        shown.startswith("<iframe") and "srcdoc=" in shown and "results/mini/explorer.html" in shown
    )
    assert made.page.partition('id="content">')[2][:2000] in shown


def test_a_study_that_is_not_there_is_refused_in_a_sentence(monkeypatch, capsys):
    monkeypatch.setenv("TOKENSHIFT_HOME", str(CHECKOUT))
    with pytest.raises(SystemExit) as end:
        main(["explore", "--study", "nowhere"])
    said = capsys.readouterr().err
    assert end.value.code == 2 and "nowhere" in said and len(said.splitlines()) == 1


# what takes full distributions, which lists don't give
LISTS = {"robustness": None, "cross_sampling.rules": {}, "cross_sampling.extrapolation": None}


def test_engines_that_list_the_most_probable_tokens_have_an_explorer(mini_root):
    """The same responses and ways; candidates are those that the lists hold."""
    pages_of = []
    for backend in ("transformers", "engines"):
        study = load_study("mini").with_overrides(backend=backend, **LISTS)
        pages_of.append(content_of(write_explorer(study).read_text(encoding="utf-8")))
    one, other = pages_of
    assert len(one["responses"]) == len(other["responses"]) > 0
    for a, b in zip(one["responses"], other["responses"]):
        for name in ("problem", "sample", "parent", "own", "nuclei"):
            assert a[name] == b[name], name
        assert a["measured"]["js"] == pytest.approx(b["measured"]["js"], abs=2e-3)
        assert all(b["candidates"]) and len(a["candidates"]) == len(b["candidates"])


def test_the_template_is_part_of_the_package():
    settings = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["tokenshift_utils"]
    package = CHECKOUT / "tokenshift_utils"
    shipped = {file.name for pattern in patterns for file in package.glob(pattern)}
    assert {"page.html", "page.css", "page.js"} <= shipped


# In a browser -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra 'browser'")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs Chromium on the path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, made):
    """What opens the page at a fragment; at the end nothing may have been wrong or loaded."""
    wrong, loaded, contexts = [], [], []

    def open_page(fragment="", width=1400, scheme="light", file=None):
        contexts.append(
            chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        )
        page = contexts[-1].new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: loaded.append(request.url.partition(":")[0]))
        page.goto(f"{(file or made.file).as_uri()}{fragment}")
        if file is None:
            page.wait_for_selector("body[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == [] and set(loaded) <= {"file", "blob", "data"}


def longest(made, direction, number):
    """The fragment of the problem whose recorded mixture by JS is the longest at a stop."""
    found = max(
        made.content["responses"],
        key=lambda r: len(path(r, r["mixtures"][direction]["js"][number][0])),
    )
    t = made.content["curves"]["tuned"][direction]["js"]["stops"][number]["t"]
    at = f"&benchmark=sums&problem={found['problem']}&sample={found['sample']}"
    return f"#pair=tuned&way={direction}&rule=js&t={t:g}{at}"


def fragment(page):
    return {name: value for name, (value,) in parse_qs(page.evaluate("location.hash")[1:]).items()}


@pytest.mark.browser
def test_the_text_follows_the_slider_and_equals_the_records(opened, made):
    decode, seen = tokenizer(made.study).decode, set()
    for setting, _, row, response in list(made.rows()):
        if setting.rule != "js" or setting.level != 0.2 or row.sample:
            continue
        at = f"#pair=tuned&way={setting.direction}&rule=js&benchmark=sums&problem={row.problem}"
        page = opened(f"{at}&sample=0&t=none")
        page.focus("#stop")
        stops = made.content["curves"]["tuned"][setting.direction]["js"]["stops"]
        for number, stop in enumerate(stops):
            assert fragment(page)["t"] == ("none" if stop["t"] is None else f"{stop['t']:g}")
            leaf, _ = response["mixtures"][setting.direction]["js"][number]
            shown = page.evaluate("document.getElementById('response').textContent")
            assert shown == text(made.content, response, path(response, leaf))
            if stop["t"] is not None:
                frame = made.mixed[setting._replace(level=stop["t"])]
                same = (frame["problem"] == row.problem) & (frame["sample"] == 0)
                assert shown == decode(frame[same]["response_ids"].iloc[0].tolist())
            seen.add(shown)
            page.keyboard.press("ArrowRight")
    assert len(seen) > 3


@pytest.mark.browser
def test_tokens_are_reached_by_mouse_and_keys(opened, made):
    page = opened(longest(made, "forward", -1))  # where every token is put in
    page.locator("#response .t").nth(3).click()
    assert fragment(page)["token"] == "3" and "token 4 of" in page.inner_text("#token h2")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.position") == "4"
    assert "token 5 of" in page.inner_text("#token h2")
    page.keyboard.press("End")
    last = page.locator("#response .t").count() - 1
    assert fragment(page)["token"] == str(last)
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    assert fragment(page)["token"] == "1"
    assert page.locator("#response [aria-selected=true]").count() == 1
    assert page.locator("#response [tabindex='0']").count() == 1


@pytest.mark.browser
def test_a_token_shows_candidates_measures_and_both_ways(opened, made):
    page = opened(f"{longest(made, 'reverse', 2)}&token=2")
    at = fragment(page)
    [response] = [
        r
        for r in made.content["responses"]
        if (r["problem"], r["sample"]) == (at["problem"], int(at["sample"]))
    ]
    leaf, _ = response["mixtures"]["reverse"]["js"][2]
    node = path(response, leaf)[2]
    before = node - response["parent"][node]
    i = response["at"].index(before)
    panel = page.inner_text("#token")
    assert f"JS {response['measured']['js'][i]:.3f}" in panel
    assert page.locator("#token tbody tr").count() == len(response["candidates"][i])
    inside = sum(bits >> side & 1 for *_, bits in response["candidates"][i] for side in (0, 1))
    assert page.inner_text("#token tbody").count("●") == inside
    for side, name in enumerate(("base", "tuned")):
        shown = page.evaluate(f"document.querySelector('[data-side={name}]').textContent")
        assert shown == text(made.content, response, way(response, side, before))


@pytest.mark.browser
def test_an_address_brings_back_what_was_shown(opened):
    page = opened()
    page.select_option("#way", "reverse")
    page.select_option("#problem", index=2)
    page.select_option("#sample", "1")
    page.select_option("#rule", index=0)
    page.evaluate("document.getElementById('stop').stepUp(2)")
    page.dispatch_event("#stop", "input")
    page.locator("#response .t").last.click()
    address = page.evaluate("location.hash")
    other = opened(address)
    for part in ("#response", "#token", "#finding", "#said", "#curve"):
        assert other.inner_text(part) == page.inner_text(part), part
    assert other.evaluate("location.hash") == address
    values = "[...document.querySelectorAll('select, input')].map(e => e.value)"
    assert other.evaluate(values) == page.evaluate(values)
    nonsense = opened("#pair=none&rule=7&t=x&token=-4&problem=%00")
    assert nonsense.locator("#response .t").count() and "right" in nonsense.inner_text("#finding")


@pytest.mark.browser
def test_inside_a_notebook_it_works_too(opened, made, tmp_path):
    notebook = tmp_path / "notebook.html"
    notebook.write_text(pages.framed(made.file).data, encoding="utf-8")
    page = opened(file=notebook)
    frame = page.frame_locator("iframe")
    frame.locator("body[data-ready]").wait_for()
    frame.locator("#stop").focus()
    before = frame.locator("#stop-name").inner_text()
    page.keyboard.press("ArrowRight")
    assert frame.locator("#stop-name").inner_text() != before
    frame.locator("#response .t").first.click()
    assert "token 1 of" in frame.locator("#token h2").inner_text()


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_is_legible(opened, width, scheme):
    page = opened(width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 20 and min(contrasts.values()) >= 4.5, json.dumps(contrasts, indent=1)


# Contrast (WCAG 2) of every element with text of its own against what lies behind it, the lowest first.
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  canvas.canvas.width = canvas.canvas.height = 1;
  const over = colors => {
    canvas.clearRect(0, 0, 1, 1);
    for (const c of colors) { canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = rgb => {
    const [r, g, b] = rgb.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = {};
  for (const element of document.querySelectorAll("main *:not(option):not(optgroup):not(svg *)")) {
    const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !element.getClientRects().length) continue;
    const behind = [];
    for (let e = element; e; e = e.parentElement) behind.unshift(getComputedStyle(e).backgroundColor);
    const [a, b] = [light(over(behind)), light(over([...behind, getComputedStyle(element).color]))];
    found[`${element.tagName}.${element.className} ${element.textContent.slice(0, 20)}`] = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }
  return Object.fromEntries(Object.entries(found).sort((x, y) => x[1] - y[1]));
}"""

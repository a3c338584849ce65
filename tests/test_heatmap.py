"""Responses as HTML: complete, self-contained, escaped."""

import re

import made_up
import pandas as pd
import pytest

from tokenshift_utils.report.heatmap import show_shifts, show_trajectories, token_pieces

WORDS = ["so", "<script>alert(1)</script>", "\n", "1", "7", "&", "http://x", "the"]


class Joined:
    """Decodes words with spaces between them, but digits together."""

    def decode(self, ids):
        return re.sub(r"(?<=\d) (?=\d)", "", " ".join(WORDS[i] for i in ids))


def response(ids):
    frame = made_up.shifts(problems=1, samples=1, benchmarks=("easy",), top_k=6).head(len(ids))
    tops = [[i % len(WORDS) for i in range(j, j + 6)] for j in range(len(ids))]
    return frame.assign(token=ids, top_ids_base=tops, top_ids_tuned=tops)


def test_pieces_make_up_the_text():
    ids = [0, 3, 4, 2, 7] * 6
    pieces = token_pieces(Joined(), ids)
    assert "".join(pieces) == Joined().decode(ids)
    assert pieces[2] == "7"  # digits stay together


def test_a_token_that_rewrites_the_text_is_shown_alone():
    class Bytes:
        def decode(self, ids):
            return "é" if len(ids) > 1 else "�" * len(ids)

    assert token_pieces(Bytes(), [1, 2]) == ["�", "�"]


def test_heat_map_is_self_contained_escaped_and_complete():
    ids = [0, 1, 2, 3, 4, 5, 6, 7]
    page = show_shifts(response(ids), Joined(), title="<b>t</b> & more").data
    assert "<script" not in page and "&lt;script&gt;" in page and "&lt;b&gt;t&lt;/b&gt;" in page
    assert not re.search(r"(src|href|url|@import)\s*[=(]", page)
    assert page.count('<span class="tsu-t"') == len(ids)
    assert page.count("<tr>") == len(ids) * 6  # a head and five candidates each
    assert "⏎\n" in page  # a line break is shown and made


def test_emitted_token_is_bold_among_the_candidates():
    page = show_shifts(response([0]), Joined()).data
    assert page.count("<b>so</b>") == 2


def test_colour_follows_js():
    rows = response([0, 3]).assign(js=[0.0, made_up.LN2])
    shades = re.findall(
        r'tsu-t" style="background:rgba\(213,94,0,([\d.]+)\)', show_shifts(rows, Joined()).data
    )
    assert [float(s) for s in shades] == [0.0, 0.85]


def test_long_responses_are_cut_and_say_so():
    page = show_shifts(response([0, 3, 4, 7]), Joined(), limit=3).data
    assert page.count('<span class="tsu-t"') == 3 and "1 more tokens" in page


def test_more_than_one_response_is_refused():
    rows = response([0, 3])
    with pytest.raises(ValueError, match="exactly one response"):
        show_shifts(pd.concat([rows, rows]), Joined())


def test_trajectories_mark_switches():
    row = pd.Series({"correct": True, "prompt_ids": [0, 7], "response_ids": [0, 1, 2, 7]})
    switches = pd.DataFrame(
        {"position": [1, 3], "token_primary": [5, 7], "js": [0.2, 0.3], "effective": [True, False]}
    )
    example = {"title": "p<1>", "columns": [("base", row, None), ("mixed", row, switches)]}
    page = show_trajectories([example], Joined()).data
    assert page.count('class="tsu-t tsu-eff"') == 1 and page.count('class="tsu-t tsu-sw"') == 1
    assert "&amp;" in page and "p&lt;1&gt;: so the" in page and "<script" not in page

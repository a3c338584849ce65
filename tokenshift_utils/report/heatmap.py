"""Responses as HTML: a token-by-token heat map of JS, and trajectories side by side.

The HTML is self-contained (inline style, no script, no request) and every text in it is escaped.
"""

from __future__ import annotations

import math
from html import escape
from itertools import zip_longest

import pandas as pd

LN2 = math.log(2)
CONTEXT = 12  # tokens decoded before each, so that its spacing comes out as in the whole text
_RGB = "213,94,0"  # vermilion of Okabe and Ito: JS

_STYLE = """<style>
.tsu{font:14px/1.75 ui-monospace,Menlo,Consolas,monospace;color:#111;background:#fff;padding:6px}
.tsu-map{padding-right:340px;padding-bottom:210px;white-space:pre-wrap;overflow-wrap:anywhere}
.tsu-t{position:relative;border-radius:2px}
.tsu-t:hover{outline:1px solid #111}
.tsu-tip{display:none;position:absolute;left:0;top:1.6em;z-index:9;width:320px;background:#fff;
border:1px solid #888;padding:4px 8px;font-size:12px;line-height:1.4;white-space:normal}
.tsu-t:hover .tsu-tip{display:block}
.tsu-tip table{border-collapse:collapse;width:100%;font-size:12px}
.tsu-tip td,.tsu-tip th{text-align:left;padding:0 6px 0 0;border:0;background:none}
.tsu-head{font:13px sans-serif;margin-bottom:6px}
.tsu-key{display:inline-block;padding:0 6px}
.tsu-cols{display:flex;gap:14px;margin-bottom:14px}
.tsu-cols>div{flex:1;min-width:0;border-top:2px solid #888;padding-top:4px;
white-space:pre-wrap;overflow-wrap:anywhere}
.tsu-eff{background:rgba(0,114,178,.28);border-bottom:2px solid rgb(0,114,178)}
.tsu-sw{border-bottom:2px dotted rgb(0,114,178)}
</style>"""


def token_pieces(tokenizer, ids) -> list[str]:
    """The text that each token adds to the text before it, so that the pieces make up the text.

    A token that changes earlier text instead of adding to it (bytes of one character) is shown as
    it decodes alone.
    """
    ids = [int(i) for i in ids]
    return [token_piece(tokenizer, ids[:i], token) for i, token in enumerate(ids)]


def token_piece(tokenizer, before: list[int], token: int) -> str:
    """The text that a token adds to that of the tokens before it: one of ``token_pieces``."""
    context = before[-CONTEXT:]
    shorter, longer = tokenizer.decode(context), tokenizer.decode([*context, token])
    is_prefix = longer.startswith(shorter)
    return longer[len(shorter) :] if is_prefix else tokenizer.decode([token])


def _visible(text: str) -> str:
    """A token's text for a list: escaped, with line breaks and outer spaces made visible."""
    shown = text.replace("\n", "⏎")
    if shown != shown.strip(" ") or not shown:
        shown = f"'{shown}'"
    return escape(shown)


def _in_flow(text: str) -> str:
    """A token's text inside the response: a line break is shown, then made."""
    return escape(text).replace("\n", "⏎\n") or "∅"


def _lists(row, tokenizer, top: int) -> str:
    """Both models' most probable tokens; the emitted one is bold."""
    cells = []
    for side in ("base", "tuned"):
        column = []
        for i, logp in list(zip(row[f"top_ids_{side}"], row[f"top_logp_{side}"]))[:top]:
            name = _visible(tokenizer.decode([int(i)]))
            name = f"<b>{name}</b>" if int(i) == int(row["token"]) else name
            column.append(f"<td>{name}</td><td>{math.exp(logp):.3f}</td>")
        cells.append(column)
    pairs = zip_longest(*cells, fillvalue="<td></td><td></td>")
    rows = "".join(f"<tr>{a}{b}</tr>" for a, b in pairs)
    return f"<table><tr><th colspan=2>base</th><th colspan=2>tuned</th></tr>{rows}</table>"


def show_shifts(rows: pd.DataFrame, tokenizer, title: str = "", top: int = 5, limit: int = 1500):
    """One response as a heat map: JS as colour, both top lists with probabilities on hover.

    Parameters
    ----------
    rows : shifts records of one response (columns position, token, js, js_full, entropy_base,
        entropy_tuned, top_ids_base, top_logp_base, top_ids_tuned, top_logp_tuned).
    tokenizer : what decodes a list of ids to text.
    title : shown above, as plain text.
    top : length of the lists; limit : tokens shown at most.

    Returns
    -------
    IPython.display.HTML

    Raises
    ------
    ValueError
        If the rows are not the positions of one response.
    """
    from IPython.display import HTML

    rows = rows.sort_values("position")
    if rows.empty or rows["position"].duplicated().any():
        raise ValueError("show_shifts needs the positions of exactly one response")
    total, rows = len(rows), rows.head(limit)
    spans = []
    for piece, (_, row) in zip(token_pieces(tokenizer, rows["token"]), rows.iterrows()):
        shade = min(1.0, math.sqrt(max(row["js"], 0.0) / LN2))
        tip = (
            f"position {int(row['position'])}: {_visible(piece)}<br>"
            f"JS {row['js']:.4f} nats (full vocabulary {row['js_full']:.4f})<br>"
            f"entropy: base {row['entropy_base']:.3f}, tuned {row['entropy_tuned']:.3f} nats"
            f"{_lists(row, tokenizer, top)}"
        )
        spans.append(
            f'<span class="tsu-t" style="background:rgba({_RGB},{0.85 * shade:.3f})">'
            f'{_in_flow(piece)}<span class="tsu-tip">{tip}</span></span>'
        )
    key = "".join(
        f'<span class="tsu-key" style="background:rgba({_RGB},{0.85 * math.sqrt(v / LN2):.3f})">'
        f"{v:.2g}</span>"
        for v in (0.0, 0.01, 0.1, 0.3, LN2)
    )
    head = f'<div class="tsu-head">{escape(title)} JS in nats: {key} (hover over a token)</div>'
    cut = f"\n… {total - limit} more tokens" if total > limit else ""
    return HTML(
        f'{_STYLE}<div class="tsu">{head}<div class="tsu-map">{"".join(spans)}{cut}</div></div>'
    )


def _column(name: str, row: pd.Series, tokenizer, switches: pd.DataFrame | None) -> str:
    verdict = "right" if row["correct"] else "wrong"
    head = f'<div class="tsu-head"><b>{escape(name)}</b>: {verdict}</div>'
    marks = {} if switches is None else {int(s["position"]): s for _, s in switches.iterrows()}
    spans = []
    for position, piece in enumerate(token_pieces(tokenizer, row["response_ids"])):
        switch, text = marks.get(position), _in_flow(piece)
        if switch is None:
            spans.append(text)
            continue
        would = _visible(tokenizer.decode([int(switch["token_primary"])]))
        kind = "tsu-eff" if switch["effective"] else "tsu-sw"
        tip = f"JS {switch['js']:.3f} nats; the primary would have written {would}"
        spans.append(f'<span class="tsu-t {kind}">{text}<span class="tsu-tip">{tip}</span></span>')
    return f"<div>{head}{''.join(spans)}</div>"


def _prompt(example: dict, tokenizer) -> str:
    """The prompt that the columns share, where their rows hold it."""
    row = example["columns"][0][1]
    if "prompt_ids" not in row.index:
        return ""
    return ": " + _visible(tokenizer.decode([int(i) for i in row["prompt_ids"]]))


def show_trajectories(examples: list[dict], tokenizer):
    """Trajectories of one problem side by side, the switches of the mixed one marked.

    Parameters
    ----------
    examples : dicts with `title` and `columns`, a list of (name, row of rollouts or runs, its
        switches or None).
    tokenizer : what decodes a list of ids to text.

    Returns
    -------
    IPython.display.HTML : filled marks are effective replacements, dotted ones are switches to the
        token that the primary would have written too.
    """
    from IPython.display import HTML

    blocks = [
        f'<div class="tsu-head">{escape(example["title"])}{_prompt(example, tokenizer)}</div>'
        '<div class="tsu-cols">'
        + "".join(_column(name, row, tokenizer, s) for name, row, s in example["columns"])
        + "</div>"
        for example in examples
    ]
    key = (
        '<div class="tsu-head"><span class="tsu-eff">effectively replaced</span> '
        '<span class="tsu-sw">switched, same token</span> (hover for what the primary would have '
        "written)</div>"
    )
    return HTML(f'{_STYLE}<div class="tsu">{key}{"".join(blocks)}</div>')

"""The problems that a study's ``training`` section trains on, as prompts with answers."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.study.study import Study
from tokenshift_utils.study.tokenizers import load_tokenizer
from tokenshift_utils.tasks.cells import text_of
from tokenshift_utils.tasks.prompts import prompt_text
from tokenshift_utils.tasks.rows import read_rows
from tokenshift_utils.tasks.verifier import check_answer


def read_problems(study: Study) -> tuple[pa.Table, dict[str, int]]:
    """Prompts, answers and solutions (of arms that learn them) to train on, and how many rows were
    left out, by why.

    Of a problem that comes again the first answer is kept; ``other_answer`` counts the problems
    that come with another one later.

    Raises
    ------
    TokenshiftError
        Where the data are missing, can't be read, or a row's problem or answer is none.
    """
    spec = study.training.data
    more = sorted({a.solution for a in study.training.arms.values() if a.solution is not None})
    place = study.training_data_path()
    where = f"the training data {spec.hub or paths.display(place)}"
    kept: dict[str, list[str]] = {}  # by text: answer and solutions
    contradicted, rows = set(), 0
    columns = (spec.prompt or spec.problem, spec.answer, *more)
    for name, row in read_rows(place, spec, {path.partition(".")[0] for path in columns}):
        rows += 1
        text, *rest = (_text_at(row, path, where, name) for path in columns)
        check_answer(rest[0], study.verifier, f"{where}, {name}")
        if kept.setdefault(text, rest)[0] != rest[0]:
            contradicted.add(text)
    if not kept:
        raise TokenshiftError(f"{where} has no rows: give at least one")
    if spec.prompt:  # all that the user says: nothing of the study's template goes around it
        prompt = study.prompt.model_copy(update={"template": "{problem}"})
        study = study.model_copy(update={"prompt": prompt})
    learnt = dict(zip(("answer", *more), map(list, zip(*kept.values()))))
    table = pa.table({"prompt": [prompt_text(study, text) for text in kept]} | learnt)
    counts = {"rows": rows, "repeated": rows - len(kept), "other_answer": len(contradicted)}
    if spec.max_prompt_tokens is not None:
        tokenizer = load_tokenizer(study.model_path(study.base))
        ids = tokenizer(table["prompt"].to_pylist(), add_special_tokens=False)["input_ids"]
        fit = [len(tokens) <= spec.max_prompt_tokens for tokens in ids]
        table, counts["too_long"] = table.filter(pa.array(fit)), fit.count(False)
        if not len(table):
            raise TokenshiftError(
                f"{where} has no prompt of at most {spec.max_prompt_tokens} tokens "
                "('training.data.max_prompt_tokens'): raise it, or give shorter problems"
            )
    return table, counts | {"problems": len(table)}


def _text_at(row: dict, path: str, where: str, name: str) -> str:
    value = _at(row, path)
    if value in (None, "", []):
        raise TokenshiftError(
            f"{where} has no '{path}' in {name}; its columns are {', '.join(row)}"
        )
    return text_of(value, f"{where}, {name}", path)


def _at(row: dict, path: str) -> Any:
    """What stands at a dotted path into dicts and lists; None where there is nothing."""
    value: Any = row
    for part in path.split("."):
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value

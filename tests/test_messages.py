"""Every message of the package: what was wrong, where, and what to do about it.

``messages.md`` lists them for readers; ``python tests/test_messages.py`` writes it anew after a
message was added or changed.
"""

import ast
import re
from pathlib import Path

import pytest

import tokenshift_utils

PACKAGE = Path(tokenshift_utils.__file__).parent
TABLE = Path(__file__).with_name("messages.md")
ERRORS = ("TokenshiftError", "NotebookFailed")
# What to do follows a colon or semicolon, or is what the sentence says is needed.
REMEDY = re.compile(r"[:;] |\b(must|needs?|takes?|give|goes? with|is for)\b")
# What they say to do is what they say is wrong.
PLAIN = (
    "there are no prompts to cross-sample",
    "{len(prompts)} prompts came with {len(given)} {name}",
    "{paths.display(file)} can't be read ({error})",
    "{paths.display(file)}, line {number} is not a JSON object",
    "the study's 'stop_tokens' has {token}, which is no token of the models' tokenizer",
)
# Sentences made elsewhere: variables hold the whole of one.
MADE_ELSEWHERE = re.compile(r"(\{[\w.()\[\]]+\} ?)+")


def text_of(node: ast.expr) -> str:
    """A message as its source has it: words, and what stands for names in braces."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(
                part.value if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"
                for part in values
            )
        case ast.BinOp(left=left, right=right):
            return text_of(left) + text_of(right)
    return f"{{{ast.unparse(node)}}}"


def messages() -> list[str]:
    """All messages that the package raises, sorted."""
    found = set()
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            named = isinstance(node, ast.Call) and getattr(node.func, "id", None) in ERRORS
            if named and node.args:
                found.add(text_of(node.args[0]))
    return sorted(found)


def table() -> str:
    """The messages as Markdown: the sentence, what it names, and the part that says what to do."""
    lines = ["| what is wrong | what it names | what to do |", "| --- | --- | --- |"]
    for message in messages():
        names = ", ".join(dict.fromkeys(re.findall(r"\{([^{}]+)\}", message)))
        wrong, mark, remedy = _split(message)
        cells = (wrong, names, remedy if mark else "as it says")
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _split(message: str) -> tuple[str, str, str]:
    for mark in ("; ", ": "):
        if mark in message:
            return message.partition(mark)
    return message, "", ""


@pytest.mark.parametrize("message", messages())
def test_a_message_is_a_sentence_that_names_its_subject_and_says_what_to_do(message):
    if MADE_ELSEWHERE.fullmatch(message) or message in PLAIN:
        return
    assert "\n" not in message and "!" not in message.replace("!r", "")
    assert re.search(r"[{'-]", message) or len(message) < 80, "names nothing"
    assert REMEDY.search(message), "doesn't say what to do"
    assert not message.startswith(("Error", "Invalid", "Failed")), "says no subject"


def test_the_table_lists_every_message():
    assert TABLE.read_text(encoding="utf-8") == table(), f"run: python {Path(__file__).name}"


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")

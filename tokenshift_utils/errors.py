"""What a user reads when something goes wrong.

A mistake in what they gave is a `TokenshiftError`. What their machine or their files do (a full
disk, a missing permission, a damaged file) reaches a command as an exception of Python or of a
library: `sentence_of` says it as plainly. Everything else is a fault of this package.
"""

import builtins
import errno
import json
import os
import re

REPORT = "this is a fault of tokenshift itself: please report it with the traceback above"


class TokenshiftError(Exception):
    """A mistake in what the user gave: one clear sentence saying what, where and what to do.

    It stays one line where what it names is a text of several, or has signs that steer a terminal.
    """

    def __init__(self, sentence: str = ""):
        super().__init__(_one_line(sentence))


def _one_line(text: str) -> str:
    lines = " ".join(text.splitlines())
    return re.sub(
        "[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]",
        lambda sign: sign[0].encode("unicode_escape").decode("ascii"),
        lines,
    )


_AGAIN = "run the same command again; what is finished is kept"
_MEMORY = f"the machine has too little memory: lower the study's 'batch' or 'workers' and {_AGAIN}"
_REFUSED = "the machine refused an operation ({said}): mend that, then " + _AGAIN
# By error number: what is wrong and what to do; {where} is the path, or words for it.
_OF_THE_MACHINE = {
    errno.ENOSPC: "no space left on the disk for {where}: make room and " + _AGAIN,
    errno.EDQUOT: "the disk quota leaves no space for {where}: make room and " + _AGAIN,
    errno.EFBIG: "{where} is larger than the file system takes: write to another one",
    errno.EROFS: "{where} is on a read-only file system: work in a copy that can be written to "
    "(TOKENSHIFT_HOME may name it)",
    errno.EACCES: "no permission to read or write {where}: change its permissions, or work in a copy "
    "of your own (TOKENSHIFT_HOME may name it)",
    errno.EISDIR: "{where} is a directory where a file is expected: name another, or move it away",
    errno.ENOTDIR: "{where} passes through a file where a directory is expected: name another path, "
    "or move that file away",
    errno.EEXIST: "{where} is in the way of what is to be written there: move it away",
    errno.ENOTEMPTY: "{where} is in the way of what is to be written there: move it away",
    errno.ENOENT: "there is no {where}: check the path, or whether something removed it meanwhile",
    errno.ENAMETOOLONG: "the name {where} is too long for the file system: use a shorter one",
    errno.ELOOP: "the symbolic links of {where} lead in a circle: mend them",
    errno.EMFILE: "too many files are open ({where}): raise the limit, say with ulimit -n 4096",
    errno.EIO: "the disk cannot read or write {where}: check it, then " + _AGAIN,
    errno.ESTALE: "the network storage has lost {where}: mount it again, then " + _AGAIN,
    errno.ENOMEM: _MEMORY,
}
_OF_THE_MACHINE[errno.EPERM] = _OF_THE_MACHINE[errno.EACCES]
_OF_THE_MACHINE[errno.ENFILE] = _OF_THE_MACHINE[errno.EMFILE]
_NUMBER = re.compile(r"(?:\[Errno |os error |errno )(\d+)")  # as Python, Rust and Arrow write it
_PATH = re.compile(r": '([^']+)'")


def first_line(error: BaseException) -> str:
    """What an exception says, in its first line that says anything; else its name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def sentence_of(error: BaseException) -> str | None:
    """What the machine or a user's file did, as one sentence; None for any other exception."""
    if isinstance(error, OSError) and error.errno is not None:
        name = error.filename2 or error.filename
        return _of_machine(error.errno, os.fsdecode(name) if name else "", first_line(error))
    kinds = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__]
    return said_as_sentence(kinds, first_line(error), isinstance(error, OSError))


def said_as_sentence(kinds: list[str], text: str, of_machine: bool = False) -> str | None:
    """`sentence_of` an exception of another process, from its classes' names and what it says."""
    number, path = _NUMBER.search(text), _PATH.search(text)
    if number and (of_machine or any(_is_machine(kind) for kind in kinds)):
        return _of_machine(int(number[1]), path[1] if path else "", text)
    for kind in kinds:
        name = kind.rpartition(".")[2]
        if name in ("MemoryError", "OutOfMemoryError"):
            return _MEMORY
        if name in ("UnicodeDecodeError", "UnicodeEncodeError", "UnicodeError"):
            return f"a text is not in UTF-8 ({text}): save the file that holds it as UTF-8"
        for marker, what in _FORMATS.items():
            if marker in kind:
                return f"{what} cannot be read or written ({text}): restore it, or make it anew"
    return _REFUSED.format(said=text) if of_machine else None


_FORMATS = {
    "JSONDecodeError": "a JSON file",
    "NotJSONError": "a notebook file",
    "nbformat": "a notebook file",
    "YAMLError": "a YAML file",
    "pyarrow": "a Parquet file",
    "Arrow": "a Parquet file",
    "SafetensorError": "a safetensors file",
    "ParserError": "a table file",
    "EmptyDataError": "a table file",
}
_OS_ERRORS = {"OSError", "IOError", "SafetensorError", "EnvironmentError"}


def _is_machine(kind: str) -> bool:
    name = kind.rpartition(".")[2]
    builtin = getattr(builtins, name, None)
    return name in _OS_ERRORS or (isinstance(builtin, type) and issubclass(builtin, OSError))


def _of_machine(number: int, path: str, text: str) -> str:
    if number == errno.ENOENT and not path:
        return "the working directory is no longer there: change to another and run again"
    template = _OF_THE_MACHINE.get(number, _REFUSED)
    return template.format(where=path or "what this command writes", said=text)


def damaged(error: BaseException) -> str:
    """Why a file's content cannot be used, in a few words for the middle of a sentence."""
    if isinstance(error, UnicodeError):
        return "it is not UTF-8"
    if isinstance(error, json.JSONDecodeError):
        return f"it is no JSON: {error.msg} at line {error.lineno}"
    return first_line(error)

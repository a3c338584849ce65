"""Compare answers by math-verify, one pair a line, in a process that may be ended at any time.

``python -m tokenshift_utils.tasks.math_judge`` says ``ready``, then reads JSON lines ``[answer, own, seconds]``
and writes ``True`` or ``False`` for each. math-verify's own time limit rests on a signal handler,
which works in a main thread only and not while one long operation of the interpreter runs. Here
the kernel ends the whole process when a comparison has used up its processor time, and its memory
is limited; whoever asked sees the end of the output.

Three of math-verify's faults are mended here, as of version 0.9.0:

- What LaTeX's grammar does not read, it searches for any number; ``1 + 1/\\mathrm{e}`` and
  ``1 - 1/\\mathrm{e}`` are then both 1. Here it reads the whole or nothing.
- It compares numbers by their difference, so that all small ones are the same (``1/2006!`` and
  ``1/2004!``). Here rational numbers are compared exactly, others by their ratio.
- It takes i for a variable, so that ``(1 + i)^2`` is not ``2i``. Here it is the imaginary unit
  where an answer has no other name.
"""

import json
import resource
import signal
import sys
from contextlib import suppress
from functools import partial

MEMORY = 1 << 30  # bytes of address space
DIGITS = 30  # to which irrational numbers are known
ALIKE = 1e-20  # relative difference of equal irrational numbers
ALIKE_DECIMALS = 1e-5  # of a decimal fraction and what it rounds, beside math-verify's six places


def numbers_equal(a, b, places: int) -> bool:
    """Whether two sympy numbers are equal: exactly, or rounded where one has a decimal point."""
    import sympy

    a, b = a.doit(), b.doit()
    if a == b:
        return True
    if a.is_Rational and b.is_Rational:
        return False
    rounded = bool(a.atoms(sympy.Float) or b.atoms(sympy.Float))
    x, y = a.evalf(DIGITS), b.evalf(DIGITS)
    if not (x.is_number and y.is_number and x.is_finite and y.is_finite):
        return False
    limit = ALIKE_DECIMALS if rounded else ALIKE
    if rounded and x.round(places) != y.round(places):
        return False
    return bool(abs(x - y) <= limit * max(abs(x), abs(y)))


def imaginary(parsed):
    """What was parsed, with the imaginary unit for i where that is its only name."""
    import sympy

    if not isinstance(parsed, sympy.Basic) or parsed.has(sympy.core.relational.Relational):
        return parsed
    names = parsed.free_symbols
    only = {str(name) for name in names} == {"i"}
    return parsed.subs(dict.fromkeys(names, sympy.I)) if only else parsed


def mend(grader) -> None:
    """Put ``numbers_equal`` in the place of math-verify's own comparison, at every depth."""
    import sympy

    original = grader.sympy_numeric_eq

    def numeric_eq(a, b, float_rounding, numeric_precision):
        expressions = isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr)
        if expressions and not a.free_symbols and not b.free_symbols:
            with suppress(TypeError, ValueError, AttributeError):
                return numbers_equal(a, b, float_rounding)
            return False
        alike = original(a, b, float_rounding, numeric_precision)
        if not expressions or not alike:
            return alike
        names = sorted(a.free_symbols | b.free_symbols, key=str)
        at = {s: sympy.Rational(17 + 4 * i, 13 + 6 * i) for i, s in enumerate(names)}
        return numbers_equal(a.doit().subs(at), b.doit().subs(at), float_rounding)

    grader.sympy_numeric_eq = numeric_eq


def main() -> None:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, grader, parse, verify

    mend(grader)
    # units are known already where this is asked (``answers.unit``); here ``2t`` would lose its t
    notation = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
    )
    reads = [LatexExtractionConfig(normalization_config=notation, boxed_match_priority=-1)]
    with suppress(ValueError, OSError):  # not every system has this limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    read = partial(
        parse, extraction_config=reads, fallback_mode="no_fallback", parsing_timeout=None
    )
    equal = partial(verify, timeout_seconds=None, allow_set_relation_comp=True)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process
    print("ready", flush=True)
    for line in sys.stdin:
        *texts, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        parsed = [list(map(imaginary, read(f"${text}$"))) for text in texts]
        verdict = all(parsed) and equal(*parsed)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(bool(verdict), flush=True)


if __name__ == "__main__":
    main()

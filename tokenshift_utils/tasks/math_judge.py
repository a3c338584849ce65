"""Compare answers by math-verify, one pair a line, in a process that may be ended at any time.

``python -m tokenshift_utils.tasks.math_judge`` says ``ready``, then reads JSON lines ``[answer, own, seconds]``
and writes ``True`` or ``False`` for each. math-verify's own time limit rests on a signal handler,
which works in a main thread only and not while one long operation of the interpreter runs. Here
the kernel ends the whole process when a comparison has used up its processor time, and its memory
is limited; whoever asked sees the end of the output.
"""

import json
import resource
import signal
import sys
from contextlib import suppress

MEMORY = 4 << 30  # bytes of address space


def main() -> None:
    from math_verify import parse, verify

    with suppress(ValueError, OSError):  # not every system has this limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process
    print("ready", flush=True)
    for line in sys.stdin:
        *texts, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        parsed = [
            parse(f"${text}$", fallback_mode="no_fallback", parsing_timeout=None) for text in texts
        ]
        verdict = all(parsed) and verify(*parsed, timeout_seconds=None)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(bool(verdict), flush=True)


if __name__ == "__main__":
    main()

"""What the user can mend is told in one line; anything else shows its traceback."""

import os
import sys
import warnings
from collections.abc import Callable

from imagen_nb.engine.stopping import TrainingError

STOPPED = 130  # exit code after Ctrl-C


def in_one_line(
    command: str,  # named in the line
    call: Callable[[], int | None],  # what to do; its result is the exit code
) -> int:  # exit code: 2 for the user's error, 130 for Ctrl-C, 141 for a closed pipe
    "Call, and put errors and warnings into words."
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # no caption may stop a terminal that lacks its letters
            stream.reconfigure(errors="replace")
    warnings.showwarning = lambda message, *_, **__: print(f"imagen-nb: {message}", file=sys.stderr)
    try:
        code = call() or 0
        if sys.stdout:
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read has seen enough, as `head` does
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # for what is flushed at exit
        return 141
    except (ValueError, OSError, ImportError, TrainingError) as e:
        reason = f"{e.strerror}: {e.filename}" if isinstance(e, OSError) and e.filename else str(e)
        print(f"imagen-nb {command}: {reason.removeprefix(command + ': ')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as e:
        print(f"\nimagen-nb: {str(e) or 'stopped'}", file=sys.stderr)
        return STOPPED

"""What the user can mend is told in one line; anything else shows its traceback."""

import sys
import warnings
from collections.abc import Callable

from imagen_nb.engine.stopping import TrainingError


def in_one_line(
    command: str,  # named in the line
    call: Callable[[], int | None],  # what to do; its result is the exit code
) -> int:  # exit code: 2 for the user's error, 130 for Ctrl-C
    "Call, and put errors and warnings into words."
    warnings.showwarning = lambda message, *_, **__: print(f"imagen-nb: {message}", file=sys.stderr)
    try:
        return call() or 0
    except (ValueError, OSError, ImportError, TrainingError) as e:
        reason = f"{e.strerror}: {e.filename}" if isinstance(e, OSError) and e.filename else str(e)
        print(f"imagen-nb {command}: {reason.removeprefix(command + ': ')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as e:
        print(f"\nimagen-nb: {e or 'stopped'}", file=sys.stderr)
        return 130

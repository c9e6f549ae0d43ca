"A line of JSON for each case: its name, and what it counted or the error that ended it."

import json
import sys
import time
import traceback

from . import guard

if __name__ == "__main__":
    guard.load()
    from .cases import run

    for case in sys.argv[1:]:
        since = time.perf_counter()
        try:
            result = run(case)
        except Exception:
            result = dict(error=traceback.format_exc())
        print(json.dumps([case, result | dict(seconds=time.perf_counter() - since)]), flush=True)

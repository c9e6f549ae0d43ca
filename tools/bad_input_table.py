"""What becomes of every class of bad input, as a Markdown table.

    python tools/bad_input_table.py

Runs the cases of tests/test_bad_input.py, and fails like them.
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT/"tests")]

from test_bad_input import CASES, kept, run  # noqa: E402


def outcome(case) -> tuple[str, bool]:
    "What became of a case in words, and whether it is what was asked for."
    with tempfile.TemporaryDirectory() as root:
        try:
            ds = run(case, Path(root))
        except Exception as e:  # the one thing that must not happen
            return f"**crashed**: {type(e).__name__}", False
        captions = [ds.caption(i) for i in kept(ds)]
    words = []
    for caption in captions:
        short = caption if len(caption) <= 24 else f"{len(caption):,} characters"
        words.append("read" + f", caption `{short}`"*bool(caption))
    words += [f"left out: {n} {reason}" for reason, n in ds.skipped.items()]
    words += [f"not looked at: {n} {what}" for what, n in case.ignored.items()]
    return "; ".join(words) or "nothing to read", (captions, ds.skipped) == (case.captions, case.skipped)


def main():
    done = {case.what: outcome(case) for case in CASES}
    print("| found | becomes |\n|---|---|")
    for what, (words, _) in done.items():
        print(f"| {what} | {words.replace('|', ' ')} |")
    read = sum(words.startswith("read") for words, _ in done.values())
    crashed = sum("crashed" in words for words, _ in done.values())
    print(f"\n{len(done)} classes: {read} read, {len(done) - read - crashed} left out or not looked at,"
          f" {crashed} crashed.")
    wrong = [what for what, (_, right) in done.items() if not right]
    if wrong:
        sys.exit(f"bad_input_table: not as tests/test_bad_input.py asks: {', '.join(wrong)}")


if __name__ == "__main__":
    main()

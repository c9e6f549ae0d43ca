"""What becomes of every class of bad input, as Markdown tables.

    python tools/measure/bad_input_table.py

Runs the cases of tests/test_bad_input.py in a folder, then the classes of pictures in every other kind of source
(the layouts of tests/test_sources.py), and fails like them.
"""

import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

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
        words.append("read" + f", caption `{short}`" * bool(caption))
    words += [f"left out: {n} {reason}" for reason, n in ds.skipped.items()]
    words += [f"not looked at: {n} {what}" for what, n in case.ignored.items()]
    return "; ".join(words) or "nothing to read", (captions, ds.skipped) == (
        case.captions,
        case.skipped,
    )


def sources():
    "For each kind of source: its name, classes of pictures read, left out, crashed, and whether as asked for."
    import datasets
    from test_sources import LAYOUTS, all_pictures, quiet

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as root:
        datasets.config.HF_DATASETS_CACHE = os.environ["IMAGEN_NB_CACHE"] = f"{root}/cache"
        rows = all_pictures(Path(root) / "made")
        wanted = {f"caption {k}" for k, (case, _) in enumerate(rows) if not case.skipped}
        for layout, write in LAYOUTS.items():
            (place := Path(root) / layout).mkdir()
            try:
                ds = quiet(write(place, [row for _, row in rows]), 16, max_skipped=1)
                ds.images(range(len(ds)))
            except Exception:
                yield layout, 0, 0, len(rows), False
                continue
            read = {ds.caption(i) for i in range(len(ds))}
            yield (
                layout,
                len(read),
                ds.skipped.total(),
                len(rows) - len(read) - ds.skipped.total(),
                read == wanted and not ds.broken,
            )


def main():
    done = {case.what: outcome(case) for case in CASES}
    print("| found | becomes |\n|---|---|")
    for what, (words, _) in done.items():
        print(f"| {what} | {words.replace('|', ' ')} |")
    read = sum(words.startswith("read") for words, _ in done.values())
    crashed = sum("crashed" in words for words, _ in done.values())
    print(
        f"\n{len(done)} classes: {read} read, {len(done) - read - crashed} left out or not looked at,"
        f" {crashed} crashed."
    )
    print(
        "\nThe classes of pictures in other sources:\n\n| source | read | left out | crashed |\n|---|---|---|---|"
    )
    wrong = [what for what, (_, right) in done.items() if not right]
    for layout, *counts, is_right in sources():
        print("|", " | ".join(map(str, (layout, *counts))), "|")
        wrong += [layout] * (not is_right)
    if wrong:
        sys.exit(f"bad_input_table: not as the tests ask: {', '.join(wrong)}")


if __name__ == "__main__":
    main()

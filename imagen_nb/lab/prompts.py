"""The published prompts of DrawBench. They are not ours to ship: they are read from a file or from the hub."""

import csv
import io
import json
from pathlib import Path

from imagen_nb.store.files import as_path

__all__ = ["HUB", "read_published"]

HUB = "sayakpaul/drawbench"  # a copy on the hub, of another author
CATEGORY, PROMPT = ("category", "categories"), ("prompts", "prompt", "text", "caption")


def read_published(
    source: str | Path,  # a .csv, .tsv or .jsonl file, or the name of a dataset on the hub
) -> list[tuple[str, str]]:  # category, prompt; in the order of the source
    "Prompts with their categories, from a table with a column for each."
    path = as_path(source)
    rows = _from_file(path) if path.suffix in (".csv", ".tsv", ".jsonl") else _from_hub(str(source))
    if not rows:
        raise ValueError(f"read_published: {source}, got no rows, expected one for each prompt")
    names = {name.lower().strip(): name for name in rows[0] if name}
    found = [next((names[n] for n in wanted if n in names), None) for wanted in (CATEGORY, PROMPT)]
    if None in found:
        raise ValueError(
            f"read_published: {source}, got columns {', '.join(names.values())},"
            " expected Category and Prompts"
        )
    category, prompt = map(str, found)
    pairs = [(str(row[category] or "").strip(), str(row[prompt] or "").strip()) for row in rows]
    return [pair for pair in dict.fromkeys(pairs) if pair[1]]


def _from_file(path: Path) -> list[dict]:
    "Rows of a table."
    if not path.exists():
        raise ValueError(
            f"read_published: {path}, got no such file, expected DrawBench as a table with the columns"
            f" Category and Prompts: 200 rows, linked from the paper's page and kept on the hub as {HUB}"
        )
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    return list(csv.DictReader(io.StringIO(text), delimiter="\t" if path.suffix == ".tsv" else ","))


def _from_hub(name: str) -> list[dict]:
    "Rows of every split of a dataset."
    import datasets

    try:
        splits = datasets.load_dataset(name)
    except Exception as e:  # no network, no such name: many kinds, one remedy
        raise ValueError(
            f"read_published: {name}, got {type(e).__name__}, expected a dataset of the hub, as {HUB},"
            " or a .csv file with the columns Category and Prompts"
        ) from e
    return [dict(row) for split in splits.values() for row in split]

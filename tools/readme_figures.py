"""Write the measured figures of `data/runs/toy.json` into README.md, between its two marks."""
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def table(card: dict) -> str:
    "Scores of every seed, in Markdown."
    lines = ["| all attributes right, % (32 px) | seen combinations | never trained on | 128 px | 512 px | 512 px, other captions |", "|---|---|---|---|---|---|"]
    for run in card["seeds"]:
        s = run["scores"]
        share = lambda size, part: f"{100*s[size][part]['all']['share']:.1f}"
        low, high = (100*s["32"]["all"]["all"][k] for k in ("low", "high"))
        lines.append(f"| seed {run['seed']}: {share('32', 'all')} ({low:.1f}–{high:.1f}) | {share('32', 'seen')} | {share('32', 'held_out')}"
                     f" | {share('128', 'all')} | {share('512', 'all')} | {share('512', 'shuffled')} |")
    return "\n".join(lines)


def text(card: dict) -> str:
    "What stands between the marks."
    minutes = sorted(run["seconds"]/60 for run in card["seeds"])
    stages = card["seeds"][0]["stages"]
    samples = ", ".join(f"{row['samples']:,} samples in {row['training_seconds']/60:.1f} min at {name}" for name, row in stages.items())
    return f"""![Held-out captions drawn by the toy cascade at 32, 128 and 512 pixels](data/runs/toy-samples.png)

What that run gave on {card['device']} (torch {card['torch']}), on `test[0:200]`: half of them
new scenes of combinations that training had (96 of their 100 sentences occur in training too), half asking for combinations
of colour and shape, or of shapes and places, that training never showed (none of these sentences occurs there); one picture each, none picked,
read by the oracle of ShapesWorld, with 95 % Wilson intervals:

{table(card)}

Seed {card['seeds'][0]['seed']} trained on {samples}.
Training, drawing and scoring took {minutes[0]:.0f}–{minutes[-1]:.0f} minutes, beside other work on the same two cores;
installation adds one to two. Attributes one by one, both controls (shuffled captions, and
perfect pictures of other captions) and the loss curves are in [data/runs/toy.json](data/runs/toy.json), which
`tools/make_run_card.py` writes. Shapes have soft corners and circles are a little lumpy at 32 pixels; enlargement sharpens
edges and keeps the lumps. The world is small and the oracle takes the nearest shape: this says that the machine works, not
that the toy is a painter."""


def main():
    card = json.loads((ROOT/"data"/"runs"/"toy.json").read_text())
    path = ROOT/"README.md"
    marked = re.compile(r"(<!-- figures:toy -->\n).*?(<!-- /figures:toy -->)", re.S)
    path.write_text(marked.sub(lambda m: m[1] + text(card) + "\n" + m[2], path.read_text()))


if __name__ == "__main__": main()

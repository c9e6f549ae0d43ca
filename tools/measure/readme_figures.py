"""Write the measured figures of `data/runs/*.json` into the READMEs, between their marks: `python tools/measure/readme_figures.py`."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "data" / "runs"
WORDS = {  # the few words of the tables, per language
    "README.md": dict(
        right="right, %",
        held="never trained on",
        other="other captions",
        chance="chance",
        interval="95 % interval",
        names=dict(
            count="count",
            colour="colour",
            shape="shape",
            relation="relation",
            size="size",
            fill="fill",
            background="background",
            all="**everything**",
        ),
    ),
    "README.zh.md": dict(
        right="正确率 %",
        held="训练中从未出现的组合",
        other="换成别的描述",
        chance="随机水平",
        interval="95 % 置信区间",
        names=dict(
            count="数量",
            colour="颜色",
            shape="形状",
            relation="位置关系",
            size="大小",
            fill="填充",
            background="背景",
            all="**全部正确**",
        ),
    ),
}


def card(name: str) -> dict:
    "A run card."
    return json.loads((RUNS / f"{name}.json").read_text())


def shipped(words: dict) -> str:
    "Attributes one by one, at the first and the last size."
    scores = card("toy-full")["seeds"][0]["scores"]
    lines = [
        f"| {'·'} | 32 px, {words['right']} | 512 px, {words['right']} | {words['interval']} | {words['held']} | {words['other']} | {words['chance']} |",
        "|---|---|---|---|---|---|---|",
    ]

    def share(size, part, name):
        return (
            f"{100 * scores[size][part][name]['share']:.1f}" if name in scores[size][part] else "–"
        )

    for name, label in words["names"].items():
        last = scores["512"]["all"][name]
        lines.append(
            f"| {label} | {share('32', 'all', name)} | {share('512', 'all', name)} | {100 * last['low']:.1f}–{100 * last['high']:.1f}"
            f" | {share('512', 'held_out', name)} | {share('512', 'shuffled', name)} | {share('512', 'chance', name)} |"
        )
    return "\n".join(lines)


def cost() -> dict:
    "Numbers of the sentences around the tables."
    stages, speed = card("toy-full")["seeds"][0]["stages"], card("sampling")
    toy = card("toy")["seeds"]
    shares = [100 * run["scores"][size]["all"]["all"]["share"] for run in toy for size in ("512",)]
    minutes = sorted(seconds / 60 for seconds in card("toy")["two_processes"]["seconds"])
    own = [stage for run in card("symbols")["seeds"] for stage in run["stages"].values()]
    hours = sum(o["training_seconds"] for o in stages.values()) / 3600
    return dict(
        samples=" + ".join(f"{o['samples']:,}" for o in stages.values()),
        hours=f"{hours:.1f}",
        parameters=f"{sum(speed['parameters']) / 1e6:.1f}",
        device=speed["device"],
        torch=speed["torch"],
        command=f"{speed['command_seconds']['median']:.0f}",
        one=f"{speed['one_caption']['median']:.1f}",
        four=f"{speed['four_captions']['median']:.1f}",
        memory=f"{speed['command_memory_gib']:.1f}",
        toy_low=f"{min(shares):.0f}",
        toy_high=f"{max(shares):.0f}",
        toy_minutes=f"{minutes[0]:.0f}–{minutes[-1]:.0f}",
        own_minutes=f"{sum(o['training_seconds'] for o in own) / 60:.0f}",
        own_samples=" + ".join(f"{o['samples']:,}" for o in own),
    )


def inputs() -> str:
    "What becomes of odd files: the table of `tools/measure/bad_input_table.py`, in English."
    import subprocess
    import sys

    return subprocess.run(
        [sys.executable, Path(__file__).with_name("bad_input_table.py")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def fill(name: str):
    "Replace what stands between marks `<!-- NAME -->` and `<!-- /NAME -->`, and numbers marked `<!-- n:NAME -->`."
    path, numbers = ROOT / name, cost()
    text = path.read_text(encoding="utf-8")

    def between(mark, new):
        return re.sub(
            rf"(<!-- {mark} -->).*?(<!-- /{mark} -->)",
            lambda m: m[1] + new + m[2],
            text,
            flags=re.S,
        )

    text = between("shipped", "\n" + shipped(WORDS[name]) + "\n")
    if "<!-- inputs -->" in text:
        text = between("inputs", "\n" + inputs() + "\n")
    for key, value in numbers.items():
        text = between(key, value)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for name in WORDS:
        fill(name)

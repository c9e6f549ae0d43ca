"""Write the measured figures of `data/runs/*.json` into the READMEs and pages of the site, between their marks.

python tools/measure/readme_figures.py
"""

import re
import subprocess
import sys
from pathlib import Path

from cards import ROOT, read_card

WORDS = {  # the few words of the tables, per language
    "en": dict(
        emoji=dict(
            head="right, % (95 % interval)",
            columns=(
                "object, 32 px",
                "among five",
                "style",
                "other captions",
            ),
            parts={
                "trained": "trained",
                "held out": "held out",
                "words": "words",
                "renamed": "words, by nearest name",
            },
        ),
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
    "zh": dict(
        emoji=dict(
            head="正确率 %（95 % 置信区间）",
            columns=("物体，32 px", "前五", "风格", "换成别的描述"),
            parts={
                "trained": "训练过的描述",
                "held out": "训练中从未出现的组合",
                "words": "训练中从未出现的词",
                "renamed": "同样的词，换成最近的名字",
            },
        ),
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


FILES = {
    "README.md": "en",
    "README.zh.md": "zh",
    "docs/pages/numbers.md": "en",
    "docs/pages/odd-files.md": "en",
}


def row(*cells) -> str:
    "A row of a table in Markdown."
    return f"| {' | '.join(cells)} |"


def shipped(words: dict) -> str:
    "Attributes one by one, at the first and the last size."
    scores, right = read_card("toy-full")["seeds"][0]["scores"], words["right"]
    columns = (
        ("32", "all"),
        ("512", "all"),
        ("512", "held_out"),
        ("512", "shuffled"),
        ("512", "chance"),
    )
    head = ["·", f"32 px, {right}", f"512 px, {right}", words["interval"]]
    head += [words["held"], words["other"], words["chance"]]
    lines = [row(*head), "|" + "---|" * len(head)]
    for name, label in words["names"].items():
        found = [scores[size][part].get(name) for size, part in columns]
        small, large, *others = [f"{100 * o['share']:.1f}" if o else "–" for o in found]
        low, high = (100 * found[1][end] for end in ("low", "high"))
        lines.append(row(label, small, large, f"{low:.1f}–{high:.1f}", *others))
    return "\n".join(lines)


def emoji(words: dict) -> str:
    "What the emoji model draws: shares of right pictures, by part."

    def cell(marks: dict | None) -> str:
        if not marks:
            return "–"
        share, low, high = (100 * marks[k] for k in ("share", "low", "high"))
        return f"{share:.1f} ({low:.0f}–{high:.0f})"

    parts, w = read_card("emoji-scores")["parts"], words["emoji"]
    lines = [row(w["head"], *w["columns"]), "|---" * 5 + "|"]
    for name, label in w["parts"].items():
        sides = [marks for side, marks in parts[name].items() if side.endswith("px")]
        marks = [sides[0][kind] for kind in ("object", "top5", "style")]
        lines.append(row(label, *map(cell, [*marks, sides[0]["shuffled"]["object"]])))
    return "\n".join(lines)


def cost() -> dict:
    "Numbers of the sentences around the tables."
    stages, speed = read_card("toy-full")["seeds"][0]["stages"], read_card("sampling-toy")
    toy, door = read_card("toy")["seeds"], read_card("sampling-emoji")
    shares = [100 * run["scores"][size]["all"]["all"]["share"] for run in toy for size in ("512",)]
    minutes = sorted(seconds / 60 for seconds in read_card("toy")["two_processes"]["seconds"])
    own = [stage for run in read_card("symbols")["seeds"] for stage in run["stages"].values()]
    hours = sum(o["training_seconds"] for o in stages.values()) / 3600
    return dict(
        samples=" + ".join(f"{o['samples']:,}" for o in stages.values()),
        hours=f"{hours:.1f}",
        parameters=f"{sum(speed['parameters']) / 1e6:.1f}",
        device=speed["device"],
        torch=speed["torch"],
        command=f"{door['command_seconds']['median']:.0f}",
        one=f"{speed['one_caption']['median']:.1f}",
        four=f"{speed['four_captions']['median']:.1f}",
        memory=f"{door['command_memory_gib']:.1f}",
        toy_low=f"{min(shares):.0f}",
        toy_high=f"{max(shares):.0f}",
        toy_minutes=f"{minutes[0]:.0f}–{minutes[-1]:.0f}",
        own_minutes=f"{sum(o['training_seconds'] for o in own) / 60:.0f}",
        own_samples=" + ".join(f"{o['samples']:,}" for o in own),
    )


def inputs() -> str:
    "What becomes of odd files: the table of `tools/measure/bad_input_table.py`, in English."
    return subprocess.run(
        [sys.executable, Path(__file__).with_name("bad_input_table.py")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def fill(name: str, language: str):
    "Replace what stands between marks `<!-- NAME -->` and `<!-- /NAME -->`, and numbers marked `<!-- n:NAME -->`."
    path, numbers, words = ROOT / name, cost(), WORDS[language]
    text = path.read_text(encoding="utf-8")

    def between(mark, new):
        return re.sub(
            rf"(<!-- {mark} -->).*?(<!-- /{mark} -->)",
            lambda m: m[1] + new + m[2],
            text,
            flags=re.S,
        )

    if "<!-- emoji -->" in text:
        text = between("emoji", "\n" + emoji(words) + "\n")
    text = between("shipped", "\n" + shipped(words) + "\n")
    if "<!-- inputs -->" in text:
        text = between("inputs", "\n" + inputs() + "\n")
    for key, value in numbers.items():
        text = between(key, value)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for name, language in FILES.items():
        fill(name, language)

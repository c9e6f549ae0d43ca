"""Ask people about pictures, blind: trials, a page that needs no server, a widget, and what came back.

A *trial* shows one or two sets of pictures and asks one question. Whose pictures a set holds is written in a key,
never in the page. `imagen_nb.drawbench` makes shares and intervals of the answers.
"""

import base64
import hashlib
import html
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from imagen_nb.pictures.pixels import resize
from imagen_nb.store.files import as_path, assets, replace_text
from imagen_nb.store.keyed import keyed_share

__all__ = [
    "QUESTIONS",
    "PROTOCOLS",
    "Pair",
    "RatingApp",
    "control_scores",
    "decode",
    "make_trials",
    "read_ratings",
    "t_quantile",
    "write_page",
]

QUESTIONS = {  # name -> what is asked, and the answers: of two sets of pictures, or of one
    "alignment": ("Which pictures show the caption better?", ("A", "indifferent", "B")),
    "fidelity": ("Which pictures are of higher quality?", ("A", "indifferent", "B")),
    "realism": ("Which picture looks more real?", ("A", "B")),
    "match": ("Does the caption describe the picture?", ("yes", "somewhat", "no")),
}
PROTOCOLS = {  # of the paper: both in section 3
    "drawbench": ("alignment", "fidelity"),
    "coco": ("realism", "match"),
}
WORTH = {"yes": 1.0, "somewhat": 0.5, "no": 0.0, "indifferent": 0.5}
FORMAT = "imagen_nb ratings 1"
LEAST = 0.8  # of the controls that a rater must get right (paper, section 3: on COCO)


class Pair(NamedTuple):
    "One prompt, drawn by two models, or by a model and a photographer."

    name: str  # of the prompt, unlike all others
    category: str  # whatever the answers are counted by
    caption: str
    a: Tensor  # pictures of A, (n 3 h w) in [-1, 1]
    b: Tensor  # of B, as many


# ---------------------------------------------------------------- trials


def picture_address(
    image: Tensor,  # (3 h w) in [-1, 1]
    side: int,  # of what is shown, pixels; a smaller picture keeps its own
) -> str:  # "data:image/webp;base64,...": a picture inside a page
    "A picture as an address that holds it."
    from PIL import Image

    if max(image.shape[1:]) > side:
        image = resize(image[None].float(), side)[0]
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous()
    buffer = io.BytesIO()
    Image.fromarray(pixels.cpu().numpy()).save(buffer, "webp", quality=90)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _name(*parts: str) -> str:
    "A name that tells nothing of what it names."
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _spoiled(images: Tensor) -> Tensor:
    "The same pictures with their pixels in disorder: whoever looks will not prefer them."
    pixels = images.flatten(2)
    order = torch.argsort(torch.sin(torch.arange(pixels.shape[2], device=images.device) * 12.9898))
    return pixels[:, :, order].view_as(images)


def make_trials(
    pairs: Sequence[Pair],  # what is compared
    protocol: str = "drawbench",  # a key of `PROTOCOLS`; for coco B holds the originals
    *,
    controls: float = 0.1,  # trials with a known answer, for each pair; at least one
    side: int = 160,  # pixels, of what is shown
    seed: int = 0,  # decides which set comes first
) -> tuple[dict, dict]:  # for the page; the key, which raters must not see
    "Trials of all pairs, each question apart. Sets of pictures have names that say nothing."
    page: dict = dict(format=FORMAT, questions={}, sets={}, trials=[])
    key: dict = {}

    def add(pair: Pair, question: str, sets: dict[str, Tensor], right: str | None = None):
        owners = list(sets)
        if keyed_share(f"rating {seed} {pair.name} {question} {right}") < 0.5:
            owners.reverse()
        shown = [[picture_address(image, side) for image in sets[owner]] for owner in owners]
        names = [_name(*addresses) for addresses in shown]
        page["sets"].update(zip(names, shown))
        trial = _name(str(seed), pair.name, question, *names)
        page["trials"].append(
            dict(trial=trial, question=question, caption=pair.caption, sets=names)
        )
        own = dict(prompt=pair.name, category=pair.category, question=question, owners=owners)
        key[trial] = own | dict(right=right)

    every = max(1, round(1 / controls)) if controls else 0
    for k, pair in enumerate(pairs):
        for question in PROTOCOLS[protocol]:
            text, choices = QUESTIONS[question]
            page["questions"][question] = dict(text=text, answers=choices)
            is_single = "A" not in choices
            for sets in (
                [{"a": pair.a}, {"b": pair.b}] if is_single else [{"a": pair.a, "b": pair.b}]
            ):
                add(pair, question, sets)
            if every and k % every == 0:
                wrong = _spoiled(pair.b)
                if is_single:
                    add(pair, question, dict(x=wrong), "no")
                else:
                    add(pair, question, dict(b=pair.b, x=wrong), "b")
    page["page"] = _name(*key)
    return page, dict(format=FORMAT, page=page["page"], trials=key)


def write_page(
    page: dict,  # of `make_trials`
    path: str | Path,  # an HTML file, made or replaced
    title: str = "Which pictures are better?",
):
    "One HTML file with everything inside: it asks, and hands the answers over as a file."
    replace_text(as_path(path), page_text(page, title))


def page_text(page: dict, title: str) -> str:
    "The page as text."
    template = (assets() / "rating.html").read_text(encoding="utf-8")
    data = json.dumps(page, ensure_ascii=False).replace("</", "<\\/")
    return template.replace("{{title}}", html.escape(title)).replace("{{data}}", data)


# ---------------------------------------------------------------- what came back


def read_ratings(
    paths: Iterable[str | Path],  # files that the page handed over
) -> list[dict]:  # one for each rater
    "Ratings from files; a rater whose file is there twice counts once, with the longer one."
    found: dict[tuple[str, str], dict] = {}
    for path in map(as_path, paths):
        try:
            ratings = json.loads(path.read_text(encoding="utf-8"))
            rater, page, said = ratings["rater"], ratings["page"], ratings["answers"]
            fine = ratings["format"] == FORMAT and all(
                {"trial", "answer"} <= a.keys() for a in said
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            fine = False
        if not fine:
            raise ValueError(
                f"read_ratings: {path}, expected a file of ratings that the page saved"
            )
        if len(said) >= len(found.get((page, rater), dict(answers=()))["answers"]):
            found[page, rater] = ratings
    return list(found.values())


def _value(answer, trial: dict) -> float:
    "1 where A is preferred, or where the caption fits; 0 for the opposite."
    if isinstance(answer, int):
        return float(trial["owners"][answer] == "a")
    return WORTH[answer]


def _answers(ratings: dict, key: dict) -> list[tuple[dict, dict]]:
    "What one rater said, each beside its trial in the key."
    if ratings["page"] != key["page"]:
        raise ValueError(
            f"decode: ratings of {ratings['rater']!r}, got page {ratings['page']},"
            f" expected {key['page']}: this key belongs to another page"
        )
    trials = key["trials"]
    return [(said, trials[said["trial"]]) for said in ratings["answers"] if said["trial"] in trials]


def decode(
    ratings: Iterable[dict],  # of `read_ratings`
    key: dict,  # of `make_trials`
    least: float | None = None,  # leave out raters with fewer right controls; None: nobody
) -> list[dict]:  # rater, prompt, category, question, value in [0, 1]; controls are left out
    "Whose pictures were meant: 1 is A, 0 is B, 0.5 indifferent; a match is 1, 0.5 or 0."
    out = []
    for one in ratings:
        if least is not None and control_scores([one], key)[one["rater"]] < least:
            continue
        for said, trial in _answers(one, key):
            if trial["right"] is None:
                question = trial["question"]
                if len(trial["owners"]) == 1:  # a match: of samples and of originals apart
                    question += " of " + trial["owners"][0].upper()
                own = {k: trial[k] for k in ("prompt", "category")}
                value = _value(said["answer"], trial)
                out.append(dict(rater=one["rater"], **own, question=question, value=value))
    return out


def control_scores(
    ratings: Iterable[dict],  # of `read_ratings`
    key: dict,  # of `make_trials`
) -> dict[str, float]:  # rater -> share of right controls; 1 if there were none
    "How attentive was each rater?"
    out = {}
    for one in ratings:
        pairs = [(s["answer"], t) for s, t in _answers(one, key) if t["right"] is not None]
        right = [(t["owners"][a] if isinstance(a, int) else a) == t["right"] for a, t in pairs]
        out[one["rater"]] = sum(right) / len(right) if right else 1.0
    return out


def t_quantile(
    freedom: float,  # degrees of freedom, 1 or more
    p: float = 0.975,  # above one half
) -> float:  # what a variable of Student's t stays below with probability p
    "By sums: with t = sqrt(freedom) tan(x), x has density cos(x) ** (freedom - 1)."
    freedom, n = min(freedom, 1000.0), 20_000  # beyond a thousand little changes
    x = (torch.arange(n, dtype=torch.float64, device="cpu") + 0.5) * (math.pi / 2 / n)
    parts = x.cos().pow(freedom - 1)
    mass = parts.cumsum(0)
    aim = (2 * p - 1) * mass[-1]
    k = int(torch.searchsorted(mass, aim))
    within = 1 - ((mass[k] - aim) / parts[k]).item()  # of the k-th part, by a straight line
    return math.sqrt(freedom) * math.tan((k + within) * math.pi / 2 / n)


# ---------------------------------------------------------------- in Jupyter


class RatingApp:
    "The same trials as widgets: call `display(app)` in Jupyter, then take `app.ratings()`."

    def __init__(
        self,
        page: dict,  # of `make_trials`
        rater: str,  # who answers
    ):
        import ipywidgets as w

        self.page, self.rater, self.said = page, rater, list[dict]()
        self.todo = sorted(page["trials"], key=lambda t: _name(rater, t["trial"]))
        self.text, self.sets = w.HTML(), w.HBox()
        self.buttons = w.HBox()
        self.widget = w.VBox([self.text, self.sets, self.buttons])
        self._show()

    def _repr_mimebundle_(self, **options):
        return self.widget._repr_mimebundle_(**options)

    @property
    def trial(self) -> dict | None:  # None: all are answered
        "What is asked now."
        return self.todo[len(self.said)] if len(self.said) < len(self.todo) else None

    def order(self) -> list[int]:
        "Numbers of the sets from left to right; another rater sees another order."
        assert self.trial
        places = list(range(len(self.trial["sets"])))
        is_flipped = int(_name(self.rater, self.trial["trial"], "side"), 16) % 2
        return places[::-1] if is_flipped else places

    def answer(self, choice: str):
        "Take an answer, as a click does; show the next trial."
        assert self.trial
        sides = dict(zip("AB", self.order()))
        self.said.append(dict(trial=self.trial["trial"], answer=sides.get(choice, choice)))
        self._show()

    def _show(self):
        import ipywidgets as w

        if self.trial is None:
            self.text.value, self.sets.children, self.buttons.children = "Thank you.", (), ()
            return
        asked = self.page["questions"][self.trial["question"]]
        caption = html.escape(self.trial["caption"])
        self.text.value = (
            f"<p>{len(self.said) + 1} of {len(self.todo)}</p><h3>{asked['text']}</h3>"
            f"<p>Caption: <b>{caption}</b></p>"
        )
        names = [self.trial["sets"][k] for k in self.order()]
        letters = "AB" if len(names) > 1 else " "
        self.sets.children = [
            w.HTML(
                f"<p><b>{letter}</b></p>"
                + "".join(
                    f'<img src="{address}" alt="picture {i + 1} {letter}" width="120">'
                    for i, address in enumerate(self.page["sets"][name])
                )
            )
            for letter, name in zip(letters, names)
        ]
        self.buttons.children = [self._button(choice) for choice in asked["answers"]]

    def _button(self, choice: str):
        import ipywidgets as w

        button = w.Button(description=choice)
        button.on_click(lambda _: self.answer(choice))
        return button

    def ratings(self) -> dict:  # what the page would save
        "The answers so far."
        head = dict(format=FORMAT, page=self.page["page"], rater=self.rater)
        return head | dict(finished=self.trial is None, answers=list(self.said))

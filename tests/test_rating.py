"Ratings of people: trials that hide whose pictures are whose, a page in a real browser, and what is counted."

import json
import shutil
import subprocess
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
import torch

from imagen_nb.drawbench import krippendorff, preferences, rating_interval
from imagen_nb.lab import rating
from imagen_nb.lab.rating import (
    Pair,
    RatingApp,
    control_scores,
    decode,
    make_trials,
    read_ratings,
    t_quantile,
    write_page,
)

BLUE, RED = torch.tensor([-1.0, -1, 1]), torch.tensor([1.0, -1, -1])


def flat(colour, shade):
    "Two pictures of one colour; a stripe of gray makes every pair unlike the others."
    image = colour[:, None, None].repeat(1, 24, 24)
    image[:, :, :12] *= shade
    return torch.stack([image, image.flip(2)])


def pairs(n):
    "A is blue, B is red."
    return [
        Pair(
            f"p{k}",
            ("Colors", "Text")[k % 2],
            f"a caption, number {k} </script>",
            flat(BLUE, 0.9 - k / 40),
            flat(RED, 0.9 - k / 40),
        )
        for k in range(n)
    ]


def answered(page, key, rater, prefer):
    "Ratings by somebody who sees the key: `prefer` is an owner, or an answer."
    said = []
    for trial in page["trials"]:
        owners = key["trials"][trial["trial"]]["owners"]
        right = key["trials"][trial["trial"]]["right"]
        wanted = right or prefer
        answer = owners.index(wanted) if wanted in owners else wanted
        said.append(dict(trial=trial["trial"], answer=answer))
    return dict(format=rating.FORMAT, page=page["page"], rater=rater, answers=said)


# ---------------------------------------------------------------- trials


def test_the_page_does_not_tell_whose_pictures_are_whose():
    page, key = make_trials(pairs(20))
    text = json.dumps(page)
    assert "owners" not in text and not {"right", "a", "b"} & page["trials"][0].keys()
    owners = [key["trials"][t["trial"]]["owners"] for t in page["trials"]]
    first = sum(o[0] == "a" for o in owners if "x" not in o)
    assert 10 <= first <= 30  # of 40: sides are drawn
    kinds = [key["trials"][t["trial"]]["right"] for t in page["trials"]]
    assert kinds.count("b") == 4 and len(page["trials"]) == 44  # two controls for each question
    assert make_trials(pairs(20), seed=1)[1]["trials"] != key["trials"]


def test_answers_come_back_to_their_owners():
    page, key = make_trials(pairs(6))
    rows = decode([answered(page, key, "ann", "a")], key)
    assert len(rows) == 12 and all(row["value"] == 1 for row in rows)
    rows = decode([answered(page, key, "bob", "indifferent")], key)
    assert {row["value"] for row in rows} == {0.5}
    assert {row["prompt"] for row in rows} == {f"p{k}" for k in range(6)}
    found = preferences(
        decode([answered(page, key, "ann", "b"), answered(page, key, "bob", "a")], key)
    )
    assert found["fidelity"]["all"]["mean"] == 0.5 and found["fidelity"]["all"]["n"] == 12


def test_who_does_not_look_is_left_out_where_the_paper_does():
    page, key = make_trials(pairs(10), controls=0.5)
    good, bad = answered(page, key, "good", "a"), answered(page, key, "bad", "a")
    for said in bad["answers"]:
        trial = key["trials"][said["trial"]]
        if trial["right"] is not None:
            said["answer"] = 1 - said["answer"]
    assert control_scores([good, bad], key) == dict(good=1.0, bad=0.0)
    assert {r["rater"] for r in decode([good, bad], key)} == {"good", "bad"}
    assert {r["rater"] for r in decode([good, bad], key, least=0.8)} == {"good"}


def test_the_protocol_of_coco():
    "Realism against the original; yes, somewhat, no are 100, 50, 0, of samples and of originals apart."
    page, key = make_trials(pairs(4), "coco", controls=0)
    assert [q["answers"] for q in page["questions"].values()] == [
        ("A", "B"),
        ("yes", "somewhat", "no"),
    ]
    assert sorted(len(t["sets"]) for t in page["trials"]) == [1] * 8 + [2] * 4
    ratings = answered(page, key, "ann", "a")
    worth = dict(zip(("yes", "somewhat", "no"), (1, 0.5, 0)))
    for k, said in enumerate(s for s in ratings["answers"] if s["answer"] == "a"):
        said["answer"] = list(worth)[k % 3]
    for said in ratings["answers"]:
        owners = key["trials"][said["trial"]]["owners"]
        if owners == ["b"]:
            said["answer"] = "yes"
        elif owners == ["a"]:
            said["answer"] = "somewhat"
    found = preferences(decode([ratings], key))
    means = {question: own["all"]["mean"] for question, own in found.items()}
    assert means == {"realism": 1.0, "match of A": 0.5, "match of B": 1.0}


def test_files_that_are_no_ratings_are_refused(tmp_path):
    page, key = make_trials(pairs(2))
    one = answered(page, key, "ann", "a")
    (tmp_path / "half.json").write_text(json.dumps(one | dict(answers=one["answers"][:1])))
    (tmp_path / "whole.json").write_text(json.dumps(one))
    assert read_ratings([tmp_path / "whole.json", tmp_path / "half.json"]) == [one]
    for text in ("{", "[]", json.dumps(dict(format="other", rater="a", page="b", answers=[]))):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match="read_ratings: .*bad.json"):
            read_ratings([tmp_path / "bad.json"])
    with pytest.raises(ValueError, match="another page"):
        decode([one | dict(page="other")], key)


# ---------------------------------------------------------------- the widget


def test_the_widget_takes_clicks():
    page, key = make_trials(pairs(3))
    app = RatingApp(page, "ann")
    while app.trial:
        owners = key["trials"][app.trial["trial"]]["owners"]
        wanted = key["trials"][app.trial["trial"]]["right"] or "a"
        side = app.order().index(owners.index(wanted))
        assert len(app.sets.children) == 2 and "number" in app.text.value
        [button] = [b for b in app.buttons.children if b.description == "AB"[side]]
        button.click()
    ratings = app.ratings()
    assert ratings["finished"] and control_scores([ratings], key) == dict(ann=1.0)
    assert {row["value"] for row in decode([ratings], key)} == {1.0}
    sides = [RatingApp(page, name).order()[0] for name in "abcdefghijklmnop"]
    assert 2 <= sum(sides) <= 14  # raters see different sides


# ---------------------------------------------------------------- numbers


def test_student_by_the_table():
    "Quantiles of Student's t as printed in tables, and as good as its limit."
    table = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262, 30: 2.042, 1000: 1.962, 1e9: 1.962}
    for freedom, value in table.items():
        assert t_quantile(freedom) == pytest.approx(value, abs=2e-3)


def test_krippendorff_by_his_own_example():
    "Four observers, twelve units, with gaps (Krippendorff 2011, section C and after): nominal .743, interval .849."
    rows = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
    units = [[int(v) for v in unit if v != "."] for unit in zip(*rows)]
    assert krippendorff(units) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff(units, is_ordered=True) == pytest.approx(0.849, abs=5e-4)
    assert krippendorff([[1, 1], [1, 1], [0]]) != krippendorff([[1, 1], [0, 0]]) == 1  # NaN, 1


def test_krippendorff_by_a_library():
    library = pytest.importorskip("krippendorff")
    rows = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
    units = [[int(v) for v in unit if v != "."] for unit in zip(*rows)]
    data = [[float("nan") if v == "." else int(v) for v in row] for row in rows]
    for level, is_ordered in (("nominal", False), ("interval", True)):
        theirs = library.alpha(reliability_data=data, level_of_measurement=level)
        assert krippendorff(units, is_ordered) == pytest.approx(theirs, abs=1e-12)


def test_an_interval_of_one_rater_is_of_prompts_alone():
    x = [1.0, 0, 1, 1, 0.5, 1, 0, 1]
    one = rating_interval(x, range(8), ["ann"] * 8)
    assert one["mean"] == sum(x) / 8 and 0 < one["low"] < one["mean"] < one["high"] < 1
    twice = rating_interval([*x, *x], [*range(8), *range(8)], ["ann"] * 8 + ["bob"] * 8)
    assert twice["high"] - twice["low"] > 0.9 * (one["high"] - one["low"])  # bob tells nothing new
    alike = rating_interval([1.0] * 6, range(6), ["ann"] * 6)
    assert alike["low"] < 0.7 and alike["high"] > 0.999  # six of six is no certainty


def simulated(g, prompts, raters, spread, share=1.0, ties=0.2):
    "Ratings by people with tastes of their own, of prompts that suit A or B; and the true mean."
    logit = (
        0.5
        + spread[0] * torch.randn(prompts, 1, generator=g)
        + spread[1] * torch.randn(1, raters, generator=g)
    )
    values = (torch.rand(prompts, raters, generator=g) < logit.sigmoid()).double()
    values[torch.rand(prompts, raters, generator=g) < ties] = 0.5
    kept = torch.rand(prompts, raters, generator=g) < share
    p, r = kept.nonzero().T.tolist()
    return values[kept].tolist(), p, r


def true_mean(spread, ties=0.2):
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = torch.exp(-x.square() / 2)
    width = (spread[0] ** 2 + spread[1] ** 2) ** 0.5
    return (
        0.5 * ties
        + (1 - ties) * ((0.5 + width * x).sigmoid() * density).sum().item() / density.sum().item()
    )


@pytest.mark.parametrize(
    "prompts, raters, spread, share",
    [
        (20, 25, (0.8, 0.5), 1.0),
        (10, 25, (0.8, 0.5), 1.0),
        (40, 12, (1.0, 0.3), 1.0),
        (100, 25, (0.8, 0.5), 0.2),
    ],
)
def test_intervals_cover_what_they_promise(prompts, raters, spread, share, n=1500):
    "Between 93 and 97 % of intervals hold the truth; those that take ratings for independent hold it far less often."
    g, truth = torch.Generator().manual_seed(0), true_mean(spread)
    hits = naive = 0
    for _ in range(n):
        values, p, r = simulated(g, prompts, raters, spread, share)
        found = rating_interval(values, p, r)
        hits += found["low"] <= truth <= found["high"]
        plain = rating_interval(values, range(len(values)), ["one"] * len(values))
        naive += plain["low"] <= truth <= plain["high"]
    assert 0.93 <= hits / n <= 0.97
    assert naive / n < 0.9


# ---------------------------------------------------------------- a real browser

DRIVER = shutil.which("chromedriver")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # of the WebDriver standard


class Browser:
    "A headless browser, asked by WebDriver's own protocol."

    def __init__(self, folder: Path, width: int):
        self.process = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
        words = next(line for line in self.process.stdout if "started successfully on port" in line)
        self.base = "http://127.0.0.1:" + words.rstrip(".\n ").split()[-1]
        options = dict(
            args=["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
            prefs={
                "download.default_directory": str(folder),
                "download.prompt_for_download": False,
            },
            mobileEmulation=dict(deviceMetrics=dict(width=width, height=800, pixelRatio=1.0)),
        )
        wanted = dict(alwaysMatch={"browserName": "chrome", "goog:chromeOptions": options})
        self.base += "/session/" + self.ask("/session", capabilities=wanted)["sessionId"]

    def ask(self, path, **body):
        request = Request(
            self.base + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def run(self, script, *args):
        return self.ask("/execute/sync", script=script, args=list(args))

    def find(self, selector):
        return self.ask("/element", using="css selector", value=selector)[ELEMENT]

    def press(self, keys):
        actions = [dict(type=f"key{way}", value=k) for k in keys for way in ("Down", "Up")]
        self.ask("/actions", actions=[dict(type="key", id="keys", actions=actions)])

    def click(self, selector):
        self.ask(f"/element/{self.find(selector)}/click")

    def type(self, selector, text):
        self.ask(f"/element/{self.find(selector)}/value", text=text)

    def close(self):
        try:
            urlopen(Request(self.base, method="DELETE"), timeout=20).close()
        except (URLError, OSError):
            pass
        self.process.terminate()
        self.process.wait(20)
        self.process.stdout.close()


LOOK = """
const canvas = document.createElement("canvas"), paint = canvas.getContext("2d");
return [...document.querySelectorAll("figure")].map(figure => {
  const image = figure.querySelector("img");
  paint.drawImage(image, 0, 0);
  const row = [...paint.getImageData(0, 2, 24, 1).data];
  const rough = row.reduce((sum, v, i) => sum + Math.abs(v - (row[i + 4] ?? v)), 0);
  return [row[8], row[10], rough];
});
"""


@pytest.fixture
def browser(tmp_path):
    one = Browser(tmp_path, 390)
    yield one
    one.close()


@pytest.mark.slow
@pytest.mark.skipif(DRIVER is None, reason="needs chromium-driver, a package of Debian")
def test_a_planted_preference_comes_back_from_a_real_browser(browser, tmp_path):
    "Somebody at a narrow screen prefers blue pictures, by key and by click; her file says A."
    page, key = make_trials(pairs(20))
    write_page(page, tmp_path / "rating.html", "Which is <better>?")
    browser.ask("/url", url=(tmp_path / "rating.html").as_uri())
    browser.type("#rater", "ann 1")
    browser.click("#start button")
    sides, n = [], len(page["trials"])
    for k in range(n):
        seen = browser.run(LOOK)
        is_blue = [blue > 150 > red for red, blue, _ in seen]
        calm = min(range(2), key=lambda side: seen[side][2])  # a control: the other is spoiled
        best = is_blue.index(True) if any(is_blue) else calm
        wide = browser.run("return [document.documentElement.scrollWidth, innerWidth]")
        assert wide[0] <= wide[1] == 390
        sides.append(best)
        if k == 5:  # a wrong answer, taken back
            browser.press(["2", "b"])
        if k % 2:
            browser.press(["1" if best == 0 else "3"])
        else:
            browser.click(f"#answers button:nth-child({1 + 2 * best})")
        if k == 8:  # a window that was closed
            browser.ask("/refresh")
            browser.type("#rater", "ann 1")
            browser.press(["\ue007"])
    browser.click("#download")
    file, until = tmp_path / "ratings-ann-1.json", time.monotonic() + 20
    while not file.exists() and time.monotonic() < until:
        time.sleep(0.05)
    [ratings] = read_ratings([file])
    assert ratings["finished"] and len(ratings["answers"]) == n == 44
    assert 10 <= sum(sides) <= 34  # sides are mixed
    assert control_scores([ratings], key) == {"ann 1": 1.0}
    rows = decode([ratings], key)
    assert len(rows) == 40 and {row["value"] for row in rows} == {1.0}
    assert preferences(rows)["alignment"]["all"]["low"] > 0.8

"""How many new words does a network read that was trained on the names of things? `experiment-new_words.json`.

    python tools/measure/new_words.py

Small readers learn captions of the emoji set from the vectors of the English encoder: which thing does a caption name?
Then they read words that no caption of training holds (`emoji_words`). Readers differ in their number of layers and in
the noise on the vectors. Beside them stands the encoder alone: the nearest name, without any training.
"""

import argparse

import torch
import torch.nn.functional as F
from cards import RUNS, write_card
from judge_accuracy import share
from torch import Tensor, nn

from imagen_nb.pictures.emoji import emoji_objects, emoji_words, with_article
from imagen_nb.runs.words import mean_vectors, nearest_names
from imagen_nb.text import TextEncoder

CONFIG = dict(
    layers=[1, 2, 3],
    noise=[0.0, 1.0, 2.0],  # in units of the spread of captions
    seeds=[0, 1, 2],
    steps=1000,
    batch=256,
    width=256,
    lr=3e-3,
)


class Captions:
    "Captions of training and of new words as vectors, each with the place of its thing."

    def __init__(self):
        encoder, things = TextEncoder.english(), emoji_objects()
        names = [with_article(thing) for thing in things]
        patterns = ("{}", "a 3d emoji of {}", "a flat emoji of {}")
        self.things, self.new = things, [with_article(word) for word in emoji_words()]
        self.known = self.read(encoder, [p.format(name) for p in patterns for name in names])
        self.answer = torch.arange(len(self.known)) % len(things)
        self.words = self.read(encoder, [patterns[1].format(word) for word in self.new])
        self.truth = torch.tensor([things.index(thing) for thing in emoji_words().values()])
        self.searched = nearest_names(encoder, self.new)

    @staticmethod
    def read(encoder: TextEncoder, captions: list[str]) -> Tensor:  # (n d)
        parts = [captions[k : k + 128] for k in range(0, len(captions), 128)]
        return torch.cat([mean_vectors(encoder, part) for part in parts])

    def alone(self) -> dict[str, list[bool]]:
        "The encoder without any training: is the nearest name the right one?"
        n = len(self.things)
        nearest = (self.words @ self.known[n : 2 * n].T).argmax(1)  # of "a 3d emoji of ..."
        searched = torch.tensor([self.things.index(name) for name in self.searched])
        return {
            "nearest name": (nearest == self.truth).tolist(),
            "nearest of names and keywords": (searched == self.truth).tolist(),
        }


def layers(depth: int, width: int, things: int) -> nn.Module:
    "A reader: vector of a caption -> a score for each thing."
    widths = [384] + [width] * depth
    hidden = [o for a, b in zip(widths, widths[1:]) for o in (nn.Linear(a, b), nn.SiLU())]
    return nn.Sequential(nn.LayerNorm(384), *hidden, nn.Linear(width, things))


def train(captions: Captions, depth: int, noise: float, seed: int) -> tuple[list[bool], float]:
    "Learn captions, with noise on their vectors: new words read right, share of training captions."
    torch.manual_seed(seed)
    known, answer = captions.known, captions.answer
    mean, spread = known.mean(0), (known - known.mean(0)).square().mean().sqrt()
    x, y = (known - mean) / spread, (captions.words - mean) / spread
    net = layers(depth, CONFIG["width"], len(captions.things))
    optimizer = torch.optim.Adam(net.parameters(), CONFIG["lr"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, CONFIG["steps"])
    for _ in range(CONFIG["steps"]):
        i = torch.randint(len(x), (CONFIG["batch"],))
        loss = F.cross_entropy(net(x[i] + noise * torch.randn_like(x[i])), answer[i])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        right = (net(y).argmax(1) == captions.truth).tolist()
        return right, (net(x).argmax(1) == answer).float().mean().item()


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    captions = Captions()
    alone = {rule: share(right) for rule, right in captions.alone().items()}
    arms = []
    for depth in CONFIG["layers"]:
        for noise in CONFIG["noise"]:
            runs = [train(captions, depth, noise, seed) for seed in CONFIG["seeds"]]
            words, trained = [share(right) for right, _ in runs], [round(k, 4) for _, k in runs]
            arms.append(dict(layers=depth, noise=noise, words=words, trained=trained))
            print(depth, noise, [o["share"] for o in words], trained, flush=True)
    write_card(
        RUNS / "experiment-new_words.json",
        "new words read right by small networks that learned captions, beside the encoder alone",
        "python tools/measure/new_words.py",
        config=CONFIG,
        captions=len(captions.known),
        things=len(captions.things),
        alone=alone,
        arms=arms,
    )


if __name__ == "__main__":
    main()

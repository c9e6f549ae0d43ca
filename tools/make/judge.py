"""Train the judge that ships with the package: renders of the emoji set and their captions, never a sample.

    python tools/make/judge.py EMOJI_SET --out RUN        # EMOJI_SET: what `make_emoji` wrote

Every picture of both splits is used, the test split too: the judge must know what a diffusion model is held
from. It never sees the renders of `is_unseen`; they say how well it reads what it has not seen. Each step takes
other pictures, shifted, scaled, turned, blurred and in other light, with one of their captions.
The run can be killed and goes on: RUN/state holds its newest state, RUN/judge the result.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from imagen_nb.engine.optim import Muon, load_optimizer_tensors, optimizer_tensors
from imagen_nb.lab.judge import Judge, JudgeConfig, Pieces, World, contrastive_loss
from imagen_nb.pictures.emoji import STYLES, TONES, emoji_objects
from imagen_nb.pictures.pixels import cut_square, resize
from imagen_nb.stage import has_fast_bf16
from imagen_nb.store.checkpoint import load_directory, save_directory
from imagen_nb.store.keyed import keyed_generator, keyed_share, permute

UNSEEN = 0.04  # share of object and style pairs of the train split that the judge never sees
SIDE = 64  # pixels of the pictures in memory; they are varied there and then halved
PIECES = 1400


# ---------------------------------------------------------------- pictures and captions


@dataclass
class Renders:
    "Pictures in memory and what is true of them."

    images: Tensor  # uint8 (n 3 SIDE SIDE)
    rows: list[dict]  # of metadata.jsonl, with "split"

    def pick(self, keep: list[int]) -> "Renders":
        "Some of them."
        return Renders(self.images[keep], [self.rows[i] for i in keep])


def is_unseen(row: dict) -> bool:
    "Is this render kept from the judge?"
    key = f"judge unseen {row['object']} {row['style']}"
    return row["split"] == "train" and keyed_share(key) < UNSEEN


def read_rows(folder: Path) -> list[dict]:
    "What the emoji set says of its pictures, with the split of each."
    rows = []
    for split in ("train", "test"):
        lines = (folder / split / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        rows += [json.loads(line) | dict(split=split) for line in lines]
    return rows


def read_renders(folder: Path, kept: Path) -> Renders:
    "Both splits of the emoji set; the pixels are kept in `kept`."
    rows = read_rows(folder)
    if not kept.exists():
        parts = []
        for row in rows:
            picture = Image.open(folder / row["split"] / row["file_name"]).convert("RGB")
            parts.append(cut_square(picture, SIDE, 0.5, (0, 0, SIDE, SIDE)))
        save_directory(kept, {"pixels": {"images": torch.stack(parts)}}, {})
    return Renders(load_directory(kept)[0]["pixels"]["images"], rows)


def learn_pieces(captions: list[str], size: int) -> list[str]:
    "Word pieces that spell these captions; every letter and digit is one, so that any word can be spelt."
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    core = Tokenizer(models.WordPiece(unk_token="[PAD]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    single = [*letters, *(f"##{c}" for c in letters)]
    how = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=["[PAD]", *single], show_progress=False
    )
    core.train_from_iterator([" ".join(Pieces.in_words(c)) for c in captions], how)
    numbers = core.get_vocab()
    return sorted(numbers, key=numbers.__getitem__)


class Texts:
    "All captions as numbers, and which of them are true of which picture."

    def __init__(self, rows: list[dict], pieces: Pieces):
        captions = list(dict.fromkeys(c for row in rows for c in row["text"]))
        number = {c: i for i, c in enumerate(captions)}
        self.ids, self.mask = pieces(captions)
        own = [torch.tensor([number[c] for c in row["text"]]) for row in rows]
        self.count = torch.tensor([len(o) for o in own])
        self.own = nn.utils.rnn.pad_sequence(own, batch_first=True, padding_value=-1)  # (n 7)

    def draw(self, which: Tensor, generator) -> tuple[Tensor, Tensor, Tensor]:  # ids, mask, true
        "A caption for each picture: its plainest in six of ten cases, else any."
        u = torch.rand(len(which), 2, generator=generator)
        other = (u[:, 1] * self.count[which]).long()
        chosen = self.own[which, torch.where(u[:, 0] < 0.6, 0, other)]  # (b,)
        true = (self.own[which][:, None] == chosen[:, None]).any(2)  # (b b)
        mask = self.mask[chosen]
        used = int(mask.sum(1).max())
        return self.ids[chosen, :used], mask[:, :used], true


def vary(images: Tensor, generator, size: int) -> Tensor:
    "Shift, scale, turn, blur, noise and light, by as much as a sample may differ from a render."
    n = len(images)

    def u(*shape):
        return torch.rand(n, *shape, generator=generator) * 2 - 1  # in [-1, 1]

    x = images.float() / 127.5 - 1
    angle, zoom = u() * math.radians(10), torch.exp(u() * 0.16)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    shift = u(2) * 2 * 2.5 / size
    place = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], 1).view(n, 2, 3)
    grid = F.affine_grid(place, [n, 3, SIDE, SIDE], align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    x = resize(x, size)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    blur = (u(1, 1, 1) + 0.2).clamp(min=0) * 0.9  # 40 % stay sharp
    x = torch.lerp(x, soft, blur)
    grey = x.mean(1, keepdim=True)
    x = torch.lerp(x, grey, u(1, 1, 1).clamp(min=0) * 0.4)
    x = (x - 1) * (1 + 0.15 * u(1, 1, 1)) * (1 + 0.06 * u(3, 1, 1)) + 1  # white stays white
    x = x + 0.06 * u(1, 1, 1)
    noise = torch.randn(x.shape, generator=generator) * (u(1, 1, 1).clamp(min=0) * 0.15)
    return (x + noise).clamp(-1, 1)


# ---------------------------------------------------------------- training


def make_optimizers(judge: Judge, decay: float) -> list:
    "Muon for inner matrices; AdamW for vectors, word pieces and the first convolution."
    ends = {id(judge.text_tower.piece.weight), id(judge.image_tower.parts[0].weight)}
    inner = [p for p in judge.parameters() if p.ndim > 1 and id(p) not in ends]
    taken = {id(p) for p in inner}
    rest = [p for p in judge.parameters() if id(p) not in taken]
    return [Muon(inner, weight_decay=decay), torch.optim.AdamW(rest, weight_decay=0.0)]


def rate(step: int, args) -> float:
    "Learning rate: a short rise, then a straight fall to nothing."
    return args.lr * min(1.0, (step + 1) / 30, (args.steps - step) / (0.7 * args.steps))


def side(step: int, args) -> int:
    "Pixels in a step: small pictures are cheap, and teach what is seen from afar."
    share = step / args.steps
    return 32 if args.init or share >= 0.7 else 24 if share >= 0.4 else 16


class Run:
    "A training that can be stopped anywhere."

    def __init__(self, judge: Judge, renders: Renders, args):
        self.judge, self.renders, self.args = judge, renders, args
        self.texts = Texts(renders.rows, judge.pieces)
        self.optimizers = make_optimizers(judge, args.weight_decay)
        self.step, self.seconds, self.losses = 0, 0.0, []
        self.state = args.out / "state"
        if self.state.exists():
            self.restore()

    def restore(self):
        "Go on where a run ended."
        tensors, meta = load_directory(self.state)
        if meta["how"] != self.how():
            raise ValueError(f"judge: {self.state}, got {meta['how']}, expected {self.how()}")
        self.judge.load_state_dict(tensors["weights"])
        load_optimizer_tensors(self.optimizers, tensors["optimizers"])
        self.step, self.seconds, self.losses = (meta[k] for k in ("step", "seconds", "losses"))

    def how(self) -> dict:
        "What decides the result."
        names = ("steps", "batch", "lr", "weight_decay", "seed", "init")
        return {name: getattr(self.args, name) for name in names}

    def save(self):
        "Keep the state."
        tensors = dict(
            weights=dict(self.judge.state_dict()), optimizers=optimizer_tensors(self.optimizers)
        )
        meta = dict(how=self.how(), step=self.step, seconds=self.seconds, losses=self.losses)
        save_directory(self.state, tensors, meta)

    def one_step(self) -> float:
        "A batch, and an update."
        batch, n = self.args.batch, len(self.renders.rows)
        generator = keyed_generator("judge", self.args.seed, self.step)
        first = self.step * batch
        which = torch.tensor([permute(first + k, n, self.args.seed) for k in range(batch)])
        ids, mask, true = self.texts.draw(which, generator)
        images = vary(self.renders.images[which], generator, side(self.step, self.args))
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16("cpu")):
            seen, said = self.judge.image_tower(images), self.judge.text_tower(ids, mask)
        logits = self.judge.scale * seen.float() @ said.float().T
        loss = contrastive_loss(logits, true)
        for o in self.optimizers:
            o.zero_grad()
        loss.backward()
        for o in self.optimizers:
            for group in o.param_groups:
                group["lr"] = rate(self.step, self.args)
            o.step()
        return loss.item()

    def fit(self) -> Judge:
        "All steps that are left."
        self.judge.train().to(memory_format=torch.channels_last)
        since = start = time.process_time()
        while self.step < self.args.steps:
            self.losses.append(round(self.one_step(), 4))
            self.step += 1
            now = time.process_time()
            self.seconds, since = self.seconds + now - since, now
            if self.step % 20 == 0 or self.step == self.args.steps:
                mean = sum(self.losses[-20:]) / len(self.losses[-20:])
                scale = self.judge.scale.item()
                print(
                    f"{self.step} loss {mean:.3f} scale {scale:.1f} cpu {self.seconds:.0f} s",
                    flush=True,
                )
            if now - start > 30 or self.step == self.args.steps:
                self.save()
                start = now
        return self.judge.eval()


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("data", type=Path, help="folder that `make_emoji` wrote")
    p.add_argument("--out", type=Path, required=True, help="of the run")
    p.add_argument("--steps", type=int, default=450)
    p.add_argument("--batch", type=int, default=256)
    p.add_argument("--lr", type=float, default=5e-3)
    p.add_argument("--weight-decay", type=float, default=0.02)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--init", help="a judge to go on from, at full size throughout")
    args = p.parse_args(argv)
    torch.manual_seed(args.seed)
    renders = read_renders(args.data, args.out / "pixels")
    toned = {row["object"] for row in renders.rows if row["tone"]}
    world = World(
        objects=emoji_objects(),
        styles=tuple(STYLES),
        tones=TONES,
        toned=tuple(o for o in emoji_objects() if o in toned),
    )
    pieces = learn_pieces([c for row in renders.rows for c in row["text"]], PIECES)
    judge = Judge.from_pretrained(args.init) if args.init else Judge(JudgeConfig(), world, pieces)
    seen = renders.pick([i for i, row in enumerate(renders.rows) if not is_unseen(row)])
    print(
        f"{len(seen.rows)} renders of {len(renders.rows)}, {len(pieces)} word pieces,"
        f" {sum(q.numel() for q in judge.parameters()):,} parameters",
        flush=True,
    )
    run = Run(judge, seen, args)
    run.fit().save_pretrained(args.out / "judge")
    every = max(1, args.steps // 100)
    told = dict(
        how=run.how(),
        samples=args.steps * args.batch,
        renders=len(seen.rows),
        cpu_seconds=round(run.seconds),
        loss=run.losses[::every],
    )
    (args.out / "training.json").write_text(json.dumps(told) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

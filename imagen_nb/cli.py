"""The command line: `imagen-nb train RECIPE`, `imagen-nb sample CAPTION`; each is also a function."""
import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["train", "sample", "main"]

HELD_OUT = 200  # test captions drawn and scored at the end of a toy run
EXAMPLES = """\
Examples:  imagen-nb train toy --out runs/toy
           imagen-nb sample "a red circle on a gray background" --model runs/toy/model"""


def train(
    recipe: str,                   # name of a recipe, see `recipes.RECIPES`
    out: str | Path,               # directory of the run
    seed: int = 0,                 # of weights and draws
    processes: int | None = None,  # on a CPU; None: one per core, at most 2
    held_out: int = HELD_OUT,      # test captions to draw and score
) -> dict:                         # scores
    "Train every stage of a recipe, draw held-out captions and score them. Run it again to go on."
    import torch
    from imagen_nb.recipes import RECIPES
    if recipe not in RECIPES:
        raise ValueError(f"train: recipe, got {recipe!r}, expected one of {sorted(RECIPES)}")
    if held_out < 2: raise ValueError(f"train: held_out, got {held_out}, expected at least 2 captions to score")
    if processes is not None and processes < 1:
        raise ValueError(f"train: processes, got {processes}, expected at least 1")
    out = Path(out)
    if (out/"scores.json").exists():
        print(f"{out} is finished: pictures in {out/'samples'}, scores in {out/'scores.json'}.")
        return json.loads((out/"scores.json").read_text())
    world = make_world(RECIPES[recipe](), "train")
    since = time.time()
    open_cache(RECIPES[recipe](), out, world)
    if processes is None: processes = 1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1)
    if processes == 1: work(recipe, out, seed, held_out)
    else: launch(recipe, out, seed, held_out, processes)
    return finish(recipe, out, held_out, time.time() - since)


def make_world(recipe, split: str):
    "The drawn world a recipe trains on."
    from imagen_nb.data import ShapesWorld
    if recipe.level is None:
        raise ValueError(f"train: recipe, got {recipe.name!r}, which needs pictures of your own,"
                         " expected one on ShapesWorld")
    return ShapesWorld(split, level=recipe.level)


def make_encoder(recipe):
    "The text encoder of a recipe."
    from imagen_nb.text import TextEncoder
    return TextEncoder.toy() if recipe.encoder == "toy" else TextEncoder.from_pretrained(recipe.encoder)


def open_cache(recipe, out: Path, world):
    "Embeddings of every training caption, encoded once."
    from imagen_nb.text import EmbeddingCache
    encoder = make_encoder(recipe)
    path = out/"captions"
    if path.exists(): return EmbeddingCache.open(path, encoder)
    from tqdm.auto import tqdm
    captions = [world.caption(i) for i in tqdm(range(len(world)), desc="captions", unit="caption")]
    return EmbeddingCache.build(encoder, captions, path, progress=True)


def launch(recipe: str, out: Path, seed: int, held_out: int, processes: int):
    "One thread for each process: on a busy machine two threads of a process wait for each other."
    env = dict(os.environ, OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               f"--nproc-per-node={processes}", "-m", "imagen_nb.cli", "work", recipe,
               "--out", str(out), "--seed", str(seed), "--held-out", str(held_out)]
    child = subprocess.Popen(command, env=env)
    try: code = child.wait()
    except KeyboardInterrupt: code = child.wait()
    if code:
        raise SystemExit(f"\nstopped; the newest checkpoint is in {out}."
                         " Run the same command to go on.")


def work(recipe: str, out: Path, seed: int, held_out: int):
    "What each process does: train the stages in turn, then draw its share of the held-out captions."
    import torch
    from imagen_nb.cascade import Imagen, Stage
    from imagen_nb.evaluation import draw_and_score
    from imagen_nb.recipes import RECIPES
    from imagen_nb.text import EmbeddingCache
    from imagen_nb.training import Trainer
    plan = RECIPES[recipe](seed)
    encoder = make_encoder(plan)
    text = EmbeddingCache.open(out/"captions", encoder)
    world, trained = make_world(plan, "train"), []
    for config, training in zip(plan.stages, plan.training):
        torch.manual_seed(seed)
        trainer = Trainer(Stage(config), world, text, training, out/f"{config.size}px")
        trained.append(trainer.fit())
    imagen = Imagen(encoder, trained)
    if trainer.rank == 0: imagen.save_pretrained(out/"model")
    if held_out:
        share = list(range(held_out))[trainer.rank::trainer.ranks]
        draw_and_score(imagen, make_world(plan, "test"), share, out/"samples",
                       progress=trainer.rank == 0)
    trainer.accelerator.wait_for_everyone()


def finish(recipe: str, out: Path, held_out: int, seconds: float) -> dict:
    "Collect the answers, print the table, write the grid."
    from imagen_nb.evaluation import chance, report, score_pictures, tally
    from imagen_nb.recipes import RECIPES
    plan = RECIPES[recipe]()
    world, indices = make_world(plan, "test"), list(range(held_out))
    rows = [json.loads((out/"samples"/f"{i:05d}.json").read_text()) for i in indices]
    guess = chance(world, indices)
    sizes, scores = [c.size for c in plan.stages], {}
    for size in sizes:
        right = [r["scores"][str(size)] for r in rows]
        wrong = score_pictures(world, indices, read_pictures(out, indices, size), shift=1)
        seen, unseen = ([answers for answers, r in zip(right, rows) if r["held_out"] == flag]
                        for flag in (False, True))
        scores[str(size)] = dict(all=tally(right), seen=tally(seen), held_out=tally(unseen),
                                 shuffled=tally(wrong), chance=tally(guess))
        print(f"\n{size} px\n{report(right, wrong, guess)}\n"
              f"all right on combinations never trained on: {100*tally(unseen)['all']['share']:.1f} %")
    save_grid(out, rows[:16], sizes)
    scores["seconds"] = seconds
    (out/"scores.json").write_text(json.dumps(scores, indent=1))
    print(f"\nPictures: {out/'samples.png'} and {out/'samples'}. Model: {out/'model'}. Draw your own:\n"
          '  imagen-nb sample "a red circle left of a blue square on a white background"'
          f" --model {out/'model'}")
    return scores


def read_pictures(out: Path, indices: list, size: int):
    "Pictures from disk as the oracle takes them."
    import numpy as np
    import torch
    from PIL import Image
    names = [out/"samples"/f"{i:05d}_{size}.png" for i in indices]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(name))) for name in names])
    return pixels.permute(0, 3, 1, 2).float()/127.5 - 1  # (b 3 h w)


def save_grid(out: Path, rows: list, sizes: list):
    "Captions and the pictures of every stage, side by side."
    import torch
    import torch.nn.functional as F
    from imagen_nb.plots import show_images
    side, tiles = 256, []
    for r in rows[:8]:
        for size in sizes:
            image = read_pictures(out, [r["index"]], size)
            mode = "nearest" if size < side else "area"
            tiles.append(F.interpolate(image, (side, side), mode=mode)[0])
    captions = [f"{r['caption']}\n{size} px" if size == sizes[0] else f"{size} px"
                for r in rows[:8] for size in sizes]
    show_images(torch.stack(tiles), captions, columns=2*len(sizes)).savefig(out/"samples.png", dpi=100)


def sample(
    captions: list[str],             # what to draw
    model: str = "toy",              # a directory, a hub name or "toy"
    out: str | Path = "pictures",    # directory for the PNG files
    seed: int = 0,                   # of the first picture; the next has seed + 1
    **options,                       # w, steps, sampler, threshold
) -> list[Path]:                     # the files
    "Draw captions with a trained cascade."
    from PIL import Image
    from imagen_nb.cascade import Imagen
    seeds = [seed + k for k in range(len(captions))]
    images = Imagen.from_pretrained(model).sample(captions, seeds=seeds, **options)
    out, paths = Path(out), []
    out.mkdir(parents=True, exist_ok=True)
    for k, (caption, image) in enumerate(zip(captions, images)):
        name = "".join(c if c.isalnum() else "-" for c in caption)[:60].strip("-") or "empty"
        pixels = ((image.clamp(-1, 1) + 1)*127.5).round().byte().permute(1, 2, 0).numpy()
        paths.append(out/f"{name}-seed{seed + k}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def parser() -> argparse.ArgumentParser:
    "Options and help."
    p = argparse.ArgumentParser(
        prog="imagen-nb", description="Train and sample Imagen cascades.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = p.add_subparsers(dest="command", required=True, metavar="train|sample")
    for name, text in (("train", "train a recipe; run it again to go on"), ("work", None)):
        t = commands.add_parser(name, help=text) if text else commands.add_parser(name)
        t.add_argument("recipe", help="name of a recipe: toy")
        t.add_argument("--out", default=None, help="directory of the run (default runs/RECIPE)")
        t.add_argument("--seed", type=int, default=0, help="of weights and draws")
        t.add_argument("--held-out", type=int, default=HELD_OUT,
                       help="test captions to draw and score at the end")
        if text:
            t.add_argument("--processes", type=int, default=None,
                           help="on a CPU: default one per core, at most 2")
    s = commands.add_parser("sample", help="draw captions with a trained cascade")
    s.add_argument("captions", nargs="+", metavar="CAPTION")
    s.add_argument("--model", default="toy", help="directory, hub name or toy")
    s.add_argument("--out", default="pictures", help="directory for the PNG files")
    s.add_argument("--seed", type=int, default=0)
    s.add_argument("--w", type=float, default=None,
                   help="guidance weight of every stage, 1 = off (default: the model's own)")
    s.add_argument("--steps", type=int, default=None, help="network evaluations of every stage")
    s.add_argument("--sampler", default=None, help="ddpm, ddim or dpmpp_2m")
    return p


def main(argv: list[str] | None = None) -> int:
    "Entry point of `imagen-nb`."
    args = parser().parse_args(argv)
    try:
        if args.command == "sample":
            given = dict(w=args.w, steps=args.steps, sampler=args.sampler)
            options = {k: v for k, v in given.items() if v is not None}
            for path in sample(args.captions, args.model, args.out, args.seed, **options):
                print(path)
            return 0
        out = Path(args.out or f"runs/{args.recipe}")
        if args.command == "work": work(args.recipe, out, args.seed, args.held_out)
        else: train(args.recipe, out, args.seed, args.processes, args.held_out)
        return 0
    except ValueError as e:
        print(f"imagen-nb: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as e:
        print(f"\nimagen-nb: {e or 'stopped'}", file=sys.stderr)
        return 130


if __name__ == "__main__": sys.exit(main())

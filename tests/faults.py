"""Planted faults: each is one wrong line. `python tests/faults.py` tries each in a copy and runs the tests.

A fault is caught when a test fails. The list names (what, module, right text, wrong text); each right text must occur.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

FAULTS = [
    ("cosine schedule halved", "diffusion", "math.pi / 2", "math.pi / 4"),
    (
        "alpha and sigma swapped",
        "diffusion",
        "return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()",
        "return (-log_snr).sigmoid().sqrt(), log_snr.sigmoid().sqrt()",
    ),
    ("sign of v", "diffusion", "v=alpha * eps - sigma * x0", "v=alpha * eps + sigma * x0"),
    ("posterior uses t's variance", "diffusion", "c * sigma_s**2", "c * sigma_t**2"),
    (
        "noise on the last ancestral step",
        "sampling",
        "z = mean + std * noise(i, z) if i < n - 1 else mean",
        "z = mean + std * noise(i, z)",
    ),
    (
        "variance bounds swapped",
        "sampling",
        "small ** (1 - gamma) * large**gamma",
        "small**gamma * large ** (1 - gamma)",
    ),
    (
        "DDIM ignores the threshold",
        "sampling",
        "eps_hat = (z - alpha_t * x0_hat) / sigma_t",
        "eps_hat = (z - alpha_s * x0_hat) / sigma_t",
    ),
    (
        "multistep extrapolates backwards",
        "sampling",
        "aim = x0_hat + ratio / 2 * (x0_hat - previous)",
        "aim = x0_hat - ratio / 2 * (x0_hat - previous)",
    ),
    (
        "guidance branches swapped",
        "guidance",
        "return w * cond + (1 - w) * uncond",
        "return w * uncond + (1 - w) * cond",
    ),
    (
        "caption dropout inverted",
        "guidance",
        "torch.where(keep[:, None, None], text.tokens, 0)",
        "torch.where(keep[:, None, None], 0, text.tokens)",
    ),
    (
        "caption dropout keeps the mask",
        "guidance",
        "torch.where(keep[:, None], text.mask, only_first)",
        "text.mask",
    ),
    (
        "threshold over the batch",
        "thresholding",
        "s = row_quantile(size, p).clamp(min=1, max=cap)",
        "s = row_quantile(size, p).max().expand(len(x0_hat)).clamp(min=1, max=cap)",
    ),
    (
        "threshold shrinks good pictures",
        "thresholding",
        ".clamp(min=1, max=cap)",
        ".clamp(max=cap)",
    ),
    ("slope of the linear schedule", "diffusion", "9.95 * t**2", "9.9 * t**2"),
    (
        "EDM's sigma of the whole log-SNR",
        "diffusion",
        '(-floats(log_snr, "edm_sigma: log_snr") / 2).exp()',
        '(-floats(log_snr, "edm_sigma: log_snr")).exp()',
    ),
    (
        "EDM's sigma back without the factor",
        "diffusion",
        "return -2 * sigma.log()",
        "return -sigma.log()",
    ),
    (
        "DDPM's table off by one",
        "diffusion",
        "log_kept = torch.log1p(-betas).cumsum(0)",
        "log_kept = torch.log1p(-betas).cumsum(0) + torch.log1p(-betas)",
    ),
    ("DDPM's timestep off by one", "diffusion", "return right - 1 + ", "return right + "),
    (
        "posterior leans on alpha_t",
        "diffusion",
        "* alpha_s / alpha_t, c * alpha_s",
        "* alpha_s / alpha_t, c * alpha_t",
    ),
    (
        "x0 from v with the wrong sign",
        "diffusion",
        "return alpha * z_t - sigma * prediction",
        "return alpha * z_t + sigma * prediction",
    ),
    (
        "capped weight not capped",
        "diffusion",
        "rise.clamp(max=math.log(cap))",
        "rise",
    ),
    (
        "network told the next level",
        "sampling",
        "denoise(z, log_snrs[i].expand",
        "denoise(z, log_snrs[i + 1].expand",
    ),
    ("eta not squared", "sampling", "eta**2 *", "eta *"),
    (
        "old noise not reduced",
        "sampling",
        "sigma_s * (1 - fresh).sqrt() * eps_hat",
        "sigma_s * eps_hat",
    ),
    (
        "multistep counts the whole log-SNR",
        "sampling",
        "(log_snr_t - log_snr_s) / 2)",
        "(log_snr_t - log_snr_s))",
    ),
    (
        "multistep remembers the first look only",
        "sampling",
        "        previous = x0_hat",
        "        previous = x0_hat if i == 0 else previous",
    ),
    (
        "a picture's seed forgotten",
        "store.keyed",
        'keyed_generator("noise", s, stream)',
        'keyed_generator("noise", stream)',
    ),
    (
        "no caption outside the interval",
        "guidance",
        "torch.as_tensor(w, dtype=z.dtype, device=z.device), 1.0)",
        "torch.as_tensor(w, dtype=z.dtype, device=z.device), 0.0)",
    ),
    ("blocks chosen by their least value", "thresholding", "blocks.amax(1)", "blocks.amin(1)"),
    (
        "values left over by the blocks",
        "thresholding",
        "torch.cat([kept, rest], 1).topk",
        "kept.topk",
    ),
    (
        "quantile not between neighbours",
        "thresholding",
        "torch.lerp(low, high, place - below)",
        "low",
    ),
    ("mixture pulls with the wrong variance", "lab.mixture", "alpha * stds**2 /", "alpha * stds /"),
    (
        "mixture ignores the label",
        "lab.mixture",
        "share.masked_fill(~self._mine(labels), -math.inf)",
        "share",
    ),
    (
        "text mask inverted",
        "layers",
        "mask = F.pad(text.mask,",
        "mask = F.pad(~text.mask,",
    ),
    ("pool reads padding", "layers", '.masked_fill(~text.mask[..., None], float("-inf"))', ""),
    (
        "sum not scaled",
        "layers",
        "return y if self.sum_scale == 1 else y * self.sum_scale",
        "return y",
    ),
    (
        "pooled caption unused",
        "unet",
        "emb = emb + self.pool(words)",
        "emb = emb + 0*self.pool(words)",
    ),
    (
        "attention before the block",
        "efficient_unet",
        "        for block in self.blocks:\n            h = block(h, emb)\n        return self.up(h if",
        "        h = h if self.attention is None else self.attention(h, words)\n"
        "        for block in self.blocks:\n            h = block(h, emb)\n        return self.up(h if 1 or",
    ),
    (
        "last skip dropped",
        "unet",
        "h = self.join(h, skips.pop())",
        "h = self.join(h, skips.pop() * (len(skips) > 0))",
    ),
    (
        "skips in the wrong order",
        "efficient_unet",
        "h = block(h, skips.pop(), emb, words)",
        "h = block(h, skips.pop(0), emb, words)",
    ),
    (
        "time dropped",
        "unet",
        "emb, words = self.time(log_snr), None",
        "emb, words = 0 * self.time(log_snr), None",
    ),
    (
        "augmentation level unused",
        "unet",
        "emb + self.aug(aug_log_snr)",
        "emb + 0*self.aug(aug_log_snr)",
    ),
    (
        "low-res picture ignored",
        "efficient_unet",
        "else torch.cat([z_t, lowres], dim=1)",
        "else torch.cat([z_t, z_t], dim=1)",
    ),
    (
        "scale missing in FiLM",
        "layers",
        "normalize(self.norm2, h), 1 + scale)",
        "normalize(self.norm2, h), torch.ones_like(scale))",
    ),
    (
        "norm missing in the block",
        "layers",
        "h = F.silu(normalize(self.norm1, x))",
        "h = F.silu(x)",
    ),
    (
        "norm missing on the words",
        "layers",
        "self.text_kv(self.text_norm(text.tokens))",
        "self.text_kv(text.tokens)",
    ),
    (
        "heads mixed up",
        "layers",
        "return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)",
        "return x.unflatten(-1, (self.head_dim, -1)).movedim(-1, 1)",
    ),
    (
        "attention speaks from the start",
        "layers",
        "self.out = zero_init(nn.Linear(channels, channels))",
        "self.out = nn.Linear(channels, channels)",
    ),
    (
        "even and odd pixels swapped",
        "layers",
        "torch.stack([a + b, c], -1)])",
        "torch.stack([a, b + c], -1)])",
    ),
    (
        "averaging before the activation",
        "layers",
        '        h = F.silu(normalize(self.norm1, x))\n        if self.resample == "down":\n'
        '            h = resample(h, "down")',
        '        is_down = self.resample == "down"\n'
        '        h = F.silu(normalize(self.norm1, resample(x, "down") if is_down else x))',
    ),
    (
        "recomputation cuts the gradient",
        "engine.blocks",
        "partial(checkpoint, block.forward, use_reentrant=False)",
        "partial(lambda f, h, *o: checkpoint(f, h.detach(), *o, use_reentrant=False), block.forward)",
    ),
    (
        "noise after enlargement",
        "stage",
        "    low_t = q_sample(low, aug_eps, aug_log_snr)\n    up = resize(low_t, (",
        "    big = [o * factor for o in low.shape[-2:]]\n"
        "    low_t = q_sample(resize(low, big), resize(aug_eps, big), aug_log_snr * 2)\n"
        "    up = resize(low_t, (",
    ),
    (
        "augmentation level not told",
        "stage",
        "prediction = self.predict(z_t, log_snr, text, lowres, aug_log_snr)",
        "prediction = self.predict(z_t, log_snr, text, lowres, None if aug_log_snr is None else 0*aug_log_snr)",
    ),
    (
        "the residual is forgotten",
        "stage",
        "return prediction + lowres if self.config.is_residual else prediction",
        "return prediction",
    ),
    (
        "margin off by one",
        "stage",
        "return images[..., m:-m, m:-m], low[..., 1:-1, 1:-1]",
        "return images[..., m-1:-m-1, m:-m], low[..., 1:-1, 1:-1]",
    ),
    (
        "captions never dropped in training",
        "stage",
        "text = drop_text(batch.text, draws.keep_text)",
        "text = batch.text",
    ),
    (
        "average never updated",
        "training",
        "update_ema(average, network, ema_decay(step + 1, config))",
        "pass",
    ),
    (
        "loss around the wrapper",
        "training",
        "Stage(c, e.wrap(self.learned.network, p))",
        "Stage(c, (e.wrap(self.learned.network, p), self.learned.network)[1])",
    ),
    ("a stream of random numbers", "training", 'g = keyed_generator(seed, n, "draw")', "g = None"),
    (
        "every process takes the same samples",
        "training",
        "step * self.config.batch + self.rank * self.share",
        "step * self.config.batch",
    ),
    (
        "optimizer state not restored",
        "engine.keeping",
        'load_optimizer_tensors(self.optimizers, tensors["optimizer"])',
        "pass",
    ),
    (
        "Adafactor factors the last two axes",
        "engine.optim",
        "largest = sorted(range(len(shape)), key=shape.__getitem__)[-2:]",
        "largest = sorted(range(len(shape)))[-2:]",
    ),
    (
        "Adafactor factors small axes",
        "engine.optim",
        "shape[largest[0]] < 128",
        "shape[largest[0]] < 127",
    ),
    ("Adafactor forgets too slowly", "engine.optim", "1 - step**-0.8", "1 - (step + 1) ** -0.8"),
    ("Adafactor's steps not cut", "engine.optim", "g = g / rms(g).clamp(min=1)", "pass"),
    (
        "Adafactor's least size",
        "engine.optim",
        "rms(x).clamp(min=1e-3)",
        "rms(x).clamp(min=1e-2)",
    ),
    (
        "Adafactor weighs rows by their sum",
        "engine.optim",
        "rows / rows.mean(second, keepdim=True)",
        "rows / rows.sum(second, keepdim=True)",
    ),
    (
        "Adafactor's memory never checked",
        "engine.optim",
        "if got != (expected := adafactor_shapes(shapes[k])):",
        "if False and (expected := ()):",
    ),
    (
        "low-res pictures share one seed",
        "stage",
        "keyed_noise(seeds, low.shape[1:]",
        "keyed_noise(seeds[:1] * len(seeds), low.shape[1:]",
    ),
    ("low-res margin black in sampling", "stage", 'mode="replicate"', 'mode="constant"'),
    (
        "low-res pictures of the branches mixed up",
        "stage",
        "lowres.repeat(branches, 1, 1, 1)",
        "lowres.repeat_interleave(branches, 0)",
    ),
    ("an untrained stage draws", "pictures.request", "if not stage.is_trained:", "if False:"),
    (
        "loading calls every stage trained",
        "cascade",
        "    stage.is_trained = is_trained",
        "    stage.is_trained = True",
    ),
    (
        "average weighs the wrong side",
        "training",
        "list(network.parameters()), 1 - decay)",
        "list(network.parameters()), decay)",
    ),
    (
        "warm-up one step late",
        "training",
        "return c.lr * (step + 1) / c.warmup",
        "return c.lr*step/c.warmup",
    ),
    ("gradients pile up", "training", "o.zero_grad(set_to_none=True)", "pass"),
    (
        "gradient never clipped",
        "training",
        "network.parameters(), config.clip)",
        "network.parameters(), math.inf)",
    ),
    ("steps that are not finite are taken", "training", "bool(norm.isfinite())", "True"),
    (
        "a signal heard by one process alone",
        "training",
        "self.process.any(stop.received)",
        "stop.received",
    ),
    ("resume starts counting anew", "training", 'meta["step"], Stage(', "0, Stage("),
    (
        "a row of the log begun anew",
        "training",
        'meta.get("log"), title',
        "None, title",
    ),
    (
        "average not resumed",
        "engine.keeping",
        'load_into(self.average, tensors["average"], f"{where}, average")',
        "pass",
    ),
    (
        "weights that are not finite are saved",
        "engine.keeping",
        "if not (is_finite(learned.network) and is_finite(learned.average)):",
        "if False:",
    ),
    ("augmentation level not limited", "training", "u[1] * c.aug_max", "u[1]"),
    (
        "crop without its margin",
        "training",
        "* c.factor - c.margin",
        "* c.factor",
    ),
    (
        "captions of the first epoch for ever",
        "training",
        "self.dataset.caption(i, n // total)",
        "self.dataset.caption(i, 0)",
    ),
    (
        "a stream begun anew",
        "engine.keeping",
        's.resume(meta["stream"])',
        "pass",
    ),
    (
        "a stream resumed behind what was made ahead",
        "engine.samples",
        "self.state = self.states.popleft()",
        "self.state = self.states[-1]",
    ),
    (
        "micro-batches exchanged never",
        "engine.distributed",
        "nullcontext() if k == parts else",
        "nullcontext() if k > parts else",
    ),
    ("digest not checked", "store.manifest", 'if actual != entry["sha256"]:', "if False:"),
    ("manifest not checked", "store.manifest", "if stated != actual or", "if False and"),
    ("any name in a manifest", "store.manifest", "if not NAME.fullmatch(name) or", "if False and"),
    (
        "old checkpoint deleted before the new one stands",
        "store.checkpoint",
        "        os.rename(path, old)\n",
        "        shutil.rmtree(path)\n",
    ),
    (
        "what a dead writer left is not found",
        "store.checkpoint",
        "return next((p for p in ours if is_complete(p)), path)",
        "return path",
    ),
    (
        "a live writer's files removed",
        "store.checkpoint",
        "    ident, host, pid = match[3]",
        "    return True\n    ident, host, pid = match[3]",
    ),
    ("pruning trusts the newest", "store.checkpoint", "    verify(found[0])\n", ""),
    ("oldest checkpoint first", "store.checkpoint", "sorted(found, reverse=True)", "sorted(found)"),
    (
        "two runs in one directory",
        "store.files",
        "fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
    ),
    (
        "weights loaded though some do not fit",
        "store.checkpoint",
        "    if differ:\n",
        "    if False:\n",
    ),
    (
        "nearest-neighbour shrinking",
        "pictures.pixels",
        'mode="bilinear", antialias=True',
        'mode="nearest"',
    ),
]


def loose(text: str) -> re.Pattern:
    "Matches a text however it is laid out: spaces, line breaks and a comma before a closing bracket."
    words = [re.escape(w) for w in re.findall(r"\w+|[^\w\s]", text)]
    return re.compile(r"\s*".join(rf",?\s*{w}" if w in (r"\)", r"\]") else w for w in words))


def path_of(module: str) -> Path:
    return Path("imagen_nb", *module.split(".")).with_suffix(".py")


def stale() -> list[str]:
    "Faults whose right text is not where they say."
    return [
        f"{what}: {module}"
        for what, module, right, _ in FAULTS
        if not loose(right).search((ROOT / path_of(module)).read_text(encoding="utf-8"))
    ]


def plant(folder: Path, module: str, right: str, wrong: str):
    "Write the wrong text into a copy."
    file = folder / path_of(module)
    file.write_text(loose(right).sub(lambda _: wrong.strip(), file.read_text()))


def is_caught(fault) -> tuple[bool, str]:
    "Run the tests over a copy with one fault; the first failing test is named."
    what, module, right, wrong = fault
    with tempfile.TemporaryDirectory() as folder:
        for name in ("imagen_nb", "tests", "data", "tools", "bench"):
            shutil.copytree(
                ROOT / name, Path(folder) / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        for name in ("pytest.ini", "settings.ini"):
            shutil.copy(ROOT / name, folder)
        plant(Path(folder), module, right, wrong)
        env = dict(
            os.environ,
            PYTHONPATH=f"{folder}{os.pathsep}{folder}/tests",
            OMP_NUM_THREADS="1",
            PYTHONDONTWRITEBYTECODE="1",
        )
        files = [
            str(Path(folder) / "tests" / f"test_{n}.py")
            for n in sorted(ORDER, key=lambda n: n != module.rpartition(".")[2])
        ]
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
        )
    failed = [
        line.split(" - ")[0]
        for line in run.stdout.splitlines()
        if line.startswith(("FAILED", "ERROR"))
    ]
    return run.returncode != 0, failed[0] if failed else f"exit {run.returncode}"


ORDER = (
    "diffusion",
    "sampling",
    "guidance",
    "thresholding",
    "mixture",
    "laboratory",
    "networks",
    "cascade",
    "checkpoint",
    "training",
    "data",
    "soak",
)


def main(names: list[str]) -> int:
    if gone := stale():
        raise SystemExit("faults.py: no longer there:\n  " + "\n  ".join(gone))
    chosen = [f for f in FAULTS if not names or any(n in f[0] for n in names)]
    caught = 0
    with ThreadPoolExecutor(2) as pool:
        for fault, (found, where) in zip(chosen, pool.map(is_caught, chosen)):
            caught += found
            print(f"{'caught' if found else 'MISSED'}  {fault[0]}  {where}", flush=True)
    print(f"{caught} of {len(chosen)} caught")
    return caught != len(chosen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

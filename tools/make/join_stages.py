"""Join stages that were trained in runs of their own into one model.

    imagen-nb emoji emoji-set
    imagen-nb train emoji --data emoji-set --stage 0 --out runs/base
    imagen-nb train emoji --data emoji-set --stage 1 --out runs/middle
    python tools/measure/make_run_card.py emoji runs/base runs/middle --command "..." --note "..."
    python tools/make/join_stages.py english data/emoji runs/base runs/middle

The k-th run gives stage k, with the averaged weights of its newest checkpoint. The weights in data/emoji were made so;
their model card tells what the run card of the folder's name says of the first run.
"""

import json
import sys
from pathlib import Path

from imagen_nb.cascade import Imagen
from imagen_nb.engine.captions import EmbeddingCache
from imagen_nb.runs.setup import load_recipe, make_encoder, trained_stages
from imagen_nb.store.checkpoint import newest_checkpoint
from imagen_nb.store.text_models import check_identity

CARDS = Path(__file__).resolve().parents[2] / "data" / "runs"


def main(name: str, out: str, *runs: str):
    encoder, stages = make_encoder(name), []

    for k, run in enumerate(map(Path, runs)):
        recipe = load_recipe(run)
        if (found := newest_checkpoint(run / f"{recipe.stages[k].size}px")) is None:
            raise ValueError(f"join_stages: {run}, got no checkpoint of stage {k}, expected one")
        check_identity(EmbeddingCache.open(run / "captions").identity, encoder.identity)
        stages.append(trained_stages(recipe, run)[k])
        print(f"{recipe.stages[k].size} px: step {found[1]['step']:,} of {run}")
    card = CARDS / f"{Path(out).name}.json"
    told = json.loads(card.read_text(encoding="utf-8")) if card.exists() else None
    Imagen(encoder, stages).save_pretrained(out, card=told)


if __name__ == "__main__":
    main(*sys.argv[1:])

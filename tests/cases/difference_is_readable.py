"A run of a recipe with one number changed: the refusal must name that number, not print both lists."

from small import *

from imagen_nb.engine.keeping import claim_directory
from imagen_nb.recipes import toy
from imagen_nb.store.config import change, config_to_dict

out = folder()
claim_directory(out, config_to_dict(toy()))
try:
    claim_directory(out, config_to_dict(change(toy(), "training.0.batch", "7")))
except ValueError as e:
    end(
        "training.0.batch" in str(e) and len(str(e)) < 400,
        f"one number changed, {len(str(e))} letters of message: {str(e).splitlines()[1].strip()[:60]}...",
    )
end(False, "taken")

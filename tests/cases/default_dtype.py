"torch.set_default_dtype(torch.float64) higher up in the notebook: same pictures, training works."

from small import *

before, problems = model().sample(captions()), []
config, world = CONFIG, WORLD
torch.set_default_dtype(torch.float64)
from imagen_nb.store.keyed import keyed_noise

if (dtype := keyed_noise([0], (2,)).dtype) != torch.float32:
    problems.append(f"keyed_noise, documented as float32, gives {dtype}")
torch.set_default_dtype(torch.float32)
m, text = model(), captions()
torch.set_default_dtype(torch.float64)
try:
    if (m.sample(text) - before).abs().max() > 1e-3:
        problems.append("another picture")
except Exception as e:
    problems.append(f"sample: {str(e)[:90]}")
end(not problems, "; ".join(problems) or "same picture")

"Usual slips in a call of sample: a ValueError that names function, what it got and what it expected (house rule 9)."

import numpy as np
from PIL import Image
from small import *

m, toy = model(), Imagen.from_pretrained("toy")
text, words = captions(2), ["red circle"]
slips = {
    "seeds=1": lambda: m.sample(text, seeds=1),
    "captions=None": lambda: toy.sample(None, stages=1),
    "a generator": lambda: toy.sample((c for c in words), stages=1),
    "w='2'": lambda: m.sample(text, w="2"),
    "w per picture": lambda: m.sample(text, w=torch.tensor([2.0, 3.0])),
    "aug_t='0.1'": lambda: m.sample(text, aug_t="0.1"),
    "size=16.": lambda: m.sample(text, size=16.0),
    "size='16x16'": lambda: m.sample(text, size="16x16"),
    "batch_size=-1": lambda: m.sample(text, batch_size=-1),
    "stages=[0]": lambda: m.sample(text, stages=[0]),
    "lowres PIL": lambda: toy.sample(words, lowres=Image.new("RGB", (32, 32))),
    "lowres numpy": lambda: toy.sample(words, lowres=np.zeros((1, 3, 32, 32), "f")),
    "Stage.sample(list)": lambda: m.stages[0].sample(["a"], seeds=[0]),
    "to(float16)": lambda: m.to(torch.float16),
    "dtype='float16'": lambda: m.save_pretrained(folder() / "m", dtype="float16"),
    "Trainer(config)": lambda: trainer(CONFIG, folder()).fit(),
    "no pictures": lambda: trainer(
        fresh(), folder(), world=ShapesWorld("train", level="quick", size=16, length=0)
    ).fit(),
    "a list as data": lambda: trainer(
        fresh(), folder(), world=[(torch.zeros(3, 16, 16), "a")] * 8
    ).fit(),
    "captions as text": lambda: trainer(fresh(), folder(), text=["a"] * 40).fit(),
}
raw = []
for name, call in slips.items():
    try:
        call()
    except ValueError:
        pass
    except Exception as e:
        raw.append(f"{name} ({type(e).__name__})")
end(
    not raw,
    f"{len(raw)} of {len(slips)} slips end in a raw error: {', '.join(raw)}"
    if raw
    else "all named",
)

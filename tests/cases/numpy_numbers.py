"Values out of numpy.linspace and arange, as in every sweep: taken, or refused for what they are."

import numpy as np
from small import *

m, text, wrong = model(), captions(2), []
for name, value in dict(
    w=np.linspace(1, 3, 3)[1],
    steps=np.arange(2, 5)[0],
    aug_t=np.float64(0.1),
    size=np.int64(16),
    n=np.int64(1),
    batch_size=np.int64(1),
).items():
    try:
        m.sample(text, **{name: value})
    except Exception as e:
        wrong.append(f"{name}={value!r}: {type(e).__name__}: {str(e)[:70]}")
end(not wrong, "; ".join(wrong) or "all taken")

"Another Accelerator was made before in the same notebook: its bf16 must not leak into our run."

from small import *

reference = trainer(fresh(), folder()).fit()
from accelerate import Accelerator
from accelerate.state import AcceleratorState

AcceleratorState._reset_state(True)
Accelerator(mixed_precision="bf16")
try:
    second = trainer(fresh(), folder()).fit()
except ValueError as e:
    end(True, f"refused: {e}")
end(
    same(reference, second),
    "the run computed in the other Accelerator's bf16, in silence"
    if not same(reference, second)
    else "same run",
)

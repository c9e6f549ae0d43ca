"A sweep that makes the Stage once, outside the loop: is the second run what a fresh one would be, or is one told?"

from small import *

reference, stage = trainer(fresh(), folder(), lr=1e-3).fit(), fresh()
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    trainer(stage, folder(), lr=4e-3).fit()
    try:
        second = trainer(stage, folder(), lr=1e-3).fit()
    except ValueError as e:
        end(True, f"refused: {e}")
end(
    same(reference, second) or bool(told),
    "the second run began with the weights of the first"
    if not same(reference, second)
    else "both runs began alike",
)

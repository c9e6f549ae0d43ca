"TrainConfig(batch=8, steps=200) and nothing else: 10 000 steps of warm-up. Is one told that it will learn nothing?"

from small import *

from imagen_nb.training import learning_rate

with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    try:
        c = TrainConfig(batch=4, steps=20)
        Trainer(
            fresh(),
            WORLD,
            Reader(),
            c,
            folder(),
            execution=Execution(progress=False, validate_every=0, sample_every=0),
        ).fit()
    except ValueError as e:
        end(True, f"refused: {e}")
end(
    bool(told),
    f"highest learning rate of the run {learning_rate(c.steps - 1, c):.1e} of lr {c.lr:.0e}; {len(told)} warnings",
)

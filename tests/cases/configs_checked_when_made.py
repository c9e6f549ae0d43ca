"Values that no run can use: refused when the config is made, not after a directory was claimed, and never taken."

from small import *

bad = dict(
    StageConfig=dict(loss_weight="minsnr", size=-16, t_start=0.0),
    TrainConfig=dict(
        ema=-1.0,
        ema_power=-3.0,
        steps=1.5,
        batch=8.0,
        keep=0.5,
        warmup=-5,
        betas=(1.5, 0.9),
        weight_decay=-1.0,
        final=5.0,
        seed=None,
    ),
)
taken = []
for name, values in bad.items():
    for key, value in values.items():
        try:
            replace(CONFIG, **{key: value}) if name == "StageConfig" else TrainConfig(
                **{key: value}
            )
        except (ValueError, TypeError):
            continue
        taken.append(f"{name}({key}={value!r})")
end(not taken, f"{len(taken)} taken: {', '.join(taken)}" if taken else "all refused")

"Stop a picture half way: the network must be in the mode it was in."

from small import *

stage, count = awake(), []
stage.network.train()


def tick(x0_hat):
    count.append(1)
    if len(count) == 2:
        raise KeyboardInterrupt


try:
    stage.sample(captions(), seeds=[0], watch=tick)
except KeyboardInterrupt:
    pass
end(
    stage.network.training,
    f"network.training was True, is {stage.network.training} after an interrupted sample()",
)

"Out of memory in step 1, nothing saved; the same cell with a smaller batch."

from small import *

out = folder() / "run"
t = trainer(fresh(), out, batch=8)


def full(*_):
    raise torch.OutOfMemoryError("pretended")


t.train_step = full
try:
    t.fit()
except torch.OutOfMemoryError:
    pass
try:
    trainer(fresh(), out, batch=4).fit()
except ValueError as e:
    end(False, "a directory without one checkpoint is refused: " + str(e).splitlines()[1].strip())
end(True, "the corrected run starts")

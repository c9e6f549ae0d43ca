"Go on training the stage that fit() returned: another directory, a smaller learning rate."

from small import *

stage = trainer(fresh(), folder()).fit()
try:
    trainer(stage, folder(), lr=1e-3).fit()
except Exception as e:
    end(False, f"Trainer(the stage that fit returned).fit() raises {type(e).__name__}: {e}")
end(True, "the stage that fit returned can be trained further")

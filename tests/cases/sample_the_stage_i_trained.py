"Draw with the Stage object that was handed to Trainer, after fit()."

from small import *

stage = fresh()
trainer(stage, folder()).fit()
try:
    stage.sample(captions(), seeds=[0])
except ValueError as e:
    end("fit" in str(e), f"after fit(), sampling the stage given to Trainer says: {e}")
end(True, "it draws")

"UNetConfig(text_dim=0), 'no text': can such a stage be trained and drawn with, or is it refused when made?"

from small import *

try:
    stage = fresh(replace(CONFIG, network=replace(NET, text_dim=0), w=1.0))
except ValueError as e:
    end(True, f"refused when made: {e}")
try:
    trained = trainer(stage, folder()).fit()
except Exception as e:
    end(False, f"StageConfig takes it, Trainer then says: {e}")
try:
    trained.sample(captions(), seeds=[0])
except Exception as e:
    end(False, f"trained, but sampling says: {e}")
end(True, "trains and draws")

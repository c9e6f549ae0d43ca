"stage.network = torch.compile(...) by hand, save_pretrained, from_pretrained."

from small import *

m, path = model(), folder() / "m"
m.stages[0].network = torch.compile(m.stages[0].network, backend="eager")
try:
    m.save_pretrained(path)
except ValueError as e:
    end(True, f"refused at saving: {str(e).splitlines()[0]}")
try:
    Imagen.from_pretrained(path).sample(captions())
except ValueError as e:
    end(False, f"saved without a word, cannot be loaded: {str(e).splitlines()[1].strip()}")
end(True, "loads")

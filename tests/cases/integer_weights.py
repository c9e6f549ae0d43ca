"save_pretrained(dtype=torch.int8), as one who wants a small file would try."

from small import *

m, path = model(), folder() / "m"
try:
    m.save_pretrained(path, dtype=torch.int8)
except (ValueError, TypeError) as e:
    end(True, f"refused: {e}")
same_ = torch.equal(
    m.stages[0].network.conv_in.weight,
    Imagen.from_pretrained(path).stages[0].network.conv_in.weight,
)
end(same_, "every weight was rounded to a whole number, without a word")

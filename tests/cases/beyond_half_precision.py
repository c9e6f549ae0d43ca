"A weight that float16 cannot hold, and a NaN: save_pretrained with its default dtype."

from small import *

found = []
for value in (1e5, float("nan")):
    m, path = model(), folder() / "m"
    m.stages[0].network.conv_in.bias.data[0] = value
    try:
        m.save_pretrained(path)
    except (ValueError, RuntimeError):
        continue
    back = Imagen.from_pretrained(path).stages[0].network.conv_in.bias[0].item()
    if not abs(back - value) < 1:
        found.append(f"{value} came back as {back}")
end(not found, "; ".join(found) + ", without a word" if found else "refused or kept")

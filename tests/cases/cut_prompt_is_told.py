"A prompt longer than the encoder reads: Imagen.sample must say that its end was cut."

from small import *

m = Imagen.from_pretrained("toy")
long = "a small red circle to the left of a big blue square " + "on a gray background " * 40
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    try:
        m.sample([long], stages=1, steps=1)
    except ValueError as e:
        end(True, f"refused: {e}")
end(
    any("token" in str(w.message) or "cut" in str(w.message) for w in told),
    f"{m.encoder.truncated} prompt cut at {m.encoder.max_length} tokens, {len(told)} warnings",
)

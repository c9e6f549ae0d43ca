"from_pretrained of a run's directory, a stage's, a checkpoint: the error must name the model folder or `export`."

from small import *

out = folder()
trainer(fresh(), out / "16px").fit()
blind = []
for path in (out, out / "16px", out / "16px" / "step_00000006"):
    try:
        Imagen.from_pretrained(path)
    except ValueError as e:
        if "export" not in str(e) and "model" not in str(e).replace(str(path), ""):
            blind.append(str(e).replace(str(out), "RUN")[:90])
end(not blind, "; ".join(blind) or "all point the way")

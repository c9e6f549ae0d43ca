"A finished run with a constant learning rate, to be continued for more steps."

from small import *

out = folder()
trainer(fresh(), out, steps=4, decay="constant").fit()
try:
    trainer(fresh(), out, steps=8, decay="constant").fit()
except ValueError as e:
    end(
        "from_pretrained" in str(e) or "init" in str(e),
        "refused, and no way on is named: " + str(e).splitlines()[1].strip(),
    )
end(True, "goes on to step 8")

"Change save_every and keep, which change nothing that is learned, when a run goes on."

from small import *

out = folder()
trainer(fresh(), out, save_every=3).fit()
try:
    trainer(fresh(), out, save_every=2, keep=5).fit()
except ValueError as e:
    end(False, "refused: " + "; ".join(x.strip() for x in str(e).splitlines()[1:3]))
end(True, "goes on")

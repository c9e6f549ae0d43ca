"fit() must leave the process as it found it: small numbers of other code still exist."

from small import *

tiny = torch.tensor([1e-40])
before = (tiny * 1).item()
trainer(fresh(), folder(), steps=1).fit()
after = (tiny * 1).item()
end(
    before == after,
    f"1e-40 * 1 was {before:.0e} before fit() and is {after:.0e} after it, for all code in the process",
)

"'~/x' as a place to save: in the home directory, or refused; never a folder called '~' here."

import os

from small import *

home, here = folder(), folder()
os.environ["HOME"], cwd = str(home), os.chdir(here)
made = []
for what, call in dict(
    save_pretrained=lambda: model().save_pretrained("~/m"),
    Trainer=lambda: trainer(fresh(), "~/run", steps=1).fit(),
).items():
    try:
        call()
    except ValueError:
        pass
    if (here / "~").exists():
        made.append(what)
end(
    not made,
    f"a folder named '~' was made in the working directory by {', '.join(made)}"
    if made
    else "home, or refused",
)

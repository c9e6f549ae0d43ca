"One process of `ranks`."

import sys
from pathlib import Path

from soak.ranks import train

train(*map(Path, sys.argv[1:]))

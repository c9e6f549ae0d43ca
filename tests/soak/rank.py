"One process of `ranks`."
import sys
from pathlib import Path

from soak.ranks import train

train(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), "bypass" in sys.argv)

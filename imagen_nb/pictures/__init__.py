"Files and scenes become pixels of the size that was asked for, and what is left out is counted."

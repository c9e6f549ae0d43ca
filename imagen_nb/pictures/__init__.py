"Files become pixels with captions, and what is left out is counted."

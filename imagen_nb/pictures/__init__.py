"Files become pixels with captions, what is left out is counted, and a drawn world has its scenes."

"Bytes on disk, complete or absent; it knows nothing of diffusion."

"The ground floor: whole files, configs, keyed numbers, checks; it knows nothing of diffusion."

"Whole commands, from a name to pictures on disk."

"""Config, data, stages, workdir and results of one run."""

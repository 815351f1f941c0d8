"""The stages of a run. Each leaves its result in the workdir and is not run again once it has."""

"""The papers, as pure functions of arrays: no config, no files. Read this first."""

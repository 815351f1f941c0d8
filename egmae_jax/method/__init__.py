"""The methods of the papers, as pure functions of arrays without config and files."""

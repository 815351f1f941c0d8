"""One run: what it is made of, its stages, and what it leaves in its workdir."""

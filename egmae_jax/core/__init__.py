"""General utilities that all other packages use; independent of images, networks and runs."""

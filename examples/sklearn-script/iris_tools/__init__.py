"""Code that the entry script imports; the bundle carries the folder."""

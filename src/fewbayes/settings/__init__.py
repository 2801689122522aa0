"""The settings of a run: names, limits, defaults, and where they come from."""

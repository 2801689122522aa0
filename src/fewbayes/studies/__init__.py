"""Experiments: grids of training runs that differ in a few settings, kept beside an `experiment.json`."""

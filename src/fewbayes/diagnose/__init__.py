"""The stage of a model that somebody has trained, and what explains it."""

"""The corruption stage: its theory, probes of a model at one moment; importing this brings in neither."""

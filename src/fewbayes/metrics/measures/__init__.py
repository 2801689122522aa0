"""The metrics, a file for each or for a few that share a formula; every file here is imported by the registry."""

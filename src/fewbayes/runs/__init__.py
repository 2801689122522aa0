"""Run folders: what lies in them, and what can be opened."""

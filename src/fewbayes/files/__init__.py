"""Files on the disk: written whole or not at all, read by typed schemas with bounds."""

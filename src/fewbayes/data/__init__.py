"""Pictures that people bring: checked, read, cut."""

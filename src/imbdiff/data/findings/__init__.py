"""What `imbdiff inspect` finds, one question per file."""

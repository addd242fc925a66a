"""Every objective against its formula, and against what can be known of it."""

"""A look at a corpus before one trains on it: what is in it, and what in it may spoil a result."""

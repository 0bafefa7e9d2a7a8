"""Audit of a corpus before training: what the corpus contains, and what in it may distort the results."""

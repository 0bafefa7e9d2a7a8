"""The page of a sweep or a run: one file that opens anywhere, without a network."""

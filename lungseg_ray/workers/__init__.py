"""The Ray Train workers and their mailbox."""

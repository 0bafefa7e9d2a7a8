"""The Ray Train workers, their mailbox and their watchdog."""

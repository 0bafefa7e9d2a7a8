"""The jobs: one file for each command, and what the terminal shows."""

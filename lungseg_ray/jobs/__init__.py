"""The jobs: one module for each command, and what they share, such as the display in the terminal."""

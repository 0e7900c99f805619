"""What numbers are: their formats in memory, and the arithmetics that tiles can be computed in."""

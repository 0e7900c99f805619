"""What a launch may touch, and what is noted about it between launches."""

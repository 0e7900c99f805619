"""What the harness does: cases, checks, survey, hunt, gate, command line."""

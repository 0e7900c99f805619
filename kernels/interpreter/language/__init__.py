"""A kernel as Triton's front end left it (TTIR): how it is read, and what can be told from it before it runs."""

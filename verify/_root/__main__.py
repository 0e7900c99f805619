"""`python -m flashproof`: the same as the `flashproof` script."""

from flashproof.verify.cli import main

main()

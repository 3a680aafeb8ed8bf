"""`python -m server` is the same as `picback`."""

from server.cli import main

main()

"""`python -m invoke_retry` is the command `invoke-retry`."""

from invoke_retry.cli import main

main()

"""Run litemed-prepare as `python -m litemed.train.prepare`."""

from litemed.train.prepare.cli import main

main()

"""`python -m litemed.benchmarks.table4` is the command `litemed-bench`."""

from litemed.benchmarks.table4.cli import main

main(prog_name="litemed-bench")

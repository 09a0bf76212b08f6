"""The numbers in the README: `python -m bench`. How they are taken is in docs/benchmarks.md."""

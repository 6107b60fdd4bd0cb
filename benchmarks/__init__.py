"""Jobs that measure: each is a module to run, `python -m benchmarks.train --help`."""

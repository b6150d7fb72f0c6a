"""Times of rooms against peers, in one run: ``python -m benchmarks`` or ``make bench``."""

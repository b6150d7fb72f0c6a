"""One script per figure; each has ``main(argv)`` and a ``--smoke`` size."""

"""`python eval.py RUN_OR_CHECKPOINT [key=value …]`: the same as `segkd eval`."""

import sys

from segkd.cli import main

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]])

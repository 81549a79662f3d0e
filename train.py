"""`python train.py [CONFIG] [key=value …]`, also under torchrun: the same as `segkd train`."""

import sys

from segkd.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])

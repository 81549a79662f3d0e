"""`python -m segkd`: the same as `segkd`."""

from segkd.cli import main

if __name__ == "__main__":
    main()

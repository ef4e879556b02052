"""Runs `yt8m train`; see `python train.py --help`."""

import sys

from yt8m.cli.main import run

if __name__ == "__main__":
    sys.exit(run("train", sys.argv[1:]))

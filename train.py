"""Runs `yt8m train`; see `python train.py --help`."""

import sys

from yt8m.cli.main import leave, run

if __name__ == "__main__":
    leave(run("train", sys.argv[1:]))

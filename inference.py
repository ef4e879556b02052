"""Runs `yt8m inference`; see `python inference.py --help`."""

import sys

from yt8m.cli.main import leave, run

if __name__ == "__main__":
    leave(run("inference", sys.argv[1:]))

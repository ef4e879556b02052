"""Runs `yt8m eval`; see `python eval.py --help`."""

import sys

from yt8m.cli.main import leave, run

if __name__ == "__main__":
    leave(run("eval", sys.argv[1:]))

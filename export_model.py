"""Runs `yt8m export`; see `python export_model.py --help`."""

import sys

from yt8m.cli.main import leave, run

if __name__ == "__main__":
    leave(run("export", sys.argv[1:]))

"""Runs `yt8m export`; see `python export_model.py --help`."""

import sys

from yt8m.cli.main import run

if __name__ == "__main__":
    sys.exit(run("export", sys.argv[1:]))

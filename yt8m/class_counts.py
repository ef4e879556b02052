"""How many videos each class has, as `yt8m count` and the vocabulary say."""

import csv

import numpy as np

from yt8m.errors import UserError


def read_class_counts(path: str) -> np.ndarray:
    """Number of videos of each class, from a CSV file with a column `Index`.

    The number is in the column Videos or PositiveSegments (of `yt8m count
    --per_class`) or TrainVideoCount (of the dataset's vocabulary.csv).

    Returns:
        int64 [C], up to the last class of the file.

    Raises:
        UserError: the file cannot be read, or a line of it; names it.
    """
    columns = ("Videos", "PositiveSegments", "TrainVideoCount")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            header = rows.fieldnames or []
            column = next((c for c in columns if c in header), None)
            if "Index" not in header or column is None:
                raise UserError(
                    f"{path} has no columns Index and {' or '.join(columns)}: write it "
                    "with `yt8m count --per_class`."
                )
            counts = {}
            for row in rows:
                try:
                    label, count = int(row["Index"]), int(row[column])
                except (TypeError, ValueError):
                    label = count = -1
                if min(label, count) < 0 or label in counts:
                    raise UserError(
                        f"{path}, line {rows.line_num}: needs a class, once, and the "
                        f"number of its videos in the columns Index and {column}."
                    )
                counts[label] = count
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        reason = getattr(e, "strerror", None) or e
        raise UserError(f"The class counts {path} cannot be read: {reason}.") from e
    found = np.zeros(max(counts, default=-1) + 1, "int64")
    found[list(counts)] = list(counts.values())
    return found

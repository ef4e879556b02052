"""Counts which labels appear together: the file that label processing reads.

    yt8m correlate --train_data_pattern='train*.tfrecord' --output_file=labels.npz
    train.py --model_args='label_processing=correlation,
        label_processing_args={"correlation": "labels.npz"}' ...

Shards of either level will do, as both have the same labels. The file holds counts, for
the pairs of classes that appear together in some video; what is made of them is said
in `yt8m.layers.label_processing`. Memory is 4 bytes for each pair of classes: 60 MB for
3,862 classes, 89 MB for 4,716.
"""

import io
from itertools import combinations_with_replacement

import numpy as np
from absl import flags as absl_flags

from yt8m import schema
from yt8m.cli import flags as shared

_PAIRS_AT_ONCE = 1 << 16


def define(flags: shared.FlagValues) -> None:
    absl_flags.DEFINE_string(
        "train_data_pattern",
        "",
        "Shards of either level: globs, separated by commas.",
        flag_values=flags,
    )
    absl_flags.DEFINE_string(
        "output_file", "", "The file to write (.npz).", flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "num_classes", schema.NUM_CLASSES, "Number of classes.", 1, flag_values=flags
    )


def run(flags: shared.FlagValues) -> int:
    from yt8m.data import files as data_files
    from yt8m.inference.replaced_file import ReplacedFile

    shared.require(flags, "train_data_pattern", "No shards to read")
    shared.require(flags, "output_file", "No file to write")
    files = data_files.list_files(flags.train_data_pattern, "--train_data_pattern")
    shared.prepare_output(flags, "output_file", files)
    with ReplacedFile(flags.output_file) as output:
        together = _count_together(files, flags.num_classes)
        rows, columns = np.nonzero(together)
        compressed = io.BytesIO()
        np.savez_compressed(
            compressed,
            indices=np.stack([rows, columns], axis=1).astype("int32"),
            counts=together[rows, columns],
            num_classes=flags.num_classes,
        )
        output.write(compressed.getvalue())
    classes = np.count_nonzero(np.diag(together))
    print(
        f"{flags.output_file}: {classes:,} of {flags.num_classes:,} classes, "
        f"{len(rows) - classes:,} pairs of them appear together"
    )
    return 0


def _count_together(files: list[str], num_classes: int) -> np.ndarray:
    """Number of videos int32 [C, C] with the classes i <= j; elsewhere 0."""
    from yt8m.data.index import RecordIndex
    from yt8m.data.labels import read_labels
    from yt8m.progress import Progress

    together = np.zeros((num_classes, num_classes), "int32")
    pairs: list[tuple[int, int]] = []

    def add():
        if pairs:
            np.add.at(together, tuple(np.array(pairs).T), 1)
            pairs.clear()

    index = RecordIndex()
    with Progress(total=sum(index.counts(files))) as progress:
        for block in read_labels(files, num_classes, index):
            for labels in block:
                pairs += combinations_with_replacement(labels, 2)
                if len(pairs) >= _PAIRS_AT_ONCE:
                    add()
            progress.update(len(block.ids))
    add()
    return together

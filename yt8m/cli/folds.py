"""Splits shards into folds, for predictions of videos that a model has not seen.

    yt8m folds --input_data_pattern='train*.tfrecord' --num_folds=5 --output_dir=folds
    train.py --train_data_pattern=@folds/train-0.txt --train_dir=fold0 ...
    inference.py --train_dir=fold0 --input_data_pattern=@folds/held-out-0.txt \\
        --output_file=fold0.predictions
    ... and so for 1 .. 4 ...
    yt8m merge --input_files='fold*.predictions' --output_file=out-of-fold.predictions

held-out-I.txt lists the shards of fold I, train-I.txt all others; any pattern of
shards takes such a list as @FILE. The folds depend on the seed and on the names of the
shards, not on their folder, and differ by one shard at most.

--by_id deals the videos, by the seed and their ids alone, whatever shards they are in:
the records of fold I are written to a shard of its own, together as much as the input.
"""

import contextlib
import hashlib
import os
from collections.abc import Sequence

from absl import flags as absl_flags

from yt8m.cli import flags as shared
from yt8m.errors import DataError, UserError


def define(flags: shared.FlagValues) -> None:
    absl_flags.DEFINE_string(
        "input_data_pattern", "", "The shards to split: globs.", flag_values=flags
    )
    absl_flags.DEFINE_integer("num_folds", 5, "Number of folds.", 2, flag_values=flags)
    absl_flags.DEFINE_integer("seed", 0, "Seed of the split.", 0, flag_values=flags)
    absl_flags.DEFINE_bool(
        "by_id",
        False,
        "Deals videos instead of shards: writes a shard of each fold.",
        flag_values=flags,
    )
    shared.output_dir(flags, "Where to write the lists of shards.")


def run(flags: shared.FlagValues) -> int:
    from yt8m import whole_files
    from yt8m.data.files import list_files

    shared.require(flags, "input_data_pattern", "No shards to split")
    shared.require(flags, "output_dir", "No directory to write")
    files = list_files(flags.input_data_pattern, "--input_data_pattern")
    directory = flags.output_dir.rstrip("/")
    if flags.by_id:
        name = f"of-{flags.num_folds}-seed-{flags.seed}.tfrecord"
        folds = [[f"{directory}/fold-{i}-{name}"] for i in range(flags.num_folds)]
    elif len(files) < flags.num_folds:
        raise UserError(
            f"--num_folds={flags.num_folds} is more than the {len(files)} shard(s) of "
            f"--input_data_pattern={flags.input_data_pattern}; --by_id deals videos."
        )
    else:
        folds = split(files, flags.num_folds, flags.seed)
    texts = _lists(folds, directory)
    _refuse_another_split(directory, texts)
    whole_files.make_directory(directory)
    counts, what = [len(fold) for fold in folds], "shards"
    if flags.by_id:
        counts, what = deal(files, [path for (path,) in folds], flags.seed), "videos"
    for i, count in enumerate(counts):
        rest = sum(counts) - count
        print(f"fold {i}: {count:,} {what} held out, {rest:,} to train on")
    for path, text in texts.items():
        whole_files.write_file(path, text)
    print(f"train.py --train_data_pattern=@{directory}/train-0.txt ...")
    print(f"inference.py --input_data_pattern=@{directory}/held-out-0.txt ...")
    return 0


def fold_of(video_id: str, num_folds: int, seed: int = 0) -> int:
    """The fold of a video, which depends on nothing else."""
    digest = hashlib.sha256(f"{seed}/{video_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % num_folds


def deal(files: Sequence[str], paths: Sequence[str], seed: int = 0) -> list[int]:
    """Writes the records of each fold as they are, in their order.

    Args:
        files: shards of either level.
        paths: the shard of each fold; all appear when all are whole.
        seed: of the folds.

    Returns:
        The number of records of each fold.

    Raises:
        UserError: a shard cannot be written, or would take the place of an input.
        DataError: a file is damaged, a record has no id, or a fold would be empty.
    """
    import tensorflow as tf

    from yt8m.data.files import leave_out_empty
    from yt8m.data.index import RecordIndex
    from yt8m.data.labels import read_numbered
    from yt8m.data.records import read_id
    from yt8m.inference.replaced_file import ReplacedFile
    from yt8m.progress import Progress

    taken = {os.path.realpath(path) for path in files}
    for path in paths:
        if os.path.realpath(path) in taken:
            raise UserError(f"{path} is an input; choose another --output_dir.")
    files = leave_out_empty(list(files))
    counts = [0] * len(paths)
    total = sum(RecordIndex().counts(list(files)))
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress(total=total))
        shards = [
            stack.enter_context(ReplacedFile(path, tf.io.TFRecordWriter))
            for path in paths
        ]
        for path in files:
            for _, serialized in read_numbered(path):
                fold = fold_of(read_id(serialized), len(paths), seed)
                shards[fold].write(serialized)
                counts[fold] += 1
                progress.update(1)
        if 0 in counts:
            raise DataError(
                f"None of {total:,} videos falls into fold {counts.index(0)}: they are "
                f"too few for --num_folds={len(paths)}."
            )
    return counts


def _lists(folds: list[list[str]], directory: str) -> dict[str, str]:
    """The texts of the lists, by path."""
    texts = {}
    for i, fold in enumerate(folds):
        rest = sorted(set().union(*folds) - set(fold))
        texts[f"{directory}/held-out-{i}.txt"] = "\n".join(fold) + "\n"
        texts[f"{directory}/train-{i}.txt"] = "\n".join(rest) + "\n"
    return texts


def _refuse_another_split(directory: str, texts: dict[str, str]) -> None:
    """Raises `UserError` if there are lists of another split.

    Runs may have been trained on them, and would have seen what is held out now.
    """
    import tensorflow as tf

    for path in _lists_in(directory):
        with tf.io.gfile.GFile(path) as f:
            if f.read() != texts.get(path):
                raise UserError(
                    f"{directory} holds another split ({path}); choose another "
                    "--output_dir."
                )


def split(files: list[str], num_folds: int, seed: int = 0) -> list[list[str]]:
    """Deals shards, in an order drawn by seed and name, to folds; each is sorted."""

    def place(path: str) -> tuple[bytes, str]:
        name = f"{seed}/{os.path.basename(path)}"
        return hashlib.sha256(name.encode()).digest(), path

    drawn = sorted(files, key=place)
    return [sorted(drawn[i::num_folds]) for i in range(num_folds)]


def _lists_in(directory: str) -> list[str]:
    """The lists that an earlier split has written."""
    import tensorflow as tf

    kinds = (f"{directory}/{kind}-*.txt" for kind in ("held-out", "train"))
    return [path for pattern in kinds for path in tf.io.gfile.glob(pattern)]

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
"""

import hashlib
import os

from absl import flags as absl_flags

from yt8m.cli import flags as shared
from yt8m.errors import UserError


def define(flags: shared.FlagValues) -> None:
    absl_flags.DEFINE_string(
        "input_data_pattern", "", "The shards to split: globs.", flag_values=flags
    )
    absl_flags.DEFINE_integer("num_folds", 5, "Number of folds.", 2, flag_values=flags)
    absl_flags.DEFINE_integer("seed", 0, "Seed of the split.", 0, flag_values=flags)
    shared.output_dir(flags, "Where to write the lists of shards.")


def run(flags: shared.FlagValues) -> int:
    import tensorflow as tf

    from yt8m import runs
    from yt8m.data.files import list_files

    shared.require(flags, "input_data_pattern", "No shards to split")
    shared.require(flags, "output_dir", "No directory to write")
    files = list_files(flags.input_data_pattern, "--input_data_pattern")
    if len(files) < flags.num_folds:
        raise UserError(
            f"--num_folds={flags.num_folds} is more than the {len(files)} shard(s) of "
            f"--input_data_pattern={flags.input_data_pattern}."
        )
    directory, texts = flags.output_dir.rstrip("/"), {}
    for i, fold in enumerate(split(files, flags.num_folds, flags.seed)):
        rest = sorted(set(files) - set(fold))
        texts[f"{directory}/held-out-{i}.txt"] = "\n".join(fold) + "\n"
        texts[f"{directory}/train-{i}.txt"] = "\n".join(rest) + "\n"
        print(f"fold {i}: {len(fold)} shards held out, {len(rest)} to train on")
    # Runs may have been trained on them, and would have seen what is held out now.
    for path in _lists_in(directory):
        with tf.io.gfile.GFile(path) as f:
            if f.read() != texts.get(path):
                raise UserError(
                    f"{directory} holds another split ({path}); choose another "
                    "--output_dir."
                )
    runs.make_directory(directory)
    for path, text in texts.items():
        runs.write_file(path, text)
    print(f"train.py --train_data_pattern=@{directory}/train-0.txt ...")
    print(f"inference.py --input_data_pattern=@{directory}/held-out-0.txt ...")
    return 0


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

"""Compression: small on disk, close to the weights, and read as any run is."""

import io
import json
import os
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from yt8m import compression, runs
from yt8m.cli.compress import parse_bytes
from yt8m.cli.main import run as command
from yt8m.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from yt8m.data.records import encode_video_record, write_records
from yt8m.errors import DataError, UserError
from yt8m.inference.bundle import read_bundle

FEATURES = {"mean_rgb": 64, "mean_audio": 16}
CLASSES = 60


def weights(shape=(64, 100), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def round_trip(arrays, method) -> list[np.ndarray]:
    file = io.BytesIO()
    compression.write_weights(file, arrays, method)
    return list(compression.read_weights(io.BytesIO(file.getvalue())))


# --- numbers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, value, expected",
    [
        # 11 significant bits: 1 + 2^-11 is half-way and goes to the even 1.
        ("float16", 1 + 2**-11, 1.0),
        ("float16", 1 + 3 * 2**-11, 1 + 2**-9),
        # 8 significant bits.
        ("bfloat16", 1 + 2**-8, 1.0),
        ("bfloat16", 1 + 3 * 2**-8, 1 + 2**-6),
        ("bfloat16", -(1 + 2**-8 + 2**-20), -(1 + 2**-7)),
    ],
)
def test_floats_of_16_bits_are_the_nearest_ones(method, value, expected):
    weight = np.full((64, 64), value, np.float32)
    arrays = compression.compress(weight, method)
    assert sum(a.nbytes for a in arrays.values()) == 2 * weight.size
    np.testing.assert_array_equal(compression.expand(arrays), np.float32(expected))


def test_bfloat16_is_tensorflows():
    weight = weights() * np.float32(10) ** np.arange(-35, 35).repeat(92)[:6400].reshape(
        64, 100
    ).astype(np.float32)
    twin = weight.astype(tf.bfloat16.as_numpy_dtype).astype(np.float32)
    (found,) = round_trip([weight], "bfloat16")
    np.testing.assert_array_equal(found, twin)


def test_values_beyond_float16_are_kept_and_those_that_are_no_numbers_refused():
    weight = weights()
    weight[3, 4] = 70_000
    assert set(compression.compress(weight, "float16")) == {"kept"}
    assert set(compression.compress(weight, "bfloat16")) == {"bfloat16"}
    weight[3, 4] = np.nan
    for method in compression.METHODS:
        with pytest.raises(UserError, match=r"\[64, 100\] holds values .* not finite"):
            compression.compress(weight, method)


def test_a_codebook_is_nearly_the_best_one_and_codes_are_the_nearest():
    weight = weights((256, 1024))
    arrays = compression.compress(weight, "codebook8")
    codes, levels = arrays["codes"], arrays["codebook"]
    assert codes.dtype == np.uint8 and len(levels) == 256
    chosen = np.abs(weight[:8] - levels[codes[:8]])
    best = np.abs(weight[:8, :, None] - levels).min(axis=-1)
    np.testing.assert_array_equal(chosen, best)
    # The least error of 256 levels of a normal variable: sqrt(3) pi / 2 / 256^2.
    error = np.mean((weight - compression.expand(arrays)) ** 2, dtype=np.float64)
    assert error < 1.03 * np.sqrt(3) * np.pi / 2 / 256**2
    # Evenly spaced ones would do worse, and Lloyd's condition holds.
    means = np.bincount(codes.ravel(), weight.ravel()) / np.bincount(codes.ravel())
    np.testing.assert_allclose(levels, means, atol=2e-3)


def test_a_codebook_of_few_values_and_of_far_ones():
    few = np.tile(np.float32([0, 0.25, -3]), (1500, 1))
    arrays = compression.compress(few, "codebook8")
    np.testing.assert_array_equal(arrays["codebook"], np.float32([-3, 0, 0.25]))
    np.testing.assert_array_equal(compression.expand(arrays), few)
    far = weights()
    far[0, 0] = 1e4
    found = compression.expand(compression.compress(far, "codebook8"))
    assert found[0, 0] == pytest.approx(1e4, rel=1e-3)
    rest = (found - far).ravel()[1:]
    assert np.mean(rest**2) < 2 * np.sqrt(3) * np.pi / 2 / 256**2


def test_a_part_of_a_large_weight_is_enough(monkeypatch):
    weight = weights((256, 256))
    whole = compression.find_codebook(weight)
    monkeypatch.setattr(compression, "_MOST_SAMPLES", 1 << 14)
    part = compression.find_codebook(weight)
    assert part.tolist() != whole.tolist()

    def error(levels):
        return np.mean((weight - levels[compression.nearest(weight, levels)]) ** 2)

    assert error(part) < 1.2 * error(whole)


# --- files ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", compression.METHODS)
def test_small_weights_are_kept_and_the_same_weights_give_the_same_bytes(method):
    small = [
        weights((5000,)),  # a bias
        weights((63, 65)),  # 4,095 values
        np.arange(5000).reshape(50, 100),  # integers
        np.float32(3),
    ]
    large = weights((64, 64))
    *same, last = round_trip([*small, large], method)
    for a, b in zip(same, small, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    assert 0 < np.abs(last - large).max() < 0.05
    files = [io.BytesIO(), io.BytesIO()]
    for file in files:
        compression.write_weights(file, [large], method)
    assert files[0].getvalue() == files[1].getvalue()


def test_an_unknown_method_lists_the_known():
    with pytest.raises(UserError, match="Did you mean float16 or bfloat16"):
        compression.write_weights(io.BytesIO(), [], "float61")


def test_other_files_are_refused():
    def written(deflated=False, **arrays) -> bytes:
        file = io.BytesIO()
        (np.savez_compressed if deflated else np.savez)(file, **arrays)
        return file.getvalue()

    w = weights()
    bad = {
        "deflated": written(True, **{"00000.kept": w}),
        "missing": written(**{"00001.kept": w}),
        "no weight": written(**{"00000.float8": w}),
        "codebook, codes": written(
            **{"00000.codes": w.astype(int), "00000.codebook": w[0]}
        ),
        "not a file": b"weights",
        "out of bounds": written(
            **{"00000.codes": np.full((2, 2), 9, np.uint8), "00000.codebook": w[0, :3]}
        ),
        "Object arrays": written(**{"00000.kept": np.array([{}], object)}),
    }
    for said, content in bad.items():
        with pytest.raises(ValueError, match=said):
            list(compression.read_weights(io.BytesIO(content)))


def test_numbers_of_bytes():
    for text, expected in {
        "1000": 1000,
        "1GB": 10**9,
        "1.5 kb": 1500,
        "1GiB": 2**30,
        "2mib": 2**21,
    }.items():
        assert parse_bytes(text, "--max_bytes") == expected
    for text in ("1TBX", "-5", "GB", ""):
        with pytest.raises(UserError, match="--max_bytes=.* is no number of bytes"):
            parse_bytes(text, "--max_bytes")


# --- the command ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run whose model ranks well, and the shard that it was made for."""
    folder = tmp_path_factory.mktemp("compress")
    rng = np.random.default_rng(0)
    data = DataConfig("video", FEATURES, num_classes=CLASSES)
    config = RunConfig(
        ModelConfig("MlpModel", {"hidden_sizes": [256]}),
        data,
        TrainingConfig("none*.tfrecord", ema_decay=0.9),
    )
    runs.load_registries()
    model = runs.build_model(config.model, data)
    for v in model.trainable_variables:
        v.assign(rng.normal(size=v.shape) * (0.3 if len(v.shape) > 1 else 0.05))
    directory = str(folder / "run")
    os.makedirs(directory)
    runs.write_config(directory, config)
    (folder / "run" / "segment_label_ids.csv").write_text("Index\n3\n")
    runs.Checkpoints(directory).save({"model": model}, 5, 50, 10, {"gap": 0.5})
    records = []
    for i in range(60):
        values = {n: rng.normal(size=s).astype(np.float32) for n, s in FEATURES.items()}
        logits = model({n: v[None] for n, v in values.items()})["logits"]
        best = np.argsort(-np.asarray(logits)[0])[:3]
        records.append(encode_video_record(f"v{i:03d}", values, best.tolist()))
    write_records(str(folder / "shard.tfrecord"), records)
    return directory, str(folder / "shard.tfrecord"), model


def compress(directory, output, *flags) -> int:
    return command(
        "compress", [f"--train_dir={directory}", f"--output_dir={output}", *flags]
    )


def bytes_below(folder) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_the_result_is_small_and_every_command_reads_it(trained, tmp_path, capsys):
    directory, shard, model = trained
    sizes = {}
    for method in compression.METHODS:
        small = tmp_path / method
        flags = [f"--method={method}", f"--eval_data_pattern={shard}"]
        assert compress(directory, small, *flags) == 0, capsys.readouterr().err
        said = capsys.readouterr().out
        record = json.loads((small / "compression.json").read_text())
        sizes[method] = bytes_below(small) - len(json.dumps(record, indent=2)) - 1
        assert record["bytes"] == sizes[method]
        assert f"{record['bytes_before']:,} bytes of weights before" in said
        assert f"{sizes[method]:,} bytes after" in said
        gaps = record["gap_before"], record["gap"]
        assert f"GAP {gaps[0]:.5f} before, {gaps[1]:.5f} after" in said
        assert abs(gaps[0] - gaps[1]) < 0.02
        read = runs.load_run(str(small))
        assert (read.checkpoint.step, read.checkpoint.examples) == (5, 50)
        assert read.checkpoint.validation is None  # it is of other weights
        for a, b in zip(read.model.variables, model.variables, strict=True):
            compressed = a.numpy().ndim > 1 and a.numpy().size >= 4096
            assert np.array_equal(a, b) != compressed
        assert (small / "segment_label_ids.csv").exists()
    assert record["bytes_before"] == sum(v.numpy().nbytes for v in model.variables)
    assert sizes["float16"] < 0.6 * record["bytes_before"]
    assert sizes["codebook8"] < 0.6 * sizes["float16"]

    # The command of inference takes it, and so does a bundle of it.
    outputs = [tmp_path / "a.csv", tmp_path / "b.csv"]
    common = [f"--input_data_pattern={shard}"]
    tgz = tmp_path / "small.tgz"
    first = [f"--train_dir={tmp_path / 'codebook8'}", f"--output_model_tgz={tgz}"]
    second = [f"--input_model_tgz={tgz}"]
    for given, output in zip((first, second), outputs, strict=True):
        flags = [*common, *given, f"--output_file={output}"]
        assert command("inference", flags) == 0, capsys.readouterr().err
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert tgz.stat().st_size < sizes["codebook8"]
    unpacked = read_bundle(str(tgz), str(tmp_path / "unpacked"))
    assert "weights.npz" in os.listdir(f"{unpacked}/checkpoints/step-00000005")


def test_what_is_over_the_limit_is_refused_with_both_sizes(trained, tmp_path, capsys):
    directory, _, _ = trained
    flags = ["--method=float16", "--max_bytes=60KB"]
    assert compress(directory, tmp_path / "small", *flags) == 1
    said = capsys.readouterr().err
    assert (
        "bytes with weights as float16, more than the 60,000 of --max_bytes=60KB"
        in (said)
    )
    assert not os.listdir(tmp_path)
    assert compress(directory, tmp_path / "small", "--max_bytes=60KB") == 0


def test_refusals(trained, tmp_path, capsys):
    directory, shard, _ = trained
    small = tmp_path / "small"
    assert compress(directory, small, "--batch_size=3") == 1
    assert "--batch_size is of the evaluation: give --eval_data_pattern" in (
        capsys.readouterr().err
    )
    assert compress(directory, directory) == 1
    assert "not empty and not an export of this kind" in capsys.readouterr().err
    assert compress(directory, small) == 0
    assert compress(directory, f"{small}/", "--method=float16") == 0  # replaced
    assert os.listdir(tmp_path) == ["small"]
    capsys.readouterr()
    flags = [
        "--model=MlpModel",
        "--model_args=hidden_sizes=[256]",
        f"--train_dir={small}",
    ]
    flags += ["--feature_names=mean_rgb,mean_audio", "--feature_sizes=64,16"]
    flags += [f"--num_classes={CLASSES}", f"--train_data_pattern={shard}"]
    flags += ["--ema_decay=0.9", "--strategy=one_device"]
    assert command("train", flags) == 1
    assert "compressed weights, from which no training goes on" in (
        capsys.readouterr().err
    )


def test_a_damaged_file_is_named(trained, tmp_path):
    directory, _, _ = trained
    compress(directory, tmp_path / "small")
    path = tmp_path / "small" / "checkpoints" / "step-00000005" / "weights.npz"
    content = path.read_bytes()

    def said() -> str:
        with pytest.raises(UserError) as caught:
            runs.load_run(str(tmp_path / "small"))
        assert str(caught.value).startswith(f"{path} does not fit the model: ")
        return str(caught.value)

    path.write_bytes(content[:-30])
    assert "not a file of compressed weights" in said()
    with np.load(io.BytesIO(content)) as arrays:
        kept = dict(arrays)
    last = max(kept)
    fewer = {k: v for k, v in kept.items() if k[:5] != last[:5]}
    np.savez(path, **fewer)
    assert f"it has {int(last[:5])} of {int(last[:5]) + 1} weights" in said()
    np.savez(path, **kept, **{"00099.kept": np.zeros(3)})
    assert "a weight is missing" in said()
    np.savez(path, **{**kept, last: np.zeros((2, 2))})
    assert "is float64 [2, 2], not float32" in said()


def test_a_bundle_of_neither_kind_of_weights_is_refused(trained, tmp_path):
    from test_bundle import contents, pack
    from yt8m.inference.bundle import write_bundle

    directory, _, _ = trained
    compress(directory, tmp_path / "small")
    write_bundle(runs.load_run(str(tmp_path / "small")), str(tmp_path / "small.tgz"))
    members = contents(tmp_path / "small.tgz")
    assert sorted(members) == [
        *("checkpoint.json", "config.json", "segment_label_ids.csv", "weights.npz")
    ]
    assert zipfile.is_zipfile(io.BytesIO(members.pop("weights.npz")))
    pack(tmp_path / "bad.tgz", list(members.items()))
    with pytest.raises(DataError, match="it has no state.index"):
        read_bundle(str(tmp_path / "bad.tgz"), str(tmp_path / "new"))

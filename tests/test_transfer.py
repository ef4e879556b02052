"""What is learned on one dataset, on another with a vocabulary of its own."""

import json

import numpy as np
import tensorflow as tf

from yt8m import runs
from yt8m.cli import main
from yt8m.config import DataConfig, ModelConfig
from yt8m.data.records import decode_record, encode_video_record, write_records
from yt8m.layers.masking import last_frame
from yt8m.layers.preprocessing import dequantize

RNG = np.random.default_rng(0)


def done(*arguments) -> None:
    assert main.run(arguments[0], [str(a) for a in arguments[1:]]) == 0, arguments


def test_the_last_frame_of_each_video_is_taken():
    x = RNG.normal(size=(3, 4, 2)).astype(np.float32)
    x[0], x[1, 2:] = np.nan, np.nan
    mask = np.arange(4) < np.array([0, 2, 4])[:, None]
    found = last_frame(tf.constant(x), tf.constant(mask)).numpy()
    np.testing.assert_array_equal(found, [[0, 0], x[1, 1], x[2, 3]])


def test_an_lstm_gives_the_last_outputs_of_all_layers():
    data = DataConfig("frame", {"rgb": 6}, 5)
    model = runs.build_model(ModelConfig("LstmModel", {"cells": 3, "layers": 3}), data)
    frames = RNG.integers(0, 256, (2, 4, 6)).astype(np.uint8)
    outputs = model({"rgb": frames, "num_frames": np.array([4, 2], np.int32)})
    layers = outputs["layer_outputs"].numpy()
    assert layers.shape == (2, 9)
    np.testing.assert_array_equal(layers[:, 6:], outputs["embedding"])
    # The twin: each layer alone, on as many frames as the video has.
    for video, length in enumerate((4, 2)):
        x = dequantize(tf.constant(frames[video : video + 1, :length]), "float32")
        x = tf.math.l2_normalize(x, axis=-1)
        for i, lstm in enumerate(model.stack):
            x = lstm(x, tf.ones([1, length], bool))
            last = x[0] if i == 2 else x[0, -1]
            np.testing.assert_allclose(
                layers[video, 3 * i : 3 * i + 3], last, rtol=1e-5, atol=1e-6
            )


def write_videos(path, size, seed, count=40, classes=3):
    rng = np.random.default_rng(seed)
    write_records(
        path,
        (
            encode_video_record(
                f"{seed}-{i}", {"mean_rgb": rng.normal(size=size)}, [i % classes]
            )
            for i in range(count)
        ),
    )


def test_the_pca_of_one_dataset_normalises_another(tmp_path):
    ours, other = f"{tmp_path}/ours.tfrecord", f"{tmp_path}/other.tfrecord"
    write_videos(ours, 4, seed=1)
    write_videos(other, 4, seed=2)
    features = ["--feature_names=mean_rgb", "--feature_sizes=4"]
    pca = f"{tmp_path}/pca.npz"
    flags = [f"--input_data_pattern={ours}", f"--output_file={pca}"]
    done("normalization", *flags, *features)
    run = f"--train_dir={tmp_path}/run"
    flags = [f"--train_data_pattern={other}", f"--normalization={pca}", "--max_steps=2"]
    done("train", run, *flags, *features, "--num_classes=3", "--batch_size=8")
    done("eval", run, f"--eval_data_pattern={other}", "--run_once")
    with open(f"{tmp_path}/run/eval/step-00000002.json") as f:
        metrics = json.load(f)
    assert 0 <= metrics["hit_at_1"] < metrics["hit_at_5"] == 1 and "map" in metrics
    model = runs.load_run(f"{tmp_path}/run").model
    stored = np.load(pca)
    np.testing.assert_allclose(
        np.ravel(tf.convert_to_tensor(model.whitening.variables[0])),
        np.ravel(stored["mean"]),
        rtol=1e-6,
    )


def test_the_layers_of_an_lstm_are_features_of_a_new_classifier(tmp_path):
    done(
        *("synthesize", f"--output_dir={tmp_path}", "--num_videos=24"),
        *("--num_shards=1", "--max_frames=6", "--num_classes=12"),
        *("--feature_names=rgb,audio", "--feature_sizes=32,32"),
    )
    shards, run = f"{tmp_path}/*.tfrecord", f"--train_dir={tmp_path}/lstm"
    done(
        *("train", "--model=LstmModel", "--model_args=cells=4", run, "--max_steps=1"),
        *(f"--train_data_pattern={shards}", "--num_classes=12", "--batch_size=8"),
        *("--feature_names=rgb,audio", "--feature_sizes=32,32"),
    )
    path = f"{tmp_path}/embeddings/train"
    flags = [
        "--output=embeddings",
        "--embedding=layer_outputs",
        f"--output_file={path}",
    ]
    done("inference", run, f"--input_data_pattern={shards}", *flags)
    record = decode_record(next(tf.data.TFRecordDataset(path).as_numpy_iterator()))
    assert record.features["embedding"].shape == (8,) and record.labels
    done(
        *("train", "--model=MoeModel", f"--train_data_pattern={path}"),
        *("--feature_names=embedding", "--feature_sizes=8", "--num_classes=12"),
        *("--max_steps=1", "--batch_size=8", f"--train_dir={tmp_path}/moe"),
    )

"""Where in the video: models of segments, by the commands, from the video model on."""

import json
import re

import numpy as np
import pytest

from yt8m import registry, runs
from yt8m.cli import main
from yt8m.data.records import decode_record
from yt8m.data.video_embeddings import (
    Embeddings,
    EmbeddingsWriter,
    VideoEmbeddings,
)
from yt8m.errors import DataError, UserError
from yt8m.training.fine_tuning import path_of

FEATURES = ["--feature_names=rgb,audio", "--feature_sizes=32,32", "--num_classes=12"]
ENCODER = {"clusters": 16, "hidden_size": 16}


def command(*arguments) -> int:
    return main.run(arguments[0], [str(a) for a in arguments[1:]])


def done(*arguments) -> None:
    assert command(*arguments) == 0, arguments


def train(shards, directory, *more) -> int:
    flags = [
        f"--train_data_pattern={shards}/train/*.tfrecord",
        f"--train_dir={directory}",
    ]
    flags += [*FEATURES, "--batch_size=32", "--max_steps=2", "--max_frames=20", *more]
    return command("train", *flags)


def dbof(**args) -> list[str]:
    return ["--model=DbofModel", f"--model_args={json.dumps({**ENCODER, **args})}"]


def aware(**args) -> list[str]:
    args = {"encoder_args": ENCODER, "hidden_size": 32, **args}
    args.setdefault("encoder", "DbofModel")
    flags = ["--model=ContextAwareModel", f"--model_args={json.dumps(args)}"]
    return [*flags, "--segment_labels", "--segment_context_frames=3"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for split in ("train", "validate"):
        flags = [f"--output_dir={folder}/{split}", f"--split={split}", "--segments"]
        flags += ["--num_videos=24", "--num_shards=1", "--max_frames=20"]
        done("synthesize", *flags, *FEATURES)
    return folder


@pytest.fixture(scope="module")
def video(shards, tmp_path_factory):
    """A video model, and its embeddings of both splits in a folder each."""
    folder = tmp_path_factory.mktemp("video")
    assert train(shards, folder / "run", *dbof()) == 0
    for split in ("train", "validate"):
        done(
            "inference",
            f"--train_dir={folder}/run",
            "--output=embeddings",
            f"--input_data_pattern={shards}/{split}/*.tfrecord",
            f"--output_file={folder}/{split}.embeddings",
        )
    return folder


def test_the_ensemble_of_both_models_goes_from_shards_to_its_score(
    shards, video, tmp_path, capsys
):
    ignored, context = tmp_path / "ignored", tmp_path / "aware"
    init = f"--init_from={video}/run"
    more = ["--segment_labels", "--segment_context_frames=3", init]
    more += ["--mined_negatives=2"]  # of which inference knows nothing
    assert train(shards, ignored, *dbof(), *more, "--frames=0") == 0
    folders = f"--video_embeddings={video}/train.embeddings,{video}/validate.embeddings"
    more = [init, folders, "--learning_rate_multipliers=segment_encoder=0.5"]
    validate = f"--eval_data_pattern={shards}/validate/*.tfrecord"
    capsys.readouterr()
    assert train(shards, context, *aware(), *more, validate) == 0
    said = capsys.readouterr().err
    # It begins with the video model's weights.
    assert re.search(r"segment_encoder \(\d+ variables\)", said)
    assert "New, as the run has another classifier: head" in said
    config = runs.read_config(str(context))
    assert config.model.args["video_embedding_size"] == 16
    trained = runs.Checkpoints(str(context)).latest().validation
    # What training scored is what `eval.py` and the submission's score say.
    done("eval", f"--train_dir={context}", "--segment_labels", validate, "--run_once")
    with open(context / "eval-segments" / "step-00000002.json") as f:
        assert json.load(f)["map"] == pytest.approx(trained["map"], abs=1e-6)
    done("eval", f"--train_dir={ignored}", "--segment_labels", validate, "--run_once")
    for run in (ignored, context):
        for ending, form in (("csv", "csv"), ("tfrecord", "tfrecord")):
            done(
                *("inference", f"--train_dir={run}", "--segment_labels"),
                f"--input_data_pattern={shards}/validate/*.tfrecord",
                f"--output_file={run}.{ending}",
                f"--output_format={form}",
            )
    capsys.readouterr()
    done("score-segments", f"--submission_file={context}.csv", validate)
    assert f"{trained['map']:.4f}" in capsys.readouterr().out
    sources = f"--sources={ignored}.tfrecord,{context}.tfrecord"
    done("ensemble", sources, f"--output_file={tmp_path}/mean.csv")
    done("validate-submission", tmp_path / "mean.csv")
    done("score-segments", f"--submission_file={tmp_path}/mean.csv", validate)
    # So do the commands that evaluate it or train its statistics on the way.
    small = f"--output_dir={tmp_path}/small"
    done("compress", f"--train_dir={context}", small, validate, "--method=float16")
    assert f"mAP {trained['map']:.5f} before, " in capsys.readouterr().out
    output = f"--output_dir={tmp_path}/average"
    done("average", f"--train_dir={context}", output, "--refresh_steps=1")
    # An export takes the embedding as an input.
    done("export", f"--train_dir={context}", f"--output_dir={tmp_path}/export")
    done(
        *("inference", f"--saved_model={tmp_path}/export", "--segment_labels"),
        f"--input_data_pattern={shards}/validate/*.tfrecord",
        f"--output_file={tmp_path}/export.csv",
        f"--segment_label_ids_file={context}/segment_label_ids.csv",
    )
    assert (tmp_path / "export.csv").read_text() == (tmp_path / "aware.csv").read_text()
    # So does one of both models, in whatever order.
    for first, second in ((ignored, context), (context, ignored)):
        both = f"{tmp_path}/{first.name}"
        done("export", f"--train_dir={first},{second}", f"--output_dir={both}-export")
        done(
            *("inference", f"--saved_model={both}-export", "--segment_labels"),
            f"--input_data_pattern={shards}/validate/*.tfrecord",
            f"--output_file={both}-first.csv",
            f"--segment_label_ids_file={context}/segment_label_ids.csv",
        )
    firsts = [tmp_path / f"{run.name}-first.csv" for run in (ignored, context)]
    assert firsts[0].read_text() == firsts[1].read_text()


def test_the_video_changes_what_is_said_of_its_segments():
    data = runs.default_data_config("ContextAwareModel", num_classes=5)
    args = {"encoder_args": ENCODER, "hidden_size": 8, "video_embedding_size": 3}
    args["encoder"] = "DbofModel"
    model = runs.build_model(runs.ModelConfig("ContextAwareModel", args), data)
    inputs = model.example_inputs(2, 5)
    inputs["video_embedding"] = np.array([[0, 0, 0], [4, -4, 4]], np.float32)
    logits = model(inputs)["logits"].numpy()
    assert np.abs(logits[0] - logits[1]).max() > 1e-3
    paths = [path_of(v) for v in model.trainable_variables]
    assert {p.partition("/")[0] for p in paths} == {"segment_encoder", "joint", "head"}
    assert not [p for p in paths if p.startswith("segment_encoder/head")]


@pytest.mark.parametrize(
    ("encoder", "args", "message"),
    [
        ("ManyToManyModel", {}, "is no model that pools frames"),
        ("FrameLogisticModel", {}, "is no model that pools frames"),
    ],
)
def test_an_encoder_that_cannot_be_is_the_users_error(encoder, args, message):
    with pytest.raises(UserError, match=f"encoder={encoder}.* {message}"):
        registry.create("ContextAwareModel", encoder=encoder, encoder_args=args)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([*dbof(), "--mined_negatives=3"], "are of segments, which are rated for few"),
        (aware(), "ContextAwareModel sees segments in their videos: give --video_emb"),
        ([*dbof(), "--video_embeddings={0}"], "DbofModel reads none; leave it"),
        ([*aware(), "--video_embeddings=/none"], "/none holds no embeddings"),
        (
            [*aware(video_embedding_size=7), "--video_embeddings={0}"],
            "has embeddings of 16 numbers, and ContextAwareModel reads 7",
        ),
        (
            [*aware(encoder="MixtureNeXtVLADModel"), "--video_embeddings={0}"],
            "encoder=",
        ),
        (
            [*aware(), "--video_embeddings={1}"],
            "has no embedding of it; give a folder of these videos too.",
        ),
    ],
)
def test_what_does_not_fit_is_refused(shards, video, tmp_path, capsys, flags, message):
    folders = [f"{video}/{split}.embeddings" for split in ("train", "validate")]
    flags = [f.format(*folders) if f.startswith("--video") else f for f in flags]
    assert train(shards, tmp_path / "run", *flags) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error


def test_embeddings_are_kept_and_found_by_id(video, shards, tmp_path):
    run = f"--train_dir={video}/run"
    data = f"--input_data_pattern={shards}/train/*.tfrecord"
    records = tmp_path / "train.tfrecord"
    done("inference", run, "--output=embeddings", data, f"--output_file={records}")
    import tensorflow as tf

    kept = Embeddings(f"{video}/train.embeddings")
    assert (len(kept), kept.num_classes) == (24, 16)
    for serialized in tf.data.TFRecordDataset(str(records)).as_numpy_iterator():
        record = decode_record(serialized)
        (row,) = kept.rows([record.id.encode()])
        np.testing.assert_array_equal(
            kept.vectors([row])[0], record.features["embedding"]
        )
    writer = EmbeddingsWriter(str(tmp_path / "x.embeddings"), 2)
    with pytest.raises(DataError, match="b is predicted twice"), writer:
        writer.write([b"a", b"b", b"b"], np.zeros((3, 2), np.float32))
    with EmbeddingsWriter(str(tmp_path / "y.embeddings"), 2) as writer:
        writer.write([b"a"], np.full((1, 2), 7e4, np.float32))
    with pytest.raises(
        UserError, match="of 2 numbers, .* of 16: give those of one run"
    ):
        VideoEmbeddings(f"{video}/train.embeddings,{tmp_path}/y.embeddings")
    assert Embeddings(f"{tmp_path}/y.embeddings").vectors([0]).tolist() == [[7e4, 7e4]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--output_file={0}/a.embeddings"],
            "is a folder of embeddings: give --output",
        ),
        (
            ["--embedding=layer_outputs", "--output_file={0}/a.csv"],
            "is of --output=emb",
        ),
        (
            ["--output=embeddings", "--embedding=layer_outputs", "--output_file={0}/a"],
            "The model gives no `layer_outputs`",
        ),
    ],
)
def test_outputs_that_make_no_sense(video, shards, tmp_path, capsys, flags, message):
    flags = [flag.format(tmp_path) for flag in flags]
    data = f"--input_data_pattern={shards}/train/*.tfrecord"
    assert command("inference", f"--train_dir={video}/run", data, *flags) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

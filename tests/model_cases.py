"""For the tests over the registry: small sizes and options of each model."""

import atexit
import pathlib
import shutil
import tempfile

import numpy as np

NUM_CLASSES = 7

# Files that options name.
_FOLDER = pathlib.Path(tempfile.mkdtemp(prefix="yt8m-model-cases-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
CORRELATION_FILE = str(_FOLDER / "correlation.npz")
np.savez(
    CORRELATION_FILE,
    indices=[*([i, i] for i in range(NUM_CLASSES)), [0, 1], [2, 5], [3, 6]],
    counts=[*(10 + i for i in range(NUM_CLASSES)), 9, 3, 1],
    num_classes=NUM_CLASSES,
)

# Arguments that make a model small, and free of random draws.
SMALL = {
    "DbofModel": {"clusters": 8, "hidden_size": 6},
    "LstmModel": {"cells": 5},
    "NetVLADModel": {"clusters": 4, "hidden_size": 8},
}

# Options: a value other than the default, and where its effect is seen.
POOLING_OPTIONS = {
    "head": "logistic",
    "head_args": {"num_mixtures": 3},
    "num_mixtures": 3,
    "l2_penalty": 0.1,
    "label_processing": "correlation",
    "label_processing_args": {"correlation": CORRELATION_FILE, "weights": (1, 0, 0.5)},
    "gating_probabilities": True,
}
OPTIONS = {
    "DbofModel": {
        "clusters": 9,
        "hidden_size": 7,
        "pooling": "average",
        "activation": "relu",
        "add_batch_norm": False,
        **POOLING_OPTIONS,
    },
    "FrameLevelLogisticModel": {**POOLING_OPTIONS, "head": "moe"},
    "LstmModel": {"cells": 6, "layers": 1, **POOLING_OPTIONS},
    "LogisticModel": {"l2_penalty": 0.1},
    "MoeModel": {"num_mixtures": 3, "l2_penalty": 0.1},
    "NetVLADModel": {
        "clusters": 6,
        "audio_clusters": 3,
        "hidden_size": 9,
        "add_batch_norm": False,
        "input_batch_norm": False,
        "relu": True,
        "gating": False,
        **POOLING_OPTIONS,
        "gating_probabilities": False,
    },
}


# What an option needs beside it to have an effect, by option or (model, option).
_CORRELATE = {"correlation": CORRELATION_FILE, "weights": (1, 0.3, 0)}
GIVEN = {
    "label_processing": {"label_processing_args": _CORRELATE},
    "label_processing_args": {
        "label_processing": "correlation",
        "label_processing_args": _CORRELATE,
    },
    "num_mixtures": {"head": "moe"},
    "head_args": {"head": "moe"},
}

# The models that tell the order of frames.
SEES_ORDER = {"LstmModel"}

"""For the tests over the registry: small sizes and options of each model."""

import atexit
import os
import pathlib
import shutil
import tempfile

import numpy as np

NUM_CLASSES = 7

# Slow tests take one model of each family; `make sweep` sets this, and all are tried.
EVERY_MODEL = bool(os.environ.get("YT8M_EVERY_MODEL"))
_FAMILIES = {
    *("LogisticModel", "CentredMoeModel", "ResNetLikeModel", "ThsModel"),
    *("MultiTaskCombineChainModel", "FrameLevelLogisticModel", "DbofModel"),
    *("NetVLADModel", "VladBowModel", "NeXtVLADModel", "LstmModel", "FastForwardModel"),
    *("ManyToManyModel", "LstmMoeModel", "CnnDccModel", "TemporalCnnModel"),
    *("AttentionClusterModel", "TransformerModel", "LinearCombinationsModel"),
    "TimeDistributedDenseSortingModel",
}


def one_a_family(names: list[str]) -> list[str]:
    """Of `names` one model a family, or all where all are wanted."""
    return [name for name in names if EVERY_MODEL or name in _FAMILIES]


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
EIGENVALUES_FILE = str(_FOLDER / "eigenvalues.npy")
np.save(EIGENVALUES_FILE, np.linspace(3.0, 0.1, 2048, dtype="float32"))


def _write_normalization(path: str, size: int = 20) -> str:
    rng = np.random.default_rng(0)
    components, _ = np.linalg.qr(rng.normal(size=(size, size)))
    np.savez(
        path,
        mean=rng.normal(size=size),
        components=components,
        variance=rng.uniform(0.5, 2, size=size),
    )
    return path


NORMALIZATION_FILE = _write_normalization(str(_FOLDER / "normalization.npz"))

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

# Arguments that make a head small.
HEAD_ARGS = {
    "mlp": {"hidden_size": 6},
    "multilayer_moe": {"hidden_size": 4},
    "chain": {"stages": 2, "cells": 4},
    "multitask_chain": {"stages": [2, 1], "cells": [4, 5], "latent_sizes": [6, 3]},
    "resnetlike": {"inner_size": 6, "dropout": 0.0},
    "monn": {"expansions": [2, 1]},
}

# Many batch norms one after the other.
BATCH_NORM_STACKS = {"ResNetLikeModel", "ThsModel"}

# The models that tell the order of frames.
SEES_ORDER = {"LstmModel"}

# Pooled over clusters

_TWO_STREAMS = {
    "clusters": 6,
    "audio_clusters": 3,
    "hidden_size": 9,
    "add_batch_norm": False,
    "input_batch_norm": False,
    "relu": True,
    "gating": False,
    **POOLING_OPTIONS,
    "gating_probabilities": False,
}
SMALL.update(
    {
        "NetRVLADModel": {"clusters": 4, "hidden_size": 8},
        "NetFVModel": {"clusters": 4, "hidden_size": 8},
        "SoftDBoWModel": {"clusters": 8, "hidden_size": 8},
        "VladBowModel": {"clusters": 8, "hidden_size": 8},
        "NeXtVLADModel": {
            "clusters": 4,
            "groups": 2,
            "hidden_size": 8,
            "gating_reduction": 2,
            "dropout": 0.0,
        },
        "MixtureNeXtVLADModel": {
            "branches": 2,
            "branch_args": {
                "clusters": 4,
                "groups": 2,
                "hidden_size": 8,
                "gating_reduction": 2,
                "dropout": 0.0,
            },
        },
        "CgDbofModel": {"clusters": 8, "hidden_size": 8, "dropout": 0.0},
        "BofModel": {"hidden_size": 8, "dropout": 0.0},
    }
)
OPTIONS.update(
    {
        "NetRVLADModel": _TWO_STREAMS,
        "NetFVModel": _TWO_STREAMS,
        "SoftDBoWModel": {
            **_TWO_STREAMS,
            "max_pooling": True,
            "gated": True,
            "gating": True,
            "gating_probabilities": True,
        },
        "VladBowModel": {
            **_TWO_STREAMS,
            "add_batch_norm": True,
            "gating": True,
            "gating_probabilities": True,
        },
        "NeXtVLADModel": {
            "clusters": 6,
            "audio_clusters": 3,
            "groups": 4,
            "expansion": 1,
            "hidden_size": 9,
            "gating_reduction": 1,
            "dropout": 0.5,
            "pca_eigenvalues": EIGENVALUES_FILE,
            **POOLING_OPTIONS,
            "head": "moe",
        },
        "MixtureNeXtVLADModel": {
            "branch": "NetVLADModel",
            "branches": 3,
            "branch_args": {"clusters": 6, "groups": 4, "hidden_size": 7},
            "temperature": 1.0,
            "distillation_weight": 5.0,
        },
        "CgDbofModel": {
            "clusters": 9,
            "hidden_size": 7,
            "pooling": "self_weighted",
            "frame_gating_reduction": None,
            "gating_reduction": None,
            "dropout": 0.5,
            **POOLING_OPTIONS,
        },
        "BofModel": {
            "hidden_size": 9,
            "dropout": 0.5,
            **POOLING_OPTIONS,
            "head": "moe",
        },
    }
)
GIVEN[("MixtureNeXtVLADModel", "branch")] = {"branch_args": {"hidden_size": 8}}


# Recurrent

_STACK = {
    "cell": "lstm",
    "cells": 6,
    "layers": 2,
    "residual": "concatenate",
    "dropout": 0.5,
    "read_out": "mean",
}
_LSTM = {"cells": 6, "layers": 1, **POOLING_OPTIONS}

SMALL.update(
    {
        "RecurrentModel": {"cells": 5, "layers": 1},
        "TwoStreamRecurrentModel": {
            "cells": 5,
            "dropout": 0.0,
            "projections": ((6, "tanh"), (4, "tanh")),
            "hidden_layers": ((8, "relu"), (7, "tanh")),
        },
        "FastForwardModel": {
            "cells": 5,
            "layers": 2,
            "hidden_layers": ((8, "linear"),),
        },
        "LstmAttentionMaxModel": {"cells": 5, "layers": 1, "attentions": 2},
        "FrameSupervisedLstmModel": {"cells": 5},
    }
)
OPTIONS.update(
    {
        "RecurrentModel": {
            **_STACK,
            "bidirectional_layers": 1,
            "layer_norm": True,
            "max_frames": 6,
            "input_batch_norm": True,
            "hidden_layers": [[7, "relu"]],
            **POOLING_OPTIONS,
        },
        "TwoStreamRecurrentModel": {
            **_STACK,
            "cell": "gru",
            "audio_cells": 4,
            "bidirectional_layers": 0,
            "projections": [],
            "batch_norm": True,
            "hidden_layers": [],
            **POOLING_OPTIONS,
            "head": "moe",
        },
        "FastForwardModel": {
            "cell": "gru",
            "cells": 6,
            "layers": 3,
            "read_out": "attention",
            "hidden_layers": [[7, "relu"]],
            **POOLING_OPTIONS,
            "head": "moe",
        },
        "LstmAttentionMaxModel": {**_LSTM, "layers": 2, "attentions": 8},
        "FrameSupervisedLstmModel": _LSTM,
    }
)
GIVEN.update(
    {
        ("RecurrentModel", "layer_norm"): {"cell": "lstm"},
        ("RecurrentModel", "residual"): {"read_out": "mean"},
        ("RecurrentModel", "max_frames"): {"read_out": "linear"},
    }
)
SEES_ORDER |= {
    "RecurrentModel",
    "TwoStreamRecurrentModel",
    "FastForwardModel",
    "LstmAttentionMaxModel",
    "FrameSupervisedLstmModel",
}


# Four components, sparse experts, frames one by one

SMALL.update(
    {
        "LstmMoeModel": {
            "cells": 5,
            "experts": 4,
            "active": 2,
            "expert_size": 6,
            "noisy": False,
            "importance_weight": 0.0,
            "load_weight": 0.0,
            "max_frames": 2,
            "dropout": 0.0,
        },
        "ManyToManyModel": {"cells": 5, "dropout": 0.0},
    }
)
OPTIONS.update(
    {
        "FrameLogisticModel": {**POOLING_OPTIONS, "head": "moe"},
        "LstmMoeModel": {
            "cells": 6,
            "experts": 5,
            "active": 3,
            "expert_size": 7,
            "noisy": True,
            "importance_weight": 10.0,
            "load_weight": 10.0,
            "max_frames": 6,
            "dropout": 0.5,
            **POOLING_OPTIONS,
            "head": "moe",
        },
        "ManyToManyModel": {
            "cells": 6,
            "dropout": 0.5,
            **POOLING_OPTIONS,
            "head": "moe",
        },
        "SnuvlModel": {
            "pooling": "position_encoding",
            "pooling_args": {"k": 2},
            "bilinear_size": 12,
            "center_loss": True,
            **POOLING_OPTIONS,
        },
    }
)
GIVEN.update(
    {
        ("LstmMoeModel", "experts"): {"noisy": True},
        ("LstmMoeModel", "load_weight"): {"noisy": True},
        ("SnuvlModel", "pooling_args"): {"pooling": "top_k"},
    }
)
SEES_ORDER.update({"LstmMoeModel", "ManyToManyModel"})


# Convolutions, attention and combinations of frames

SMALL.update(
    {
        "MultiscaleCnnLstmModel": {
            "scales": 2,
            "channels": (3, 4, 5),
            "cells": 5,
        },
        "CnnDccModel": {"channels": (4, 4, 6)},
        "TemporalCnnModel": {"blocks": 2, "channels": 8, "cells": 4},
        "TimeDistributedConvModel": {"channels": (6, 8)},
        "SpatioTemporalCnnModel": {"feature_channels": 4, "channels": 8},
        "AttentionNetModel": {"layers": 2, "units": 8},
        "AttentionClusterModel": {"attentions": 4, "hidden_size": 8, "dropout": 0.0},
        "MultiAttentionModel": {
            "attentions": 4,
            "attention_size": 6,
            "hidden_size": 6,
        },
        "TransformerModel": {
            "heads": 4,
            "ffn_size": 16,
            "dropout": 0.0,
            "max_frames": 9,
        },
        "LinearCombinationsModel": {"combinations": 3, "max_frames": 9},
        "TimeDistributedDenseMaxModel": {"hidden_size": 12},
        "TimeDistributedDenseSortingModel": {
            "inner_size": 6,
            "blocks": 1,
            "count": 3,
            "frame_size": 6,
            "hidden_size": 8,
            "dropout": 0.0,
        },
    }
)

OPTIONS.update(
    {
        "MultiscaleCnnLstmModel": {
            "scales": 3,
            "channels": (4, 4, 5),
            "widths": (1, 2, 4),
            "cells": 6,
            **POOLING_OPTIONS,
        },
        "CnnDccModel": {
            "channels": (5, 4, 6),
            "widths": (1, 2, 4),
            "activation": "relu",
            "add_mean": False,
            **POOLING_OPTIONS,
        },
        "TemporalCnnModel": {
            "blocks": 1,
            "channels": 9,
            "width": 2,
            "cells": 5,
            "attention_size": 3,
            **POOLING_OPTIONS,
        },
        "TimeDistributedConvModel": {
            "channels": (6, 9),
            "audio_channels": (3, 3),
            "width": 2,
            "dropout": 0.5,
            **POOLING_OPTIONS,
        },
        "SpatioTemporalCnnModel": {
            "layers": 2,
            "feature_channels": 3,
            "feature_width": 2,
            "channels": 9,
            "width": 2,
            **POOLING_OPTIONS,
        },
        "AttentionNetModel": {
            "layers": 1,
            "units": 9,
            "dropout": 0.5,
            **POOLING_OPTIONS,
        },
        "AttentionClusterModel": {
            "attentions": 5,
            "attention_size": 3,
            "shift": False,
            "hidden_size": 9,
            "dropout": 0.5,
            **POOLING_OPTIONS,
        },
        "MultiAttentionModel": {
            "attentions": 5,
            "attention_size": 7,
            "gated": False,
            "combination": "mean",
            "hidden_size": None,
            "dropout": 0.5,
            **POOLING_OPTIONS,
        },
        "TransformerModel": {
            "layers": 1,
            "heads": 2,
            "ffn_size": 12,
            "dropout": 0.5,
            "activation": "relu",
            "position": "sinusoidal",
            "pooling": "first",
            "max_frames": 4,
            **POOLING_OPTIONS,
        },
        "LinearCombinationsModel": {
            "combinations": 2,
            "max_frames": 4,
            **POOLING_OPTIONS,
        },
        "TimeDistributedDenseMaxModel": {
            "hidden_size": 9,
            "dropout": 0.5,
            **POOLING_OPTIONS,
            "head": "moe",
        },
        "TimeDistributedDenseSortingModel": {
            "inner_size": 9,
            "blocks": 2,
            "frame_size": 5,
            "count": 2,
            "hidden_size": 9,
            "dropout": 0.5,
            **POOLING_OPTIONS,
            "head": "moe",
        },
    }
)

GIVEN.update(
    {
        ("TransformerModel", "max_frames"): {"position": "learned"},
        ("TransformerModel", "pooling"): {"position": "none"},
    }
)

SEES_ORDER |= {
    "MultiscaleCnnLstmModel",
    "CnnDccModel",
    "TemporalCnnModel",
    "TimeDistributedConvModel",
    "SpatioTemporalCnnModel",
    "LinearCombinationsModel",
}

# Every model that reads frames may see their dynamics alone.
for _name, _options in OPTIONS.items():
    OPTIONS[_name] = _options | {"dynamics": "minus_mean"}


# A segment within its video

_ENCODER_ARGS = {"clusters": 4, "hidden_size": 8}
SMALL["ContextAwareModel"] = {"encoder_args": _ENCODER_ARGS, "hidden_size": 16}
OPTIONS["ContextAwareModel"] = {
    "encoder": "NetRVLADModel",
    "encoder_args": {**_ENCODER_ARGS, "clusters": 6},
    "hidden_size": 5,
    "video_embedding_size": 3,
    **POOLING_OPTIONS,
    "dynamics": "minus_mean",
}

# Video level

_VIDEO_OPTIONS = {
    **POOLING_OPTIONS,
    "normalization": NORMALIZATION_FILE,
    "normalization_size": 9,
}
_CHAIN = {"head_args": {"stages": 2, "cells": 4}}
_MULTITASK = {"head_args": {"stages": [2, 1], "cells": [4, 5], "latent_sizes": [6, 3]}}

SMALL["ResNetLikeModel"] = {"inner_size": 8, "dropout": 0.0}
SMALL["DeepCombineChainModel"] = _CHAIN
SMALL["MultiTaskCombineChainModel"] = _MULTITASK
SMALL["ThsModel"] = {"noise": 0.0, "hidden_size": 6, "dropout": 0.0}
SMALL["MonnModel"] = {"head_args": {"expansions": [2, 1]}}
SMALL["MlpModel"] = {"hidden_sizes": (8, 6), "dropout": 0.0}

OPTIONS["ResNetLikeModel"] = {
    "inner_size": 9,
    "stream_blocks": 2,
    "joint_blocks": 0,
    "dropout": 0.5,
    **_VIDEO_OPTIONS,
    "head": "moe",
}
OPTIONS["DeepCombineChainModel"] = {
    **_VIDEO_OPTIONS,
    "head_args": {"stages": 1, "cells": 4},
}
OPTIONS["MultiTaskCombineChainModel"] = {
    **_VIDEO_OPTIONS,
    "head_args": {**_MULTITASK["head_args"], "stages": [1, 1]},
    "num_mixtures": 2,
}
OPTIONS["ThsModel"] = {
    "noise": 0.5,
    "hidden_size": 7,
    "dropout": 0.5,
    **_VIDEO_OPTIONS,
    "head": "moe",
}
OPTIONS["MonnModel"] = {
    **_VIDEO_OPTIONS,
    "head_args": {"expansions": [2, 3]},
    "num_mixtures": 2,
}
OPTIONS["MlpModel"] = {
    "hidden_sizes": (8,),
    "dropout": 0.5,
    **_VIDEO_OPTIONS,
    "head": "moe",
}

GIVEN["normalization_size"] = {"normalization": NORMALIZATION_FILE}
for _name in ("DeepCombineChainModel", "MultiTaskCombineChainModel", "MonnModel"):
    # Their heads have mixtures; another head does not take their heads' arguments.
    GIVEN[_name, "num_mixtures"] = {}
    GIVEN[_name, "head_args"] = {}
    GIVEN[_name, "head"] = {"head_args": {}}

SMALL["CentredMoeModel"] = {"noise": 0.0, "num_mixtures": 2}
OPTIONS["CentredMoeModel"] = {
    "emphasis": 0.5,
    "feature_scales": (1.0, 2.0),
    "noise": 0.5,
    **_VIDEO_OPTIONS,
    "head": "logistic",
}
OPTIONS["LogisticModel"] = {**_VIDEO_OPTIONS, "head": "moe"}
OPTIONS["MoeModel"] = {**_VIDEO_OPTIONS, "num_mixtures": 3}
for _name in ("MoeModel", "CentredMoeModel"):
    # Another head has no mixtures.
    GIVEN[_name, "head"] = {"num_mixtures": None}

"""Scores a run's checkpoints on shards: GAP, Hit@1, PERR, mAP, loss.

    python eval.py --train_dir=/tmp/netvlad --eval_data_pattern='validate*.tfrecord' \\
        --run_once

Flags of the model may be repeated; they are checked against the run, which knows them.
"""

import dataclasses
import logging
import time

from absl import flags as absl_flags

from yt8m.cli import flags as shared
from yt8m.errors import UserError

log = logging.getLogger("yt8m")


def define(flags: shared.FlagValues) -> None:
    shared.train_dir(flags)
    shared.checkpoint(flags)
    shared.batch_size(flags, 1024, "Videos in a batch; does not change the result.")
    shared.bad_records(flags)
    shared.strategy(flags)
    shared.top_k(flags, "Predictions of a video that enter GAP and mAP@k.")
    shared.model(flags)
    shared.eval_frames(flags)
    shared.video_embeddings(flags)
    shared.vocabulary(
        flags,
        "A vocabulary.csv: names the classes in the report, and adds its verticals.",
    )
    absl_flags.DEFINE_bool(
        "bucketed_map",
        False,
        "Adds the mAP of the YouTube-8M paper, of scores in buckets of 1e-4.",
        flag_values=flags,
    )
    absl_flags.DEFINE_string(
        "eval_data_pattern", "", "Shards to score: globs.", flag_values=flags
    )
    absl_flags.DEFINE_bool(
        "run_once",
        False,
        "Scores one checkpoint and stops; else each new one as it comes.",
        flag_values=flags,
    )
    absl_flags.DEFINE_float(
        "poll_seconds", 30, "Pause between looks for a new one.", 0.1, flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "exact_map_limit",
        None,
        "Videos up to which mAP is exact; above, it comes from score histograms.",
        0,
        flag_values=flags,
    )


def run(flags: shared.FlagValues) -> int:
    from yt8m import distribution, evaluation, runs
    from yt8m.data.index import RecordIndex
    from yt8m.data.vocabulary import load_vocabulary

    shared.require(flags, "eval_data_pattern", "No data to score")
    directory = shared.run_directory(flags)
    config = runs.read_config(directory, flags.model_module)
    runs.load_registries(config.model.module)
    shared.check_repeated(flags, config)
    if flags.strategy in ("auto", "multi_worker"):
        distribution.refuse_workers(
            "one process scores a run: start `eval.py` without TF_CONFIG, or as its "
            "evaluator, or give --strategy=mirrored."
        )
    strategy = distribution.create_strategy(flags.strategy, flags.num_gpu, flags.tpu)
    data, options = shared.evaluated_data(flags, config.data)
    reader = shared.reader(
        flags,
        "eval_data_pattern",
        dataclasses.replace(
            data,
            segments=flags.segment_labels,
            segment_context_frames=flags.segment_context_frames,
        ),
        wanted_by=config.model.name,
        batch_size=flags.batch_size,
        video_embeddings=shared.open_video_embeddings(
            flags, config.model.name, config.model.args
        ),
        index=RecordIndex(f"{directory}/records.json"),
        static_frames=distribution.wants_static_shapes(strategy),
        **options,
    )
    vocabulary = load_vocabulary(flags.vocabulary) if flags.vocabulary else None
    shared.warn_of_segments(flags, config)
    writable = _is_writable(directory, flags.segment_labels)
    if vocabulary:
        shared.warn_of_vocabulary(flags, vocabulary, config.data.num_classes)
    checkpoints, model, scored = runs.Checkpoints(directory), None, None
    while True:
        info = None
        if flags.run_once or checkpoints.latest():
            info = checkpoints.find(flags.checkpoint)
        if info is None or info.step == scored:
            time.sleep(flags.poll_seconds)
            continue
        if model is None:
            with strategy.scope():
                model = runs.build_model(
                    config.model, config.data, config.training.precision, restored=True
                )
            scorer = evaluation.create_scorer(model, reader, config.training, strategy)
        try:
            checkpoints.restore_for_evaluation(info, model)
        except UserError:
            if checkpoints.exists(info):
                raise
            continue  # the trainer removed it meanwhile; there is a newer one
        metrics = evaluation.evaluate(
            model,
            reader,
            config.training,
            top_k=flags.top_k,
            exact_map_limit=flags.exact_map_limit,
            progress=True,
            per_class=True,
            bucketed_map=flags.bucketed_map,
            verticals=vocabulary.verticals if vocabulary else None,
            strategy=strategy,
            scorer=scorer,
        )
        print(f"step {info.step} | {evaluation.summary_line(metrics)}", flush=True)
        if writable:
            evaluation.write_report(directory, info.step, metrics, vocabulary)
        shared.report_left_out(reader)
        scored = info.step
        if flags.run_once:
            return 0


def _is_writable(directory: str, segments: bool) -> bool:
    """Whether reports can be written beside the run, which may be somebody else's."""
    from yt8m import evaluation

    try:
        evaluation.report_folder(directory, segments)
    except UserError as e:
        log.warning("%s; the figures are only printed.", e)
        return False
    return True

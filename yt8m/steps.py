"""The steps from shards to one small model by distillation, each of them a command.

1. The training shards are split into folds. Each first-level model is trained for each
   fold on the other folds, and predicts the fold that it has not seen.
2. An ensemble combines these out-of-fold predictions. Where it learns (weights, trees,
   attention), it predicts fold i as it has learned on fold i + 1, the first fold
   following the last, so that no label of a video enters its own soft labels through
   the ensemble.
3. The soft labels teach the second-level nets, again each for each fold on the others.
   Each net is compressed. Through the soft labels, the labels of all training videos
   have gone into it.
4. The embeddings by all these nets, of all folds, are put side by side. One classifier
   is trained on them, the nets staying as they are, and compressed.
5. Nets and classifier, or the mean of the nets if there is no classifier, become one
   SavedModel, with weights as they were compressed, which predicts the test videos for
   the submission.

Reference: Ostyakov et al., "Label denoising with large ensembles of heterogeneous
neural networks", 2018, arXiv:1809.04403, section 3 and figure 2. The paper's ensemble,
of 115 models, is LightGBM; it does not say on which videos the trees learn, nor from
which labels the last classifier does.
"""

import shlex
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: its output's path below the pipeline's directory.
        command: the command's name and its flags.
        output: the file or directory that it makes; None if it only checks.
        reads: the names of the steps whose outputs it reads.
        data: the patterns of the user's shards and tables that it reads.
    """

    name: str
    command: tuple[str, ...]
    output: str | None
    reads: tuple[str, ...]
    data: tuple[str, ...]

    @property
    def line(self) -> str:
        """The command as one would paste it into a shell."""
        return shlex.join(["yt8m", *self.command])


@dataclass(frozen=True)
class Pipeline:
    """What is to be trained on what.

    Attributes:
        train_data_pattern, test_data_pattern: shards.
        labels: of the test videos, as `yt8m score` takes them; empty if not known.
        num_folds, seed, by_id: of the split.
        num_classes: C.
        first_level, second_level: flags of `train`, by the models' names.
        ensemble: flags of `ensemble`.
        ensemble_learns: whether the ensemble wants labels.
        classifier: flags of `train`; None takes the mean of the nets.
        classifier_is_taught: whether the classifier learns from the soft labels too.
        compress: flags of `compress`.
    """

    train_data_pattern: str
    test_data_pattern: str
    labels: str
    num_folds: int
    seed: int
    by_id: bool
    num_classes: int
    first_level: dict[str, list[str]]
    second_level: dict[str, list[str]]
    ensemble: list[str]
    ensemble_learns: bool
    classifier: list[str] | None
    classifier_is_taught: bool
    compress: list[str]


def plan(pipeline: Pipeline, directory: str) -> list[Step]:
    """The steps in the order in which they are to be run.

    Args:
        pipeline: what is to be trained.
        directory: below which everything is written.
    """
    planner = _Planner(pipeline, directory)
    planner.add("folds", "folds", data=(pipeline.train_data_pattern,), flags=[
        f"--input_data_pattern={pipeline.train_data_pattern}",
        f"--num_folds={pipeline.num_folds}",
        f"--seed={pipeline.seed}",
        *(["--by_id"] if pipeline.by_id else []),
        f"--output_dir={directory}/folds",
    ])  # fmt: skip
    _plan_first_level(planner)
    _plan_soft_labels(planner)
    nets = _plan_second_level(planner)
    classifier = None
    if pipeline.classifier is not None:
        classifier = _plan_classifier(planner, nets)
    _plan_submission(planner, nets, classifier)
    return planner.steps


@dataclass
class _Planner:
    """Collects steps. Outputs are named by their paths below the directory."""

    pipeline: Pipeline
    directory: str
    steps: list[Step] = field(default_factory=list)

    @property
    def folds(self) -> range:
        return range(self.pipeline.num_folds)

    @property
    def classes(self) -> str:
        return f"--num_classes={self.pipeline.num_classes}"

    def path(self, name: str) -> str:
        return f"{self.directory}/{name}"

    def paths(self, names: list[str]) -> str:
        return ",".join(map(self.path, names))

    def held_out(self, fold: int) -> str:
        return f"@{self.path('folds')}/held-out-{fold}.txt"

    def add(
        self,
        name: str,
        command: str,
        flags: list[str],
        reads: tuple[str, ...] | list[str] = (),
        data: tuple[str, ...] = (),
        writes: bool = True,
    ) -> str:
        """Appends a step and returns its name."""
        output = self.path(name) if writes else None
        self.steps.append(Step(name, (command, *flags), output, tuple(reads), data))
        return name

    def train(self, name: str, flags: list[str], pattern: str, reads: list[str]) -> str:
        given = [self.classes, f"--train_data_pattern={pattern}"]
        given += [f"--train_dir={self.path(name)}"]
        return self.add(name, "train", [*flags, *given], reads)

    def infer(
        self,
        name: str,
        run: str,
        pattern: str,
        reads: tuple[str, ...] = (),
        data: tuple[str, ...] = (),
        embeddings: bool = False,
    ) -> str:
        flags = [f"--train_dir={self.path(run)}", f"--input_data_pattern={pattern}"]
        flags += ["--output=embeddings"] if embeddings else []
        flags += [f"--output_file={self.path(name)}"]
        return self.add(name, "inference", flags, (run, *reads), data)

    @property
    def method(self) -> list[str]:
        """The export's flag of what weights are stored as: as they are compressed."""
        given = [f for f in self.pipeline.compress if f.startswith("--method=")]
        return [f"--compress={given[-1].partition('=')[2] if given else 'codebook8'}"]

    def compress(self, name: str, run: str) -> str:
        flags = [f"--train_dir={self.path(run)}", *self.pipeline.compress]
        return self.add(
            name, "compress", [*flags, f"--output_dir={self.path(name)}"], [run]
        )

    def merge(self, name: str, parts: list[str]) -> str:
        """Predictions of all folds, and their score by the training labels."""
        flags = [f"--input_files={self.paths(parts)}"]
        self.add(name, "merge", [*flags, f"--output_file={self.path(name)}"], parts)
        self.score(name, self.pipeline.train_data_pattern)
        return name

    def score(self, name: str, labels: str) -> None:
        scores = f"{name.rpartition('.')[0]}.scores.json"
        flags = [self.path(name), f"--labels={labels}", self.classes]
        flags += [f"--output_file={self.path(scores)}"]
        self.add(scores, "score", flags, [name], (labels,))


def _fold(folder: str, fold: int, ending: str = "") -> str:
    return f"{folder}/fold-{fold}{ending}"


def _plan_first_level(planner: _Planner) -> None:
    for model, flags in planner.pipeline.first_level.items():
        folder, parts = f"first_level/{model}", []
        for i in planner.folds:
            pattern = f"@{planner.path('folds')}/train-{i}.txt"
            run = planner.train(_fold(folder, i), flags, pattern, ["folds"])
            parts.append(
                planner.infer(
                    _fold(folder, i, ".predictions"),
                    run,
                    planner.held_out(i),
                    ("folds",),
                )
            )
        planner.merge(f"{folder}.predictions", parts)


def _plan_soft_labels(planner: _Planner) -> None:
    pipeline, parts = planner.pipeline, []
    members = [f"first_level/{model}" for model in pipeline.first_level]
    for i in planner.folds:
        sources = [_fold(m, i, ".predictions") for m in members]
        flags = [*pipeline.ensemble, planner.classes]
        flags += [f"--sources={planner.paths(sources)}"]
        reads = list(sources)
        if pipeline.ensemble_learns:
            other = (i + 1) % pipeline.num_folds
            held_out = [_fold(m, other, ".predictions") for m in members]
            flags += [f"--held_out_sources={planner.paths(held_out)}"]
            flags += [f"--labels={planner.held_out(other)}"]
            reads += ["folds", *held_out]
        name = _fold("ensemble", i, ".predictions")
        flags += [f"--output_file={planner.path(name)}"]
        parts.append(planner.add(name, "ensemble", flags, reads))
    planner.merge("soft_labels.predictions", parts)


def _plan_second_level(planner: _Planner) -> list[str]:
    """The names of the compressed nets.

    They are not scored on the fold that they were not trained on: the soft labels of
    the others come from models that have learned its labels.
    """
    nets = []
    for model, flags in planner.pipeline.second_level.items():
        taught = [*flags, f"--teacher={planner.path('soft_labels.predictions')}"]
        for i in planner.folds:
            run = planner.train(
                _fold(f"second_level/{model}", i),
                taught,
                f"@{planner.path('folds')}/train-{i}.txt",
                ["folds", "soft_labels.predictions"],
            )
            nets.append(planner.compress(f"model/{model}-fold-{i}", run))
    return nets


def _plan_classifier(planner: _Planner, nets: list[str]) -> str:
    """The name of the compressed classifier."""
    pipeline = planner.pipeline
    made = [
        planner.infer(
            f"embeddings/{net.removeprefix('model/')}.tfrecord",
            net,
            pipeline.train_data_pattern,
            data=(pipeline.train_data_pattern,),
            embeddings=True,
        )
        for net in nets
    ]
    flags = [f"--input_files={planner.path(m)}" for m in made]
    flags += [f"--output_dir={planner.path('joined')}"]
    planner.add("joined", "join", flags, made)
    sizes = f"{planner.path('joined')}/features.flags"
    flags, reads = [*pipeline.classifier, f"--flagfile={sizes}"], ["joined"]
    if pipeline.classifier_is_taught:
        flags += [f"--teacher={planner.path('soft_labels.predictions')}"]
        reads += ["soft_labels.predictions"]
    # Named after the file of the first net.
    pattern = f"{planner.path('joined')}/{made[0].rpartition('/')[2]}"
    run = planner.train("classifier", flags, pattern, reads)
    return planner.compress("model/classifier", run)


def _plan_submission(
    planner: _Planner, nets: list[str], classifier: str | None
) -> None:
    pipeline = planner.pipeline
    flags = [f"--train_dir={planner.paths(nets)}"]
    flags += [f"--classifier={planner.path(classifier)}"] if classifier else []
    flags += [*planner.method, f"--output_dir={planner.path('export')}"]
    parts = [*nets, classifier] if classifier else nets
    whole = planner.add("export", "export", flags, parts)
    data = (pipeline.test_data_pattern,)
    flags = [f"--saved_model={planner.path(whole)}", f"--input_data_pattern={data[0]}"]
    flags += [f"--output_file={planner.path('submission.csv')}"]
    name = planner.add("submission.csv", "inference", flags, [whole], data)
    planner.add(
        "validate-submission",
        "validate-submission",
        [planner.path(name), f"--input_data_pattern={data[0]}", planner.classes],
        [name],
        data,
        writes=False,
    )
    if pipeline.labels:
        planner.score(name, pipeline.labels)

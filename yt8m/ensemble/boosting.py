"""Gradient-boosted trees over the scores of first-level models, by LightGBM.

An example is a candidate pair of video and class. Its features are, of each source,
the logit of its probability and the rank of the class among the video's candidates,
and the mean of the logits; the trees tell whether the class is a label of the video.

Reference: the second level of Ostyakov et al., "Label denoising with large ensembles of
heterogeneous neural networks", 2018, arXiv:1809.04403, an ensemble of 115 models.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from yt8m.ensemble.candidates import Candidates, predicted_blocks
from yt8m.ensemble.combination import logits_of
from yt8m.ensemble.sources import Source
from yt8m.errors import UserError, near_matches

_FLOOR = 1e-6  # of probabilities whose logits are taken
# LightGBM's own names. Given the data they make equal trees, on any number of threads.
_FIXED = {
    "objective": "binary",
    "seed": 0,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
_DEFAULT = {
    "num_iterations": 200,
    "learning_rate": 0.05,
    "num_leaves": 63,
    "min_data_in_leaf": 50,
}


def first_level_score(number: int, probabilities: np.ndarray) -> np.ndarray:
    """What `candidates.collect` is to take of a source: logits."""
    return logits_of(probabilities, _FLOOR)


class BoostedTrees:
    """Trees learned on candidates.

    Args:
        candidates: collected with `first_level_score`.
        args: of LightGBM, by any of its names; the others are those of this file.

    Raises:
        UserError: as `checked_args`, or LightGBM refuses a value.
    """

    def __init__(self, candidates: Candidates, args: dict[str, Any] | None = None):
        lightgbm = _import_lightgbm()
        parameters = checked_args(args or {})
        rounds = parameters.pop("num_iterations")
        self._count = 2 * candidates.top_k
        data = lightgbm.Dataset(
            features(candidates.rows, candidates.columns, candidates.scores),
            candidates.hits.astype(np.float32),
        )
        try:
            self._trees = lightgbm.train(parameters, data, rounds)
        except (lightgbm.basic.LightGBMError, TypeError, ValueError) as e:
            raise UserError(f"LightGBM refuses --lightgbm_args: {e}") from e

    def blocks(
        self, sources: Sequence[Source]
    ) -> Iterator[tuple[list[bytes], np.ndarray]]:
        """All videos in the order of the first source: ids, and float32 [n, C].

        Classes that are no candidates have the probability 0.
        """

        def predict(rows, columns, classes, scores):
            return self._trees.predict(features(rows, columns, scores))

        return predicted_blocks(sources, first_level_score, self._count, predict)


def checked_args(args: dict[str, Any]) -> dict[str, Any]:
    """All of LightGBM's arguments, under its main names, with those given.

    Raises:
        UserError: LightGBM is not installed; an argument that it does not know, that is
            fixed, or that is there under two names.
    """
    main_names = _main_names(_import_lightgbm())
    given: dict[str, str] = {}
    for name in args:
        main = main_names.get(name, name)
        if main in _FIXED:
            raise UserError(
                f"--lightgbm_args: {name} is always {_FIXED[main]}; leave it out."
            )
        if main_names and name not in main_names:
            near = near_matches(name, set(main_names.values()))
            raise UserError(f"--lightgbm_args: unknown {name}. {near}")
        if main in given:
            raise UserError(
                f"--lightgbm_args: {given[main]} and {name} are the same; give one."
            )
        given[main] = name
    return {**_DEFAULT, **{main: args[name] for main, name in given.items()}, **_FIXED}


def _main_names(lightgbm: Any) -> dict[str, str]:
    """The main name of each that LightGBM takes; empty if this version has no list.

    It has no public one, and says nothing of names that it does not know.
    """
    try:
        aliases = lightgbm.basic._ConfigAliases._get_all_param_aliases()
    except AttributeError:
        return {}
    return {alias: main for main, names in aliases.items() for alias in [main, *names]}


def _import_lightgbm() -> Any:
    """The package. Raises `UserError` if it is not there."""
    try:
        import lightgbm
    except (ImportError, OSError) as e:  # OSError: it lacks a system's library
        raise UserError(
            f"--method=lightgbm needs LightGBM: pip install -e .[ensemble] ({e})"
        ) from e
    return lightgbm


def features(rows: np.ndarray, columns: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The features float32 [P, 2 M + 1] of candidate pairs.

    Args:
        rows: the video of each pair, ascending.
        columns: its number among those of its video.
        scores: logits [P, M] of the sources.
    """
    starts = rows[:1].sum()  # videos may be numbered from any number
    place = (rows - starts, columns)
    shape = tuple(int(p.max()) + 1 for p in place)
    ranks = []
    for own in scores.T:
        table = np.full(shape, -np.inf, np.float32)
        table[place] = own
        order = np.argsort(-table, axis=1, kind="stable")
        rank = np.empty(shape, np.float32)
        np.put_along_axis(rank, order, np.arange(shape[1], dtype=np.float32)[None], 1)
        ranks.append(rank[place])
    return np.column_stack([scores, *ranks, scores.mean(axis=1)]).astype(np.float32)

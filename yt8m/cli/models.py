"""Lists the models: level, arguments with defaults, paper, and what each costs.

    yt8m models
    yt8m models --cost
    yt8m models --format=markdown --output_file=docs/models.md

Markdown has all that there is to say of a model: what its docstring does, with its
equations, its arguments, cost, recipes and their scores.
"""

import inspect
import re
from typing import Any

from absl import flags as absl_flags

from yt8m.cli import flags as shared
from yt8m.cli import recipes

# Of the equations, which are a part of a model's docstring.
_NOTATION = (
    "In the equations x_t is frame t of a video's N valid ones, after the input "
    "transform, and x the vector of a video; v' is v of the second stream. Sums, "
    "means, maxima and softmax over t take valid frames alone. [a; b] joins vectors, "
    "a b of two vectors is the product value by value, a . b their dot product; <- "
    "assigns. BN is batch norm, LN layer norm, l2(v) = v / |v|, drop dropout. y is the "
    "embedding that the head classifies, p the probability of each class. Where an "
    "equation ends with y, the head gives p:",
    "",
    "```text",
    "logistic: p = sigmoid(y W + b)",
    "moe: p = sum_{m<=M} softmax(y G)_m sigmoid(y E_m + b_m), of each class; G has",
    "    M + 1 columns, the last for an expert that says no",
    "```",
)
_SECTION = re.compile(r"^([A-Z][a-z]+(?: [a-z]+)?)[^\n]*:\n", re.M)
_ELSEWHERE = re.compile(r"as `?\w+`?\.?$")
_ARGUMENTS = re.compile(r"([a-z]\w*(?:(?:,| and|, and)\s+\w+)*):\s+(.*)", re.DOTALL)


def define(flags: shared.FlagValues) -> None:
    recipes.output_format(flags)
    absl_flags.DEFINE_bool(
        "cost",
        False,
        "Adds the parameters, and the operations that a video takes, at the default "
        "sizes.",
        flag_values=flags,
    )
    absl_flags.DEFINE_string(
        "output_file", None, "A file to write, instead of printing.", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "model_module",
        None,
        "A Python file with models of your own.",
        flag_values=flags,
    )


def run(flags: shared.FlagValues) -> int:
    from yt8m import runs, whole_files

    runs.load_registries(flags.model_module)
    text = markdown() if flags.format == "markdown" else listing(flags.cost)
    if flags.output_file:
        whole_files.write_file(flags.output_file, f"{text}\n")
    else:
        print(text)
    return 0


def listing(cost: bool = False) -> str:
    """All registered models, as text; with what they cost, if wanted."""
    from yt8m import registry

    lines = []
    for level in registry.LEVELS:
        for name in registry.names(level):
            entry = registry.get(name)
            lines.append(f"{name} ({level} level). {entry.paper}")
            if cost:
                lines.append(f"    # {default_cost(name)}")
            for argument, default in model_arguments(entry.cls).items():
                lines.append(f"    {argument}={default}")
    return "\n".join(lines)


def model_arguments(cls: type) -> dict[str, Any]:
    """The arguments that --model_args may set; the others come from flags of data."""
    from yt8m import registry
    from yt8m.model import YT8MModel

    of_data = registry.arguments(YT8MModel)
    arguments = registry.arguments(cls)
    return {name: arguments[name] for name in arguments if name not in of_data}


def default_cost(name: str) -> str:
    """What a model costs at its default sizes, in words."""
    from yt8m import registry, schema
    from yt8m.cost import model_cost

    cls = registry.get(name).cls
    if cls.level == "video":
        frames, seen = 0, "its default features"
    else:
        frames = cls.default_frames.evaluated().count or schema.MAX_FRAMES
        seen = f"{frames} frames"
    cost = model_cost(name, {}, frames)
    return (
        f"{cost.parameters:,} parameters; {amount(cost.flops)}FLOPs a video, of {seen}"
    )


def amount(number: float) -> str:
    """`297.8 M`, `5.74 G`; three digits at least, the unit last."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            value = number / size
            return f"{value:,.1f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{number:.0f} "


# --- docstrings ----------------------------------------------------------------------


def sections(cls: type) -> dict[str, str]:
    """The parts of a class's docstring by heading; what precedes them is under ""."""
    parts = _SECTION.split(inspect.cleandoc(cls.__doc__ or "") + "\n")
    titles = ["", *parts[1::2]]
    return {
        title: inspect.cleandoc(text)
        for title, text in zip(titles, parts[::2], strict=True)
    }


def explanations(cls: type) -> dict[str, str]:
    """What the docstrings say of the arguments of a class; its own has precedence.

    An entry is `name: text` or `name, name: text`; where the text is only `as CLASS`
    and a base class says more, that is taken.
    """
    found: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if not owner.__module__.startswith("keras"):
            entries = re.split(r"\n(?=\S)", sections(owner).get("Args", ""))
            for entry in filter(None, map(_ARGUMENTS.match, entries)):
                text = " ".join(entry[2].split())
                for name in re.findall(r"\w+", entry[1]):
                    if name not in found or not _ELSEWHERE.match(text):
                        found[name] = text
    return found


def markdown() -> str:
    """All registered models, as the text of docs/models.md."""
    from yt8m import registry, schema

    lines = [
        "# The models",
        "",
        "Written by `yt8m models --format=markdown --output_file=docs/models.md`. "
        "Letters: B videos, T frames, D feature size, K clusters, H hidden units, M "
        "mixtures, C classes. Costs are those of the default sizes and "
        f"{schema.NUM_CLASSES:,} classes; a multiplication and its addition are two "
        "FLOPs, and only matrix products and convolutions count. Scores are those of "
        "the [recipes](recipes.md); what each model can see is on [a page of its own]"
        "(quality.md).",
        "",
        *_NOTATION,
    ]
    used: dict[str, list[recipes.Recipe]] = {}
    for recipe in map(recipes.read, recipes.recipe_names()):
        used.setdefault(recipe.model, []).append(recipe)
    for level in registry.LEVELS:
        lines += ["", f"## {level.capitalize()}-level models"]
        for name in registry.names(level):
            lines += ["", *_entry(name, used.get(name, []))]
    return "\n".join(lines)


def _entry(name: str, used: list[recipes.Recipe]) -> list[str]:
    from yt8m import registry

    entry = registry.get(name)
    parts = sections(entry.cls)
    summary, _, flow = parts[""].partition("\n\n")
    explained = explanations(entry.cls)
    arguments = [
        [f"`{argument}`", f"`{default}`", explained.get(argument, "")]
        for argument, default in model_arguments(entry.cls).items()
    ]
    lines = [f"### {name}", "", " ".join(summary.split()), ""]
    if flow:
        lines += ["```text", *flow.splitlines(), "```", ""]
    if equation := parts.get("Equation"):
        lines += ["Equation:", "", "```text", *equation.splitlines(), "```", ""]
    lines += [f"Paper: {entry.paper}.", "", f"Cost: {default_cost(name)}.", ""]
    lines += [recipes.table(("argument", "default", ""), arguments, "markdown"), ""]
    if not used:
        return [*lines, "No recipe."]
    scores = [[f"`{r.name}`", r.published, r.measured] for r in used]
    header = ("recipe", "published", "measured on the dataset")
    return [*lines, recipes.table(header, scores, "markdown")]

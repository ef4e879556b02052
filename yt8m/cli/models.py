"""Lists the models: level, arguments with defaults, paper.

yt8m models
"""

from absl import flags as absl_flags

from yt8m.cli import flags as shared


def define(flags: shared.FlagValues) -> None:
    absl_flags.DEFINE_string(
        "model_module",
        None,
        "A Python file with models of your own.",
        flag_values=flags,
    )


def run(flags: shared.FlagValues) -> int:
    from yt8m import runs

    runs.load_registries(flags.model_module)
    print(listing())
    return 0


def listing() -> str:
    """All registered models, as text."""
    from yt8m import registry
    from yt8m.model import YT8MModel

    # Given by the flags of the data, not by --model_args.
    data_arguments = set(registry.arguments(YT8MModel))
    lines = []
    for level in registry.LEVELS:
        for name in registry.names(level):
            entry = registry.get(name)
            lines.append(f"{name} ({level} level). {entry.paper}")
            for argument, default in registry.arguments(entry.cls).items():
                if argument not in data_arguments:
                    lines.append(f"    {argument}={default}")
    return "\n".join(lines)

"""The style of the figures of the paper that are drawn anew, which docs/figures has."""

from pathlib import Path
from typing import Any


def subplots(count: int, inches: tuple[float, float]) -> tuple[Any, list[Any]]:
    """Return a figure with panels side by side, which share the vertical axis."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "vtl"  # the same readings make the same file
    plt.rcParams["svg.fonttype"] = "none"
    figure, panels = plt.subplots(1, count, figsize=inches, sharey=True, squeeze=False, layout="constrained")
    for panel in panels[0]:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, list(panels[0])


def save(figure: Any, output: Path) -> None:
    """Write a figure in the format that the file's name says."""
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120, metadata={"Date": None} if output.suffix == ".svg" else None)

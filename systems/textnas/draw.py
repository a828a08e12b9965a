"""Pictures of architectures and of searches: by graphviz where its program is there, else by matplotlib.

    draw(PAPER, Path("paper.svg"))
    draw_curves({"spos": history, "random": other}, Path("curves.png"))
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from systems.textnas.space import Arch, TextNASError

if TYPE_CHECKING:
    from systems.textnas.history import History

COLOURS = {
    "conv1": "#9ecae1", "conv3": "#6baed6", "conv5": "#4292c6", "conv7": "#2171b5", "avgpool3": "#c7e9c0",
    "maxpool3": "#74c476", "gru": "#fdae6b", "attention": "#bcbddc", "rotary": "#9e9ac8", "positional": "#807dba",
    "prenorm": "#6a51a3",
}  # fmt: skip
DARK = ("#2171b5", "#4292c6", "#807dba", "#6a51a3")
SUFFIXES = (".svg", ".png", ".pdf")


def draw(arch: Arch, path: Path | str, engine: str = "auto") -> Path:
    """Draw an architecture: inputs as solid lines, skips as faint arcs. engine: "auto", "graphviz" or "matplotlib".

    Raises TextNASError on a suffix other than .svg, .png or .pdf, and where graphviz was asked for and is not there.
    """
    path = _target(path)
    there = shutil.which("dot") is not None
    if engine not in ("auto", "graphviz", "matplotlib") or (engine == "graphviz" and not there):
        raise TextNASError(f"engine {engine!r} cannot draw here; expected auto or matplotlib (graphviz needs `dot`)")
    if there and engine != "matplotlib":
        import graphviz

        source = graphviz.Source(dot_source(arch))
        source.render(outfile=path, cleanup=True)
        return path
    _by_matplotlib(arch, path)
    return path


def dot_source(arch: Arch) -> str:
    """The architecture in graphviz's language."""
    lines = ["digraph {", "  node [shape=box, style=filled, fontname=Helvetica]", '  stem [fillcolor="#eeeeee"]']
    for k, layer in enumerate(arch.layers):
        lines.append(f'  l{k} [label="{k}  {layer.op}", fillcolor="{COLOURS[layer.op]}"]')
    for k, layer in enumerate(arch.layers):
        lines.append(f"  {'stem' if layer.input < 0 else f'l{layer.input}'} -> l{k}")
        lines += [f'  l{j} -> l{k} [style=dashed, color="#aaaaaa", constraint=false]' for j in layer.skips]
    return "\n".join([*lines, "}", ""])


def _target(path: Path | str) -> Path:
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise TextNASError(f"{path} ends in {path.suffix!r}; expected one of {', '.join(SUFFIXES)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _save(figure: Any, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.part{path.suffix}")
    try:
        figure.savefig(temporary, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _by_matplotlib(arch: Arch, path: Path) -> None:
    """Layers from left to right; inputs below the boxes where they jump, skips above them."""
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    count = len(arch)
    figure, axes = _figure(1.5 + 0.62 * count, 4.4)
    axes.set_xlim(-1.8, count - 0.3)
    axes.set_ylim(-1.9, 3.5)
    axes.axis("off")

    def box(x: float, text: str, colour: str) -> None:
        shape = "round,pad=0.02,rounding_size=0.1"
        axes.add_patch(FancyBboxPatch((x - 0.36, -0.62), 0.72, 1.24, shape, fc=colour, ec="#444444", lw=0.8))
        ink = "white" if colour in DARK else "black"
        axes.text(x, 0, text, ha="center", va="center", rotation=90, fontsize=9, color=ink)

    def arrow(start: float, end: float, bend: float, level: float, colour: str, width: float) -> None:
        axes.add_patch(
            FancyArrowPatch(
                (start, level), (end, level), connectionstyle=f"arc3,rad={bend}", arrowstyle="-|>", mutation_scale=8,
                color=colour, lw=width, shrinkA=1, shrinkB=1,
            )
        )

    box(-1, "stem", "#eeeeee")
    for k, layer in enumerate(arch.layers):
        box(k, f"{k}  {layer.op}", COLOURS[layer.op])
        if layer.input == k - 1:
            arrow(k - 0.66, k - 0.34, 0.0, 0.0, "#222222", 1.6)
        else:
            arrow(layer.input, k, 0.32, -0.66, "#222222", 1.3)
        for j in layer.skips:
            arrow(j, k, -min(0.42, 5.6 / (k - j)), 0.66, "#999999", 0.7)  # flatter where longer, to stay inside
    title = f"{count} layers, {arch.skips} skip connections: inputs in black, skips in grey"
    axes.set_title(title, fontsize=10)
    _save(figure, path)


def draw_curves(histories: Mapping[str, Sequence[History] | History], path: Path | str) -> Path:
    """The best validation accuracy so far over what was spent, a line a strategy (the mean of its histories)."""
    import numpy as np

    path = _target(path)
    figure, axes = _figure(7.0, 4.2)
    for name, given in histories.items():
        several = [given] if not isinstance(given, Sequence) else list(given)
        curves = [curve for history in several if (curve := history.curve())]
        if not curves:
            continue
        grid = np.unique(np.concatenate([[x for x, _ in curve] for curve in curves]))
        grid = grid[grid >= max(curve[0][0] for curve in curves)]
        lines = []
        for curve in curves:
            spent, best = np.array(curve).T
            lines.append(best[np.searchsorted(spent, grid, "right") - 1])
        axes.step(grid, 100 * np.mean(lines, 0), where="post", label=name)
    axes.set_xlabel("examples seen in the search (forward only: a third)")
    axes.set_ylabel("best validation accuracy so far, %")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    _save(figure, path)
    return path


def operations_by_depth(archs: Sequence[Arch], parts: int = 3) -> dict[str, list[int]]:
    """How often each operation stands in each part of the depth, the first part nearest to the words."""
    found = {op: [0] * parts for op in COLOURS}
    for arch in archs:
        for k, layer in enumerate(arch.layers):
            found[layer.op][k * parts // len(arch)] += 1
    return {op: counts for op, counts in found.items() if any(counts)}

"""Plotly versions of the figures, for hovering and zooming: plain JSON that `plotly.min.js` draws in the
browser.

They are drawn when the reader asks for one; the page is complete without them. Colours come from the page's
style sheet at drawing time, so a trace only names its role in `meta`.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from reports.figures import axis_limits, band, bucket
from reports.overview import Distribution, Heat, Overview, Peer

Figure = dict[str, Any]


def interactive(overview: Overview) -> dict[str, Figure]:
    """All interactive figures: id of the element that shows it -> {data, layout} of Plotly."""
    figures = {f"heat-{index}": heat_figure(heat) for index, heat in enumerate(overview.heats)}
    figures.update({d.metric.worst.anchor: cdf_figure(d) for d in overview.distributions})
    if overview.peers:
        figures["peers-plot"] = forest_figure(overview.peers)
    return figures


def heat_figure(heat: Heat) -> Figure:
    """Every node by every metric, in the shades of the static map; hovering tells the numbers."""
    shades = [[_shade(heat, r, c) for c in range(len(heat.metrics))] for r in range(len(heat.nodes))]
    hover = [[_cell_text(heat, r, c) for c in range(len(heat.metrics))] for r in range(len(heat.nodes))]
    return {
        "data": [
            {
                "type": "heatmap",
                "x": [escape(name) for name in heat.metrics],
                "y": [escape(f"{ref.host} · {ref.node[:8]}") for ref in heat.nodes],
                "z": shades,
                "text": hover,
                "hovertemplate": "%{text}<extra></extra>",
                "zmin": 0,
                "zmax": 5,
                "showscale": False,
                "xgap": 1,
                "ygap": 1,
                "meta": "heat",
            }
        ],
        "layout": {
            "height": 160 + 16 * len(heat.nodes),
            "xaxis": {"showticklabels": len(heat.metrics) <= 40},
            "yaxis": {"autorange": "reversed", "automargin": True},
        },
    }


def _shade(heat: Heat, r: int, c: int) -> int | None:
    shade = bucket(heat.similarity[r][c], heat.alpha[r][c], heat.status[r][c])
    return None if shade == "hx" else int(shade[1:])


def _cell_text(heat: Heat, r: int, c: int) -> str:
    near, alpha = heat.similarity[r][c], heat.alpha[r][c]
    numbers = "not measured" if near is None else f"similarity {near:.4f}, alpha {alpha or 0:.4f}, {heat.status[r][c]}"
    return f"{escape(heat.metrics[c])}<br>{escape(heat.nodes[r].host)}: {escape(numbers)}"


def cdf_figure(distribution: Distribution) -> Figure:
    """The distribution functions of one metric with the criterion's band."""
    line = distribution.metric.worst
    traces: list[dict[str, Any]] = []
    edges = band(distribution)
    if edges:
        traces += [
            _steps(edges[0], "band", "band", showlegend=False),
            _steps(edges[1], "criterion's band", "band", fill="tonextx"),
        ]
    if distribution.span:
        others = f"{distribution.others} other runs"
        traces += [
            _steps(distribution.span[0], others, "span", showlegend=False),
            _steps(distribution.span[1], others, "span", fill="tonextx"),
        ]
    if distribution.criterion:
        traces.append(_steps(distribution.criterion, "criterion", "criterion"))
    traces += [_steps(curve.quantiles, escape(curve.run.short), curve.status) for curve in distribution.curves]
    scale = "log" if axis_limits(distribution)[2] else "linear"
    return {
        "data": traces,
        "layout": {
            "height": 340,
            "xaxis": {"title": {"text": escape(line.unit)}, "exponentformat": "SI", "type": scale},
            "yaxis": {"title": {"text": "share of samples"}, "range": [0, 1.02]},
        },
    }


def _steps(vector: Sequence[float], name: str, role: str, **more: Any) -> dict[str, Any]:
    shares = [(k + 1) / len(vector) for k in range(len(vector))]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [vector[0], *vector],
        "y": [0.0, *shares],
        "name": name,
        "line": {"shape": "vh"},
        "meta": role,
        **more,
    }


def forest_figure(peers: Sequence[Peer]) -> Figure:
    """All ratios with their intervals on a logarithmic axis."""
    names = [escape(f"{peer.of} over {peer.over} · {peer.metric}") for peer in peers]
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "markers",
                "x": [peer.ratio for peer in peers],
                "y": names,
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [peer.high - peer.ratio for peer in peers],
                    "arrayminus": [peer.ratio - peer.low for peer in peers],
                },
                "text": [escape(peer.run.short) for peer in peers],
                "hovertemplate": "%{x:.3g}× · %{text}<extra>%{y}</extra>",
                "meta": "criterion",
                "marker": {"size": 9, "symbol": "square"},
            }
        ],
        "layout": {
            "height": 120 + 26 * len(peers),
            "xaxis": {"type": "log", "title": {"text": "times faster"}},
            "yaxis": {"autorange": "reversed", "automargin": True},
            "shapes": [{"type": "line", "x0": 1, "x1": 1, "yref": "paper", "y0": 0, "y1": 1}],
        },
    }

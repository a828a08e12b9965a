"""Figures as inline SVG: readable without JavaScript, coloured by the page's style sheet in light and dark.

Text inside a figure is escaped here; shapes carry classes (`s-defect`, `h3`, ...) and never a colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from itertools import groupby

from markupsafe import Markup

from reports.overview import Distribution, Heat, Line, Peer
from reports.quantity import signed, similarity
from reports.trend import Trend
from reports.verdict import SIGNS
from systems.anubis.machine import Noise
from systems.anubis.units import quantity

CDF_WIDTH, CDF_HEIGHT = 300, 132
HEAT_ROWS = 60
LOG_FROM = 10
QUIET = 0.10  # the pressure up to which the gate calls a machine quiet
NOISE_PARTS = ("psi", "foreign", "steal", "throttled")

_Axis = Callable[[float], float]


def headroom(near: float | None, alpha: float | None) -> float | None:
    """(similarity - alpha) / (1 - alpha): 1 like the criterion, 0 at the threshold, negative beyond it."""
    if near is None or alpha is None:
        return None
    return (near - alpha) / max(1.0 - alpha, 1e-9)


def bucket(near: float | None, alpha: float | None, status: str | None = None) -> str:
    """The style class of a heat cell: `h0` far beyond the threshold .. `h5` like the criterion, or `hx`."""
    room = headroom(near, alpha)
    if room is None or status == "recorded":  # recorded with a similarity: its criterion is too noisy to gate
        return "hx"
    edges = (-1.0, 0.0, 0.25, 0.5, 0.75)
    return f"h{sum(room > edge for edge in edges)}"


# --- the strip: one node, all metrics -----------------------------------------------------------------------


def strip(lines: Sequence[Line]) -> Markup:
    """The metrics of one component on one node: a bar from the threshold up to the similarity, or down to it.

    Heights are headroom, clipped at -1 and 1; each links to its distribution and tells its numbers.
    """
    step, width, zero, up, down = 21, 14, 60, 50, 26
    total = max(len(lines) * step, step)
    parts = [f'<line class="threshold" x1="0" x2="{total}" y1="{zero}" y2="{zero}"/>']
    for index, line in enumerate(lines):
        x = index * step + (step - width) / 2
        room = headroom(line.similarity, line.alpha)
        title = f"{line.id}: {line.status}"
        if room is None:
            shape = f'<rect class="unjudged" x="{x:g}" y="{zero - 5}" width="{width}" height="10"/>'
        else:
            title += (
                f", similarity {similarity(line.similarity)}, alpha {similarity(line.alpha)}, "
                f"margin {signed(line.margin)}"
            )
            height = min(room, 1.0) * up if room >= 0 else min(-room, 1.0) * down
            top = zero - height if room >= 0 else zero
            shape = (
                f'<rect class="s-{_class(line.status)}" x="{x:g}" y="{top:.1f}" width="{width}" '
                f'height="{max(height, 1.5):.1f}"/>'
            )
        if line.status != "pass":
            y = zero - up + 6 if room is None or room < 0 else zero + 13
            shape += (
                f'<text class="sign s-{_class(line.status)}" x="{x + width / 2:g}" y="{y}" '
                f'text-anchor="middle">{SIGNS.get(line.status, "?")}</text>'
            )
        link = f' href="#{line.anchor}"' if line.drawn else ""
        parts.append(f"<a{link}><title>{escape(title)}</title>{shape}</a>")
    height = zero + down + 2
    label = f"{len(lines)} metrics, bars from alpha to similarity"
    return Markup(
        f'<svg class="strip" width="{total}" height="{height}" viewBox="0 0 {total} {height}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


# --- the heat map: many nodes -------------------------------------------------------------------------------


def heat_map(heat: Heat) -> Markup:
    """Nodes (rows, worst first, at most `HEAT_ROWS`) x metrics (columns by component) of one kind.

    Cells of one shade are one path, so that hundreds of nodes stay small; what did not pass bears a sign.
    """
    names = [ref.host for ref in heat.nodes[:HEAT_ROWS]]
    columns = len(heat.metrics)
    cell_w = max(7.0, min(32.0, 980 / max(columns, 1)))
    cell_h, left, top = 15, 118, 22
    shades: dict[str, list[str]] = {}
    signs: list[str] = []
    for r in range(len(names)):
        for c in range(columns):
            near, alpha, status = heat.similarity[r][c], heat.alpha[r][c], heat.status[r][c]
            x, y = left + c * cell_w, top + r * cell_h
            shades.setdefault("hnone" if near is None else bucket(near, alpha, status), []).append(
                f"M{x:.1f} {y}h{cell_w - 1:.1f}v{cell_h - 1}h-{cell_w - 1:.1f}z"
            )
            if status is not None and status != "pass":
                place = f'x="{x + cell_w / 2 - 0.5:.1f}" y="{y + 11}"'
                signs.append(f'<text class="{bucket(near, alpha, status)}" {place}>{SIGNS.get(status, "?")}</text>')
    parts = [f'<path class="{shade}" d="{"".join(path)}"/>' for shade, path in sorted(shades.items())]
    parts.append(f'<g class="cellsign" text-anchor="middle">{"".join(signs)}</g>')
    for row, name in enumerate(names):
        parts.append(
            f'<text class="tick" x="{left - 6}" y="{top + row * cell_h + 11}" text-anchor="end">'
            f"{escape(_short(name, 17))}</text>"
        )
    start = 0
    for component, members in groupby(heat.components):
        count = len(list(members))
        x = left + start * cell_w
        name = escape(_short(component, max(3, int(count * cell_w / 6))))
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="14">{name}'
            f'</text><line class="axis" x1="{x - 0.5:.1f}" x2="{x - 0.5:.1f}" y1="4" '
            f'y2="{top + len(names) * cell_h}"/>'
        )
        start += count
    width, height = left + columns * cell_w + 2, top + len(names) * cell_h + 2
    return Markup(
        f'<svg class="heat" width="{width:.0f}" height="{height}" viewBox="0 0 {width:.0f} {height}" '
        f'role="img" aria-label="Similarity of {len(names)} nodes by {columns} metrics">'
        f"{''.join(parts)}</svg>"
    )


# --- distributions ------------------------------------------------------------------------------------------


def band(distribution: Distribution) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The criterion's band: from it to its copy that is scaled to similarity alpha (both ways for a target).

    A sample that is the criterion times `alpha` (higher is better) or divided by it (lower is better) has
    exactly the one-sided similarity alpha. None without a criterion or alpha.
    """
    alpha, c = distribution.metric.worst.alpha, distribution.criterion
    if not c or not alpha:
        return None
    worse_low, worse_high = tuple(v * alpha for v in c), tuple(v / alpha for v in c)
    better = distribution.metric.worst.better
    return (c if better == "lower" else worse_low), (c if better == "higher" else worse_high)


def cdf(distribution: Distribution) -> Markup:
    """The samples' distribution functions over the criterion's band and the span of the other runs."""
    line = distribution.metric.worst
    width, height, left, bottom, top = CDF_WIDTH, CDF_HEIGHT, 6, 18, 6
    edges = band(distribution)
    low, high, logarithmic = axis_limits(distribution)

    def x_at(value: float) -> float:
        value = min(max(value, low), high)
        share = math.log(value / low) / math.log(high / low) if logarithmic else (value - low) / (high - low)
        return left + share * (width - 2 * left)

    def y_at(share: float) -> float:
        return height - bottom - share * (height - bottom - top)

    parts = [
        f'<line class="axis" x1="{left}" x2="{width - left}" y1="{y_at(0):g}" y2="{y_at(0):g}"/>',
        f'<line class="half" x1="{left}" x2="{width - left}" y1="{y_at(0.5):g}" y2="{y_at(0.5):g}"/>',
    ]
    if edges:
        parts.append(f'<path class="band" d="{_area(*edges, x_at, y_at)}"/>')
    if distribution.span:
        parts.append(f'<path class="span" d="{_area(*distribution.span, x_at, y_at)}"/>')
    if distribution.criterion:
        parts.append(f'<path class="criterion" d="{_stairs(distribution.criterion, x_at, y_at)}"/>')
    parts.extend(
        f'<path class="curve s-{_class(curve.status)}" d="{_stairs(curve.quantiles, x_at, y_at)}">'
        f"<title>{escape(curve.run.short)}: {escape(curve.status)}</title></path>"
        for curve in reversed(distribution.curves)
    )
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        value = low * (high / low) ** share if logarithmic else low + share * (high - low)
        parts.append(
            f'<text class="tick" x="{x_at(value):.1f}" y="{height - 5}" text-anchor="{anchor}">'
            f"{escape(quantity(value, line.unit))}</text>"
        )
    label = f"Distribution of {line.id}: {line.status}"
    return Markup(
        f'<svg class="cdf" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def axis_limits(distribution: Distribution) -> tuple[float, float, bool]:
    """(low, high, logarithmic): all but the outermost thirtieth of each sample, with a little room.

    Latencies with long tails span decades: on a linear axis all but the tail would be one vertical line.
    """
    vectors: list[Sequence[float]] = [curve.quantiles for curve in distribution.curves]
    vectors += [distribution.criterion] if distribution.criterion else []
    vectors += list(distribution.span or ())
    # The band of a criterion that is too noisy to gate would reach so far that nothing else could be seen.
    if distribution.metric.worst.status != "recorded":
        vectors += list(band(distribution) or ())
    cut = [(v[len(v) // 30], v[-1 - len(v) // 30]) for v in vectors if v]
    if not cut:
        return 0.0, 1.0, False
    low, high = min(c[0] for c in cut), max(c[1] for c in cut)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = (max(low - room, 0.9 * low) if low > 0 else low - room), high + room
    return low, high, low > 0 and high / low > LOG_FROM


def _stairs(vector: Sequence[float], x_at: _Axis, y_at: _Axis) -> str:
    """The distribution function of quantiles (q,), from share 0 to 1, as an SVG path."""
    q = len(vector)
    path = [f"M{x_at(vector[0]):.1f} {y_at(0):.1f}"]
    for k, value in enumerate(vector):
        path.append(f"H{x_at(value):.1f}V{y_at((k + 1) / q):.1f}")
    return "".join(path)


def _area(low: Sequence[float], high: Sequence[float], x_at: _Axis, y_at: _Axis) -> str:
    """The area between two distribution functions."""
    back = "".join(f"V{y_at((k + 1) / len(high)):.1f}H{x_at(high[k]):.1f}" for k in range(len(high) - 1, -1, -1))
    return f"{_stairs(low, x_at, y_at)}H{x_at(high[-1]):.1f}{back}V{y_at(0):.1f}z"


# --- peers --------------------------------------------------------------------------------------------------


def ratio_limits(peers: Iterable[Peer]) -> tuple[float, float]:
    """Limits of the ratio axis, powers of two around all intervals and 1, and never tighter than 1/2 .. 2."""
    bounds = [
        value for peer in peers for value in (peer.low, peer.high, peer.ratio) if value > 0 and math.isfinite(value)
    ]
    low = 2.0 ** math.floor(math.log2(min([0.5, *bounds])))
    high = 2.0 ** math.ceil(math.log2(max([2.0, *bounds])))
    return low, high


def _log_at(value: float, limits: tuple[float, float], width: float) -> float:
    low, high = math.log(limits[0]), math.log(limits[1])
    return 6 + (math.log(min(max(value, limits[0]), limits[1])) - low) / (high - low) * (width - 12)


def forest_row(peer: Peer, limits: tuple[float, float]) -> Markup:
    """One interval of the forest plot, on a logarithmic axis with the line at 1."""
    width, height = 260, 18
    at = [_log_at(value, limits, width) for value in (peer.low, peer.ratio, peer.high, 1.0)]
    tone = "ahead" if peer.low > 1 else "behind" if peer.high < 1 else "even"
    label = f"{peer.of} over {peer.over}: {peer.ratio:.3g}, 95 % interval {peer.low:.3g} to {peer.high:.3g}"
    return Markup(
        f'<svg class="forest" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(label)}">'
        f'<line class="one" x1="{at[3]:.1f}" x2="{at[3]:.1f}" y1="0" y2="{height}"/>'
        f'<line class="interval {tone}" x1="{at[0]:.1f}" x2="{at[2]:.1f}" y1="9" y2="9"/>'
        f'<path class="interval {tone}" d="M{at[0]:.1f} 5V13M{at[2]:.1f} 5V13"/>'
        f'<rect class="point {tone}" x="{at[1] - 3.5:.1f}" y="5.5" width="7" height="7"/></svg>'
    )


def forest_axis(limits: tuple[float, float]) -> Markup:
    """The axis of the forest plot: powers of two, thinned to what fits."""
    width = 260
    first, last = round(math.log2(limits[0])), round(math.log2(limits[1]))
    stride = max(1, math.ceil((last - first) / 6))
    ticks = sorted({0, *range(0, last + 1, stride), *range(0, first - 1, -stride)})
    parts = []
    for power in ticks:
        x = _log_at(2.0**power, limits, width)
        anchor = "start" if x < 12 else "end" if x > width - 12 else "middle"
        label = f"{2**power}×" if power >= 0 else f"1/{2**-power}"
        parts.append(f'<text class="tick" x="{x:.1f}" y="12" text-anchor="{anchor}">{label}</text>')
    return Markup(
        f'<svg class="forest" width="{width}" height="16" viewBox="0 0 {width} 16" aria-hidden="true">'
        f"{''.join(parts)}</svg>"
    )


# --- noise --------------------------------------------------------------------------------------------------


def noise_chart(points: Sequence[tuple[float, Noise]], part: str) -> Markup:
    """One kind of pressure over the run: a share in [0, 1] for each test, as steps over time."""
    width, height = 600, 44
    end = points[-1][0] or 1.0
    path, y = "", height - 1.0
    for at, noise in points:
        value = getattr(noise, part)
        y = height - 1 - min(max(value or 0.0, 0.0), 1.0) * (height - 4)
        path += f"V{y:.1f}H{at / end * width:.1f}"
    label = f"{part} over the run"
    quiet = height - 1 - QUIET * (height - 4)
    return Markup(
        f'<svg class="noise" viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}"><path class="area" d="M0 {height - 1}{path}V{height - 1}z"/>'
        f'<line class="quiet" x1="0" x2="{width}" y1="{quiet:.1f}" y2="{quiet:.1f}"/>'
        f'<line class="axis" x1="0" x2="{width}" y1="{height - 0.5}" y2="{height - 0.5}"/></svg>'
    )


def trend_chart(trend: Trend) -> Markup:
    """One metric over its runs, from left to right: a dot a run, a line a level, a mark where it stepped."""
    width, height, edge = 600, 64, 4
    low, high = min(trend.values), max(trend.values)
    span = (high - low) or 1.0

    def x(at: float) -> float:
        return edge + (width - 2 * edge) * at / max(len(trend.values) - 1, 1)

    def y(value: float) -> float:
        return height - edge - (height - 2 * edge) * (value - low) / span

    parts = [f'<circle class="night" cx="{x(i):.1f}" cy="{y(v):.1f}" r="1.6"/>' for i, v in enumerate(trend.values)]
    for begin, end, level in trend.levels:
        ends = f'x1="{x(begin):.1f}" x2="{x(end - 1):.1f}"'
        if trend.drift is None:
            parts.append(f'<line class="level" {ends} y1="{y(level):.1f}" y2="{y(level):.1f}"/>')
    for step in trend.steps:
        tone = "plain" if step.worse is None else "worse" if step.worse else "better"
        at = (x(step.at - 1) + x(step.at)) / 2
        title = f"{quantity(step.before, trend.unit)} to {quantity(step.after, trend.unit)} since {step.started[:10]}"
        parts.append(
            f'<line class="step {tone}" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{height}">'
            f"<title>{escape(title)}</title></line>"
        )
    label = f"{trend.id} over {len(trend.values)} runs, {quantity(low, trend.unit)} to {quantity(high, trend.unit)}"
    return Markup(
        f'<svg class="trend" viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _class(status: str) -> str:
    return status if status in SIGNS else "unknown"


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: max(length - 1, 1)] + "…"

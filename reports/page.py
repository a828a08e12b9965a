"""One self-contained report folder: `index.html`, `report.json`, `junit.xml`, and Plotly with its figures
beside.

The folder is written under a temporary name and then exchanged with the old one in a single step, so a reader
sees the old report or the new one. The same sources give the same bytes: nothing in a report tells when it
was built.

    ReportError
    └── NotAReport      the output folder holds something that a report does not consist of
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from importlib.resources import files
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import jinja2
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from reports import claims, figures, quantity, verdict
from reports.interactive import interactive
from reports.junit import junit_xml
from reports.overview import Distribution, Line, Node, Overview, component_rank
from reports.summary import gather, summarise
from systems.anubis import units
from systems.anubis.machine import Noise
from systems.anubis.records import write_atomically

REPORT_SCHEMA = 1
FILES = ("index.html", "report.json", "junit.xml", "figures.js", "plotly.min.js")
SYSTEM_PAGE = re.compile(r"system-[a-z0-9_]+\.html")

RUNS_LISTED = 100
# Up to this many nodes a heat map is a table of numbers; beyond, a picture.
TABLE_NODES = 12
NOISE_NODES = 3

_Entry = TypeVar("_Entry", Line, Distribution)


class ReportError(Exception):
    """The report cannot be built, and nothing was changed."""


class NotAReport(ReportError):
    """The output folder is not empty and not a report: it is never overwritten."""


def build(runs: Path, out: Path, *, criteria: Path, seeds: Path) -> Overview:
    """Build the report of the run files in `runs` into the folder `out`, and give what it shows.

    Bad files among the sources are listed in the report and stop nothing. Raises NotAReport when `out` holds
    anything but an earlier report, OSError when the disk refuses; in both cases `out` stays as it was.
    """
    check_replaceable(out)
    overview = summarise(gather(runs, criteria, seeds))
    write_report(overview, out)
    return overview


def write_report(overview: Overview, out: Path) -> None:
    """Write the report folder `out` and exchange it with an earlier report there. Raises NotAReport,
    OSError.
    """
    out = out.absolute()
    check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    try:
        fresh.chmod(0o755)
        for name, content in rendered(overview).items():
            write_atomically(fresh / name, content)
        _put_in_place(fresh, out)
    finally:  # after the exchange this is the old report; after an error, the unfinished one
        shutil.rmtree(fresh, ignore_errors=True)


def check_replaceable(out: Path) -> None:
    """Raise NotAReport unless `out` is absent, empty, or an earlier report and nothing else."""
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise NotAReport(f"{out}: not a folder; give -o a folder that is absent, empty, or an earlier report")
    present = {path.name for path in out.iterdir()}
    if not present:
        return
    foreign = sorted(name for name in present - set(FILES) if not SYSTEM_PAGE.fullmatch(name))
    if foreign or not _is_ours(out / "report.json"):
        what = f"holds {', '.join(foreign[:3])}" if foreign else "holds no report.json of an earlier report"
        raise NotAReport(
            f"{out}: {what}, so it is not (only) a report and is left alone; "
            "give -o another folder, or empty this one yourself"
        )


def _is_ours(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("maat") == "report"


def _put_in_place(fresh: Path, out: Path) -> None:
    """Make `fresh` be `out`; what was there, if anything, is then at `fresh`."""
    if not out.exists() or not any(out.iterdir()):
        fresh.replace(out)  # replaces an empty folder, too
        return
    if _exchange(fresh, out):
        return
    aside = fresh.with_name(f"{fresh.name}.old")
    out.rename(aside)
    try:
        fresh.rename(out)
    except OSError:
        aside.rename(out)
        raise
    aside.rename(fresh)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step by Linux's renameat2; False where that cannot be done."""
    at_fdcwd, rename_exchange = -100, 2
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}:
        return False
    raise OSError(code, os.strerror(code), str(b))


# --- content ------------------------------------------------------------------------------------------------


def rendered(overview: Overview) -> Mapping[str, bytes]:
    """The report's files: name -> content."""
    drawn = {
        name: {"data": figure["data"], "layout": figure["layout"]} for name, figure in interactive(overview).items()
    }
    return {
        "plotly.min.js": get_plotlyjs().encode(),
        "figures.js": f"window.maatFigures = {_json(drawn)};\n".encode(),
        "junit.xml": junit_xml(overview),
        "index.html": html(overview).encode(),
        **{name: html(overview, paper).encode() for paper in overview.papers if (name := page_of(paper.system))},
        "report.json": (_json(report_json(overview), indent=1) + "\n").encode(),
    }


def report_json(overview: Overview) -> dict[str, Any]:
    """Every number that the page shows, as JSON-able data in base units.

    Lines that passed are in `heat_maps` (all nodes) and `metrics` (each metric's worst node); all others are
    in `lines`.
    """
    worst = {(metric.worst.kind, metric.worst.id): metric for metric in overview.metrics}
    return {
        "maat": "report",
        "schema": REPORT_SCHEMA,
        "status": overview.status,
        "headline": overview.headline,
        "meaning": overview.meaning,
        "next_steps": overview.next_steps,
        "nodes": [_node_json(node, with_points=index < NOISE_NODES) for index, node in enumerate(overview.nodes)],
        "metrics": [asdict(metric) for metric in worst.values()],
        "lines": [asdict(line) for node in overview.nodes for line in node.lines if line.status != "pass"],
        "heat_maps": [asdict(heat) for heat in overview.heats],
        "distributions": [
            {
                "metric": d.metric.worst.id,
                "kind": d.metric.worst.kind,
                "criterion": d.criterion,
                "curves": [asdict(curve) for curve in d.curves],
                "span": d.span,
                "others": d.others,
            }
            for d in overview.distributions
        ],
        "claims": {
            "counts": dict(overview.claim_counts),
            "results": [asdict(result) for result in overview.claims],
        },
        "peers": [asdict(peer) for peer in overview.peers],
        "criteria": {
            "provenance": [asdict(entry) for entry in overview.provenance],
            "metrics": [asdict(line) for line in overview.criteria],
            "unmeasured": overview.unmeasured,
        },
        "trends": [asdict(trend) for trend in overview.trends],
        "runs": [asdict(run) for run in overview.runs],
        "pictures": [
            {"suite": p.suite, "title": p.title, "test": p.test, "run": asdict(p.run)} for p in overview.pictures
        ],
        "skipped": [{"path": path, "reason": reason} for path, reason in overview.skipped],
        "journals": overview.journals,
    }


def _node_json(node: Node, *, with_points: bool) -> dict[str, Any]:
    shallow = {f.name: getattr(node, f.name) for f in fields(node) if f.name not in {"lines", "noise", "suspects"}}
    return {
        **{
            name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
            for name, value in shallow.items()
        },
        "suspects": [
            {
                "component": suspect.component,
                "score": suspect.score,
                "findings": [line.id for line in suspect.findings],
            }
            for suspect in node.suspects
        ],
        "noise": noise_summary(node),
        "noise_points": [{"seconds": at, **asdict(noise)} for at, noise in node.noise] if with_points else None,
    }


def noise_summary(node: Node) -> dict[str, tuple[float, float] | None]:
    """(median, maximum) of each kind of noise over the node's tests; None where the kernel did not tell."""
    found: dict[str, tuple[float, float] | None] = {}
    for part in fields(Noise):
        values = [value for _, noise in node.noise if (value := getattr(noise, part.name)) is not None]
        found[part.name] = (median(values), max(values)) if values else None
    return found


def _json(content: Any, indent: int | None = None) -> str:
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(_finite(content), indent=indent, sort_keys=True, allow_nan=False, separators=separators)


def _finite(content: Any) -> Any:
    """JSON has no NaN and no infinity: they become text, so that a reader sees what was measured."""
    if isinstance(content, float) and not math.isfinite(content):
        return str(content)
    if isinstance(content, Mapping):
        return {str(name): _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content


def page_of(system: str) -> str:
    """The file of a system's own page; empty where its name fits no file."""
    name = f"system-{system}.html"
    return name if SYSTEM_PAGE.fullmatch(name) else ""


def html(overview: Overview, paper: claims.Paper | None = None) -> str:
    """The page, or that of one system. Text from run files, criteria and seeds is escaped by the template engine."""
    folder = files("reports") / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(_filters())
    listed = {run.ref.run_id for run in overview.runs[:RUNS_LISTED]}
    home = "index.html" if paper else ""
    return environment.get_template("system.html" if paper else "page.html").render(
        o=overview,
        paper=paper,
        page_of=page_of,
        run_link=lambda run_id: f"{home}#run-{run_id}" if run_id in listed else f"{home}#runs",
        runs_listed=RUNS_LISTED,
        css=Markup((folder / "page.css").read_text(encoding="utf-8")),
        js=Markup((folder / "page.js").read_text(encoding="utf-8")),
        figures=figures,
        signs=verdict.SIGNS,
        tones=verdict.TONES,
        exit_codes=verdict.EXIT_CODES,
        look_at=verdict.LOOK_AT,
        noise_summary=noise_summary,
        noise_parts=figures.NOISE_PARTS,
        quiet=figures.QUIET,
        limits=figures.ratio_limits(overview.peers),
        table_nodes=TABLE_NODES,
        noise_nodes=NOISE_NODES,
        kinds=sorted({node.kind for node in overview.nodes}),
        by_component=_by_component,
        mapped=_mapped,
    )


def _filters() -> dict[str, Callable[..., Any]]:
    return {
        "quantity": units.quantity,
        "similarity": quantity.similarity,
        "signed": quantity.signed,
        "percent": quantity.percent,
        "ratio": quantity.ratio,
        "duration": quantity.duration,
        "stated": quantity.stated,
        "significant": units.significant,
        "bound": claims.bound,
        "loudest": loudest,
        "breakable": breakable,
        "starting": lambda entries, name, start: [e for e in entries if attrgetter(name)(e).startswith(start)],
        "when": lambda iso: iso[:16].replace("T", " "),
    }


def breakable(text: str) -> Markup:
    """Escaped text that may be broken into lines after the separators of a metric id."""
    return Markup(re.sub(r"([/,:]|\[|(?<!^)\{)", r"\1<wbr>", str(escape(text))))


def loudest(noise: Noise) -> tuple[str, float | None]:
    """The strongest pressure during a measurement: (its name, its share); ("quiet", ..) below 1 %."""
    shares = [(value, part) for part in figures.NOISE_PARTS if (value := getattr(noise, part)) is not None]
    if not shares:
        return "", None
    value, part = max(shares)
    return (part if value >= 0.01 else "quiet"), value


def _by_component(entries: Sequence[_Entry]) -> list[tuple[str, list[_Entry]]]:
    """Lines, or distributions, grouped by component: the group with the worst entry first, orders kept."""
    groups: dict[str, list[_Entry]] = {}
    for entry in entries:
        line = entry.metric.worst if isinstance(entry, Distribution) else entry
        groups.setdefault(line.component, []).append(entry)
    return list(groups.items())


def _mapped(lines: Sequence[Line]) -> list[tuple[str, list[Line]]]:
    """Lines grouped by component in places that stay the same from day to day."""
    ordered = sorted(lines, key=lambda line: (component_rank(line.component), line.component, line.id))
    return _by_component(ordered)

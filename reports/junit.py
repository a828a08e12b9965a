"""The report as JUnit XML, for CI systems: a suite for each node's latest run, a case for each of its
metrics.

A defect is a failure, an error or an invalid measurement an error, a contended metric a skip (the machine was
not validated); flaky, new and recorded metrics count as run, with the verdict among their properties.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from reports.overview import Line, Node, Overview
from reports.quantity import signed, similarity
from systems.anubis.units import quantity

# What XML 1.0 cannot hold, not even escaped.
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(overview: Overview) -> bytes:
    """The JUnit file of the latest run of each node."""
    root = ElementTree.Element("testsuites", name="maat")
    totals = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for node in overview.nodes:
        suite = _suite(node)
        root.append(suite)
        for name in totals:
            totals[name] += int(suite.attrib[name])
    root.attrib.update({name: str(count) for name, count in totals.items()})
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def _suite(node: Node) -> ElementTree.Element:
    cases = [_case(line) for line in node.lines]
    suite = ElementTree.Element(
        "testsuite",
        {
            "name": _text(f"{node.kind}/{node.ref.host}"),
            "hostname": _text(node.ref.host),
            "timestamp": node.ref.started,
            "time": f"{node.seconds:.3f}",
            "tests": str(len(cases)),
            "failures": str(sum(case.find("failure") is not None for case in cases)),
            "errors": str(sum(case.find("error") is not None for case in cases)),
            "skipped": str(sum(case.find("skipped") is not None for case in cases)),
        },
    )
    _properties(
        suite,
        {
            "verdict": node.verdict.status,
            "kind": node.kind,
            "node": node.ref.node,
            "stack": node.stack,
            "run_id": node.ref.run_id,
        },
    )
    suite.extend(cases)
    return suite


def _case(line: Line) -> ElementTree.Element:
    case = ElementTree.Element(
        "testcase", {"classname": _text(line.test), "name": _text(line.id), "time": f"{line.seconds:.3f}"}
    )
    _properties(
        case,
        {
            "verdict": line.status,
            "similarity": _number(line.similarity),
            "alpha": _number(line.alpha),
            "metric": line.id,
            "kind": line.kind,
            "run_id": line.run.run_id,
        },
    )
    message = _text(
        f"similarity {similarity(line.similarity)}, alpha {similarity(line.alpha)}, "
        f"margin {signed(line.margin)}, "
        f"median {quantity(line.median, line.unit)}, criterion {quantity(line.criterion_median, line.unit)}"
    )
    details = _text("\n".join([*line.evidence, line.error or ""]).strip())
    if line.status == "defect":
        ElementTree.SubElement(case, "failure", message=message, type="defect").text = details
    elif line.status in {"error", "invalid"}:
        ElementTree.SubElement(case, "error", message=_text(line.error or message), type=line.status).text = details
    elif line.status == "contended":
        ElementTree.SubElement(case, "skipped", message=f"contended: {message}")
    return case


def _properties(parent: ElementTree.Element, values: dict[str, str]) -> None:
    element = ElementTree.SubElement(parent, "properties")
    for name, value in values.items():
        if value:
            ElementTree.SubElement(element, "property", name=name, value=_text(value))


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)


def _text(text: str) -> str:
    return _ILLEGAL.sub("\ufffd", text)

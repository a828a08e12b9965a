"""From run files to the page an engineer opens each morning. `python -m reports --help` teaches the commands.

    gather (files) -> Sources -> summarise (pure) -> Overview -> page, JSON, JUnit

Nothing here judges: verdicts, similarities and margins are those that the run files hold.
"""

from reports.overview import Overview
from reports.page import NotAReport, ReportError, build, write_report
from reports.summary import gather, summarise

__all__ = ["NotAReport", "Overview", "ReportError", "build", "gather", "summarise", "write_report"]

"""Check: what is wrong with the data, before anything is learnt from it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pegboard.errors import DataError
from pegboard.files import write_json
from pegboard.progress import Progress
from pegboard.records import Finding
from pegboard.runs import Run

LEVELS = ("error", "warning", "note")


def run(run: Run, progress: Progress) -> dict[str, Any]:
    """Collect the findings of every plugin into `check.json`.

    Raises:
        DataError: There is an error among them; the sentence names the first.
    """
    project = run.project
    with progress.task("check the data"):
        findings: list[Finding] = project.board.collect("check_data", settings=project.settings)
    findings.sort(key=lambda finding: LEVELS.index(finding.level))
    write_json(run.check_file, [asdict(finding) for finding in findings])
    counts = {level: sum(f.level == level for f in findings) for level in LEVELS}
    if counts["error"]:
        # The first is the error's own sentence; without an error the command prints a table.
        for finding in findings[1:]:
            progress.say(f"- {finding.level}: {finding.what} ({finding.where}); {finding.remedy}")
        raise _error(findings[0], others=counts["error"] - 1)
    return counts


def _error(first: Finding, others: int) -> DataError:
    more = f", and {others} more errors above" if others else ""
    return DataError(first.what, where=first.where, remedy=first.remedy + more)

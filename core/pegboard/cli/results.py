"""What a stage command prints at its end, on stdout: what a user wants to know."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import typer

from pegboard.cli.tables import heading, table

if TYPE_CHECKING:
    from pegboard.runs import Run

Facts = Mapping[str, Any]


def show(stage: str, run: Run, facts: Facts) -> None:
    """Print the result of a stage."""
    heading(stage)
    _SHOWN.get(stage, _show_facts)(run, facts)


def _show_facts(run: Run, facts: Facts) -> None:
    table(("fact", "value"), [(name, _plain(value)) for name, value in facts.items()])


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _show_check(run: Run, facts: Facts) -> None:
    findings = json.loads(run.check_file.read_text(encoding="utf-8"))
    columns = ("level", "what", "where", "remedy")
    if findings:
        table(columns, [[finding[column] for column in columns] for finding in findings])
    else:
        typer.echo("  nothing is wrong with the data")


def _show_evaluate(run: Run, facts: Facts) -> None:
    model = json.loads(run.evaluation_file.read_text(encoding="utf-8"))
    columns = [model, *model["baselines"]]
    rows = []
    for index, metric in enumerate(model["metrics"]):
        values = [_interval(column["metrics"][index]) for column in columns]
        rows.append([metric["name"], f"{metric['direction']} is better", *values])
    table(["metric", "", *(column["name"] for column in columns)], rows)
    typer.echo(f"  {model['count']} rows of the {model['split']} split; [95 % interval]")


def _interval(metric: Facts) -> str:
    if metric["value"] is None:
        return "not defined"
    text = f"{metric['value']:.4g}"
    if metric["low"] is not None:
        text += f" [{metric['low']:.4g}, {metric['high']:.4g}]"
    return f"{text} {metric['unit']}".rstrip()


def _show_bundle(run: Run, facts: Facts) -> None:
    from pegboard.bundle import read_bundle

    bundle = read_bundle(run.bundle, verify=False)
    measured = list(dict.fromkeys(name for c in bundle.candidates for name in c.measured))
    rows = []
    for candidate in bundle.candidates:
        state = candidate.reason if candidate.is_quarantined else candidate.status
        numbers = [_number(candidate.measured.get(name)) for name in measured]
        rows.append([candidate.name, *numbers, state, _chosen(candidate.name, bundle.chosen_name)])
    table(["candidate", *measured, "state", ""], rows)
    typer.echo(f"  bundle: {run.bundle}")


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _show_benchmark(run: Run, facts: Facts) -> None:
    found = json.loads(run.benchmark_file.read_text(encoding="utf-8"))
    names = list(next(iter(found["candidates"].values())))
    rows = [
        [name, *(_number(measured[column]) for column in names), _chosen(name, found["chosen"])]
        for name, measured in found["candidates"].items()
    ]
    limits = {name: limit for name, limit in found["limits"].items() if limit}
    if limits:
        rows.append(["limit", *(_number(limits.get(column)) for column in names), ""])
    table(["candidate", *names, ""], rows)
    typer.echo(f"  measured: {found['measured']}; {_machine(found['machine'])}")
    if found["server"]:
        columns = list(next(iter(found["server"].values())))
        typer.echo("  over HTTP, each path beside a bare one of the same server in the same run:")
        table(
            ["path", *columns],
            [
                [path, *(_number(figures[column]) for column in columns)]
                for path, figures in found["server"].items()
            ],
        )
    else:
        typer.echo(f"  over HTTP: not measured, {found['server_missing']}")


def _machine(machine: Facts) -> str:
    facts = (f"{value} {name}" if name == "cores" else value for name, value in machine.items())
    return ", ".join(facts)


def _chosen(name: str, chosen: str) -> str:
    return "chosen" if name == chosen else ""


def _show_report(run: Run, facts: Facts) -> None:
    typer.echo(f"  report:     {run.report_file}")
    typer.echo(f"  model card: {run.model_card_file}")
    if run.bundle.is_dir():
        typer.echo(f"  bundle:     {run.bundle}")


_SHOWN: dict[str, Callable[[Run, Facts], None]] = {
    "check": _show_check,
    "evaluate": _show_evaluate,
    "export": _show_bundle,
    "compress": _show_bundle,
    "verify": _show_bundle,
    "benchmark": _show_benchmark,
    "report": _show_report,
}

"""`pegboard materialize`: a new server starts with the past that training knew."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pegboard.errors import PegboardError
from pegboard.logs import new_progress
from pegboard.progress import Progress
from pegboard.project import Project, open_project
from pegboard_fraud.features import Transaction
from pegboard_fraud.settings import FraudSettings

if TYPE_CHECKING:
    from pegboard_fraud.identifiers import Identifiers
    from pegboard_fraud.online import Memory, Policy
    from pegboard_fraud.transactions import Transactions

STATE = "state"
"""The folder of the local state, in `serve.folder`."""

Row = tuple[Transaction, int]
"""A transaction and its label: 1 fraud, 0 genuine, -1 unknown."""


def materialize(project: Project, progress: Progress) -> int:
    """Fill the online state from the project's transactions, identifiers as keyed hashes.

    Returns:
        How many transactions it remembers: those within its memory of the last one.

    Raises:
        PegboardError: The state is in use or not empty, or a server cannot be reached.
    """
    from pegboard_fraud.identifiers import load_identifiers
    from pegboard_fraud.online import Policy

    settings = project.settings
    if not isinstance(settings, FraudSettings):
        raise TypeError(f"these are no fraud settings: {type(settings)}")
    policy = Policy.of(settings)
    recent = _recent(settings, policy.memory, progress)
    with progress.task("hash identifiers"):
        rows = list(_hashed_rows(recent, load_identifiers(settings)))
    with progress.task("fill the state"):
        if settings.serve.state == "local":
            _fill_local(settings.serve.folder / STATE, policy, rows)
        else:
            asyncio.run(_fill_redis(settings.serve.state, policy, rows))
    return len(rows)


def _recent(settings: FraudSettings, memory: int, progress: Progress) -> Transactions:
    """The transactions that a window can still hold."""
    # They bring torch and polars, and `pegboard --help` imports this module to know the command.
    from pegboard_fraud.data import column_names, prepare, source
    from pegboard_fraud.transactions import read_transactions

    prepare(settings, progress)
    with progress.task("read transactions"):
        transactions = read_transactions(source(settings), column_names(settings.data))
    last = int(transactions.time[-1])
    return transactions.between(last - memory + 1, last + 1)


def _hashed_rows(transactions: Transactions, identifiers: Identifiers) -> Iterator[Row]:
    hashed = identifiers.hashed
    customers = [hashed(str(each)) for each in transactions.customers]
    terminals = [hashed(str(each)) for each in transactions.terminals]
    names = ("id", "time", "customer", "terminal", "cents", "label")
    columns = (getattr(transactions, name).tolist() for name in names)
    for identifier, time, customer, terminal, cents, label in zip(*columns, strict=True):
        transaction = Transaction(
            id=hashed(identifier),
            time=time,
            customer=customers[customer],
            terminal=terminals[terminal],
            cents=cents,
        )
        yield transaction, label


def _fill_local(folder: Path, policy: Policy, rows: list[Row]) -> None:
    from pegboard_fraud.online import LOG, SNAPSHOT, lock, write_snapshot

    with lock(folder):
        if (folder / LOG).exists() or (folder / SNAPSHOT).exists():
            raise PegboardError(
                "the state is not empty",
                where=str(folder),
                remedy="remove the folder, with the decisions in it, or set another serve.folder",
            )
        write_snapshot(folder, remember(policy, rows))


def remember(policy: Policy, rows: list[Row]) -> Memory:
    """Make the memory of a history, as if each transaction had been recorded."""
    from pegboard_fraud.online import Memory

    memory = Memory(policy)
    for transaction, label in rows:
        memory.add(transaction)
        if label >= 0:
            memory.state.label(transaction.id, label == 1)
    return memory


async def _fill_redis(url: str, policy: Policy, rows: list[Row]) -> None:
    from pegboard_fraud.redis_state import RedisState

    state = RedisState(policy, url)
    try:
        await state.open()
        await state.fill(remember(policy, rows))
    finally:
        await state.close()


def register(app: typer.Typer) -> None:
    """Add `materialize` to the command line."""

    @app.command(name="materialize")
    def _materialize(
        overrides: Annotated[
            list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings.")
        ] = None,
        project: Annotated[Path, typer.Option(help="The project's folder.")] = Path(),
    ) -> None:
        """Fill the online state from the transactions, so that a server knows the past."""
        opened = open_project(project, overrides or ())
        count = materialize(opened, new_progress())
        typer.echo(f"The state remembers {count:,} transactions.")

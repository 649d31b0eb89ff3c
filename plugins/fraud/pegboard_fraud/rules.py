"""Rules and lists: data in one TOML file, checked when it is loaded and replaced while serving.

    version = "2026-11"

    [lists.block]
    customers = "blocked_customers.txt"

    [[rules]]
    id = "burst"
    when = "amount > 500 and customer_count_1h >= 5"
    decision = "decline"
    mode = "shadow"

A rule compares numbers: every feature of the model, `probability`, `expected_loss` and
`day_of_week`. The library rule-engine reads the expressions and computes them, in decimal, with
each feature as it is printed: a share of 0.7 is 0.7 and not the nearest single-precision number.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from pegboard.errors import SettingsError
from pegboard.logs import LOGGER
from pegboard.settings import Table
from pegboard_fraud.cards import looks_like_card_number
from pegboard_fraud.features import DAY, FEATURE_NAMES, HOUR, Transaction

if TYPE_CHECKING:
    from pegboard.records import Array

Decision = Literal["approve", "review", "decline"]
Kind = Literal["list", "rule", "model", "failure"]
Mode = Literal["live", "shadow"]

OF_ITSELF = frozenset({"amount", "hour_of_day", "day_of_week"})
"""What is known of a transaction when nothing of the past is."""

OF_THE_MODEL = frozenset({"probability", "expected_loss"})
"""What only the model knows."""

NAMES = (*FEATURE_NAMES, "day_of_week", "probability", "expected_loss")
"""Everything that a rule may ask for; `day_of_week` is 1 on Monday and 7 on Sunday, in UTC."""

HASHED = "hash:"
"""What a line of a list begins with that is hashed already."""

_HASH = re.compile(HASHED + "[0-9a-f]{32}")
_COLUMNS = {name: column for column, name in enumerate(FEATURE_NAMES)}
_PARTS = ("left", "right", "condition", "case_true", "case_false", "member", "container")
"""Where expressions of rule-engine keep the expressions that they are made of."""

_ALLOWED = frozenset(
    {
        "ArrayExpression",
        "ArithmeticComparisonExpression",
        "ArithmeticExpression",
        "AddExpression",
        "BooleanExpression",
        "ComparisonExpression",
        "ContainsExpression",
        "FloatExpression",
        "LogicExpression",
        "SubtractExpression",
        "SymbolExpression",
        "TernaryExpression",
        "UnaryExpression",
    }
)


# --- The file -------------------------------------------------------------------------------------


class RuleTable(Table):
    """`[[rules]]`: one rule."""

    id: str = Field(pattern=r"^[\w.-]{1,64}$", description="What answers and metrics call it.")
    when: str = Field(min_length=1, max_length=1000, description="The expression.")
    decision: Decision = Field(description="What is decided where it is true.")
    mode: Mode = Field(default="live", description="shadow: counted, decides nothing.")
    description: str = Field(default="", max_length=1000, description="For people.")


class ListTable(Table):
    """`[lists.block]` and `[lists.allow]`: files with an identifier a line."""

    customers: str | None = Field(default=None, description="Path, relative to the rules.")
    terminals: str | None = Field(default=None, description="Path, relative to the rules.")


class ListsTable(Table):
    """`[lists]`: whom no rule and no score decides about."""

    block: ListTable = ListTable()
    allow: ListTable = ListTable()


class RulesTable(Table):
    """A file of rules."""

    version: str = Field(min_length=1, max_length=64, description="Named in every answer.")
    lists: ListsTable = ListsTable()
    rules: tuple[RuleTable, ...] = Field(default=(), description="The first that is true decides.")


# --- What is made of it ---------------------------------------------------------------------------


class Verdict(NamedTuple):
    """A decision and what made it."""

    decision: Decision
    kind: Kind
    id: str


class Facts:
    """What rules may ask about one transaction: decimals, made when they are asked for.

    Args:
        transaction: The transaction.
        features: Its features (F,); None when nothing of the past is known.
        probability: The model's; None when the model gave none.
        expected_loss: The model's.
    """

    __slots__ = ("_features", "_known", "_scores", "_transaction")

    def __init__(
        self,
        transaction: Transaction,
        features: Array | None,
        probability: Any = None,
        expected_loss: Any = None,
    ) -> None:
        self._transaction = transaction
        self._features = features
        self._scores = {"probability": probability, "expected_loss": expected_loss}
        self._known: dict[str, Decimal] = {}

    def __getitem__(self, name: str) -> Decimal:
        value = self._known.get(name)
        if value is None:
            value = self._known[name] = self._value(name)
        return value

    def suffice(self, names: Collection[str]) -> bool:
        """Say whether all of these can be told."""
        if self._features is None:
            return OF_ITSELF.issuperset(names)
        return self._scores["probability"] is not None or OF_THE_MODEL.isdisjoint(names)

    def _value(self, name: str) -> Decimal:
        if name == "amount":
            return Decimal(self._transaction.cents) / 100
        if name == "day_of_week":
            return Decimal((self._transaction.time // DAY + 3) % 7 + 1)  # 1970 began on a Thursday.
        if name in OF_THE_MODEL:
            return Decimal(str(self._scores[name]))
        if self._features is None:  # Then only hour_of_day is left.
            return Decimal(str(self._transaction.time % DAY / HOUR))
        return Decimal(str(self._features[_COLUMNS[name]]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Rule:
    """A rule that can be asked."""

    id: str
    """Unique in its file."""
    when: str
    """The expression as written."""
    decision: Decision
    """What it decides."""
    mode: Mode
    """Whether it decides at all."""
    names: frozenset[str]
    """What it asks for."""
    is_true: Callable[[Facts], bool]
    """Computes it."""


class Matched(NamedTuple):
    """What rules said about one transaction."""

    hits: tuple[Rule, ...]
    """Those that are true, in the order of the file."""
    failed: tuple[Rule, ...]
    """Those that could not be computed, as by a division by zero: they count as not true."""

    def verdict(self) -> Verdict | None:
        """Return what the first live rule decides."""
        for rule in self.hits:
            if rule.mode == "live":
                return Verdict(rule.decision, "rule", rule.id)
        return None


@dataclass(frozen=True, kw_only=True, eq=False)
class RuleSet:
    """The rules and lists of one file."""

    version: str
    """As written in the file; empty where there is no file."""
    rules: tuple[Rule, ...] = ()
    """In the order of the file."""
    blocked_customers: frozenset[str] = frozenset()
    """Hashed, as all of these."""
    blocked_terminals: frozenset[str] = frozenset()
    """Declined."""
    allowed_customers: frozenset[str] = frozenset()
    """Approved, unless something of theirs is blocked."""
    allowed_terminals: frozenset[str] = frozenset()
    """Approved, unless something of theirs is blocked."""

    def listed(self, customer: str, terminal: str) -> Verdict | None:
        """Return what the lists decide, of hashed identifiers; blocking comes first."""
        if customer in self.blocked_customers:
            return Verdict("decline", "list", "block.customers")
        if terminal in self.blocked_terminals:
            return Verdict("decline", "list", "block.terminals")
        if customer in self.allowed_customers:
            return Verdict("approve", "list", "allow.customers")
        if terminal in self.allowed_terminals:
            return Verdict("approve", "list", "allow.terminals")
        return None

    def matched(self, facts: Facts, *, decided: bool = False, every: bool = False) -> Matched:
        """Ask the rules: every shadow rule, and live ones until one is true.

        Args:
            facts: The transaction. A rule that asks for what is not known is not asked.
            decided: Whether a list has decided, so that no live rule is needed.
            every: Whether to ask all live rules, too.
        """
        hits: list[Rule] = []
        failed: list[Rule] = []
        for rule in self.rules:
            live = rule.mode == "live"
            if (live and decided and not every) or not facts.suffice(rule.names):
                continue
            try:
                true = rule.is_true(facts)
            except Exception:  # rule-engine's own errors, and decimal's.
                failed.append(rule)
                continue
            if true:
                hits.append(rule)
                decided = decided or live
        return Matched(tuple(hits), tuple(failed))


# --- Loading --------------------------------------------------------------------------------------


def load_rules(path: Path, hashed: Callable[[str], str]) -> RuleSet:
    """Read and check a file of rules and the lists it names.

    Args:
        path: The TOML file.
        hashed: Makes of an identifier what is stored of it; raw ones are kept nowhere.

    Raises:
        SettingsError: Names the file, the rule and the nearest known name.
    """
    table = _parse(path)
    seen: set[str] = set()
    for rule in table.rules:
        if rule.id in seen:
            raise _wrong(path, rule.id, "the id is that of an earlier rule", "give it its own")
        seen.add(rule.id)
    block, allow = table.lists.block, table.lists.allow
    return RuleSet(
        version=table.version,
        rules=tuple(_compile(path, rule) for rule in table.rules),
        blocked_customers=_read_list(path, block.customers, hashed),
        blocked_terminals=_read_list(path, block.terminals, hashed),
        allowed_customers=_read_list(path, allow.customers, hashed),
        allowed_terminals=_read_list(path, allow.terminals, hashed),
    )


def _parse(path: Path) -> RulesTable:
    tables: dict[str, Any] = {}
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        return RulesTable.model_validate(tables)
    except OSError as error:
        raise SettingsError(
            f"the rules cannot be read: {error.strerror}",
            where=str(path),
            remedy="correct serve.rules, or make it a readable file",
        ) from None
    except ValidationError as error:
        raise _explained(path, tables, error) from None
    except ValueError as error:  # Both TOML's and that of text that is not UTF-8.
        raise SettingsError(
            f"this is not TOML: {error}", where=str(path), remedy="correct the line"
        ) from None


def _explained(path: Path, tables: Mapping[str, Any], error: ValidationError) -> SettingsError:
    first = error.errors(include_url=False)[0]
    place = list(first["loc"])
    name = str(place[-1]) if place else ""
    rule = ""
    if len(place) > 1 and place[0] == "rules":
        given = tables["rules"][place[1]]
        rule = str(given.get("id", "")) if isinstance(given, dict) else ""
        rule = rule or f"number {int(place[1]) + 1}"
    if first["type"] == "extra_forbidden":
        kinds = {"rules": RuleTable, "lists": ListTable if len(place) > 2 else ListsTable}
        known = kinds.get(str(place[0]) if len(place) > 1 else "", RulesTable).model_fields
        return _wrong(path, rule, f"unknown key '{name}'", _nearest(name, known))
    if first["type"] == "missing":
        return _wrong(path, rule, f"'{name}' is missing", "add it")
    dotted = ".".join(map(str, place))
    return _wrong(path, rule, f"'{dotted}' is wrong: {first['msg'].lower()}", "correct it")


def _wrong(path: Path, rule: str, what: str, remedy: str) -> SettingsError:
    where = f"{path}, rule '{rule}'" if rule else str(path)
    return SettingsError(what, where=where, remedy=remedy)


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'" if close else f"known: {', '.join(names)}"


def _compile(path: Path, table: RuleTable) -> Rule:
    import rule_engine  # type: ignore[import-untyped]  # A second, which only rules need.

    names: set[str] = set()

    def type_of(name: str) -> Any:
        if name not in NAMES:
            raise _wrong(path, table.id, f"unknown name '{name}'", _nearest(name, NAMES))
        names.add(name)
        return rule_engine.DataType.FLOAT

    context = rule_engine.Context(
        type_resolver=type_of, resolver=Facts.__getitem__, default_timezone="utc"
    )
    try:
        # Functions such as $now are left out: a rule says the same about the same transaction.
        if "$" in table.when:
            raise _wrong(path, table.id, "'when' has a $ function", "use names and numbers only")
        rule = rule_engine.Rule(table.when, context=context)
        _check_expression(path, table.id, rule.statement.expression)
    except rule_engine.errors.EngineError as error:
        what = f"'when' cannot be read: {error.message}"
        raise _wrong(path, table.id, what, "correct the expression") from None
    except RecursionError:
        raise _wrong(path, table.id, "'when' is too deep", "make two rules of it") from None
    return Rule(
        id=table.id,
        when=table.when,
        decision=table.decision,
        mode=table.mode,
        names=frozenset(names),
        is_true=rule.matches,
    )


def _check_expression(path: Path, rule: str, expression: Any) -> None:
    """See that it says yes or no, and only by comparing numbers."""
    from rule_engine import DataType

    if expression.result_type != DataType.BOOLEAN:
        raise _wrong(path, rule, "'when' says neither yes nor no", "compare it with something")
    for part in _parts(expression):
        kind = type(part).__name__
        if kind not in _ALLOWED:
            raise _wrong(
                path,
                rule,
                "'when' holds something else than names, numbers and operators",
                "use and, or, not, + - * / %, comparisons, in [...] and ? :",
            )
        sides = [getattr(part, side) for side in ("left", "right") if hasattr(part, side)]
        types = {side.result_type.name for side in sides}
        is_not = kind == "UnaryExpression" and part.type != "uminus"
        if (kind == "LogicExpression" or is_not) and types != {"BOOLEAN"}:
            raise _wrong(path, rule, "and, or, not stand by a number", "compare it with something")
        if len(types) > 1:
            raise _wrong(path, rule, "a number is compared with something else", "compare numbers")


def _parts(expression: Any) -> Iterator[Any]:
    pending = [expression]
    while pending:
        part = pending.pop()
        yield part
        pending += [getattr(part, name) for name in _PARTS if hasattr(part, name)]
        if type(part).__name__ == "ArrayExpression":
            pending += part.value


def _read_list(rules: Path, name: str | None, hashed: Callable[[str], str]) -> frozenset[str]:
    if name is None:
        return frozenset()
    path = rules.parent / name
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise SettingsError(
            "a list cannot be read", where=str(path), remedy="write one identifier a line, in UTF-8"
        ) from None
    return frozenset(_entries(path, lines, hashed))


def _entries(path: Path, lines: Iterable[str], hashed: Callable[[str], str]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        if looks_like_card_number(entry):
            raise SettingsError(
                "a list holds what looks like a card number",
                where=f"{path}, line {number}",
                remedy="write the token that transactions carry",
            )
        if not entry.startswith(HASHED):
            yield hashed(entry)
        elif _HASH.fullmatch(entry):
            yield entry.removeprefix(HASHED)
        else:
            raise SettingsError(
                f"'{HASHED}' stands before something else than 32 hexadecimal digits",
                where=f"{path}, line {number}",
                remedy="correct the line",
            )


# --- While serving --------------------------------------------------------------------------------


class RuleBook:
    """The rules in force, with what they counted; a changed file replaces them, a broken one not.

    Args:
        path: The file; None where there are no rules.
        hashed: See `load_rules`.

    Raises:
        SettingsError: The file is wrong at the start.
    """

    def __init__(self, path: Path | None, hashed: Callable[[str], str]) -> None:
        self._path = path
        self._hashed = hashed
        self._lists: tuple[Path, ...] = ()
        self._lists_as_of: Stamp = None
        self._seen = self._look()
        self.rules = RuleSet(version="") if path is None else load_rules(path, hashed)
        self.hits: Counter[str] = Counter()
        self.broken = ""
        """What is wrong with the file as it is now; empty when it is in force."""

    def is_stale(self) -> bool:
        """Say whether the file or one of its lists changed, or is still broken; quick."""
        return bool(self.broken) or self._look() != self._seen

    def reload(self) -> None:
        """Take over the file and its lists as they are now."""
        if self._path is None:
            return
        seen = self._look()  # First, so that what changes while it is read is seen next time.
        try:
            rules = load_rules(self._path, self._hashed)
        except SettingsError as error:
            if str(error) != self.broken:
                LOGGER.error("the rules stay at version %s: %s", self.rules.version, error)
            self.broken = str(error)
            return
        self.rules, self._seen, self.broken = rules, seen, ""
        LOGGER.info("the rules are now of version %s: %d", rules.version, len(rules.rules))

    def _look(self) -> dict[Path, Stamp]:
        if self._path is None:
            return {}
        stamp = _stamp(self._path)
        if stamp != self._lists_as_of:
            self._lists, self._lists_as_of = _lists_of(self._path), stamp
        return {self._path: stamp} | {path: _stamp(path) for path in self._lists}


Stamp = tuple[int, int, int] | None
"""Time, size and number of a file; None where there is none."""


def _stamp(path: Path) -> Stamp:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size, facts.st_ino


def _lists_of(path: Path) -> tuple[Path, ...]:
    try:
        lists = _parse(path).lists
    except SettingsError:
        return ()
    kinds = (lists.block, lists.allow)
    names = (name for kind in kinds for name in (kind.customers, kind.terminals))
    return tuple(path.parent / name for name in names if name is not None)

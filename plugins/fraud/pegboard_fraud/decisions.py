"""Decisions: `POST /decisions`, `POST /feedback`, `GET /rules`.

A decision goes one way: refuse card numbers, hash the identifiers, look at the past, ask the model
once (the transaction, and it again without each group of features), then the lists, the rules and
the model's thresholds in this order, write it down, answer. When the past or the model fails, what
is left decides: a list, a rule that asks for nothing of what failed, else `serve.on_failure`.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from pegboard.bundle import Bundle
from pegboard.errors import PegboardError, RequestError
from pegboard.logs import LOGGER
from pegboard.records import Array, Route, Service, Thresholds
from pegboard_fraud.cards import refuse_card_numbers
from pegboard_fraud.deploy import (
    FIELDS,
    LARGEST_AMOUNT,
    LONGEST_IDENTIFIER,
    read_identifier,
    read_transaction,
    score_to_threshold,
)
from pegboard_fraud.features import Transaction
from pegboard_fraud.identifiers import Identifiers, load_identifiers
from pegboard_fraud.reasons import Reasons
from pegboard_fraud.rules import Facts, Matched, RuleBook, Verdict
from pegboard_fraud.settings import FraudSettings

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import GaugeMetricFamily

    from pegboard_fraud.online import OnlineState

STATE_SECONDS = 0.25
"""Longest time that the past is waited for, and again that a decision is written."""

MODEL_SECONDS = 0.25
"""Longest time that the model is waited for."""

TICK_SECONDS = 1.0
"""Time between two looks at the rules' file, and two turns of the state."""


# --- Scores ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Score:
    """What the model says about one transaction."""

    probability: Any
    """Of fraud, single precision."""
    expected_loss: Any
    """Probability times amount."""
    decision: Verdict
    """What the thresholds make of it."""
    reasons: list[dict[str, Any]]
    """Reason codes."""
    model: str
    """The bundle's version."""


def judge(settings: FraudSettings, outputs: Mapping[str, Array], thresholds: Thresholds) -> Verdict:
    """Return what the thresholds make of the first record of the model's outputs."""
    limit = settings.serve.decline_above
    if limit is not None and outputs["probability"][0] >= limit:
        return Verdict("decline", "model", "decline_above")
    if score_to_threshold(settings, outputs)[0] >= thresholds["review"]:
        return Verdict("review", "model", "review")
    return Verdict("approve", "model", "approve")


class Model:
    """The champion, asked with explanations."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._known = _Known.of(service)

    async def score(self, features: Array) -> Score:
        """Score features (F,), in one batch with what explains the score.

        Raises:
            PegboardError: The model does not answer, or with what is no number.
        """
        if self._service.bundle is not self._known.bundle:
            self._known = _Known.of(self._service)
        known = self._known
        most = known.settings.serve.reasons
        rows = known.reasons.rows(features) if most else features[None]
        outputs = await self._service.infer({"features": rows}, records=1)
        probability, loss = outputs["probability"], outputs["expected_loss"]
        if not math.isfinite(probability[0]) or not math.isfinite(loss[0]):
            raise PegboardError("the model's answer is no number", where="probability")
        return Score(
            probability=probability[0],
            expected_loss=loss[0],
            decision=judge(known.settings, outputs, known.bundle.thresholds),
            reasons=known.reasons.explain(features, probability, most) if most else [],
            model=known.version,
        )


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What is needed of a bundle for every score."""

    bundle: Bundle
    settings: FraudSettings
    """What its thresholds are compared with."""
    reasons: Reasons
    version: str
    """As the server's other paths name it."""

    @classmethod
    def of(cls, service: Service) -> _Known:
        bundle = service.bundle
        return cls(
            bundle=bundle,
            settings=service.settings,
            reasons=Reasons.of(bundle),
            version=bundle.version,
        )


# --- Decisions ------------------------------------------------------------------------------------


class Desk:
    """Takes transactions and labels, and decides.

    Args:
        settings: The project's settings.
        state: The past.
        model: What scores.
        book: The rules in force.
        identifiers: What hashes.
        metrics: What is counted.
    """

    def __init__(
        self,
        *,
        settings: FraudSettings,
        state: OnlineState,
        model: Model,
        book: RuleBook,
        identifiers: Identifiers,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._state = state
        self._model = model
        self._book = book
        self._hashed = identifiers.hashed
        self._metrics = metrics
        self._failures: Counter[str] = Counter()

    async def decide(self, payload: Any) -> dict[str, Any]:
        """Decide about one transaction; a transaction that was decided is answered the same.

        Raises:
            RequestError: The transaction is refused. No value is repeated.
        """
        refuse_card_numbers(payload)
        given, _ = read_transaction(payload, "request")
        transaction = self._pseudonymous(given)
        features, failed = None, "state"
        try:
            async with asyncio.timeout(STATE_SECONDS):
                look = await self._state.look(transaction)
        except RequestError:
            raise
        except Exception as error:  # Whatever it is: a transaction must be decided.
            self._fail("state", error)
        else:
            if look.earlier is not None:
                return self._answer(given.id, look.earlier, earlier=True)
            features, failed = look.features, "model"
        score = None if features is None else await self._scored(features)
        decision = self._decided(transaction, features, score, failed)
        recorded = failed != "state"
        if recorded:
            standing = await self._record(transaction, decision)
            if standing is not None and standing != decision:  # Another request was faster.
                return self._answer(given.id, standing, earlier=True)
            recorded = standing is not None
        self._metrics.count_decision(decision)
        return self._answer(given.id, decision, recorded=recorded)

    async def label(self, payload: Any) -> dict[str, Any]:
        """Take what an investigation or a chargeback found out about a transaction.

        Raises:
            RequestError: The label is refused.
            PegboardError: The state does not take it now.
        """
        refuse_card_numbers(payload)
        if not isinstance(payload, Mapping):
            raise RequestError(
                "the label is no object", where="request", remedy="send id and fraud"
            )
        identifier = self._hashed(read_identifier(payload, "id", "request"))
        fraud = payload.get("fraud")
        if not isinstance(fraud, bool):
            raise RequestError(
                "'fraud' is neither true nor false", where="request", remedy="send one of them"
            )
        try:
            async with asyncio.timeout(STATE_SECONDS):
                applied = await self._state.label(identifier, fraud)
        except RequestError:
            raise
        except Exception as error:
            self._fail("feedback", error)
            raise PegboardError(
                "the label was not taken", where="state", remedy="send it again later"
            ) from None
        self._metrics.count_feedback(applied)
        return {"applied": applied}

    async def rules(self, payload: Any = None) -> dict[str, Any]:
        """Say which rules are in force and how often each was true."""
        rules = self._book.rules
        return {
            "version": rules.version or None,
            "broken": self._book.broken or None,
            "rules": [
                {
                    "id": rule.id,
                    "mode": rule.mode,
                    "decision": rule.decision,
                    "hits": self._book.hits[rule.id],
                }
                for rule in rules.rules
            ],
        }

    async def tick(self) -> None:
        """Look after rules and state, and say in one line what failed since the last time."""
        if self._book.is_stale():
            await asyncio.to_thread(self._book.reload)
        self._metrics.rules_broken(bool(self._book.broken))
        for what, times in self._failures.items():
            LOGGER.error("%s, %d times; decided by the rest, or %s", what, times, self._policy())
        self._failures.clear()
        await self._state.tick()

    def _pseudonymous(self, given: Transaction) -> Transaction:
        return Transaction(
            id=self._hashed(str(given.id)),
            time=given.time,
            customer=self._hashed(str(given.customer)),
            terminal=self._hashed(str(given.terminal)),
            cents=given.cents,
        )

    async def _scored(self, features: Array) -> Score | None:
        try:
            async with asyncio.timeout(MODEL_SECONDS):
                return await self._model.score(features)
        except Exception as error:
            self._fail("model", error)
            return None

    async def _record(
        self, transaction: Transaction, decision: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        """Write the decision; None if that failed, which does not change it."""
        try:
            async with asyncio.timeout(STATE_SECONDS):
                return await self._state.record(transaction, decision)
        except RequestError:  # The id was just used for another transaction.
            raise
        except Exception as error:
            self._fail("record", error)
            return None

    def _decided(
        self, transaction: Transaction, features: Array | None, score: Score | None, failed: str
    ) -> dict[str, Any]:
        """Make the decision, as it is written down: it holds no identifier."""
        rules = self._book.rules
        probability = None if score is None else score.probability
        loss = None if score is None else score.expected_loss
        listed = rules.listed(str(transaction.customer), str(transaction.terminal))
        facts = Facts(transaction, features, probability, loss)
        matched = rules.matched(facts, decided=listed is not None)
        for rule in matched.hits:
            self._book.hits[rule.id] += 1
        self._metrics.count_rules(matched)
        verdict = listed or matched.verdict()
        if verdict is None:
            verdict = self._on_failure(failed) if score is None else score.decision
        return {
            "decision": verdict.decision,
            "decided_by": {"kind": verdict.kind, "id": verdict.id},
            "probability": None if score is None else round(float(score.probability), 6),
            "expected_loss": None if score is None else round(float(score.expected_loss), 4),
            "reasons": [] if score is None else score.reasons,
            "model": None if score is None else score.model,
            "rules": rules.version or None,
        }

    def _on_failure(self, part: str) -> Verdict:
        return Verdict(self._policy(), "failure", part)

    def _policy(self) -> Any:
        return "approve" if self._settings.serve.on_failure == "open" else "decline"

    def _fail(self, part: str, error: Exception) -> None:
        # Only the error's type is told: its words may hold what was sent.
        self._failures[f"{part} failed with {type(error).__name__}"] += 1
        self._metrics.count_failure(part)

    @staticmethod
    def _answer(
        identifier: Any,
        decision: Mapping[str, Any],
        *,
        earlier: bool = False,
        recorded: bool = True,
    ) -> dict[str, Any]:
        return {"id": identifier, **decision, "earlier": earlier, "recorded": recorded}


# --- Metrics --------------------------------------------------------------------------------------


class Metrics:
    """What decisions show on `/metrics`.

    Args:
        registry: The prometheus_client registry of the server.
        state: Its figures are shown, too.
    """

    def __init__(self, registry: CollectorRegistry, state: OnlineState) -> None:
        from prometheus_client import Counter as Counted
        from prometheus_client import Gauge

        self._decisions = Counted(
            "pegboard_fraud_decisions",
            "Decisions by outcome and by what decided.",
            ("decision", "kind"),
            registry=registry,
        )
        self._hits = Counted(
            "pegboard_fraud_rule_hits",
            "Transactions for which a rule was true.",
            ("rule", "mode"),
            registry=registry,
        )
        self._errors = Counted(
            "pegboard_fraud_rule_errors",
            "Transactions for which a rule could not be computed.",
            ("rule",),
            registry=registry,
        )
        self._failures = Counted(
            "pegboard_fraud_failures",
            "Failures by part: state, model, record, feedback.",
            ("part",),
            registry=registry,
        )
        self._feedback = Counted(
            "pegboard_fraud_feedback",
            "Labels by whether their transaction was known.",
            ("applied",),
            registry=registry,
        )
        self._broken = Gauge(
            "pegboard_fraud_rules_broken",
            "1 while the rules' file is wrong and the former rules are in force.",
            registry=registry,
        )
        # Finding a label's counter among those of prometheus_client takes longer than counting.
        self._decisions_of = cache(self._decisions.labels)
        self._hits_of = cache(self._hits.labels)
        for part in ("state", "model", "record", "feedback"):
            self._failures.labels(part)  # So that an alarm sees a zero first.
        registry.register(_Figures(state))

    def count_decision(self, decision: Mapping[str, Any]) -> None:
        """Count one decision."""
        self._decisions_of(decision["decision"], decision["decided_by"]["kind"]).inc()

    def count_rules(self, matched: Matched) -> None:
        """Count what rules said."""
        for rule in matched.hits:
            self._hits_of(rule.id, rule.mode).inc()
        for rule in matched.failed:
            self._errors.labels(rule.id).inc()

    def count_failure(self, part: str) -> None:
        """Count a failure of a part."""
        self._failures.labels(part).inc()

    def count_feedback(self, applied: bool) -> None:
        """Count a label."""
        self._feedback.labels("true" if applied else "false").inc()

    def rules_broken(self, broken: bool) -> None:
        """Show whether the rules' file is wrong."""
        self._broken.set(broken)


class _Figures:
    """The state's own figures, asked for when somebody looks."""

    def __init__(self, state: OnlineState) -> None:
        self._state = state

    def collect(self) -> Iterator[GaugeMetricFamily]:
        from prometheus_client.core import GaugeMetricFamily

        for name, value in self._state.figures().items():
            yield GaugeMetricFamily(f"pegboard_fraud_state_{name}", "Of the state.", value=value)

    def describe(self) -> list[Any]:
        return []  # Or the registry would ask a state that is not open yet.


# --- Routes ---------------------------------------------------------------------------------------


def register_routes(settings: FraudSettings, service: Service) -> list[Route]:
    """Build the desk on the server's service and return its paths."""
    from pegboard_fraud.online import open_state

    return routes(settings, service, open_state(settings, service.folder / "state"))


def routes(settings: FraudSettings, service: Service, state: OnlineState) -> list[Route]:
    """Return the paths of a desk with a state of the caller's choice."""
    identifiers = load_identifiers(settings)
    desk = Desk(
        settings=settings,
        state=state,
        model=Model(service),
        book=RuleBook(settings.serve.rules, identifiers.hashed),
        identifiers=identifiers,
        metrics=Metrics(service.registry, state),
    )
    service.at_start(state.open)
    service.every(TICK_SECONDS, desk.tick)
    service.at_close(state.close)
    return [
        Route(
            path="/decisions",
            handler=desk.decide,
            summary="Approve, review or decline one transaction.",
            example=lambda number: example(settings, number),
            request_schema=TRANSACTION,
            response_schema=DECISION,
        ),
        Route(
            path="/feedback",
            handler=desk.label,
            summary="Say whether a transaction was fraud, once it is known.",
            example=lambda number: {"id": f"example-{number}", "fraud": number % 100 == 0},
            request_schema=LABEL,
            response_schema=_object({"applied": {"type": "boolean"}}),
        ),
        Route(
            path="/rules",
            handler=desk.rules,
            method="GET",
            summary="The rules in force, and how often each was true.",
            response_schema=RULES,
        ),
    ]


REPLAYED_FROM = 1_534_237_290
"""Time of the first example where the clock is that of the transactions: 14 August 2018."""


def example(settings: FraudSettings, number: int) -> dict[str, Any]:
    """Make up transaction `number`, whose time the settings' clock accepts.

    Its id is always new: the state may remember the one of the same number of another run.
    """
    replayed = settings.serve.clock == "transactions"
    return {
        # Letters keep the digits apart, or one in many would look like a card number.
        "id": f"example-{secrets.token_hex(4)}n{number}",
        "time": REPLAYED_FROM + number if replayed else int(time.time()),
        "customer": f"c{number * 7919 % 1000}",
        "terminal": f"m{number * 104_729 % 500}",
        "amount": 5 + number * 3701 % 20_000 / 100,
    }


def _object(properties: Mapping[str, Any], required: Sequence[str] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties if required is None else required),
    }


def _or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


_IDENTIFIER = {
    "anyOf": [
        {"type": "string", "minLength": 1, "maxLength": LONGEST_IDENTIFIER},
        {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    ],
    "description": "A token; what looks like a card number is refused.",
}
_TEXT = {"type": "string"}
_WORDS = {"type": "string", "enum": ["approve", "review", "decline"]}
_SHARE = {"type": "number", "minimum": 0, "maximum": 1}

TRANSACTION = _object(
    {
        "id": _IDENTIFIER,
        "time": {
            "anyOf": [{"type": "string", "maxLength": 64}, {"type": "number"}],
            "description": "ISO 8601, or seconds since 1970 UTC.",
        },
        "customer": _IDENTIFIER,
        "terminal": _IDENTIFIER,
        "amount": {"type": "number", "minimum": 0, "maximum": LARGEST_AMOUNT},
        "label": {"enum": [None, 0, 1], "description": "Ignored here."},
    },
    required=FIELDS,
)
LABEL = _object({"id": _IDENTIFIER, "fraud": {"type": "boolean"}})
DECISION = _object(
    {
        "id": _TEXT,
        "decision": _WORDS,
        "decided_by": _object(
            {
                "kind": {"type": "string", "enum": ["list", "rule", "model", "failure"]},
                "id": _TEXT,
            }
        ),
        "probability": _or_null(_SHARE),
        "expected_loss": _or_null({"type": "number", "minimum": 0}),
        "reasons": {
            "type": "array",
            "items": _object({"code": _TEXT, "group": _TEXT, "effect": {"type": "number"}}),
        },
        "model": _or_null({"type": "string", "description": "The bundle's version."}),
        "rules": _or_null(_TEXT),
        "earlier": {"type": "boolean", "description": "Whether this repeats a recorded decision."},
        "recorded": {"type": "boolean", "description": "Whether it is written down."},
    }
)
RULES = _object(
    {
        "version": _or_null(_TEXT),
        "broken": _or_null({"type": "string", "description": "What is wrong with the file now."}),
        "rules": {
            "type": "array",
            "items": _object(
                {
                    "id": _TEXT,
                    "mode": {"type": "string", "enum": ["live", "shadow"]},
                    "decision": _WORDS,
                    "hits": {"type": "integer", "minimum": 0},
                }
            ),
        },
    }
)

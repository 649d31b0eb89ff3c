"""Decisions: the order of what decides, failures, idempotency, reasons, and what is stored."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from jsonschema_rs import is_valid
from prometheus_client import CollectorRegistry, generate_latest

from pegboard.errors import PegboardError, RequestError
from pegboard.records import Route
from pegboard.serving.process import running_server
from pegboard_fraud import decisions
from pegboard_fraud.cards import refuse_card_numbers
from pegboard_fraud.decisions import routes
from pegboard_fraud.features import FEATURE_NAMES, FEATURES
from pegboard_fraud.online import OnlineState, open_state
from pegboard_fraud.reasons import GROUPS, Reasons, median
from pegboard_fraud.settings import FraudServe, FraudSettings

AMOUNT = FEATURE_NAMES.index("amount")
COUNT_1D = FEATURE_NAMES.index("customer_count_1d")
CARD = "4111111111111111"


def by_amount(features: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A model that is known: a thousandth of the amount and of a tenth of the day's count."""
    risk = features[:, AMOUNT] / 1000 + features[:, COUNT_1D] / 100
    return np.clip(risk, 0.0, 1.0).astype(np.float32)


class Bench:
    """A server's service with a stand-in model, and the routes of a desk on it."""

    def __init__(
        self,
        folder: Path,
        *,
        state: OnlineState | None = None,
        model: Callable[[Any], Any] = by_amount,
        rules: str = "",
        **serve: Any,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if rules:
            (folder / "rules.toml").write_text(rules)
            serve["rules"] = folder / "rules.toml"
        self.folder = folder
        serve = {"folder": folder, "clock": "transactions"} | serve
        self.settings = FraudSettings(serve=FraudServe(**serve))
        self.registry = CollectorRegistry()
        self.model = model
        self.asked: list[tuple[int, int | None]] = []
        self.start: list[Callable[[], Awaitable[None]]] = []
        self.close: list[Callable[[], Awaitable[None]]] = []
        self.ticks: list[Callable[[], Awaitable[None]]] = []
        self.bundle = SimpleNamespace(
            folder=folder / "bundle",
            version="2026-11-22T00:00:00Z-0123456789ab",
            thresholds={"review": 3.0},
            reference=reference,
        )
        state = state or open_state(self.settings, folder / "state")
        self.routes = {route.path: route for route in routes(self.settings, self, state)}  # type: ignore[arg-type]

    async def infer(
        self, inputs: Mapping[str, Any], *, records: int | None = None
    ) -> Mapping[str, Any]:
        features = inputs["features"]
        self.asked.append((len(features), records))
        probability = self.model(features)
        if isinstance(probability, Awaitable):
            probability = await probability
        return {"probability": probability, "expected_loss": probability * features[:, AMOUNT]}

    def at_start(self, call: Callable[[], Awaitable[None]]) -> None:
        self.start.append(call)

    def at_close(self, call: Callable[[], Awaitable[None]]) -> None:
        self.close.append(call)

    def every(self, seconds: float, call: Callable[[], Awaitable[None]]) -> None:
        self.ticks.append(call)

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"pegboard_fraud_{name}", labels) or 0.0

    def run(self, *calls: tuple[str, Any]) -> list[Any]:
        """Ask routes one after the other, in a server's life; `/tick` stands for a second."""

        async def life() -> list[Any]:
            for call in self.start:
                await call()
            try:
                return [await self.ask(path, body) for path, body in calls]
            finally:
                for call in self.close:
                    await call()

        return asyncio.run(life())

    async def ask(self, path: str, body: Any) -> Any:
        if path == "/tick":
            for call in self.ticks:
                await call()
            return None
        return await self.routes[path].handler(body)

    def decide(self, **changes: Any) -> Any:
        return self.run(("/decisions", transaction(**changes)))[0]


def reference() -> dict[str, Any]:
    """Half of all values are 0, the deciles reach 1: the median is 0 and the spread 1."""
    column = {"std": 1.0, "edges": [0.0, 1.0], "shares": [0.0, 0.9, 0.1]}
    return {"inputs": {"features": [{"channel": name} | column for name in FEATURE_NAMES]}}


def transaction(**changes: Any) -> dict[str, Any]:
    return {
        "id": "t1",
        "time": 1_534_237_290,
        "customer": "c7",
        "terminal": "m3",
        "amount": 20.0,
    } | changes


def rule(name: str, when: str, decision: str, mode: str = "live") -> str:
    return f'[[rules]]\nid = "{name}"\nwhen = "{when}"\ndecision = "{decision}"\nmode = "{mode}"\n'


def by(answer: Mapping[str, Any]) -> tuple[str, str, str]:
    return answer["decision"], answer["decided_by"]["kind"], answer["decided_by"]["id"]


class Broken:
    """A state of which one part raises, or never comes back; the rest is the real one's."""

    def __init__(self, state: OnlineState, part: str, error: Exception | None) -> None:
        self._state, self._part, self._error = state, part, error

    def __getattr__(self, name: str) -> Any:
        return self._fail if name == self._part else getattr(self._state, name)

    async def _fail(self, *given: Any) -> None:
        if self._error is not None:
            raise self._error
        await asyncio.sleep(60)


def with_broken(folder: Path, part: str, error: Exception | None, **keywords: Any) -> Bench:
    settings = FraudSettings(serve=FraudServe(folder=folder, clock="transactions"))
    return Bench(
        folder, state=Broken(open_state(settings, folder / "state"), part, error), **keywords
    )


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEGBOARD_IDENTIFIER_KEY", "a key of the tests")


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    # A busy machine may take longer than a quarter of a second for a first commit.
    monkeypatch.setattr(decisions, "STATE_SECONDS", 2.0)
    monkeypatch.setattr(decisions, "MODEL_SECONDS", 2.0)


# --- What decides ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        (20.0, ("approve", "model", "approve")),  # Expected loss 0.6.
        (50.0, ("review", "model", "review")),  # Expected loss 3, the threshold.
        (890.0, ("decline", "model", "decline_above")),  # Probability 0.9, the limit.
        (889.0, ("review", "model", "review")),
    ],
)
def test_without_rules_the_thresholds_decide(
    tmp_path: Path, amount: float, expected: tuple[str, str, str]
) -> None:
    answer = Bench(tmp_path, decline_above=0.9, state=None).decide(amount=amount)
    assert by(answer) == expected
    assert answer["rules"] is None
    assert answer["probability"] == pytest.approx(amount / 1000 + 0.01, abs=1e-6)
    assert answer["expected_loss"] == pytest.approx(amount * (amount / 1000 + 0.01), abs=1e-3)


def test_the_model_declines_nothing_unless_told_to(tmp_path: Path) -> None:
    assert by(Bench(tmp_path).decide(amount=100_000)) == ("review", "model", "review")


def test_lists_come_before_rules_and_rules_before_the_model(tmp_path: Path) -> None:
    (tmp_path / "blocked.txt").write_text("thief\n")
    (tmp_path / "allowed.txt").write_text("m9\n")
    bench = Bench(
        tmp_path,
        rules='version = "7"\n[lists.block]\ncustomers = "blocked.txt"\n'
        '[lists.allow]\nterminals = "allowed.txt"\n'
        + rule("all", "probability > 0.05", "review")
        + rule("never", "amount > 100", "approve")
        + rule("watch", "amount > 0", "decline", "shadow"),
    )
    answers = bench.run(
        ("/decisions", transaction(id=1, customer="thief", terminal="m9")),
        ("/decisions", transaction(id=2, terminal="m9", amount=200)),
        ("/decisions", transaction(id=3, amount=200)),
        ("/decisions", transaction(id=4)),
        ("/rules", None),
    )
    assert [by(answer) for answer in answers[:4]] == [
        ("decline", "list", "block.customers"),
        ("approve", "list", "allow.terminals"),
        ("review", "rule", "all"),
        ("approve", "model", "approve"),
    ]
    assert {answer["rules"] for answer in answers[:4]} == {"7"}
    hits = {each["id"]: each["hits"] for each in answers[4]["rules"]}
    assert hits == {"all": 1, "never": 0, "watch": 4}
    assert bench.metric("rule_hits_total", rule="watch", mode="shadow") == 4
    assert bench.metric("decisions_total", decision="decline", kind="list") == 1


def test_the_model_is_asked_once_with_one_real_record(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.decide()
    assert bench.asked == [(1 + len(GROUPS), 1)]
    plain = Bench(tmp_path / "plain", reasons=0)
    assert plain.decide()["reasons"] == []
    assert plain.asked == [(1, 1)]


def test_the_answer_names_the_model_and_follows_a_swap(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert bench.decide(id="1")["model"] == "2026-11-22T00:00:00Z-0123456789ab"
    other = {"version": "2026-11-23T00:00:00Z-fedcba987654"}
    bench.bundle = SimpleNamespace(**vars(bench.bundle) | other)
    bench.bundle.thresholds = {"review": 0.0}
    second = bench.decide(id="2")
    assert second["model"] == "2026-11-23T00:00:00Z-fedcba987654"
    assert second["decision"] == "review"


def test_a_swapped_model_is_judged_by_what_it_was_made_with(tmp_path: Path) -> None:
    """What the threshold is compared with is the bundle's own setting."""
    bench = Bench(tmp_path)
    bench.bundle.thresholds = {"review": 0.1}
    assert bench.settings.model.threshold == "cost"
    assert bench.decide(id="1")["decision"] == "review"
    bench.bundle = SimpleNamespace(**vars(bench.bundle))
    model = bench.settings.model.model_copy(update={"threshold": "budget"})
    bench.settings = bench.settings.model_copy(update={"model": model})
    assert bench.decide(id="2")["decision"] == "approve"


def test_a_changed_rules_file_decides_after_a_tick(tmp_path: Path) -> None:
    bench = Bench(tmp_path, rules='version = "1"\n')

    async def change(path: str, body: Any) -> Any:
        if path == "/change":
            (tmp_path / "rules.toml").write_text(f'version = "2"\n{body}')
            return None
        return await Bench.ask(bench, path, body)

    bench.ask = change  # type: ignore[method-assign]
    answers = bench.run(
        ("/decisions", transaction(id=1)),
        ("/change", rule("all", "true", "decline")),
        ("/tick", None),
        ("/decisions", transaction(id=2)),
        ("/change", "nonsense"),
        ("/tick", None),
        ("/decisions", transaction(id=3)),
        ("/rules", None),
    )
    assert by(answers[0])[1] == "model"
    assert by(answers[3]) == by(answers[6]) == ("decline", "rule", "all")
    assert answers[6]["rules"] == "2"
    assert "not TOML" in answers[7]["broken"]
    assert bench.metric("rules_broken") == 1


# --- Once and only once ---------------------------------------------------------------------------


def test_a_repeated_transaction_is_answered_as_it_was(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first, again = bench.run(("/decisions", transaction()), ("/decisions", transaction()))
    assert not first["earlier"]
    assert again == first | {"earlier": True}
    assert len(bench.asked) == 1
    assert bench.metric("decisions_total", decision="approve", kind="model") == 1


def test_a_decision_survives_a_restart_and_a_change_of_the_rules(tmp_path: Path) -> None:
    first = Bench(tmp_path).decide(amount=20)
    later = Bench(tmp_path, rules='version = "2"\n' + rule("all", "true", "decline"))
    assert later.decide(amount=20) == first | {"earlier": True}
    assert later.decide(id="t2")["decision"] == "decline"


def test_the_same_id_with_other_content_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.decide()
    with pytest.raises(RequestError, match=r"sent before with other content \(amount\)"):
        bench.decide(amount=21.0)


def test_two_requests_at_once_get_one_decision(tmp_path: Path) -> None:
    async def slowly(features: Any) -> Any:
        await asyncio.sleep(0.05)
        return np.full(len(features), len(bench.asked) / 10, np.float32)

    bench = Bench(tmp_path, model=slowly)

    async def both(path: str, body: Any) -> Any:
        return await asyncio.gather(*(Bench.ask(bench, path, body) for _ in range(2)))

    bench.ask = both  # type: ignore[method-assign]
    (first, second), (again, _) = bench.run(
        ("/decisions", transaction()), ("/decisions", transaction())
    )
    for name in ("decision", "probability", "decided_by"):
        assert first[name] == second[name] == again[name]


# --- Failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "decision"), [("open", "approve"), ("closed", "decline")])
@pytest.mark.parametrize("error", [PegboardError("no connection"), ValueError("c7"), None])
def test_when_the_state_fails_the_policy_decides(
    tmp_path: Path,
    policy: str,
    decision: str,
    error: Exception | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if error is None:
        monkeypatch.setattr(decisions, "STATE_SECONDS", 0.02)
    bench = with_broken(tmp_path, "look", error, on_failure=policy)
    answer = bench.decide(amount=800)
    assert by(answer) == (decision, "failure", "state")
    assert (answer["probability"], answer["model"], answer["reasons"]) == (None, None, [])
    assert not answer["recorded"]
    assert bench.metric("failures_total", part="state") == 1
    assert bench.metric("decisions_total", decision=decision, kind="failure") == 1


def broken_model(features: Any) -> Any:
    raise RuntimeError("c7 is not what I expected")


async def stuck_model(features: Any) -> Any:
    await asyncio.sleep(60)


def nonsense_model(features: Any) -> Any:
    return np.full(len(features), np.nan, np.float32)


@pytest.mark.parametrize(("policy", "decision"), [("open", "approve"), ("closed", "decline")])
@pytest.mark.parametrize("model", [broken_model, stuck_model, nonsense_model])
def test_when_the_model_fails_the_policy_decides_and_it_is_written_down(
    tmp_path: Path, policy: str, decision: str, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "MODEL_SECONDS", 0.02)
    bench = Bench(tmp_path, model=model, on_failure=policy)
    first, again = bench.run(("/decisions", transaction()), ("/decisions", transaction()))
    assert by(first) == (decision, "failure", "model")
    assert first["recorded"]
    assert again == first | {"earlier": True}
    assert bench.metric("failures_total", part="model") == 1


RULES = (
    'version = "1"\n[lists.block]\ncustomers = "blocked.txt"\n'
    + rule("score", "probability >= 0", "approve")
    + rule("past", "customer_count_1d >= 1 and amount > 50", "decline")
    + rule("itself", "amount > 100", "review")
)


def test_lists_and_rules_that_need_no_score_decide_without_the_model(tmp_path: Path) -> None:
    (tmp_path / "blocked.txt").write_text("thief\n")
    bench = Bench(tmp_path, model=broken_model, rules=RULES, on_failure="closed")
    answers = bench.run(
        ("/decisions", transaction(id=1, customer="thief")),
        ("/decisions", transaction(id=2, amount=51)),
        ("/decisions", transaction(id=3)),
    )
    assert [by(answer) for answer in answers] == [
        ("decline", "list", "block.customers"),
        ("decline", "rule", "past"),
        ("decline", "failure", "model"),
    ]


def test_lists_and_rules_that_need_no_past_decide_without_the_state(tmp_path: Path) -> None:
    (tmp_path / "blocked.txt").write_text("thief\n")
    bench = with_broken(tmp_path, "look", PegboardError("gone"), rules=RULES)
    answers = bench.run(
        ("/decisions", transaction(id=1, customer="thief")),
        ("/decisions", transaction(id=2, amount=101)),
        ("/decisions", transaction(id=3, amount=51)),
    )
    assert [by(answer) for answer in answers] == [
        ("decline", "list", "block.customers"),
        ("review", "rule", "itself"),
        ("approve", "failure", "state"),
    ]


def test_a_decision_that_cannot_be_written_stands_and_says_so(tmp_path: Path) -> None:
    bench = with_broken(tmp_path, "record", PegboardError("disk full"), on_failure="closed")
    answer = bench.decide()
    assert by(answer) == ("approve", "model", "approve")
    assert not answer["recorded"]
    assert bench.metric("failures_total", part="record") == 1


def test_a_refused_transaction_is_no_failure(tmp_path: Path) -> None:
    bench = with_broken(tmp_path, "record", RequestError("this id was sent before"))
    with pytest.raises(RequestError):
        bench.decide()
    assert bench.metric("failures_total", part="record") == 0


def test_failures_are_logged_in_one_line_without_what_was_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path, model=broken_model)
    with caplog.at_level(logging.INFO):
        bench.run(
            *[("/decisions", transaction(id=number)) for number in range(5)],
            ("/tick", None),
            ("/tick", None),
        )
    assert [record.getMessage() for record in caplog.records] == [
        "model failed with RuntimeError, 5 times; decided by the rest, or approve"
    ]
    assert "c7" not in caplog.text


# --- Reasons --------------------------------------------------------------------------------------

EXTREME = [
    next(index for index, feature in enumerate(FEATURES) if feature.group == group)
    for group in GROUPS
]


@pytest.mark.parametrize("column", EXTREME)
def test_reasons_point_to_the_group_that_was_made_extreme(column: int) -> None:
    reasons = Reasons(np.ones(len(FEATURES), np.float32), np.ones(len(FEATURES), np.float32))
    features = np.ones(len(FEATURES), np.float32)
    features[column] = 30.0

    def model(rows: Any) -> Any:
        return 1 / (1 + np.exp(3 - 0.1 * rows.sum(axis=1)))  # Its log-odds are known.

    rows = reasons.rows(features)
    assert rows.shape == (1 + len(GROUPS), len(FEATURES))
    np.testing.assert_array_equal(rows[0], features)
    found = reasons.explain(features, model(rows), most=3)
    feature = FEATURES[column]
    assert found == [
        {"code": f"{feature.group}.{feature.name}", "group": feature.group, "effect": 2.9}
    ]


def test_reasons_are_the_strongest_few_that_raise_the_risk() -> None:
    reasons = Reasons(np.zeros(len(FEATURES), np.float32), np.ones(len(FEATURES), np.float32))
    effects = {"amount": -1.0, "velocity": 2.0, "habit": 3.0, "terminal": 1.0, "time": 0.0001}
    without = np.array([1.0] + [1.0 - effects.get(group, 0.0) for group in GROUPS])
    features = np.zeros(len(FEATURES), np.float32)
    features[COUNT_1D] = -4.0
    found = reasons.explain(features, 1 / (1 + np.exp(-without)), most=2)
    assert [(each["group"], each["effect"]) for each in found] == [
        ("habit", 3.0),
        ("velocity", 2.0),
    ]
    assert found[1]["code"] == "velocity.customer_count_1d"
    everything = reasons.explain(features, 1 / (1 + np.exp(-without)), most=10)
    assert [each["group"] for each in everything] == ["habit", "velocity", "terminal"]


def test_certain_probabilities_have_finite_effects() -> None:
    reasons = Reasons(np.zeros(len(FEATURES), np.float32), np.zeros(len(FEATURES), np.float32))
    probabilities = np.array([1.0] + [0.0] * len(GROUPS), np.float32)
    found = reasons.explain(np.ones(len(FEATURES), np.float32), probabilities, most=1)
    assert np.isfinite(found[0]["effect"])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["smooth", "many zeros", "constant", "two values", "counts"])
def test_the_median_is_that_of_the_values(kind: str, seed: int) -> None:
    from pegboard.statistics import Column

    generator = np.random.default_rng(seed)
    values = {
        "smooth": generator.normal(size=1001),
        "many zeros": generator.exponential(size=1001) * (generator.random(1001) < 0.3),
        "constant": np.full(1001, 7.0),
        "two values": (generator.random(1001) < 0.4).astype(float),
        "counts": generator.poisson(3.0, size=1001).astype(float),
    }[kind]
    column = Column(1.0)
    column.add(values)
    assert median(column.summary()) == np.median(values)


def test_a_column_without_values_has_the_median_zero() -> None:
    assert median({"edges": [], "shares": []}) == 0.0


# --- Labels and what is stored --------------------------------------------------------------------


def test_a_label_is_applied_or_waits(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    answers = bench.run(
        ("/feedback", {"id": "t1", "fraud": True}),
        ("/decisions", transaction()),
        ("/feedback", {"id": "t1", "fraud": False}),
    )
    assert (answers[0], answers[2]) == ({"applied": False}, {"applied": True})
    assert bench.metric("feedback_total", applied="false") == 1


@pytest.mark.parametrize(
    "label",
    [
        None,
        [],
        {},
        {"id": "t1"},
        {"id": "t1", "fraud": 1},
        {"fraud": True},
        {"id": "", "fraud": True},
    ],
)
def test_a_wrong_label_is_refused(tmp_path: Path, label: Any) -> None:
    with pytest.raises(RequestError):
        Bench(tmp_path).run(("/feedback", label))


@pytest.mark.parametrize("error", [PegboardError("no connection"), ValueError("t1"), None])
def test_a_label_that_is_not_taken_is_an_error_that_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    if error is None:
        monkeypatch.setattr(decisions, "STATE_SECONDS", 0.02)
    bench = with_broken(tmp_path, "label", error)
    with pytest.raises(PegboardError, match="the label was not taken"):
        bench.run(("/feedback", {"id": "t1", "fraud": True}))
    assert bench.metric("failures_total", part="feedback") == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"amount": -1},
        {"amount": "1"},
        {"time": "yesterday"},
        {"time": 1e300},
        {"id": "x" * 129},
        {"customer": 10**400},
        {"terminal": None},
        {"label": "x"},
    ],
)
def test_a_wrong_transaction_is_refused_by_the_words_of_predict(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(RequestError):
        Bench(tmp_path).decide(**changes)


@pytest.mark.parametrize("path", ["/decisions", "/feedback"])
def test_every_route_refuses_card_numbers(tmp_path: Path, path: str) -> None:
    body = transaction(fraud=True)
    for planted in (body | {"id": CARD}, body | {"note": [CARD]}, body | {CARD: 1}, [int(CARD)]):
        with pytest.raises(RequestError, match="looks like a card number") as error:
            Bench(tmp_path).run((path, planted))
        assert "1111" not in str(error.value)


def test_nothing_stored_holds_an_identifier(tmp_path: Path) -> None:
    words = {"id": "order-77-alpha", "customer": "jane.doe", "terminal": "kiosk-north"}
    Bench(tmp_path).run(
        ("/decisions", transaction(**words)),
        ("/feedback", {"id": words["id"], "fraud": True}),
        ("/tick", None),
    )
    stored = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.stat().st_size > 1000 for path in stored)
    for path in stored:
        for word in words.values():
            assert word.encode() not in path.read_bytes(), path


# --- What a server is told about the routes -------------------------------------------------------


@pytest.mark.parametrize("clock", ["system", "transactions"])
def test_examples_follow_one_another_and_fit_their_schema(tmp_path: Path, clock: str) -> None:
    bench = Bench(tmp_path, clock=clock)
    route: Route = bench.routes["/decisions"]
    assert route.example is not None
    bodies = [route.example(number) for number in range(50)]
    *answers, rules = bench.run(*[("/decisions", body) for body in bodies], ("/rules", None))
    for body, answer in zip(bodies, answers, strict=True):
        assert is_valid(route.request_schema, body)
        assert is_valid(route.response_schema, answer)
        assert not answer["earlier"]
    assert {answer["decision"] for answer in answers} == {"approve", "review"}
    assert is_valid(bench.routes["/rules"].response_schema, rules)


def test_no_example_looks_like_a_card_number(tmp_path: Path) -> None:
    route = Bench(tmp_path).routes["/decisions"]
    assert route.example is not None
    for number in range(400_000, 410_000):
        refuse_card_numbers(route.example(number))


def test_answers_of_failures_fit_the_schema(tmp_path: Path) -> None:
    schema = Bench(tmp_path / "a").routes["/decisions"].response_schema
    assert is_valid(schema, Bench(tmp_path / "b", model=broken_model).decide())
    assert is_valid(schema, with_broken(tmp_path / "c", "look", ValueError()).decide())
    assert not is_valid(schema, {"decision": "approve"})


def test_metrics_can_be_read(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def read(path: str, body: Any) -> str:
        return generate_latest(bench.registry).decode()

    bench.ask = read  # type: ignore[method-assign]
    (text,) = bench.run(("/metrics", None))
    assert "pegboard_fraud_state_events 0.0" in text
    assert json.dumps(text)


@pytest.mark.slow
def test_a_run_and_a_killed_server_leave_no_card_number_and_no_identifier(
    make_project: Callable[..., Path], pegboard: Callable[..., Any], tmp_path: Path
) -> None:
    project = make_project(
        'solution = "fraud"\n[data]\ntiny = true\n[train]\nepochs = 1\nmax_steps = 20\n'
        '[deploy]\ntargets = ["onnx"]\ngolden = 4\n[serve]\nrules = "rules.toml"\n'
    )
    (project / "rules.toml").write_text('version = "1"\n' + rule("big", "amount > 500", "decline"))
    ended = pegboard("verify", folder=project)
    assert ended.returncode == 0, ended.stderr
    body = transaction(time=int(time.time()), customer="jane.doe", amount=501, id="order-77")
    spaced = " ".join(CARD[place : place + 4] for place in range(0, 16, 4))
    log = tmp_path / "server.log"
    with running_server(folder=project, log=log) as server:
        first = server.ask("POST", "/decisions", body).json()
        assert by(first) == ("decline", "rule", "big")
        for planted in (
            body | {"customer": CARD},
            body | {"note": {"deep": [[f"paid with {spaced}"]]}},
            body | {CARD: 1},
            body | {"terminal": int(CARD)},
            {"id": CARD, "fraud": True},
            {"transactions": [body | {"id": spaced}]},
        ):
            for path in ("/decisions", "/feedback", "/predict"):
                reply = server.ask("POST", path, planted)
                assert reply.status == 422, (path, reply.body)
                assert b"1111" not in reply.body
        server.ask("POST", f"/decisions?card={CARD}", f'{{"id": "{CARD}", '.encode())
        server.ask("GET", f"/{CARD}")
        assert CARD.encode() not in server.ask("GET", "/metrics").body
        server.process.kill()
    with running_server(folder=project, log=tmp_path / "again.log") as server:
        assert server.ask("POST", "/decisions", body).json() == first | {"earlier": True}
    kept = [path for path in (*project.rglob("*"), *tmp_path.glob("*.log")) if path.is_file()]
    assert any(path.name == "bundle.json" for path in kept)
    for path in kept:
        content = path.read_bytes()
        for word in (CARD, spaced, "jane.doe", "order-77"):
            assert word.encode() not in content, path

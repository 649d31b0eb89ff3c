"""The online state in Redis or Valkey: several servers share one past.

The events of a track and key are one string of 64-bit numbers in the order of time, as in memory
(`FeatureState`): to ask is to fetch seven of them in one round trip, to record is to append. A
transaction is a hash with its content, its label and its decision. Recording and labelling are one
script each: Redis runs a script alone, so two servers that record the same id leave one decision.
Features are computed here, from what was fetched, by the measures that training used.
"""

from __future__ import annotations

import json
import os
from array import array
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeVar, cast
from urllib.parse import parse_qs, urlsplit

import numpy as np
import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from pegboard.errors import PegboardError, SettingsError
from pegboard_fraud.features import (
    DAY,
    LABEL_TRACKS,
    TRACKS,
    Events,
    FeatureState,
    Track,
    Transaction,
    features_of,
    key_of,
    outsizes,
)
from pegboard_fraud.online import (
    Look,
    Memory,
    Policy,
    never_decided,
    require_same,
    require_storable,
)

PASSWORD = "PEGBOARD_REDIS_PASSWORD"
"""The environment variable with the password."""

PREFIX = "pegboard:fraud:"
CONNECT_SECONDS, ANSWER_SECONDS = 0.1, 0.2
"""A server that takes longer counts as away: a decision cannot wait for it."""
CONNECTIONS, QUEUE_SECONDS = 32, 1.0
"""Most connections of one server, and how long a request waits for one."""
_REMEMBERED_LOOKS, _FILLED_AT_ONCE = 10_000, 500
_NO_TIME = -1

T = TypeVar("T")


class RedisState:
    """The past in a Redis or Valkey server.

    Args:
        policy: What counts, and until when.
        url: Of the server, without a password.

    Raises:
        SettingsError: There is a password in the URL.
    """

    def __init__(self, policy: Policy, url: str) -> None:
        _require_no_password(url)
        self._policy = policy
        self._client = redis.Redis.from_pool(_connections(url))
        self._record = self._client.register_script(_RECORD)
        self._label = self._client.register_script(_LABEL)
        self._outsized: OrderedDict[str, bool] = OrderedDict()
        """Of transactions that were looked at and not recorded yet."""
        self._figures: dict[str, float] = {}

    async def open(self) -> None:
        """Reach the server, and agree with the other servers on the delay of labels."""
        try:
            await self._agree()
            await self.tick()
        except BaseException:
            await self.close()
            raise

    async def _agree(self) -> None:
        name = f"{PREFIX}delay"
        await _reached(self._client.set(name, self._policy.delay, nx=True))
        delay = int(await _reached(cast("Awaitable[bytes]", self._client.get(name))))
        if delay != self._policy.delay:
            raise PegboardError(
                f"the shared state was made for labels known after {delay // DAY} days, not "
                f"{self._policy.delay // DAY}",
                where="serve.state",
                remedy="set data.label_delay_days as it was, or take another database number",
            )

    async def look(self, transaction: Transaction) -> Look:
        """Compute features, or find the decision made before, in one round trip."""
        latest, packed, known = await self._fetch(transaction)
        earlier = _earlier(known, transaction)
        if earlier is not None:
            return Look(features=None, earlier=earlier)
        self._policy.require_timely(transaction, latest)
        past = _unpack(packed)
        self._remember_look(str(transaction.id), outsizes(transaction, past, self._policy.delay))
        return Look(features=features_of(transaction, past, self._policy.delay), earlier=None)

    async def _fetch(self, transaction: Transaction) -> tuple[int, list[Any], list[Any]]:
        """Ask for the latest time, the events of each track, and what is known of the id."""
        latest, known, _, *tracks = _keys(transaction)
        pipeline = self._client.pipeline(transaction=False)
        # The events first: a transaction that another server records meanwhile is then known, or
        # not among them.
        pipeline.mget(latest, *tracks)
        pipeline.hmget(known, [*_CONTENT, "decision"])
        (when, *packed), content = await _reached(pipeline.execute())
        return _NO_TIME if when is None else int(when), packed, content

    def _remember_look(self, identifier: str, outsized: bool) -> None:
        self._outsized[identifier] = outsized
        if len(self._outsized) > _REMEMBERED_LOOKS:
            self._outsized.popitem(last=False)

    async def record(
        self, transaction: Transaction, decision: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Remember a transaction and its decision in one step."""
        require_storable(transaction)
        # Judged by what the decision saw; who did not look before recording looks now.
        outsized = self._outsized.pop(str(transaction.id), None)
        if outsized is None:
            _, packed, _ = await self._fetch(transaction)
            outsized = outsizes(transaction, _unpack(packed), self._policy.delay)
        said = json.dumps(dict(decision), separators=(",", ":"), allow_nan=False)
        arguments = self._arguments(transaction, outsized, said)
        answer = self._record(keys=_keys(transaction), args=arguments)
        known = await _reached(cast("Awaitable[list[Any]]", answer))
        earlier = _earlier(known, transaction)
        return decision if earlier is None else earlier

    def _arguments(self, transaction: Transaction, outsized: bool, decision: str) -> list[Any]:
        content = [getattr(transaction, name) for name in _CONTENT]
        policy = self._policy
        genuine = int(policy.assume_genuine)
        return [*content, int(outsized), decision, genuine, policy.memory, policy.future]

    async def label(self, identifier: str, is_fraud: bool) -> bool:
        """Remember in one step whether a transaction was fraud."""
        answer = self._label(keys=_label_keys(identifier), args=self._told(is_fraud))
        return bool(await _reached(cast("Awaitable[int]", answer)))

    def _told(self, is_fraud: bool) -> list[Any]:
        # By the clock of the stream only the server knows the time.
        now = str(self._policy.now(0)) if self._policy.clock == "system" else ""
        return [int(is_fraud), now, self._policy.patience, self._policy.memory]

    async def tick(self) -> None:
        """Ask for figures; what nobody needs expires by itself."""
        keys = await _reached(self._client.dbsize())
        memory = await _reached(self._client.info("memory"))
        self._figures = {"keys": keys, "redis_bytes": memory["used_memory"]}

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def figures(self) -> Mapping[str, float]:
        """Return numbers for an operator, by name, as of the last tick."""
        return self._figures

    async def fill(self, memory: Memory) -> None:
        """Put a history there that was never decided.

        Raises:
            PegboardError: There are transactions already.
        """
        latest = _name("latest")
        if await _reached(self._client.exists(latest)):
            raise PegboardError(
                "the shared state is not empty",
                where="serve.state",
                remedy="take another database number, or empty this one",
            )
        pipeline = self._client.pipeline(transaction=False)
        for number, (name, content) in enumerate(_contents(memory.state), start=1):
            if isinstance(content, bytes):
                pipeline.set(name, content)
            else:
                pipeline.hset(name, mapping=content)
            pipeline.expire(name, self._policy.memory)
            if number % _FILLED_AT_ONCE == 0:
                await _reached(pipeline.execute())
        # Last: with it the state counts as filled.
        pipeline.set(latest, memory.latest)
        await _reached(pipeline.execute())


def _contents(state: FeatureState) -> Iterator[tuple[str, bytes | dict[Any, Any]]]:
    """What the scripts would have left behind, by its name."""
    for track, key, events in state.tracks():
        numbers = np.array(events.times)
        if track.amounts:
            numbers = np.stack([numbers, np.diff(events.cents)], axis=1)
        yield _name(track.name, *(key if isinstance(key, tuple) else (key,))), numbers.tobytes()
    for transaction, outsized, kind in state.remembered():
        content = {name: getattr(transaction, name) for name in _CONTENT}
        content |= {"outsized": int(outsized), "decision": "", "kind": kind}
        yield _name("transaction", transaction.id), content


def _connections(url: str) -> redis.BlockingConnectionPool:
    return redis.BlockingConnectionPool.from_url(
        url,
        password=os.environ.get(PASSWORD) or None,
        max_connections=CONNECTIONS,
        timeout=QUEUE_SECONDS,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=ANSWER_SECONDS,
        # Once more, because a connection may be left from before the server was restarted; all
        # that is asked of it may be asked twice.
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
    )


def _require_no_password(url: str) -> None:
    parts = urlsplit(url)
    if parts.password is not None or "password" in parse_qs(parts.query, keep_blank_values=True):
        raise SettingsError(
            "there is a password in the URL of the state",
            where="serve.state",
            remedy=f"take it out and set the environment variable {PASSWORD}",
        )


async def _reached(answer: Awaitable[T]) -> T:
    try:
        return await answer
    except (RedisError, OSError) as error:
        raise PegboardError(
            f"the shared state does not answer as it should: {type(error).__name__}",
            where="serve.state",
            remedy=f"check that the Redis or Valkey server is up, its memory, and {PASSWORD}",
        ) from error


# --- How it lies there ----------------------------------------------------------------------------

_CONTENT = ("time", "customer", "terminal", "cents")


def _name(kind: str, *key: Any) -> str:
    return ":".join((f"{PREFIX}{kind}", *map(str, key)))


def _keys(transaction: Transaction) -> list[str]:
    """The names of all that a transaction has to do with; the scripts take them by their place."""
    identifier = str(transaction.id)
    return _label_keys(identifier) + [_track_name(track, transaction) for track in TRACKS]


def _label_keys(identifier: str) -> list[str]:
    return [_name("latest"), _name("transaction", identifier), _name("label", identifier)]


def _track_name(track: Track, transaction: Transaction) -> str:
    key = key_of(track, transaction)
    return _name(track.name, *(key if isinstance(key, tuple) else (key,)))


def _earlier(known: list[Any], transaction: Transaction) -> Mapping[str, Any] | None:
    """The decision that is recorded for the id; nothing if it is new."""
    if known[0] is None:
        return None
    when, customer, terminal, cents, decision = (each.decode() for each in known)
    same = Transaction(
        id=transaction.id, time=int(when), customer=customer, terminal=terminal, cents=int(cents)
    )
    require_same(same, transaction)
    if not decision:
        raise never_decided()
    standing: Mapping[str, Any] = json.loads(decision)
    return standing


def _unpack(packed: list[bytes | None]) -> Callable[[Track, Transaction], Events]:
    """Give the events of each track from its string: times, or times and amounts by turns."""
    events: dict[Track, Events] = {}
    for track, content in zip(TRACKS, packed, strict=True):
        numbers = array("q", content or b"")
        if track.amounts:
            events[track] = Events(amounts=True, times=numbers[::2], cents=numbers[1::2])
        else:
            events[track] = Events(amounts=False, times=numbers)
    return lambda track, _: events[track]


_EVENTS = """
local function time_at(events, place, width)
  return (struct.unpack('<i8', events, place * width + 1))
end
-- How many events of a string are not after a moment.
local function rank(events, moment, width)
  local low, high = 0, #events / width
  while low < high do
    local middle = math.floor((low + high) / 2)
    if time_at(events, middle, width) <= moment then low = middle + 1 else high = middle end
  end
  return low
end
-- Drop old events once they are most: so each is moved once on average.
local function forget(name, horizon, width)
  if time_at(redis.call('GETRANGE', name, 0, 7), 0, width) > horizon then return end
  local events = redis.call('GET', name)
  local gone = rank(events, horizon, width)
  if 2 * gone * width > #events then
    redis.call('SET', name, string.sub(events, gone * width + 1))
  end
end
local function insert(name, time, cents, memory)
  local event, width = struct.pack('<i8', time), 8
  if cents then event, width = event .. struct.pack('<i8', cents), 16 end
  local last = redis.call('GETRANGE', name, -width, -1)
  if last == '' or time_at(last, 0, width) <= time then
    redis.call('APPEND', name, event)
  else
    local events = redis.call('GET', name)
    local place = rank(events, time, width) * width
    redis.call('SET', name, string.sub(events, 1, place) .. event .. string.sub(events, place + 1))
  end
  forget(name, time - memory, width)
  redis.call('EXPIRE', name, memory)
end
-- Of a track without amounts: events of one second are alike.
local function remove(name, time, memory)
  local events = redis.call('GET', name) or ''
  local place = rank(events, time, 8)
  if place == 0 or time_at(events, place - 1, 8) ~= time then return end
  local rest = string.sub(events, 1, (place - 1) * 8) .. string.sub(events, place * 8 + 1)
  if rest == '' then redis.call('DEL', name) else redis.call('SET', name, rest, 'EX', memory) end
end
local function set_kind(transaction, kind, memory)
  local told = redis.call('HMGET', transaction, 'kind', 'time', 'customer', 'terminal')
  if told[1] == kind then return end
  local time, keys = tonumber(told[2]), {customer = told[3], terminal = told[4]}
  for _, track in ipairs(LABEL_TRACKS[told[1]]) do
    remove(PREFIX .. track[1] .. ':' .. keys[track[2]], time, memory)
  end
  for _, track in ipairs(LABEL_TRACKS[kind]) do
    insert(PREFIX .. track[1] .. ':' .. keys[track[2]], time, false, memory)
  end
  redis.call('HSET', transaction, 'kind', kind)
end
local function kind_of(is_fraud, outsized)
  if not is_fraud then return 'genuine' end
  return outsized == '1' and 'fraud' or 'modest_fraud'
end
"""

_RECORD = """
local time, customer, terminal, cents, outsized, decision, genuine, memory, future = unpack(ARGV)
memory = tonumber(memory)
local known = redis.call('HMGET', KEYS[2], 'time', 'customer', 'terminal', 'cents', 'decision')
if known[1] then return known end
redis.call('HSET', KEYS[2], 'time', time, 'customer', customer, 'terminal', terminal,
           'cents', cents, 'outsized', outsized, 'decision', decision, 'kind', '')
redis.call('EXPIRE', KEYS[2], memory)
for track = 1, #KEYS - 3 do
  if ADDED[track] == 'all' or (ADDED[track] == 'outsized' and outsized == '1') then
    insert(KEYS[track + 3], tonumber(time), track <= AMOUNTS and tonumber(cents), memory)
  end
end
if tonumber(time) > tonumber(redis.call('GET', KEYS[1]) or '-1') then
  redis.call('SET', KEYS[1], time)
end
local is_fraud, told = string.match(redis.call('GET', KEYS[3]) or '', '(.):(.+)')
redis.call('DEL', KEYS[3])
if told and told ~= '-1' and tonumber(time) > told + future then is_fraud = nil end
if is_fraud or genuine == '1' then
  set_kind(KEYS[2], kind_of(is_fraud == '1', outsized), memory)
end
return {false}
"""

_LABEL = """
local is_fraud, now, patience, memory = unpack(ARGV)
local outsized = redis.call('HGET', KEYS[2], 'outsized')
if not outsized then
  if now == '' then now = redis.call('GET', KEYS[1]) or '-1' end
  redis.call('SET', KEYS[3], is_fraud .. ':' .. now, 'EX', patience)
  return 0
end
set_kind(KEYS[2], kind_of(is_fraud == '1', outsized), tonumber(memory))
return 1
"""


def _lua(value: Any) -> str:
    """Spell a constant of the definition in Lua, so that it is written once."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"[{_lua(key)}] = {_lua(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "{" + ", ".join(map(_lua, value)) + "}"
    return json.dumps(value)


def _constants() -> str:
    amounts = [track.amounts for track in TRACKS]
    assert amounts == sorted(amounts, reverse=True), "tracks with amounts come first"
    labels = {
        kind: [(track.name, track.key) for track in tracks] for kind, tracks in LABEL_TRACKS.items()
    }
    constants = {
        "PREFIX": PREFIX,
        "AMOUNTS": sum(amounts),
        "ADDED": [track.of for track in TRACKS],
        "LABEL_TRACKS": labels,
    }
    return "".join(f"local {name} = {_lua(value)}\n" for name, value in constants.items())


_RECORD = _constants() + _EVENTS + _RECORD
_LABEL = _constants() + _EVENTS + _LABEL

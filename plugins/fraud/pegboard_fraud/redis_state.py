"""The online state in Redis or Valkey: several servers share one past.

A track of a key is a sorted set of its events by time; a transaction is a hash with its content,
its label and its decision. Asking is one round trip, recording and labelling are one script each:
Redis runs a script alone, so two servers that record the same id leave one decision. Features are
computed here, from what was fetched, by the measures that training used.
"""

from __future__ import annotations

import json
import os
from array import array
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar, cast
from urllib.parse import parse_qs, urlsplit

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from pegboard.errors import PegboardError, SettingsError
from pegboard_fraud.features import (
    LABEL_TRACKS,
    MEMORY,
    TRACKS,
    Events,
    Track,
    Transaction,
    features_of,
    key_of,
    outsizes,
)
from pegboard_fraud.online import Look, Policy, never_decided, require_same

PASSWORD = "PEGBOARD_REDIS_PASSWORD"
"""The environment variable with the password."""

PREFIX = "pegboard:fraud:"
CONNECT_SECONDS, ANSWER_SECONDS = 0.05, 0.1
"""A server that takes longer counts as away: a decision cannot wait for it."""
CONNECTIONS, QUEUE_SECONDS = 32, 1.0
"""Most connections of one server, and how long a request waits for one."""
_REMEMBERED_LOOKS = 10_000

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
        self._look = self._client.register_script(_LOOK)
        self._record = self._client.register_script(_RECORD)
        self._label = self._client.register_script(_LABEL)
        self._outsized: OrderedDict[str, bool] = OrderedDict()
        """Of transactions that were looked at and not recorded yet."""
        self._figures: dict[str, float] = {}

    async def open(self) -> None:
        """Reach the server, and agree with the other servers on the delay of labels."""
        name = f"{PREFIX}delay"
        await _reached(self._client.set(name, self._policy.delay, nx=True))
        delay = int(await _reached(cast("Awaitable[bytes]", self._client.get(name))))
        if delay != self._policy.delay:
            raise PegboardError(
                f"the shared state was made for labels known after {delay} seconds, not "
                f"{self._policy.delay}",
                where="serve.state",
                remedy="set data.label_delay_days as it was, or take another database number",
            )
        await self.tick()

    async def look(self, transaction: Transaction) -> Look:
        """Compute features, or find the decision made before, in one round trip."""
        latest, known, packed = await self._fetch(transaction)
        earlier = _earlier(known, transaction)
        if earlier is not None:
            return Look(features=None, earlier=earlier)
        self._policy.require_timely(transaction, latest)
        past = _unpack(packed)
        self._remember_look(str(transaction.id), outsizes(transaction, past, self._policy.delay))
        return Look(features=features_of(transaction, past, self._policy.delay), earlier=None)

    async def _fetch(self, transaction: Transaction) -> tuple[int, list[Any], list[bytes]]:
        """Ask for the latest time, the known transaction of the id, and the events of each track.

        The events are those that any window can hold: as long as the longest, and until now.
        """
        ends = [transaction.time - self._policy.delay * track.delayed for track in TRACKS]
        bounds = [bound for end in ends for bound in (end - MEMORY, end)]
        answer = self._look(keys=_keys(transaction), args=bounds)
        latest, known, *packed = await _reached(cast("Awaitable[list[Any]]", answer))
        return int(latest), known, packed

    def _remember_look(self, identifier: str, outsized: bool) -> None:
        self._outsized[identifier] = outsized
        if len(self._outsized) > _REMEMBERED_LOOKS:
            self._outsized.popitem(last=False)

    async def record(
        self, transaction: Transaction, decision: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Remember a transaction and its decision in one step."""
        # Judged by what the decision saw; who did not look before recording looks now.
        outsized = self._outsized.pop(str(transaction.id), None)
        if outsized is None:
            *_, packed = await self._fetch(transaction)
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

    async def fill(self, history: Iterable[tuple[Transaction, bool, str]]) -> None:
        """Remember a history that was never decided, many at a time.

        Args:
            history: Transactions in the order of time, whether outsized, and the label: 1 fraud,
                0 genuine, empty unknown.
        """
        pipeline = self._client.pipeline(transaction=False)
        for number, (transaction, outsized, label) in enumerate(history, start=1):
            arguments = self._arguments(transaction, outsized, "")
            await self._record(keys=_keys(transaction), args=arguments, client=pipeline)
            if label:
                keys = _label_keys(str(transaction.id))
                await self._label(keys=keys, args=self._told(label == "1"), client=pipeline)
            if number % 200 == 0:
                await _reached(pipeline.execute())
        await _reached(pipeline.execute())


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


def _unpack(packed: list[bytes]) -> Callable[[Track, Transaction], Events]:
    """Give the events of each track from what `_LOOK` packed."""
    events: dict[Track, Events] = {}
    for track, content in zip(TRACKS, packed, strict=True):
        numbers = array("q", content)
        half = len(numbers) // 2 if track.amounts else len(numbers)
        events[track] = Events(amounts=track.amounts, times=numbers[:half], cents=numbers[half:])
    return lambda track, _: events[track]


# Times and amounts come back as 64-bit numbers: a fifth of what Redis would say in words.
_LOOK = """
local function pack(numbers)
  local parts = {}
  for start = 1, #numbers, 100 do
    local stop = math.min(start + 99, #numbers)
    parts[#parts + 1] = struct.pack('<' .. string.rep('i8', stop - start + 1),
                                    unpack(numbers, start, stop))
  end
  return table.concat(parts)
end
local answer = {redis.call('GET', KEYS[1]) or '-1',
                redis.call('HMGET', KEYS[2], 'time', 'customer', 'terminal', 'cents', 'decision')}
for track = 1, #KEYS - 3 do
  local found = redis.call('ZRANGEBYSCORE', KEYS[track + 3], '(' .. ARGV[2 * track - 1],
                           ARGV[2 * track], 'WITHSCORES')
  local times, cents = {}, {}
  for place = 1, #found, 2 do
    times[#times + 1] = tonumber(found[place + 1])
    if track <= AMOUNTS then
      cents[#cents + 1] = tonumber(string.match(found[place], '^%d+'))
    end
  end
  answer[#answer + 1] = pack(times) .. pack(cents)
end
return answer
"""

_SET_KIND = """
local function set_kind(transaction, id, kind, memory)
  local told = redis.call('HMGET', transaction, 'kind', 'time', 'customer', 'terminal', 'cents')
  if told[1] == kind then return end
  local keys = {customer = told[3], terminal = told[4], pair = told[3] .. ':' .. told[4]}
  for _, track in ipairs(LABEL_TRACKS[told[1]]) do
    redis.call('ZREM', PREFIX .. track[1] .. ':' .. keys[track[2]], id)
  end
  for _, track in ipairs(LABEL_TRACKS[kind]) do
    local name = PREFIX .. track[1] .. ':' .. keys[track[2]]
    redis.call('ZADD', name, told[2], id)
    redis.call('ZREMRANGEBYSCORE', name, '-inf', tonumber(told[2]) - memory)
    redis.call('EXPIRE', name, memory)
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
local id = string.sub(KEYS[2], #PREFIX + #'transaction:' + 1)
local function add(name)
  redis.call('ZADD', name, time, cents .. ':' .. id)
  redis.call('ZREMRANGEBYSCORE', name, '-inf', tonumber(time) - memory)
  redis.call('EXPIRE', name, memory)
end
for track = 1, #KEYS - 3 do
  if ADDED[track] == 'all' or (ADDED[track] == 'outsized' and outsized == '1') then
    add(KEYS[track + 3])
  end
end
if tonumber(time) > tonumber(redis.call('GET', KEYS[1]) or '-1') then
  redis.call('SET', KEYS[1], time)
end
local is_fraud, told = string.match(redis.call('GET', KEYS[3]) or '', '(.):(.+)')
redis.call('DEL', KEYS[3])
if told and told ~= '-1' and tonumber(time) > told + future then is_fraud = nil end
if is_fraud or genuine == '1' then
  set_kind(KEYS[2], id, kind_of(is_fraud == '1', outsized), memory)
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
local id = string.sub(KEYS[2], #PREFIX + #'transaction:' + 1)
set_kind(KEYS[2], id, kind_of(is_fraud == '1', outsized), tonumber(memory))
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


_LOOK = _constants() + _LOOK
_RECORD = _constants() + _SET_KIND + _RECORD
_LABEL = _constants() + _SET_KIND + _LABEL

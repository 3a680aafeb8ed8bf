"""Queries, the duty to call back about them, and every attempt at it.

A query that is not final is either due or leased. A lease is held by a thread of the one
server process and ends with it: `void_leases` at start makes all that was under way due
again. Every change of a leased query is a compare-and-set on its attempt number, so a
thread that lost its lease changes nothing.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from storage import requests
from storage.changes import Changes
from storage.errors import QueryNotFoundError, RedeliveryLimitError, StateConflictError
from storage.ids import new_id
from storage.query_bulk import BUSY_SINCE, CANCEL, RECENT_MS, REDELIVER, QueryBulk
from storage.query_deadlines import QueryDeadlines
from storage.query_filters import QuerySearch
from storage.query_records import (
    COLUMNS,
    LEASE_COLUMNS,
    Attempt,
    Delivered,
    DueQueue,
    GivenUp,
    Leased,
    NotMade,
    Query,
    RetryAt,
    Unmatched,
    Waiting,
    lease_from,
    query_from,
    url_mark,
)
from storage.queued_queries import QueuedQueries

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from storage.database import Connection, Database
    from storage.query_bulk import Changed
    from storage.query_filters import QueryFilter
    from storage.query_records import (
        Matched,
        QueryLease,
        Settlement,
        Turn,
    )
    from storage.requests import Request

#: States that only RedeliverQuery leaves.
FINAL_STATES: Final = frozenset({"DELIVERED", "FAILED", "CANCELLED", "UNMATCHED"})
#: Attempts that are kept of a query: the newest.
MAX_ATTEMPTS_KEPT: Final = 100
#: How many queries at a queue's head are searched for a URL that a turn does not avoid.
_PROBE_CANDIDATES: Final = 32
#: From one pair of destination and key to the next that has queries waiting: one look at the index.
_NEXT_KEY: Final = (
    "(SELECT min(key_id) FROM query WHERE due_at IS NOT NULL AND destination_id = destination"
    " AND key_id > key)"
)
_NEXT_DESTINATION: Final = (
    "(SELECT min(destination_id) FROM query WHERE due_at IS NOT NULL"
    " AND destination_id > destination)"
)


class Queries:
    """The queries of a database. Safe to use from any thread.

    A *key_id* given to `get`, `cancel` or `redeliver` restricts them to the queries that this
    key submitted: any other query does not exist for them. None means all queries.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        #: Published after each change of a query.
        self.changes = Changes()
        #: Changes many queries at once.
        self.bulk = QueryBulk(database, self._note_changes)
        #: How many of each key are not final, once `count_queued` was called.
        self.queued = QueuedQueries()
        self.deadlines = QueryDeadlines(database, self.changes, self.queued)
        self._listeners: list[Callable[[Waiting], None]] = []

    def subscribe(self, listener: Callable[[Waiting], None]) -> None:
        """Call *listener* after each commit by which a query begins to wait, on any thread."""
        self._listeners.append(listener)

    def count_queued(self) -> None:
        """Count the queries that are not final. Only right while no thread changes any."""
        self.queued.reset(
            dict(
                self._database.read(
                    "SELECT key_id, count(*) FROM query WHERE state IN ('QUEUED', 'DELIVERING')"
                    " GROUP BY key_id"
                )
            )
        )

    def submit(
        self,
        *,
        key_id: str,
        text: str,
        callback_url: str,
        destination: str,
        give_up_after: int | None,
        on_unmatched: str = "DELIVER",
        request: Request | None,
        now: int,
        due_at: int | None = None,
    ) -> tuple[Query, bool]:
        """Accept a query; when this has returned, we owe a delivery.

        Args:
            key_id: Whose key; the callback is signed with its secrets.
            text: What to match.
            callback_url: Where to deliver.
            destination: Its scheme, host and port: what it shares turns and breaker with.
            give_up_after: Milliseconds after which a query is given up; None for the
                schedule's end.
            on_unmatched: DELIVER a callback that says so, or END the query without one, when
                no image matches.
            request: For idempotency, when the caller named the request.
            now: The wall-clock time, in milliseconds since the epoch.
            due_at: The same moment by the scheduler's clock, from which its schedule counts;
                None: that shows the same as the wall clock.

        Returns:
            The query, and whether it is new.

        Raises:
            RequestIdReusedError: Nothing was stored.
            StorageFullError: There is too little free space; nothing was stored.
        """
        self._database.disk_space.require_for_new_data()
        id_ = new_id("qry", now=now)
        due_at = now if due_at is None else due_at

        def operation(connection: Connection) -> tuple[str, int, int]:
            known = requests.claim(connection, request, id_)
            if known is not None:
                return known, 0, 0
            to = _destination(connection, destination)
            seq = connection.execute(
                "INSERT INTO query (id, key_id, text, callback_url, destination_id, state, due_at,"
                " cycle_at, give_up_after, give_up_at, created_at, on_unmatched)"
                " VALUES (?1, ?2, ?3, ?4, ?5, 'QUEUED', ?6, ?6, ?7, ?6 + ?7, ?8, ?9)",
                (id_, key_id, text, callback_url, to, due_at, give_up_after, now, on_unmatched),
            ).lastrowid
            return id_, seq, to

        stored, seq, to = self._database.write(operation)
        if stored != id_:
            return self.get(stored), False
        self.queued.add(key_id, 1)
        self._announce(
            DueQueue(key_id=key_id, destination=to, retries=False, due_at=due_at),
            give_up_at=None if give_up_after is None else due_at + give_up_after,
        )
        # As accepted. To read it back would cost as much again as all the rest.
        accepted = Query(
            seq=seq,
            id=id_,
            key_id=key_id,
            text=text,
            callback_url=callback_url,
            destination=to,
            state="QUEUED",
            matched=None,
            due_at=due_at,
            failure_reason=None,
            failure_message=None,
            created_at=now,
            ended_at=None,
            latest_attempt_number=0,
            attempts=(),
        )
        return accepted, True

    def get(self, query_id: str, *, key_id: str | None = None) -> Query:
        """Return one query.

        Raises:
            QueryNotFoundError: There is none with this id.
        """
        where, values = _where({"id = ?": query_id, "key_id = ?": key_id})
        found = self._queries(f"SELECT {COLUMNS} FROM query {where}", values)
        if not found:
            raise _not_found()
        return found[0]

    def search(self, where: QueryFilter) -> QuerySearch:
        """Begin to look for the queries that satisfy *where*."""
        return QuerySearch(self._database, where)

    def records(self, seqs: Sequence[int]) -> list[Query]:
        """Return the queries with these numbers, in their order; those that are gone left out."""
        found = self._queries(
            f"SELECT {COLUMNS} FROM query WHERE seq IN (SELECT value FROM json_each(?))",
            (_json(list(seqs)),),
        )
        places = {seq: place for place, seq in enumerate(seqs)}
        return sorted(found, key=lambda query: places[query.seq])

    def cancel(self, query_id: str, *, key_id: str | None = None, now: int) -> Query:
        """Stop a query; one that is CANCELLED stays so. Takes its lease away.

        Raises:
            QueryNotFoundError: There is none with this id.
            StateConflictError: It ended otherwise; nothing was changed.
        """

        def operation(connection: Connection) -> str | None:
            seq, state, owner = _state_of(connection, query_id, key_id)
            if state in FINAL_STATES - {"CANCELLED"}:
                raise StateConflictError(state)
            connection.execute(f"UPDATE query SET {CANCEL} WHERE seq = ?2", (now, seq))
            return None if state == "CANCELLED" else owner

        owner = self._database.write(operation, uses_reserve=True)
        if owner is not None:
            self.queued.add(owner, -1)
        self.changes.publish(query_id)
        return self.get(query_id)

    def redeliver(
        self, query_id: str, *, key_id: str | None = None, now: int, wall_now: int | None = None
    ) -> Query:
        """Make a final query due now, at the beginning of its schedule.

        One that is UNMATCHED is matched again; the others keep their match. *now* is the
        scheduler's time, *wall_now* (None: the same) that of attempts.

        Raises:
            QueryNotFoundError: There is none with this id.
            StateConflictError: It is not final; nothing was changed.
            RedeliveryLimitError: Too many of its attempts started lately; nothing was changed.
        """
        wall = now if wall_now is None else wall_now

        def operation(connection: Connection) -> tuple[str, int, int | None]:
            seq, state, _ = _state_of(connection, query_id, key_id)
            if state not in FINAL_STATES:
                raise StateConflictError(state)
            ((busy_since,),) = connection.execute(
                f"SELECT {BUSY_SINCE} FROM query WHERE seq = ?2", (now, seq, wall)
            ).fetchall()
            if busy_since is not None:
                raise RedeliveryLimitError(retry_after_ms=busy_since + RECENT_MS - wall)
            rows = connection.execute(
                f"UPDATE query SET {REDELIVER} WHERE seq = ?2"
                " RETURNING key_id, destination_id, give_up_at",
                (now, seq),
            ).fetchall()
            return tuple(rows[0])

        owner, destination, give_up_at = self._database.write(operation)
        self.queued.add(owner, 1)
        self.changes.publish(query_id)
        self._announce(
            DueQueue(key_id=owner, destination=destination, retries=False, due_at=now),
            give_up_at=give_up_at,
        )
        return self.get(query_id)

    def lease(
        self, turns: Sequence[Turn], *, now: int, wall_now: int | None = None
    ) -> list[Leased]:
        """Lease what is due of the queues whose turn it is, longest due first.

        Counts their attempt. There may be fewer than a turn allows. *now* is the scheduler's
        time, *wall_now* (None: the same) what an interrupted attempt will show as its start.

        Returns:
            One for each turn, in order.
        """
        leased_at = now if wall_now is None else wall_now

        def operation(connection: Connection) -> list[Leased]:
            return [_lease_turn(connection, turn, now, leased_at) for turn in turns]

        return self._database.write(operation)

    def waiting(self, *, after: DueQueue | None = None, limit: int = 1_000_000) -> list[DueQueue]:
        """Return up to *limit* pairs of queues in which queries wait, now or for later.

        In order of destination and key, those behind *after*'s. One step a pair, however many
        queries wait in it.
        """
        rows = self._database.read(
            "WITH RECURSIVE waiting(destination, key, number) AS ("
            "  SELECT ?1, ?2, 0 UNION ALL"
            f"  SELECT iif({_NEXT_KEY} IS NULL, {_NEXT_DESTINATION}, destination),"
            f"   coalesce({_NEXT_KEY}, (SELECT min(key_id) FROM query WHERE due_at IS NOT NULL"
            f"     AND destination_id = {_NEXT_DESTINATION})),"
            "   number + 1 FROM waiting WHERE number < ?3 AND destination IS NOT NULL)"
            " SELECT waiting.key, waiting.destination, queue.retries,"
            "   (SELECT min(due_at) FROM query WHERE due_at IS NOT NULL"
            "     AND destination_id = waiting.destination AND key_id = waiting.key"
            "     AND (attempt > cycle_start) = queue.retries) AS head"
            " FROM waiting, (SELECT 0 AS retries UNION ALL SELECT 1) AS queue"
            " WHERE number > 0 AND head IS NOT NULL",
            (after.destination if after else 0, after.key_id if after else "", limit),
        )
        return [
            DueQueue(key_id=key_id, destination=destination, retries=bool(retries), due_at=due_at)
            for key_id, destination, retries, due_at in rows
        ]

    def pull_in(self, queue: DueQueue, *, due_at: int) -> None:
        """Let no query of a queue wait longer than until *due_at*."""
        self._database.write(
            lambda connection: (
                connection.execute(
                    "UPDATE query SET due_at = ?1 WHERE destination_id = ?2 AND key_id = ?3"
                    " AND (attempt > cycle_start) = ?4 AND due_at > ?1",
                    (due_at, queue.destination, queue.key_id, queue.retries),
                ).rowcount
            )
        )

    def record_match(self, lease: QueryLease, matched: Matched) -> bool:
        """Fix what every attempt will deliver. False when the lease was lost."""

        def operation(connection: Connection) -> bool:
            match = matched.match
            tags = [[tag.name, tag.lemma, tag.confidence] for tag in match.tags] if match else []
            held = connection.execute(
                "UPDATE query SET state = 'DELIVERING', lemmas = ?, match_image_id = ?,"
                " match_score = ?, match_tags = ?, matched_at = ?"
                " WHERE seq = ? AND attempt = ? AND leased_at IS NOT NULL",
                (
                    _json(matched.lemmas),
                    match.image_id if match else None,
                    match.score if match else None,
                    _json(tags) if match else None,
                    matched.at,
                    lease.seq,
                    lease.attempt,
                ),
            ).rowcount
            return bool(held)

        held = self._database.write(operation)
        self.changes.publish(lease.id)
        return held

    def settle(
        self,
        lease: QueryLease,
        attempt: Attempt | None,
        outcome: Settlement,
        *,
        now: int,
    ) -> bool:
        """End a lease: record the attempt, if one was made, and what comes next.

        Returns:
            False when the lease was lost (the query was cancelled); nothing was changed.
        """

        def operation(connection: Connection) -> bool:
            held = _end_lease(connection, lease, outcome, now)
            if held and attempt is not None:
                _insert_attempt(connection, lease.seq, attempt)
            return held

        held = self._database.write(operation, uses_reserve=True)
        if held and isinstance(outcome, Delivered | GivenUp | Unmatched):
            self.queued.add(lease.key_id, -1)
        self.changes.publish(lease.id)
        if held and isinstance(outcome, RetryAt | NotMade):
            self._announce(
                DueQueue(
                    key_id=lease.key_id,
                    destination=lease.destination,
                    retries=lease.is_retry or isinstance(outcome, RetryAt),
                    due_at=outcome.due_at,
                ),
                give_up_at=lease.give_up_at,
            )
        return held

    def void_leases(self, *, max_attempts: int, now: int, wall_now: int | None = None) -> int:
        """Make every leased query due; return how many. Only right when no thread holds a lease.

        *now* is the scheduler's time, *wall_now* (None: the same) the wall clock's. Listeners
        are not called: they have yet to look at what waits.

        What was under way is recorded as an attempt that was INTERRUPTED. A query for which
        that was the last of *max_attempts* is given up: so one that takes the server down
        with it cannot do so for ever.
        """
        ended_at = now if wall_now is None else wall_now

        def operation(connection: Connection) -> tuple[int, list[tuple[str]]]:
            rows = connection.execute(
                "SELECT seq, attempt, leased_at FROM query WHERE leased_at IS NOT NULL"
            ).fetchall()
            for seq, number, leased_at in rows:
                _insert_attempt(
                    connection,
                    seq,
                    Attempt(
                        number=number,
                        started_at=leased_at,
                        latency_ms=max(0, ended_at - leased_at),
                        failure_reason="INTERRUPTED",
                        failure_message="the server stopped during this attempt",
                    ),
                )
            ended = connection.execute(
                "UPDATE query SET leased_at = NULL, state = 'FAILED', ended_at = ?2,"
                " failure_reason = 'ATTEMPTS_EXHAUSTED',"
                " failure_message = 'the server stopped during the last attempt'"
                " WHERE leased_at IS NOT NULL AND attempt - cycle_start >= ?1 RETURNING key_id",
                (max_attempts, ended_at),
            ).fetchall()
            connection.execute(
                "UPDATE query SET leased_at = NULL, due_at = ? WHERE leased_at IS NOT NULL", (now,)
            )
            return len(rows), ended

        voided, ended = self._database.write(operation, uses_reserve=True)
        for (key_id,) in ended:
            self.queued.add(key_id, -1)
        return voided

    def _note_changes(self, changed: Sequence[Changed]) -> None:
        """Note that queries were made due or became final."""
        waiting: dict[DueQueue, int | None] = {}
        for each in changed:
            self.queued.add(each.key_id, -1 if each.due_at is None else 1)
            self.changes.publish(each.id)
            if each.due_at is not None:
                queue = DueQueue(
                    key_id=each.key_id,
                    destination=each.destination,
                    retries=False,
                    due_at=each.due_at,
                )
                times = (waiting.get(queue), each.give_up_at)
                waiting[queue] = min((at for at in times if at is not None), default=None)
        for queue, give_up_at in waiting.items():
            self._announce(queue, give_up_at=give_up_at)

    def _announce(self, queue: DueQueue, *, give_up_at: int | None) -> None:
        waiting = Waiting(queue=queue, give_up_at=give_up_at)
        for listener in self._listeners:
            listener(waiting)

    def _queries(self, sql: str, parameters: tuple[object, ...]) -> list[Query]:
        rows = self._database.read(sql, parameters)
        attempts = self._attempts_of([row[0] for row in rows])
        return [query_from(row, attempts.get(row[0], [])) for row in rows]

    def _attempts_of(self, seqs: Sequence[int]) -> dict[int, list[Attempt]]:
        found: dict[int, list[Attempt]] = {}
        for (
            seq,
            number,
            started_at,
            latency_ms,
            status,
            reason,
            message,
            excerpt,
        ) in self._database.read(
            "SELECT query_seq, number, started_at, latency_ms, http_status, attempt.failure_reason,"
            " attempt.failure_message, excerpt FROM attempt JOIN query ON query.seq = query_seq"
            " WHERE query_seq IN (SELECT value FROM json_each(?)) AND number > query.attempt - ?"
            " ORDER BY query_seq, number",
            (_json(seqs), MAX_ATTEMPTS_KEPT),
        ):
            attempt = Attempt(
                number=number,
                started_at=started_at,
                latency_ms=latency_ms,
                http_status=status,
                failure_reason=reason,
                failure_message=message,
                excerpt=excerpt,
            )
            found.setdefault(seq, []).append(attempt)
        return found


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _destination(connection: Connection, name: str) -> int:
    """Return the number of a destination, which may be new."""
    rows = connection.execute("SELECT id FROM destination WHERE name = ?", (name,)).fetchall()
    if rows:
        return int(rows[0][0])
    return int(connection.execute("INSERT INTO destination (name) VALUES (?)", (name,)).lastrowid)


def _lease_turn(connection: Connection, turn: Turn, now: int, leased_at: int) -> Leased:
    limit = max(turn.count, _PROBE_CANDIDATES if turn.avoid else 0)
    rows = connection.execute(
        "SELECT seq, due_at, callback_url FROM query WHERE destination_id = ? AND key_id = ?"
        " AND (attempt > cycle_start) = ? AND due_at IS NOT NULL ORDER BY due_at, seq LIMIT ?",
        (turn.destination, turn.key_id, turn.retries, limit + 1),
    ).fetchall()
    due = [
        (seq, url_mark(turn.key_id, url) in turn.avoid)
        for seq, due_at, url in rows
        if due_at <= now
    ]
    due.sort(key=lambda each: each[1])  # stable: longest due first
    chosen = {seq: None for seq, _ in due[: turn.count]}
    return Leased(
        turn=turn,
        leases=tuple(
            lease_from(row)
            for seq in chosen
            for row in connection.execute(
                "UPDATE query SET attempt = attempt + 1, due_at = NULL, leased_at = ?"
                f" WHERE seq = ? RETURNING {LEASE_COLUMNS}",
                (leased_at, seq),
            ).fetchall()
        ),
        next_due_at=next((due_at for seq, due_at, _ in rows if seq not in chosen), None),
    )


def _where(conditions: Mapping[str, object]) -> tuple[str, tuple[object, ...]]:
    """Return a WHERE clause of those *conditions* that have a value, and the values."""
    given = {sql: value for sql, value in conditions.items() if value is not None}
    return f"WHERE {' AND '.join(given)}" if given else "", tuple(given.values())


def _not_found() -> QueryNotFoundError:
    # One message for a query that does not exist and for one of another key.
    return QueryNotFoundError("there is no query with this id")


def _state_of(connection: Connection, query_id: str, key_id: str | None) -> tuple[int, str, str]:
    """Return a query's number, state and key."""
    where, values = _where({"id = ?": query_id, "key_id = ?": key_id})
    rows = connection.execute(f"SELECT seq, state, key_id FROM query {where}", values).fetchall()
    if not rows:
        raise _not_found()
    return rows[0][0], rows[0][1], rows[0][2]


def _end_lease(
    connection: Connection,
    lease: QueryLease,
    outcome: Settlement,
    now: int,
) -> bool:
    changes, values = _changes_of(outcome, now)
    held = connection.execute(
        f"UPDATE query SET leased_at = NULL, {changes}"
        " WHERE seq = ? AND attempt = ? AND leased_at IS NOT NULL",
        (*values, lease.seq, lease.attempt),
    ).rowcount
    return bool(held)


def _changes_of(outcome: Settlement, now: int) -> tuple[str, tuple[object, ...]]:
    match outcome:
        case Delivered():
            return "state = 'DELIVERED', ended_at = ?", (now,)
        case GivenUp():
            return (
                "state = 'FAILED', ended_at = ?, failure_reason = ?, failure_message = ?",
                (now, outcome.reason, outcome.message),
            )
        case RetryAt():
            return "due_at = ?", (outcome.due_at,)
        case NotMade():
            # Numbers of attempts prove leases and are never used twice, so the count begins later.
            return "due_at = ?, cycle_start = cycle_start + 1", (outcome.due_at,)
        case Unmatched():
            matched = outcome.matched
            return (
                "state = 'UNMATCHED', ended_at = ?, lemmas = ?, matched_at = ?,"
                " match_image_id = NULL, match_score = NULL, match_tags = NULL"
            ), (now, _json(matched.lemmas), matched.at)


def _insert_attempt(connection: Connection, seq: int, attempt: Attempt) -> None:
    if attempt.number > MAX_ATTEMPTS_KEPT:
        connection.execute(
            "DELETE FROM attempt WHERE query_seq = ? AND number <= ?",
            (seq, attempt.number - MAX_ATTEMPTS_KEPT),
        )
    connection.execute(
        "INSERT INTO attempt (query_seq, number, started_at, latency_ms, http_status,"
        " failure_reason, failure_message, excerpt) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            seq,
            attempt.number,
            attempt.started_at,
            attempt.latency_ms,
            attempt.http_status,
            attempt.failure_reason,
            attempt.failure_message,
            attempt.excerpt,
        ),
    )

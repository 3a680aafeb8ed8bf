"""Row `bulk`: what operators do to 50,000 queries at once, and with 20,000 destinations.

The queries are written into the database before the server starts. Their destinations are held, so
that nothing is delivered meanwhile. Each run cancels all of them and redelivers them, and leaves
them cancelled.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

from benchmarks.harness import Figure, Findings, Target
from benchmarks.service import serving
from picback.v1 import image_service_pb2 as pb
from picback.v1 import query_pb2
from storage.database import Database
from storage.ids import new_id

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from benchmarks.harness import Setup
    from benchmarks.service import Service
    from storage.database import Connection

_TIMEOUT_SECONDS: Final = 60.0
_TARGET: Final = Target(must=10, goal=2, at_most=True)


def measure(setup: Setup) -> Findings:
    """Measure seconds."""
    queries, destinations = setup.size(50_000, 1_000), setup.size(20_000, 100)
    folder = setup.scratch / "bulk"
    with serving(folder):
        pass  # it makes the database and a key
    _fill(folder / "data", queries=queries, destinations=destinations)
    with serving(folder) as service:
        runs = [_run(service, folder / "data", queries) for _ in range(setup.runs)]
    return Findings(
        figures=[
            Figure(
                title=title.format(queries=f"{queries:,}", destinations=f"{destinations:,}"),
                unit="s",
                runs=[run[name] for run in runs],
                target=_TARGET if name in ("redeliver", "cancel") else None,
            )
            for name, title in (
                ("dry run", "RedeliverQueries with validate_only, {queries} queries"),
                ("redeliver", "RedeliverQueries, {queries} queries"),
                ("cancel", "CancelQueries, {queries} queries"),
                ("destinations", "destinations list, {destinations} destinations, whole process"),
            )
        ]
    )


def _run(service: Service, data: Path, queries: int) -> dict[str, float]:
    where = pb.QueryFilter(state=query_pb2.QUERY_STATE_CANCELLED)
    counted, dry_run = _call(
        service.stub.RedeliverQueries,
        pb.RedeliverQueriesRequest(filter=where, validate_only=True),
        service,
    )
    redelivered, redeliver = _call(
        service.stub.RedeliverQueries, pb.RedeliverQueriesRequest(filter=where), service
    )
    begun = time.perf_counter()
    command = [sys.executable, "-m", "server", "destinations", "list", "--data", str(data)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    listed = time.perf_counter() - begun
    cancelled, cancel = _call(
        service.stub.CancelQueries, pb.CancelQueriesRequest(all=True), service
    )
    found = (counted.matched_count, redelivered.redelivered_count, cancelled.cancelled_count)
    if found != (queries, queries, queries):
        msg = f"of {queries} queries, {found} were matched, redelivered and cancelled"
        raise RuntimeError(msg)
    return {"dry run": dry_run, "redeliver": redeliver, "cancel": cancel, "destinations": listed}


def _call(method: Any, request: Any, service: Service) -> tuple[Any, float]:
    begun = time.perf_counter()
    response = method(request, metadata=service.metadata, timeout=_TIMEOUT_SECONDS)
    return response, time.perf_counter() - begun


def _fill(data: Path, *, queries: int, destinations: int) -> None:
    database = Database.beside(data)
    try:
        ((key_id,),) = database.read("SELECT id FROM api_key")
        now = time.time_ns() // 1_000_000

        def operation(connection: Connection) -> None:
            connection.executemany(
                "INSERT INTO destination (id, name, state) VALUES (?, ?, 'HELD')",
                [(n, f"https://receiver-{n}.example:443") for n in range(1, destinations + 1)],
            )
            connection.executemany(
                "INSERT INTO query (id, key_id, text, callback_url, destination_id, state,"
                " created_at, ended_at) VALUES (?, ?, 'two dogs at the window', ?, ?, 'CANCELLED',"
                " ?, ?)",
                [
                    (
                        new_id("qry", now=now),
                        key_id,
                        f"https://receiver-{n % destinations + 1}.example/hook",
                        n % destinations + 1,
                        now,
                        now,
                    )
                    for n in range(queries)
                ],
            )

        database.write(operation)
    finally:
        database.close()

"""The tables, as migrations: each is applied once, in order, in a transaction of its own.

Never change a migration that was released; add the next one. Times are integer
milliseconds since the epoch (UTC), confidences and scores integer millionths, so that
sums are exact in any order.

Work that waits (an image for tags, a query for its callback) has a due_at; work that a
thread holds has a leased_at instead. A lease is proved by the row's attempt number, which
only ever grows: whoever lost the lease finds another number there and changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from storage.sqlite_toolkit import Migrations

if TYPE_CHECKING:
    from storage.sqlite_toolkit import Database

#: Written into the file's header, so that other programs and other versions can tell:
#: the bytes "pcbk".
APPLICATION_ID: Final = 0x7063626B

#: The migrations by which a picback database comes into being and is brought up to date.
migrations: Final = Migrations("picback")


def version() -> int:
    """Return the schema's version: the number of migrations. Stored as user_version."""
    return len(migrations._migrations)  # noqa: SLF001 - the library counts them nowhere else


@migrations()
def m0001_settings(db: Database) -> None:
    """Small facts about this database, such as the secret that page tokens are signed with."""
    db.execute("CREATE TABLE setting (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT")


@migrations()
def m0002_api_keys(db: Database) -> None:
    """Who may call. A key is found by the digest of its token; the token is never stored."""
    db.execute("""
        CREATE TABLE api_key (
            id           TEXT PRIMARY KEY,
            name         TEXT NOT NULL,
            scopes       TEXT NOT NULL CHECK (json_valid(scopes)),
            created_at   INTEGER NOT NULL,
            expires_at   INTEGER,
            revoked_at   INTEGER,
            last_used_at INTEGER
        ) STRICT
    """)
    db.execute("CREATE UNIQUE INDEX api_key_name ON api_key(name) WHERE revoked_at IS NULL")
    db.execute("""
        CREATE TABLE api_token (
            digest     BLOB PRIMARY KEY CHECK (length(digest) = 32),
            key_id     TEXT NOT NULL REFERENCES api_key(id),
            created_at INTEGER NOT NULL,
            expires_at INTEGER
        ) STRICT, WITHOUT ROWID
    """)
    # sealed_with: the fingerprint of the key that encrypted the secret; NULL: it is in clear.
    db.execute("""
        CREATE TABLE signing_secret (
            id          INTEGER PRIMARY KEY AUTOINCREMENT,
            key_id      TEXT NOT NULL REFERENCES api_key(id),
            secret      BLOB NOT NULL,
            sealed_with TEXT,
            created_at  INTEGER NOT NULL,
            expires_at  INTEGER
        ) STRICT
    """)


@migrations()
def m0003_images(db: Database) -> None:
    """Images, their bytes apart from the rest so that scans never touch them, and tags."""
    db.execute("""
        CREATE TABLE image (
            seq             INTEGER PRIMARY KEY AUTOINCREMENT,
            id              TEXT NOT NULL UNIQUE,
            sha256          TEXT NOT NULL UNIQUE,
            media_type      TEXT NOT NULL,
            size_bytes      INTEGER NOT NULL,
            width           INTEGER NOT NULL,
            height          INTEGER NOT NULL,
            state           TEXT NOT NULL CHECK (state IN ('PENDING', 'READY', 'FAILED')),
            failure_reason  TEXT,
            failure_message TEXT,
            created_at      INTEGER NOT NULL,
            attempt         INTEGER NOT NULL DEFAULT 0,
            pending_since   INTEGER,
            due_at          INTEGER,
            leased_at       INTEGER,
            CHECK ((state = 'FAILED') = (failure_reason IS NOT NULL)),
            CHECK (CASE state WHEN 'PENDING' THEN (due_at IS NULL) <> (leased_at IS NULL)
                              ELSE due_at IS NULL AND leased_at IS NULL END)
        ) STRICT
    """)
    db.execute("CREATE INDEX image_due ON image(due_at, seq) WHERE due_at IS NOT NULL")
    db.execute("CREATE INDEX image_leased ON image(seq) WHERE leased_at IS NOT NULL")
    db.execute("""
        CREATE TABLE image_content (
            image_seq INTEGER PRIMARY KEY REFERENCES image(seq) ON DELETE CASCADE,
            content   BLOB NOT NULL
        ) STRICT
    """)
    # keys: a JSON list, computed by the lemmatizer named in keys_by; NULL until it has.
    db.execute("""
        CREATE TABLE tag (
            id      INTEGER PRIMARY KEY AUTOINCREMENT,
            name    TEXT NOT NULL UNIQUE,
            keys    TEXT CHECK (keys IS NULL OR json_valid(keys)),
            keys_by TEXT
        ) STRICT
    """)
    # A caller's row stands over the model's row of the same tag; one with confidence 0
    # takes the tag away.
    db.execute("""
        CREATE TABLE image_tag (
            image_seq  INTEGER NOT NULL REFERENCES image(seq) ON DELETE CASCADE,
            tag_id     INTEGER NOT NULL REFERENCES tag(id),
            source     TEXT NOT NULL CHECK (source IN ('CALLER', 'MODEL')),
            confidence INTEGER NOT NULL CHECK (confidence BETWEEN 0 AND 1000000),
            model      TEXT NOT NULL DEFAULT '',
            PRIMARY KEY (image_seq, tag_id, source)
        ) STRICT, WITHOUT ROWID
    """)
    # The feed of what changed, by which the matcher stays fresh. No foreign key: a
    # deleted image is news, too.
    db.execute("""
        CREATE TABLE tagging (
            seq       INTEGER PRIMARY KEY AUTOINCREMENT,
            image_seq INTEGER NOT NULL
        ) STRICT
    """)


@migrations()
def m0004_queries(db: Database) -> None:
    """Queries, every attempt to call back about them, and what is called back."""
    # Scheme, host and port: what fails together. The breaker outlives restarts.
    db.execute("""
        CREATE TABLE destination (
            id       INTEGER PRIMARY KEY AUTOINCREMENT,
            name     TEXT NOT NULL UNIQUE,
            state    TEXT NOT NULL DEFAULT 'CLOSED'
                     CHECK (state IN ('CLOSED', 'OPEN', 'RECOVERING', 'HELD')),
            probe_at INTEGER NOT NULL DEFAULT 0,
            openings INTEGER NOT NULL DEFAULT 0
        ) STRICT
    """)
    db.execute("CREATE INDEX destination_not_closed ON destination(id) WHERE state <> 'CLOSED'")
    db.execute("""
        CREATE TABLE query (
            seq             INTEGER PRIMARY KEY AUTOINCREMENT,
            id              TEXT NOT NULL UNIQUE,
            key_id          TEXT NOT NULL REFERENCES api_key(id),
            text            TEXT NOT NULL,
            callback_url    TEXT NOT NULL,
            destination_id  INTEGER NOT NULL REFERENCES destination(id),
            state           TEXT NOT NULL CHECK (
                state IN ('QUEUED', 'DELIVERING', 'DELIVERED', 'FAILED', 'CANCELLED')),
            lemmas          TEXT CHECK (lemmas IS NULL OR json_valid(lemmas)),
            match_image_id  TEXT,
            match_score     INTEGER,
            match_tags      TEXT CHECK (match_tags IS NULL OR json_valid(match_tags)),
            matched_at      INTEGER,
            attempt         INTEGER NOT NULL DEFAULT 0,
            cycle_start     INTEGER NOT NULL DEFAULT 0,
            due_at          INTEGER,
            leased_at       INTEGER,
            give_up_after   INTEGER,
            give_up_at      INTEGER,
            failure_reason  TEXT,
            failure_message TEXT,
            created_at      INTEGER NOT NULL,
            ended_at        INTEGER,
            CHECK ((state = 'FAILED') = (failure_reason IS NOT NULL)),
            CHECK (state <> 'DELIVERING' OR matched_at IS NOT NULL),
            CHECK (CASE WHEN state IN ('QUEUED', 'DELIVERING')
                        THEN ended_at IS NULL AND (due_at IS NULL) <> (leased_at IS NULL)
                        ELSE ended_at IS NOT NULL AND due_at IS NULL AND leased_at IS NULL
                   END)
        ) STRICT
    """)
    # Each destination has two queues: first attempts, and retries.
    db.execute(
        "CREATE INDEX query_due ON query(destination_id, (attempt > cycle_start), due_at, seq)"
        " WHERE due_at IS NOT NULL"
    )
    db.execute("CREATE INDEX query_leased ON query(seq) WHERE leased_at IS NOT NULL")
    db.execute("CREATE INDEX query_state ON query(state, seq)")
    db.execute("""
        CREATE TABLE attempt (
            query_seq       INTEGER NOT NULL REFERENCES query(seq) ON DELETE CASCADE,
            number          INTEGER NOT NULL,
            started_at      INTEGER NOT NULL,
            latency_ms      INTEGER NOT NULL,
            http_status     INTEGER NOT NULL DEFAULT 0,
            failure_reason  TEXT,
            failure_message TEXT,
            excerpt         TEXT NOT NULL DEFAULT '',
            PRIMARY KEY (query_seq, number)
        ) STRICT, WITHOUT ROWID
    """)


@migrations()
def m0005_requests(db: Database) -> None:
    """Which request_id of which key stored what, so that a retry stores nothing twice."""
    db.execute("""
        CREATE TABLE request (
            key_id      TEXT NOT NULL REFERENCES api_key(id),
            request_id  TEXT NOT NULL,
            fingerprint BLOB NOT NULL,
            resource_id TEXT NOT NULL,
            PRIMARY KEY (key_id, request_id)
        ) STRICT, WITHOUT ROWID
    """)
    db.execute("CREATE INDEX request_resource ON request(resource_id)")


@migrations()
def m0006_renditions(db: Database) -> None:
    """Smaller JPEGs of an image, and how often its tagging was interrupted."""
    # An image of an earlier version has none until one is needed.
    db.execute("""
        CREATE TABLE image_rendition (
            image_seq INTEGER NOT NULL REFERENCES image(seq) ON DELETE CASCADE,
            kind      TEXT NOT NULL CHECK (kind IN ('PREVIEW', 'THUMBNAIL')),
            width     INTEGER NOT NULL,
            height    INTEGER NOT NULL,
            content   BLOB NOT NULL,
            PRIMARY KEY (image_seq, kind)
        ) STRICT
    """)
    db.execute("ALTER TABLE image ADD COLUMN interruptions INTEGER NOT NULL DEFAULT 0")


@migrations()
def m0007_unmatched_and_queries_of_a_key(db: Database) -> None:
    """The final state UNMATCHED, what to do when nothing matches, and indexes by key.

    No row is rewritten: a column with a constant default costs nothing, and the constraints
    only allow more than before, so every stored row satisfies them. What takes time is to
    build the indexes.
    """
    db.execute("ALTER TABLE query ADD COLUMN on_unmatched TEXT NOT NULL DEFAULT 'DELIVER'")
    # SQLite cannot alter unnamed constraints. Its documented way for changes that leave rows
    # as they are is to replace the table's definition: sqlite.org/lang_altertable.html, 7.
    # To copy the table instead would double the file, and dropping it would delete attempts.
    db.execute("PRAGMA writable_schema=ON")
    db.execute(
        "UPDATE sqlite_schema SET sql = ? WHERE type = 'table' AND name = 'query'",
        [
            """CREATE TABLE query (
            seq             INTEGER PRIMARY KEY AUTOINCREMENT,
            id              TEXT NOT NULL UNIQUE,
            key_id          TEXT NOT NULL REFERENCES api_key(id),
            text            TEXT NOT NULL,
            callback_url    TEXT NOT NULL,
            destination_id  INTEGER NOT NULL REFERENCES destination(id),
            state           TEXT NOT NULL CHECK (state IN (
                'QUEUED', 'DELIVERING', 'DELIVERED', 'FAILED', 'CANCELLED', 'UNMATCHED')),
            lemmas          TEXT CHECK (lemmas IS NULL OR json_valid(lemmas)),
            match_image_id  TEXT,
            match_score     INTEGER,
            match_tags      TEXT CHECK (match_tags IS NULL OR json_valid(match_tags)),
            matched_at      INTEGER,
            attempt         INTEGER NOT NULL DEFAULT 0,
            cycle_start     INTEGER NOT NULL DEFAULT 0,
            due_at          INTEGER,
            leased_at       INTEGER,
            give_up_after   INTEGER,
            give_up_at      INTEGER,
            failure_reason  TEXT,
            failure_message TEXT,
            created_at      INTEGER NOT NULL,
            ended_at        INTEGER,
            on_unmatched    TEXT NOT NULL DEFAULT 'DELIVER'
                            CHECK (on_unmatched IN ('DELIVER', 'END')),
            CHECK ((state = 'FAILED') = (failure_reason IS NOT NULL)),
            CHECK (state <> 'DELIVERING' OR matched_at IS NOT NULL),
            CHECK ((state = 'UNMATCHED') = (on_unmatched = 'END' AND matched_at IS NOT NULL
                                            AND match_image_id IS NULL)),
            CHECK (CASE WHEN state IN ('QUEUED', 'DELIVERING')
                        THEN ended_at IS NULL AND (due_at IS NULL) <> (leased_at IS NULL)
                        ELSE ended_at IS NOT NULL AND due_at IS NULL AND leased_at IS NULL
                   END)
        ) STRICT"""
        ],
    )
    # Other connections read the schema again when its version changes; this one, by RESET.
    (version,) = db.execute("PRAGMA schema_version").fetchone()
    db.execute(f"PRAGMA schema_version={version + 1}")
    db.execute("PRAGMA writable_schema=RESET")
    db.execute("CREATE INDEX query_key ON query(key_id, seq)")
    db.execute("CREATE INDEX query_key_state ON query(key_id, state, seq)")


@migrations()
def m0008_scheduling(db: Database) -> None:
    """Turns go to API keys first, queries have a deadline, and operators' changes are numbered."""
    # cycle_at: when the schedule of attempts began. Of queries that were redelivered before this
    # migration that is unknown; their schedule begins now.
    db.execute("ALTER TABLE query ADD COLUMN cycle_at INTEGER NOT NULL DEFAULT 0")
    db.execute(
        "UPDATE query SET cycle_at = iif(cycle_start = 0, created_at,"
        " CAST(unixepoch('subsec') * 1000 AS INTEGER)) WHERE ended_at IS NULL"
    )
    # Each key has two queues at each destination: first attempts, and retries.
    db.execute("DROP INDEX query_due")
    db.execute(
        "CREATE INDEX query_due"
        " ON query(destination_id, key_id, (attempt > cycle_start), due_at, seq)"
        " WHERE due_at IS NOT NULL"
    )
    db.execute("CREATE INDEX query_cycle ON query(cycle_at) WHERE ended_at IS NULL")
    db.execute(
        "CREATE INDEX query_give_up ON query(give_up_at)"
        " WHERE ended_at IS NULL AND give_up_at IS NOT NULL"
    )
    # operator_change: the number of the last change that an operator made; 0: none. The server
    # reads what is newer than the last one that it has seen.
    db.execute("ALTER TABLE destination ADD COLUMN operator_change INTEGER NOT NULL DEFAULT 0")
    db.execute(
        "CREATE INDEX destination_operator_change ON destination(operator_change)"
        " WHERE operator_change > 0"
    )


@migrations()
def m0009_queries_of_a_destination(db: Database) -> None:
    """List the queries of one destination without looking at those of all others."""
    db.execute("CREATE INDEX query_destination ON query(destination_id, seq)")

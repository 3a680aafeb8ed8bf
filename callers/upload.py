"""`picback upload`: many files at once, and one line about each.

A file that fails stops no other. Only what would fail for every file alike, no server or
no right to upload, ends the run early.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import grpc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from callers import wording
from callers.client import CallError
from callers.errors import (
    EXIT_FAILED,
    HOPELESS,
    error_dict,
    error_text,
    exit_code_of,
    fail,
    print_error,
)
from callers.image_files import TAKEN_SUFFIXES
from callers.options import caller_command
from callers.param_types import TagType
from callers.tables import print_json, print_table, to_dict
from picback.v1 import image_service_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from callers.client import Client
    from callers.options import Caller
    from picback.v1 import image_pb2

#: Larger files are refused unread, in bytes: far over what a server takes by default.
_MAX_FILE_BYTES: Final = 200_000_000
#: Tags shown in the table, which has to fit on a screen.
_TOP_TAGS: Final = 3


@click.command("upload")
@click.argument(
    "paths", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "--tag",
    "tags",
    metavar="NAME[=CONFIDENCE]",
    type=TagType(),
    multiple=True,
    envvar="PICBACK_UPLOAD_TAG",
    show_envvar=True,
    help="A tag of your own for all these images; repeatable. Without =CONFIDENCE it is certain (1).",
)
@click.option(
    "--no-wait",
    is_flag=True,
    envvar="PICBACK_UPLOAD_NO_WAIT",
    show_envvar=True,
    help="Do not wait for the tags: an image counts as uploaded when it is on the server's disk.",
)
@click.option(
    "--jobs",
    metavar="N",
    type=click.IntRange(1, 32),
    default=4,
    envvar="PICBACK_UPLOAD_JOBS",
    show_envvar=True,
    show_default=True,
    help="Uploads under way at the same time.",
)
@caller_command
def upload(
    caller: Caller,
    paths: tuple[Path, ...],
    tags: tuple[image_pb2.Tag, ...],
    *,
    no_wait: bool,
    jobs: int,
) -> None:
    """Upload images and print their tags.

    FILE may be a folder: then every file in it and below counts whose name ends like an
    image's (jpg, jpeg, png, webp, gif, bmp, tif, tiff) and does not begin with a dot.
    """
    files = list(_files(paths))
    if not files:
        fail("no image files there")
    draft = image_service_pb2.UploadImageRequest(tags=tags, no_wait=no_wait)
    outcomes = []
    with _progress(len(files), caller) as advance:
        for outcome in _upload_all(caller.client, files, draft, jobs=jobs):
            outcomes.append(outcome)
            if caller.as_json:
                print_json(outcome.to_dict())
            advance()
    if not caller.as_json:
        _print_rows(outcomes)
    for outcome in outcomes:
        if outcome.error is not None:
            print_error(f"{outcome.path}: {error_text(outcome.error)}")
    if len(outcomes) > 1:
        _print_summary(outcomes)
    click.get_current_context().exit(_exit_code(outcomes))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What became of one file: an answer, an error, or neither when it was not tried."""

    path: Path
    response: image_service_pb2.UploadImageResponse | None = None
    error: CallError | None = None

    def to_dict(self) -> dict[str, object]:
        document: dict[str, object] = {"file": str(self.path)}
        if self.response is not None:
            document |= to_dict(self.response)
        elif self.error is not None:
            document["error"] = error_dict(self.error)
        return document


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield *paths*, with each folder replaced by the images in and below it."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                if not name.startswith(".") and Path(name).suffix.lower() in TAKEN_SUFFIXES:
                    yield Path(folder, name)


def _upload_all(
    client: Client,
    files: Sequence[Path],
    draft: image_service_pb2.UploadImageRequest,
    *,
    jobs: int,
) -> Iterator[_Outcome]:
    """Yield what became of each file, in the order of *files*."""
    hopeless = threading.Event()

    def upload_one(path: Path) -> _Outcome:
        if hopeless.is_set():
            return _Outcome(path=path)
        request = image_service_pb2.UploadImageRequest(request_id=uuid.uuid4().hex)
        request.MergeFrom(draft)
        try:
            request.content = _read(path)
            return _Outcome(path=path, response=client.call(client.stub.UploadImage, request))
        except CallError as error:
            if error.code in HOPELESS:
                hopeless.set()
            return _Outcome(path=path, error=error)

    pool = ThreadPoolExecutor(jobs)
    try:
        yield from pool.map(upload_one, files)
    finally:
        # After Ctrl-C the threads end as soon as the caller closes the connection.
        hopeless.set()
        pool.shutdown(wait=False, cancel_futures=True)


def _read(path: Path) -> bytes:
    """Return a file's bytes; what stands in the way becomes the error of this file."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _unreadable(error.strerror or str(error)) from error
    if len(content) > _MAX_FILE_BYTES:
        msg = f"larger than {_MAX_FILE_BYTES:,} bytes"
        raise _unreadable(msg)
    return content


def _unreadable(message: str) -> CallError:
    """Return the error of a file that was never sent, with a reason that no server gives."""
    return CallError(grpc.StatusCode.INVALID_ARGUMENT, message, reason="FILE_UNREADABLE")


@contextlib.contextmanager
def _progress(total: int, caller: Caller) -> Iterator[Callable[[], None]]:
    """Show a bar on stderr, where a person can see it and it disturbs no output."""
    console = Console(stderr=True)
    disturbs = caller.as_json and sys.stdout.isatty()
    with Progress(
        TextColumn("uploading"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        # Redirecting would send what belongs on stdout to stderr.
        redirect_stdout=False,
        redirect_stderr=False,
        disable=disturbs or not console.is_terminal,
    ) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)


def _print_rows(outcomes: Sequence[_Outcome]) -> None:
    # Without the folder that all have in common, which would leave no room for tags.
    shared = os.path.commonpath([outcome.path.absolute().parent for outcome in outcomes])
    rows = [
        (
            os.path.relpath(outcome.path, shared),
            outcome.response.image.id,
            "new" if outcome.response.created else "known",
            wording.image_state(outcome.response.image),
            wording.tags(outcome.response.image.tags, most=_TOP_TAGS),
        )
        for outcome in outcomes
        if outcome.response is not None
    ]
    if rows:
        print_table(("file", "id", "stored", "state", "tags"), rows)


def _print_summary(outcomes: Sequence[_Outcome]) -> None:
    stored = [outcome.response for outcome in outcomes if outcome.response is not None]
    failed = sum(outcome.error is not None for outcome in outcomes)
    parts = {
        "new": sum(response.created for response in stored),
        "known": sum(not response.created for response in stored),
        "failed": failed,
        "not tried": len(outcomes) - len(stored) - failed,
    }
    told = ", ".join(f"{number:,} {what}" for what, number in parts.items() if number)
    click.echo(f"{wording.count(len(outcomes), 'file')}: {told}", err=True)


def _exit_code(outcomes: Sequence[_Outcome]) -> int:
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    for error in errors:
        if error.code in HOPELESS:
            return exit_code_of(error)
    return EXIT_FAILED if errors else 0

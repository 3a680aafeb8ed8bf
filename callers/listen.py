"""`picback listen`: shows what callbacks bring, on one's own machine."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from callers import wording
from callers.errors import EXIT_INTERRUPTED, fail
from callers.options import given_secret, json_option
from callers.param_types import StatusListType
from callers.tables import one_line, print_json

if TYPE_CHECKING:
    from callers.receiver import Arrival


@click.command("listen")
@click.option(
    "--host",
    default="127.0.0.1",
    envvar="PICBACK_LISTEN_HOST",
    show_envvar=True,
    show_default=True,
    help="The address to listen on.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    envvar="PICBACK_LISTEN_PORT",
    show_envvar=True,
    show_default=True,
    help="0 picks a free port. The first line printed names it.",
)
@click.option(
    "--secret",
    metavar="whsec_...",
    envvar="PICBACK_SIGNING_SECRET",
    show_envvar=True,
    help="The signing secret of the API key that queries are submitted with. Callbacks"
    " that it did not sign are refused. Without one, all are shown as not verified.",
)
@click.option(
    "--secret-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    envvar="PICBACK_SIGNING_SECRET_FILE",
    show_envvar=True,
    help="A file with the secret, or what `picback keys create --json` printed.",
)
@click.option(
    "--save",
    "folder",
    metavar="FOLDER",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="PICBACK_LISTEN_SAVE",
    show_envvar=True,
    help="Write the pictures there, each under its query's id.",
)
@click.option(
    "--answer",
    "answers",
    metavar="STATUS[,STATUS...]",
    type=StatusListType(),
    default="204",
    envvar="PICBACK_LISTEN_ANSWER",
    show_envvar=True,
    show_default=True,
    help="HTTP statuses to answer with, in turn, the last for ever: 503,503,204 fails twice.",
)
@click.option(
    "--delay",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=0,
    envvar="PICBACK_LISTEN_DELAY",
    show_envvar=True,
    show_default=True,
    help="Wait before each answer.",
)
@click.option(
    "--count",
    metavar="N",
    type=click.IntRange(min=1),
    envvar="PICBACK_LISTEN_COUNT",
    show_envvar=True,
    help="End after so many callbacks that were not refused.",
)
@json_option
def listen(
    *,
    host: str,
    port: int,
    secret: str | None,
    secret_file: Path | None,
    folder: Path | None,
    answers: tuple[int, ...],
    delay: float,
    count: int | None,
    as_json: bool,
) -> None:
    """Receive callbacks: check their signatures, show them, save the pictures.

    A server refuses to call loopback unless told so: `picback serve --allow-callback
    127.0.0.1:8080`.
    """
    # Imported late, so that the other commands need not wait for models' libraries.
    from callers.receiver import Receiver  # noqa: PLC0415

    enough = threading.Event()
    good = 0

    def show(arrival: Arrival) -> None:
        nonlocal good
        print_json(_document(arrival)) if as_json else _print(arrival)
        good += not arrival.problem
        if good == count:
            enough.set()

    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"{folder}: {error.strerror}")
    try:
        receiver = Receiver(
            (host, port),
            secret=given_secret("secret", secret, secret_file, field="signing_secret"),
            answers=answers,
            delay=delay,
            folder=folder,
            on_arrival=show,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except OSError as error:
        fail(f"cannot listen on {host}:{port}: {error.strerror}")
    try:
        receiver.start()
        if as_json:
            print_json({"listening": receiver.url})
        else:
            click.echo(f"listening on {receiver.url}")
        enough.wait()
    except KeyboardInterrupt:
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    finally:
        receiver.close()


def _document(arrival: Arrival) -> dict[str, Any]:
    return {
        "webhook_id": arrival.webhook_id,
        "verified": arrival.verified,
        "status": arrival.status,
        "problem": arrival.problem,
        "duplicate": arrival.duplicate,
        "type": arrival.type,
        "data": arrival.data,
        "size_bytes": None if arrival.content is None else len(arrival.content),
        "saved": None if arrival.saved is None else str(arrival.saved),
    }


def _print(arrival: Arrival) -> None:
    now = datetime.now(UTC).strftime("%H:%M:%SZ")
    if arrival.problem:
        told = click.style(f"refused: {one_line(arrival.problem)}", fg="red")
        click.echo(f"{now}  {arrival.status}  {told}")
        return
    signature = (
        click.style("signature verified", fg="green")
        if arrival.verified
        else click.style("signature not verified", fg="yellow")
    )
    again = "  (seen before)" if arrival.duplicate else ""
    click.echo(f"{now}  {arrival.status}  {one_line(arrival.webhook_id)}  {signature}{again}")
    for label, value in _facts(arrival):
        click.echo(f"           {label:<8}{one_line(value)}")


def _facts(arrival: Arrival) -> list[tuple[str, str]]:
    """Return what a callback says, label and value; it may say anything."""
    data = arrival.data
    facts = [("text", str(data.get("text"))), ("lemmas", _joined(data.get("lemmas")))]
    if arrival.content is None:
        return [*facts, ("match", "nothing")]
    matched = data.get("matched_tags")
    tags = [
        f"{tag.get('name')} {tag.get('confidence')}"
        for tag in (matched if isinstance(matched, list) else ())
        if isinstance(tag, dict)
    ]
    image = data.get("image")
    media_type = image.get("media_type") if isinstance(image, dict) else "?"
    saved = f", saved as {arrival.saved}" if arrival.saved else ""
    return [
        *facts,
        ("match", f"{', '.join(tags)}; score {data.get('score')}"),
        ("image", f"{media_type}, {wording.size(len(arrival.content))}{saved}"),
    ]


def _joined(values: object) -> str:
    return ", ".join(str(value) for value in values) if isinstance(values, list) else str(values)

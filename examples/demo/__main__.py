"""picback end to end: photos in, words in, pictures called back, and every promise checked.

`make demo` runs it: a service on a free port with the local tagger, the photos beside this
folder, a receiver, some queries. What came back is left in demo-output/. The exit code is 1
if anything is not as promised: a callback missing, a signature wrong, a byte changed.
"""

from __future__ import annotations

import argparse
import base64
import re
import sys
import tempfile
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from examples.demo.contact_sheet import Card, Tag, write_html
from examples.demo.contact_sheet_png import write_png
from examples.demo.credits import read_credits
from examples.demo.service import ServiceError, serving
from examples.python.receiver import Receiver
from picback.v1 import image_service_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from picback.v1 import image_pb2, image_service_pb2_grpc

PHOTOS: Final = Path(__file__).parents[1] / "photos"
#: What is asked, and the photo that fits; None where none does.
QUERIES: Final = {
    "dogs running on beaches": "dogs.jpg",
    "a giant panda": "panda.jpg",
    "The tiger crept through the snow": "tiger.jpg",
    "Two cups of espresso, please": "coffee.jpg",
    "wine glasses and bottles on a table": "wine.jpg",
    "Roman architecture with domes": "colosseum.jpg",
    "an airplane taking off from a ship": "fighter-jet.jpg",
    "an otter resting on a rock": "otter.jpg",
    "birds of prey": "osprey.jpg",
    "frying pans in the kitchen": "frying-pan.jpg",
    "a quiet stream in a green valley": "woodland-stream.jpg",
    "quarterly revenue forecast": None,
}
#: Seconds until every callback has to be there.
PATIENCE: Final = 60.0


class Inbox:
    """What the receiver has taken, by query id. Filled and read by different threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._callbacks: dict[str, dict[str, Any]] = {}

    def put(self, query_id: str, callback: dict[str, Any]) -> None:
        """Keep a callback whose signature was verified."""
        with self._changed:
            self._callbacks[query_id] = callback
            self._changed.notify_all()

    def wait_for(self, query_ids: Sequence[str], *, timeout: float) -> Mapping[str, dict[str, Any]]:
        """Return what is there as soon as nothing is missing, or after *timeout* seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._callbacks.keys() >= set(query_ids), timeout)
            return dict(self._callbacks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back for one query, and what is wrong with it: nothing, as promised."""

    card: Card
    came: bool
    identical: bool
    problem: str


def main() -> int:
    """Run the demo; 0 when everything is as promised."""
    parser = argparse.ArgumentParser(prog="demo", description="picback end to end")
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    output: Path = parser.parse_args().output
    # Not on a terminal there is nobody whose window could be too narrow.
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    try:
        answers = run(console)
    except (ServiceError, grpc.RpcError) as error:
        console.print(f"The demo failed: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        return 130
    output.mkdir(parents=True, exist_ok=True)
    cards = [answer.card for answer in answers]
    for old in output.glob("[0-9][0-9]-*"):
        old.unlink()
    for number, card in enumerate(cards, start=1):
        if card.picture is not None:
            (output / f"{number:02}-{slug(card.query)}{card.suffix}").write_bytes(card.picture)
    summary = summarise(answers)
    write_html(cards, output / "contact-sheet.html", summary=summary)
    write_png(cards, output / "contact-sheet.png", summary=summary)
    return report(console, answers, output)


def run(console: Console) -> list[Answer]:
    """Start everything, upload, query; return what came back once all is stopped again.

    Raises:
        ServiceError: The service did not start, or did not stop as it should.
        grpc.RpcError: It refused a call.
    """
    inbox = Inbox()
    # The receiver's port comes first: the service is told that it may call it.
    receiver = Receiver(0, secret="", handle=inbox.put)
    with (
        receiver,
        tempfile.TemporaryDirectory(prefix="picback-demo-") as folder,
        serving(Path(folder), allow_callback=f"127.0.0.1:{receiver.server_port}") as service,
    ):
        console.print(f"✓ picback serves on {service.address}, with the local tagger")
        receiver.secret = service.signing_secret
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        callback_url = f"http://127.0.0.1:{receiver.server_port}/"

        photos = {path.name: path.read_bytes() for path in sorted(PHOTOS.glob("*.[jp][pn]g"))}
        started = time.monotonic()
        images = upload(service.stub, service.metadata, photos, console)
        tags = sum(len(image.tags) for image in images)
        seconds = time.monotonic() - started
        console.print(f"✓ {len(images)} photos uploaded, {tags} tags found, in {seconds:.1f} s")

        started = time.monotonic()
        query_ids = [
            service.stub.SubmitQuery(
                image_service_pb2.SubmitQueryRequest(
                    text=text, callback_url=callback_url, request_id=str(uuid.uuid4())
                ),
                timeout=30,
                metadata=service.metadata,
            ).query.id
            for text in QUERIES
        ]
        callbacks = inbox.wait_for(query_ids, timeout=PATIENCE)
        seconds = time.monotonic() - started
        console.print(
            f"✓ {len(callbacks)} of {len(query_ids)} queries answered by callbacks in {seconds:.1f} s"
        )
        receiver.shutdown()
    credit_lines = read_credits(PHOTOS / "CREDITS.md")
    return [
        check(text, callbacks.get(query_id), photos, credit_lines)
        for text, query_id in zip(QUERIES, query_ids, strict=True)
    ]


def upload(
    stub: image_service_pb2_grpc.ImageServiceStub,
    metadata: tuple[tuple[str, str]],
    photos: Mapping[str, bytes],
    console: Console,
) -> list[image_pb2.Image]:
    """Upload all photos, some at the same time, and return what became of them."""

    def upload_one(content: bytes) -> image_pb2.Image:
        request = image_service_pb2.UploadImageRequest(
            content=content, request_id=str(uuid.uuid4())
        )
        return stub.UploadImage(request, timeout=PATIENCE, metadata=metadata).image

    with (
        ThreadPoolExecutor(4) as pool,
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        uploads = pool.map(upload_one, photos.values())
        return list(progress.track(uploads, total=len(photos), description="uploading photos"))


def check(
    text: str,
    callback: dict[str, Any] | None,
    photos: Mapping[str, bytes],
    credit_lines: Mapping[str, str],
) -> Answer:
    """Compare a callback, or its absence, with what was promised for *text*."""
    expected = QUERIES[text]
    if callback is None:
        card = Card(query=text, lemmas=(), tags=(), score=0, picture=None, media_type="")
        return Answer(card=card, came=False, identical=False, problem="no callback came")
    facts, result = callback["data"], callback["result"]
    picture = None if result is None else base64.b64decode(result, validate=True)
    name = next((name for name, content in photos.items() if content == picture), None)
    card = Card(
        query=text,
        lemmas=tuple(facts["lemmas"]),
        tags=tuple(
            Tag(name=tag["name"], lemma=tag["lemma"], confidence=tag["confidence"])
            for tag in facts["matched_tags"]
        ),
        score=facts["score"],
        picture=picture,
        media_type="" if picture is None else facts["image"]["media_type"],
        name=name or "",
        credit=credit_lines.get(name or "", ""),
    )
    type_ = "query.unmatched" if expected is None else "query.matched"
    problem = ""
    if callback["type"] != type_:
        problem = f"{callback['type']} instead of {type_}"
    elif picture is not None and name is None:
        problem = "the picture is none of those uploaded"
    elif name != expected:
        problem = f"the picture is {name}, not {expected}"
    identical = picture is not None and name is not None
    return Answer(card=card, came=True, identical=identical, problem=problem)


def report(console: Console, answers: Sequence[Answer], output: Path) -> int:
    """Print what came back; return 0 when everything is as promised."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("query, and its lemmas")
    table.add_column("picture, and why")
    table.add_column("score", justify="right")
    table.add_column("signed", justify="center")
    table.add_column("identical", justify="center")
    for answer in answers:
        card = answer.card
        matched = card.picture is not None
        tags = ", ".join(f"{tag.name} {tag.confidence:.2f}" for tag in card.tags)
        table.add_row(
            Text.assemble(card.query, "\n", (" ".join(card.lemmas), "dim")),
            Text.assemble(card.name or "none", "\n", (tags or "nothing matches", "dim")),
            f"{card.score:.2f}" if matched else "-",
            _mark(good=answer.came),
            _mark(good=answer.identical) if matched else Text("-"),
        )
    console.print(table)
    problems = [(answer.card.query, answer.problem) for answer in answers if answer.problem]
    for query, problem in problems:
        console.print(Text(f"✗ {query!r}: {problem}", "red"))
    if problems:
        return 1
    console.print(f"✓ all {len(answers)} answers are as promised")
    console.print(f"✓ look at {output / 'contact-sheet.html'}", markup=False)
    return 0


def summarise(answers: Sequence[Answer]) -> str:
    """Return what came back, in a sentence or two that are true."""
    pictures = sum(answer.identical for answer in answers)
    problems = sum(answer.problem != "" for answer in answers)
    verdict = (
        f"{problems} answers are not as promised."
        if problems
        else "Every callback's signature was verified, and every picture is byte for byte the one"
        " that was uploaded."
    )
    return f"{len(answers)} queries, {pictures} pictures. {verdict}"


def slug(text: str) -> str:
    """Return *text* as a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _mark(*, good: bool) -> Text:
    return Text("✓", "green") if good else Text("✗", "red")


if __name__ == "__main__":
    sys.exit(main())

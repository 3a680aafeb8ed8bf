"""The callers' commands against a real server: what they print, where, and how they end."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import grpc
import pytest
from click.testing import CliRunner

from callers.images import images
from callers.listen import listen
from callers.queries import match, queries, query
from callers.upload import upload
from picback.v1 import image_service_pb2
from server.cli import main
from server.config import TlsSettings
from tests.callers.fake_service import FakeService, serving
from tests.receiver import Answer, Receiver
from tests.service import picture, running

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from click.testing import Result

    from tests.service import Service

TLS = Path(__file__).parents[1] / "dispatcher/tls"
DOCS = Path(__file__).parents[2] / "docs/cli.md"
#: An address that nobody listens at.
NOBODY = "127.0.0.1:1"


def _run(service: Service, *arguments: str, **environment: str) -> Result:
    """Run `picback` with *arguments* against *service*."""
    return _run_at(service.address, *arguments, PICBACK_API_KEY=service.api_key, **environment)


def _run_at(address: str, *arguments: str, **environment: str) -> Result:
    runner = CliRunner(env={"PICBACK_ADDRESS": address, **environment})
    return runner.invoke(main, list(arguments))


def _documents(result: Result) -> list[Any]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def _upload(service: Service, content: bytes, *tags: str) -> str:
    """Upload *content* with tags of its own and return the image's id."""
    request = image_service_pb2.UploadImageRequest(content=content)
    for tag in tags:
        request.tags.add(name=tag)
    return service.stub.UploadImage(request, metadata=service.metadata).image.id


def _submit(service: Service, text: str, callback_url: str) -> str:
    request = image_service_pb2.SubmitQueryRequest(text=text, callback_url=callback_url)
    return service.stub.SubmitQuery(request, metadata=service.metadata).query.id


# --- upload


def test_upload_tells_of_each_file_its_id_and_tags_and_whether_it_is_new(
    service: Service, tmp_path: Path
) -> None:
    path = tmp_path / "dog.png"
    path.write_bytes(picture(1))
    first = _run(service, "upload", str(path), "--tag", "dog", "--tag", "space suit=0.25")
    second = _run(service, "upload", str(path))

    assert 0 == first.exit_code
    assert "" == first.stderr
    heading, row = (line.split("  ") for line in first.stdout.splitlines())
    assert ["FILE", "ID", "STORED", "STATE", "TAGS"] == [cell.strip() for cell in heading if cell]
    name, image_id, stored, state, tags = (cell.strip() for cell in row if cell)
    assert ("dog.png", "new", "READY") == (name, stored, state)
    assert "dog 1.00, space suit 0.25" == tags
    assert image_id.startswith("img_")
    assert f"dog.png  {image_id}  known" in second.stdout


def test_a_file_that_is_no_image_does_not_stop_the_others(service: Service, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    for number in (1, 2):
        (tmp_path / f"{number}.png").write_bytes(picture(10 + number))
    paths = [str(tmp_path / name) for name in ("1.png", "notes.txt", "missing.png", "2.png")]
    result = _run(service, "upload", *paths)

    assert 1 == result.exit_code
    stored = [line.split()[0] for line in result.stdout.splitlines()[1:]]
    assert ["1.png", "2.png"] == stored
    refused, missing, summary = result.stderr.splitlines()
    assert refused.startswith(f"picback: {paths[1]}: ")
    assert refused.endswith("(IMAGE_UNSUPPORTED)")
    assert f"picback: {paths[2]}: No such file or directory (FILE_UNREADABLE)" == missing
    assert "4 files: 2 new, 2 failed" == summary


def test_upload_prints_one_json_document_for_each_file_in_their_order(
    service: Service, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(picture(20))
    bad.write_bytes(picture(21)[:-20])
    result = _run(service, "upload", "--json", "--tag", "sea", str(bad), str(good))

    refused, stored = _documents(result)
    assert 1 == result.exit_code
    assert str(bad) == refused["file"]
    assert {"code", "reason", "message", "violations"} == set(refused["error"])
    assert "IMAGE_DAMAGED" == refused["error"]["reason"]
    assert str(good) == stored["file"]
    assert stored["created"] is True
    image = stored["image"]
    assert "IMAGE_STATE_READY" == image["state"]
    assert hashlib.sha256(good.read_bytes()).hexdigest() == image["sha256"]
    assert [{"name": "sea", "confidence": 1.0, "source": "TAG_SOURCE_CALLER", "model": ""}] == (
        image["tags"]
    )


def test_fields_without_a_value_stand_in_the_json_too(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "plain.png"
    path.write_bytes(picture(22))
    (document,) = _documents(_run(service, "upload", "--json", str(path)))

    assert [] == document["image"]["tags"]


def test_a_folder_stands_for_the_images_in_it_and_below(service: Service, tmp_path: Path) -> None:
    names = ["b.JPG", "a.png", "below/c.tiff", "notes.txt", ".hidden.png", ".cache/d.png"]
    for number, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture(30 + number))
    result = _run(service, "upload", "--json", str(tmp_path))

    taken = [Path(document["file"]).relative_to(tmp_path) for document in _documents(result)]
    assert ["a.png", "b.JPG", "below/c.tiff"] == [str(path) for path in taken]


def test_a_folder_without_images_is_a_failure(service: Service, tmp_path: Path) -> None:
    result = _run(service, "upload", str(tmp_path))

    assert (1, "", "picback: no image files there\n") == (
        result.exit_code,
        result.stdout,
        result.stderr,
    )


def test_uploads_are_under_way_at_the_same_time(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    together = threading.Barrier(3, timeout=30)
    fake = FakeService(during_upload=together.wait)
    with serving(fake) as address:
        result = _run_at(address, "upload", str(tmp_path), "--jobs", "3", "--no-wait")

    assert 0 == result.exit_code
    assert all(request.no_wait for request in fake.requests)
    assert 3 == len({request.request_id for request in fake.requests})


def test_without_a_right_key_no_further_file_is_tried(service: Service, tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(picture(40))
    result = _run_at(
        service.address, "upload", str(tmp_path), "--jobs", "1", PICBACK_API_KEY="pbk_wrong"
    )

    assert 4 == result.exit_code
    error, summary = result.stderr.splitlines()
    assert error.endswith("(API_KEY_INVALID)")
    assert "5 files: 1 failed, 4 not tried" == summary


# --- match and query


def test_match_shows_the_lemmas_and_why_an_image_matches(service: Service) -> None:
    image_id = _upload(service, picture(50), "walrus", "space suit")
    result = _run(service, "match", "Walruses in a space suit")
    document = json.loads(_run(service, "match", "Walruses in a space suit", "--json").stdout)

    lemmas, empty, heading, best, *_ = result.stdout.splitlines()
    assert 0 == result.exit_code
    assert ("lemmas  walrus, in, a, space, suit", "") == (lemmas, empty)
    assert ["ID", "SCORE", "MATCHED", "TAGS"] == heading.split()
    assert f"{image_id}  2.00   space suit 1.00, walrus 1.00" == best
    assert ["walrus", "in", "a", "space", "suit"] == document["lemmas"]
    assert image_id == document["matches"][0]["image_id"]
    assert 2.0 == document["matches"][0]["score"]


def test_a_text_that_matches_nothing_is_no_failure(service: Service) -> None:
    result = _run(service, "match", "quarterly revenue")

    assert 0 == result.exit_code
    assert "lemmas  quarterly, revenue\nnothing matches\n" == result.stdout


def test_query_watch_tells_what_happens_and_ends_well_when_delivered(
    calling_service: Service, receiver: Receiver
) -> None:
    image_id = _upload(calling_service, picture(51), "heron")
    result = _run(calling_service, "query", "Herons", "--callback", receiver.url, "--watch")

    assert 0 == result.exit_code
    sent = json.loads(receiver.requests[-1].body)
    query_id = sent["data"]["query_id"]
    assert image_id == sent["data"]["image"]["id"]
    assert f"{query_id}  DELIVERED  attempt 1: 200" == result.stdout.splitlines()[-1]


def test_query_watch_fails_when_the_query_does(tmp_path: Path) -> None:
    with (
        Receiver(lambda _: (410, {}, b"")) as gone,
        running(tmp_path / "data", allow_callback=(gone.address,)) as service,
    ):
        result = _run(service, "query", "anything", "--callback", gone.url, "--watch", "--json")

    assert 1 == result.exit_code
    last = _documents(result)[-1]
    assert "QUERY_STATE_FAILED" == last["state"]
    assert [410] == [attempt["http_status"] for attempt in last["attempts"]]


def test_the_same_request_id_is_one_query(calling_service: Service, receiver: Receiver) -> None:
    arguments = ["query", "herons", "--callback", receiver.url, "--request-id", "only-one"]
    first, second = (_run(calling_service, *arguments) for _ in range(2))

    query_id = first.stdout.split()[0]
    assert query_id == second.stdout.split()[0]
    assert second.stdout.rstrip().endswith("submitted before")


@pytest.mark.parametrize(
    ("span", "seconds"),
    [("90", 90), ("90s", 90), ("15m", 900), ("1h30m", 5400), ("2d", 172_800)],
)
def test_give_up_after_takes_a_span_of_time(span: str, seconds: int) -> None:
    options = {parameter.name: parameter for parameter in query.params}

    assert seconds == options["give_up_after"].type.convert(span, None, None)


@pytest.mark.parametrize("span", ["", "1 h", "1.5h", "-5", "h", "5w", "٣s"])
def test_what_is_no_span_of_time_is_a_usage_error(service: Service, span: str) -> None:
    result = _run(service, "query", "x", "--callback", "http://x.test", "--give-up-after", span)

    assert 2 == result.exit_code
    assert "a span of time is written like" in result.stderr


def test_the_fields_that_a_server_refuses_are_named(service: Service) -> None:
    result = _run(service, "query", "", "--callback", "")

    assert 1 == result.exit_code
    assert "" == result.stdout
    assert (
        "picback: text: must not be empty; callback_url: must not be empty (FIELD_INVALID)\n"
        == result.stderr
    )


# --- queries


def test_queries_list_filters_by_state_and_stops_at_its_limit(
    calling_service: Service, receiver: Receiver
) -> None:
    waiting = [_submit(calling_service, f"wait {n}", f"http://{NOBODY}/") for n in range(3)]
    delivered = _submit(calling_service, "arrive", receiver.url)
    _run(calling_service, "queries", "watch", delivered)
    found = _run(calling_service, "queries", "list", "--state", "delivering", "--json")
    two = _run(calling_service, "queries", "list", "--state", "DELIVERING", "--limit", "2")

    ids = [document["id"] for document in _documents(found)]
    assert set(waiting) <= set(ids)
    assert delivered not in ids
    heading, *rows = two.stdout.splitlines()
    assert ["ID", "STATE", "ATTEMPTS", "ACCEPTED", "TEXT"] == heading.split()
    assert 2 == len(rows)


def test_queries_show_prints_every_attempt(tmp_path: Path) -> None:
    answers = [Answer(410, {}, b"moved away"), Answer(200)]
    with (
        Receiver(answers) as receiver,
        running(tmp_path / "data", allow_callback=(receiver.address,)) as service,
    ):
        query_id = _submit(service, "a heron", receiver.url)
        _run(service, "queries", "watch", query_id)
        _run(service, "queries", "redeliver", query_id)
        _run(service, "queries", "watch", query_id)
        result = _run(service, "queries", "show", query_id)

    facts, _, attempts = result.stdout.partition("\n\n")
    labels = [line.split("  ")[0] for line in facts.splitlines()]
    assert ["query", "state", "text", "lemmas", "match", "callback", "accepted", "ended"] == labels
    heading, first, second = attempts.splitlines()
    assert ["ATTEMPT", "STARTED", "TOOK", "ANSWER", "EXPLANATION"] == heading.split()
    assert first.startswith("1 ")
    assert "410 RECEIVER_GONE" in first
    assert second.startswith("2 ")
    assert "200" in second


def test_each_query_is_cancelled_even_if_one_of_them_is_unknown(calling_service: Service) -> None:
    first, second = (_submit(calling_service, "wait", f"http://{NOBODY}/") for _ in range(2))
    unknown = "qry_" + "0" * 26
    result = _run(calling_service, "queries", "cancel", first, unknown, second)

    assert 5 == result.exit_code
    assert [f"{first}  CANCELLED", f"{second}  CANCELLED"] == result.stdout.splitlines()
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"picback: {unknown}: ")
    assert line.endswith("(QUERY_NOT_FOUND)")


def test_a_query_in_the_wrong_state_is_a_failure_of_its_own(calling_service: Service) -> None:
    waiting = _submit(calling_service, "wait", f"http://{NOBODY}/")
    unknown = "qry_" + "0" * 26
    result = _run(calling_service, "queries", "redeliver", waiting, unknown)

    assert 1 == result.exit_code  # not 5: the two failures differ
    assert ["STATE_CONFLICT", "QUERY_NOT_FOUND"] == [
        line.rpartition("(")[2].rstrip(")") for line in result.stderr.splitlines()
    ]


def test_queries_of_a_state_and_a_receiver_are_redelivered_together(tmp_path: Path) -> None:
    gone, back = [Answer(410), Answer(410)], [Answer(410)]
    with (
        Receiver(gone) as receiver,
        Receiver(back) as other,
        running(tmp_path / "data", allow_callback=(receiver.address, other.address)) as service,
    ):
        lost = [_submit(service, "a heron", receiver.url) for _ in range(2)]
        elsewhere = _submit(service, "a heron", other.url)
        for each in (*lost, elsewhere):
            _run(service, "queries", "watch", each)
        chosen = ("queries", "redeliver", "--state", "failed", "--to", receiver.url)
        planned = _run(service, *chosen, "--dry-run")
        done = _run(service, *chosen)
        for each in lost:
            _run(service, "queries", "watch", each)
        left = _run(service, "queries", "list", "--state", "failed", "--json")

    assert (planned.exit_code, planned.stderr) == (0, "")
    assert set(lost) == {line.split()[0] for line in planned.stdout.splitlines()}
    assert {"FAILED"} == {line.split()[1] for line in planned.stdout.splitlines()}
    assert set(lost) == {line.split()[0] for line in done.stdout.splitlines()}
    assert [elsewhere] == [document["id"] for document in _documents(left)]


@pytest.mark.parametrize("arguments", [(), ("--to", "http://a/"), ("qry_1", "--state", "failed")])
def test_redelivering_takes_either_ids_or_a_state(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, ["queries", "redeliver", *arguments])

    assert 2 == result.exit_code
    assert "give ids of queries, or --state" in result.stderr


# --- images


def test_images_list_and_show_print_what_is_stored(service: Service) -> None:
    content = picture(60, size=(12, 7))
    image_id = _upload(service, content, "puffin", "sea")
    (newest,) = _documents(_run(service, "images", "list", "--limit", "1", "--json"))
    table = _run(service, "images", "list", "--limit", "1").stdout
    facts = _run(service, "images", "show", image_id).stdout

    assert image_id == newest["id"]
    assert str(len(content)) == newest["size_bytes"]
    assert ["ID", "STATE", "STORED", "TAGS"] == table.splitlines()[0].split()
    assert f"{image_id}  READY  " in table
    assert "pixels  12 x 7\n" in facts
    assert f"sha256  {hashlib.sha256(content).hexdigest()}\n" in facts
    assert ["puffin", "1.000000", "a", "caller"] == facts.splitlines()[-2].split()


def test_images_get_writes_the_very_bytes(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = picture(61, format_="JPEG")
    image_id = _upload(service, content)
    named = _run(service, "images", "get", image_id)
    piped = _run(service, "images", "get", image_id, "--output", "-")
    again = _run(service, "images", "get", image_id)
    forced = _run(service, "images", "get", image_id, "--force", "--json")

    assert (0, 0, 1, 0) == tuple(each.exit_code for each in (named, piped, again, forced))
    assert content == (tmp_path / f"{image_id}.jpg").read_bytes()
    assert content == piped.stdout_bytes
    assert "is there already" in again.stderr
    assert f"{image_id}.jpg" == json.loads(forced.stdout)["file"]


def test_images_get_tells_why_it_cannot_write(service: Service, tmp_path: Path) -> None:
    image_id = _upload(service, picture(62))
    result = _run(service, "images", "get", image_id, "-o", str(tmp_path / "missing/x.png"))

    assert 1 == result.exit_code
    assert f"picback: {tmp_path}/missing/x.png: No such file or directory\n" == result.stderr


def test_images_tag_sets_and_removes(service: Service) -> None:
    image_id = _upload(service, picture(63), "dog", "sea")
    arguments = ["--set", "a=b=0.5", "--remove", "dog", "--json"]
    (document,) = _documents(_run(service, "images", "tag", image_id, *arguments))
    nothing = _run(service, "images", "tag", image_id)

    assert [("sea", 1.0), ("a=b", 0.5)] == [
        (tag["name"], tag["confidence"]) for tag in document["tags"]
    ]
    assert 2 == nothing.exit_code


def test_several_tags_in_a_variable_are_parted_by_commas(service: Service) -> None:
    image_id = _upload(service, picture(64))
    result = _run(
        service, "images", "tag", image_id, "--json", PICBACK_IMAGES_TAG_SET="space suit=0.5,dog"
    )

    (document,) = _documents(result)
    assert ["dog", "space suit"] == [tag["name"] for tag in document["tags"]]


@pytest.mark.parametrize("tag", ["dog=1.5", "dog=0", "dog=-1", "dog=much", "dog=nan", "dog="])
def test_a_confidence_that_cannot_be_is_a_usage_error(service: Service, tag: str) -> None:
    result = _run(service, "images", "tag", "img_x", "--set", tag)

    assert 2 == result.exit_code
    assert "after = comes a confidence" in result.stderr


def test_images_delete_deletes_and_forgives_what_is_missing_on_request(service: Service) -> None:
    image_id = _upload(service, picture(65))
    deleted = _run(service, "images", "delete", image_id, "--json")
    missing = _run(service, "images", "delete", image_id)
    forgiven = _run(service, "images", "delete", image_id, "--allow-missing")

    assert (0, 5, 0) == (deleted.exit_code, missing.exit_code, forgiven.exit_code)
    assert [{"image_id": image_id}] == _documents(deleted)


# --- reaching the server


def test_a_server_that_is_not_there_is_told_in_one_line() -> None:
    result = _run_at(NOBODY, "images", "list")

    assert 3 == result.exit_code
    assert "" == result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"picback: cannot reach a server at {NOBODY}: ")


def test_a_missing_key_is_told_with_what_to_do(service: Service) -> None:
    result = _run_at(service.address, "images", "list")

    assert 4 == result.exit_code
    assert "(API_KEY_MISSING): set PICBACK_API_KEY or give --api-key-file" in result.stderr


def test_a_key_without_the_scope_is_told_apart_from_no_key(service: Service) -> None:
    key = service.make_key("reader", scopes=("queries.read",))
    result = _run_at(service.address, "images", "list", PICBACK_API_KEY=key)

    assert 4 == result.exit_code
    assert result.stderr.rstrip().endswith("(SCOPE_MISSING)")


@pytest.mark.parametrize("form", ["{}\n", '{{"id": "key_1", "key": "{}"}}'])
def test_the_key_can_stand_in_a_file_alone_or_as_keys_create_prints_it(
    service: Service, tmp_path: Path, form: str
) -> None:
    path = tmp_path / "key"
    path.write_text(form.format(service.api_key))

    assert 0 == _run_at(service.address, "images", "list", "--api-key-file", str(path)).exit_code


def test_what_stands_on_the_command_line_counts_more_than_a_variable(
    service: Service, tmp_path: Path
) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text(service.api_key)
    wrong.write_text("pbk_wrong")
    by_file = _run_at(
        service.address, "images", "list", "--api-key-file", str(right), PICBACK_API_KEY="pbk_wrong"
    )
    by_key = _run_at(
        service.address,
        "images",
        "list",
        "--api-key",
        service.api_key,
        PICBACK_API_KEY_FILE=str(wrong),
    )
    undecided = _run_at(
        service.address, "images", "list", PICBACK_API_KEY="a", PICBACK_API_KEY_FILE=str(wrong)
    )

    assert (0, 0, 2) == (by_file.exit_code, by_key.exit_code, undecided.exit_code)


@pytest.mark.parametrize("content", [b"", b"two words", b'{"id": 1}', b"{", b"\xff", b"x" * 20_000])
def test_a_file_without_a_key_is_a_usage_error(
    service: Service, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    result = _run_at(service.address, "images", "list", "--api-key-file", str(path))

    assert 2 == result.exit_code
    assert "holds neither a secret alone nor JSON with 'key'" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--address", "http://127.0.0.1:50051"),
        ("--api-key", "pbk_\n"),
        ("--api-key-file", "/nowhere/key"),
        ("--timeout", "0"),
        ("--tls-cert", str(TLS / "receiver.pem")),  # without its key
    ],
)
def test_options_that_cannot_work_are_usage_errors(arguments: Sequence[str]) -> None:
    assert 2 == _run_at(NOBODY, "images", "list", *arguments).exit_code


@pytest.fixture(scope="module")
def tls_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server that speaks TLS and asks callers for a certificate."""
    pair = TLS / "receiver.pem"  # certificate and key in one file
    tls = TlsSettings(certificate=pair, key=pair, client_ca=TLS / "ca.pem")
    with running(tmp_path_factory.mktemp("tls") / "data", tls=tls) as service:
        yield service


def test_tls_with_a_certificate_of_ones_own(tls_service: Service) -> None:
    pair = str(TLS / "receiver.pem")
    trusting = ["--tls-ca", str(TLS / "ca.pem")]
    proper = _run(tls_service, "images", "list", *trusting, "--tls-cert", pair, "--tls-key", pair)
    nameless = _run(tls_service, "images", "list", *trusting)
    distrusting = _run(tls_service, "images", "list", "--tls")

    assert (0, 3, 3) == (proper.exit_code, nameless.exit_code, distrusting.exit_code)


# --- all commands alike


def _commands(group: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(group, click.Group):
        for key, command in group.commands.items():
            yield from _commands(command, f"{name} {key}")
    else:
        yield name, group


COMMANDS = [
    pair
    for command in (
        upload,
        match,
        query,
        queries,
        images,
        listen,
    )
    for pair in _commands(command, command.name or "")
]


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_option_has_a_variable_and_both_stand_in_the_documentation(
    name: str, command: click.Command
) -> None:
    text = DOCS.read_text()
    options = [each for each in command.params if isinstance(each, click.Option)]

    assert f"picback {name}" in text
    assert options
    for option in options:
        assert isinstance(option.envvar, str)
        assert option.envvar.startswith("PICBACK_")
        assert option.show_envvar
        assert option.help
        assert f"`{max(option.opts, key=len)}" in text
        assert f"`{option.envvar}`" in text


def test_no_two_options_of_different_meaning_share_a_variable() -> None:
    meanings: dict[object, set[str]] = {}
    for _, command in COMMANDS:
        for option in command.params:
            if isinstance(option, click.Option):
                meanings.setdefault(option.envvar, set()).add(max(option.opts, key=len))

    assert {} == {name: options for name, options in meanings.items() if len(options) > 1}


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_failure_has_an_exit_code_that_is_documented(code: grpc.StatusCode) -> None:
    from callers.client import CallError
    from callers.errors import exit_code_of

    exit_code = exit_code_of(CallError(code, "x"))

    assert 0 != exit_code
    assert f"| {exit_code} |" in DOCS.read_text()

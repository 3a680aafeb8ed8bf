"""Address, key and TLS: the same for all commands of callers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from server.config import TlsSettings
from tests.service import running

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.service import Service
from tests.callers.typing_commands import run, run_at

TLS = Path(__file__).parents[1] / "dispatcher/tls"
#: An address that nobody listens at.
NOBODY = "127.0.0.1:1"


def test_a_server_that_is_not_there_is_told_in_one_line() -> None:
    result = run_at(NOBODY, "images", "list")

    assert 3 == result.exit_code
    assert "" == result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"picback: cannot reach a server at {NOBODY}: ")


def test_a_missing_key_is_told_with_what_to_do(service: Service) -> None:
    result = run_at(service.address, "images", "list")

    assert 4 == result.exit_code
    assert "(API_KEY_MISSING): set PICBACK_API_KEY or give --api-key-file" in result.stderr


def test_a_key_without_the_scope_is_told_apart_from_no_key(service: Service) -> None:
    key = service.make_key("reader", scopes=("queries.read",))
    result = run_at(service.address, "images", "list", PICBACK_API_KEY=key)

    assert 4 == result.exit_code
    assert result.stderr.rstrip().endswith("(SCOPE_MISSING)")


@pytest.mark.parametrize("form", ["{}\n", '{{"id": "key_1", "key": "{}"}}'])
def test_the_key_can_stand_in_a_file_alone_or_as_keys_create_prints_it(
    service: Service, tmp_path: Path, form: str
) -> None:
    path = tmp_path / "key"
    path.write_text(form.format(service.api_key))

    assert 0 == run_at(service.address, "images", "list", "--api-key-file", str(path)).exit_code


def test_what_stands_on_the_command_line_counts_more_than_a_variable(
    service: Service, tmp_path: Path
) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text(service.api_key)
    wrong.write_text("pbk_wrong")
    by_file = run_at(
        service.address, "images", "list", "--api-key-file", str(right), PICBACK_API_KEY="pbk_wrong"
    )
    by_key = run_at(
        service.address,
        "images",
        "list",
        "--api-key",
        service.api_key,
        PICBACK_API_KEY_FILE=str(wrong),
    )
    undecided = run_at(
        service.address, "images", "list", PICBACK_API_KEY="a", PICBACK_API_KEY_FILE=str(wrong)
    )

    assert (0, 0, 2) == (by_file.exit_code, by_key.exit_code, undecided.exit_code)


@pytest.mark.parametrize("content", [b"", b"two words", b'{"id": 1}', b"{", b"\xff", b"x" * 20_000])
def test_a_file_without_a_key_is_a_usage_error(
    service: Service, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    result = run_at(service.address, "images", "list", "--api-key-file", str(path))

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
    assert 2 == run_at(NOBODY, "images", "list", *arguments).exit_code


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
    proper = run(tls_service, "images", "list", *trusting, "--tls-cert", pair, "--tls-key", pair)
    nameless = run(tls_service, "images", "list", *trusting)
    distrusting = run(tls_service, "images", "list", "--tls")

    assert (0, 3, 3) == (proper.exit_code, nameless.exit_code, distrusting.exit_code)

"""TLS and mTLS, with the certificates of the dispatcher's tests: those know 127.0.0.1."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import grpc
import pytest

from picback.v1 import image_service_pb2 as pb
from picback.v1 import image_service_pb2_grpc
from server.app import App
from server.config import Config, ConfigError, TlsSettings
from tests.connect_proxy import ConnectProxy
from tests.dispatcher.faults import server_context
from tests.receiver import Receiver
from tests.server.serving import config_of, first_key, serving
from tests.service import running

TLS = Path(__file__).parents[1] / "dispatcher/tls"
AUTHORITY = TLS / "ca.pem"
PAIR = TLS / "receiver.pem"  # key and certificate in one file
SERVER_ONLY = TlsSettings(certificate=PAIR, key=PAIR)
#: Any key, under a password.
LOCKED_KEY = """\
-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHrMFYGCSqGSIb3DQEFDTBJMCgGCSqGSIb3DQEFDDAbBAjUKdO+8rjNtAIBATAM
BggqhkiG9w0CCQUAMB0GCWCGSAFlAwQBKgQQ+i8lyelyELceKYcXcoEhZwSBkFZi
Ps9Y0nDqpfBeEn9gX4BiKoBoPYAlRpSF8ncYSe+CT9wkiJNSDpJaYYwaW/DZY3AV
Pr+XrUf2aK3Gb0pmi6AUn4TbNDaTKxxUeQs/EfKt4zXkHk+kmphyrS4E1VBr/mdh
iq3o46ELEltha/Scwvs8XVkae86XiHogE9+jDySgOilV0OeB1d+Pg+QDvvjqiQ==
-----END ENCRYPTED PRIVATE KEY-----
"""
MUTUAL = TlsSettings(certificate=PAIR, key=PAIR, client_ca=AUTHORITY)


def _list_images(app: App, identity: Path | None = None, authority: Path = AUTHORITY) -> Any:
    pem = None if identity is None else identity.read_bytes()
    credentials = grpc.ssl_channel_credentials(authority.read_bytes(), pem, pem)
    with grpc.secure_channel(app.address, credentials) as channel:
        stub = image_service_pb2_grpc.ImageServiceStub(channel)
        return stub.ListImages(pb.ListImagesRequest(), metadata=first_key(app), timeout=20)


def _code_of(caught: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    error: Any = caught.value
    code = error.code()
    assert isinstance(code, grpc.StatusCode)
    return code


def test_callers_who_trust_the_authority_are_served(tmp_path: Path) -> None:
    with serving(tmp_path / "data", tls=SERVER_ONLY) as app:
        assert pb.ListImagesResponse() == _list_images(app)


def test_a_key_is_needed_under_tls_as_well(tmp_path: Path) -> None:
    with serving(tmp_path / "data", tls=SERVER_ONLY) as app:
        credentials = grpc.ssl_channel_credentials(AUTHORITY.read_bytes())
        with grpc.secure_channel(app.address, credentials) as channel:
            stub = image_service_pb2_grpc.ImageServiceStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                stub.ListImages(pb.ListImagesRequest(), timeout=20)

    assert grpc.StatusCode.UNAUTHENTICATED == _code_of(caught)


def test_plaintext_is_not_answered_under_tls(tmp_path: Path) -> None:
    with (
        serving(tmp_path / "data", tls=SERVER_ONLY) as app,
        grpc.insecure_channel(app.address) as channel,
    ):
        stub = image_service_pb2_grpc.ImageServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ListImages(pb.ListImagesRequest(), metadata=first_key(app), timeout=20)

    assert grpc.StatusCode.UNAVAILABLE == _code_of(caught)


def test_callers_who_do_not_trust_the_authority_send_nothing(tmp_path: Path) -> None:
    with (
        serving(tmp_path / "data", tls=SERVER_ONLY) as app,
        pytest.raises(grpc.RpcError) as caught,
    ):
        _list_images(app, authority=TLS / "self-signed.pem")

    assert grpc.StatusCode.UNAVAILABLE == _code_of(caught)


def test_mutual_tls_takes_certificates_of_the_authority(tmp_path: Path) -> None:
    with serving(tmp_path / "data", tls=MUTUAL) as app:
        assert pb.ListImagesResponse() == _list_images(app, TLS / "other.pem")


@pytest.mark.parametrize("identity", [None, "self-signed.pem", "expired.pem"])
def test_mutual_tls_takes_no_others(tmp_path: Path, identity: str | None) -> None:
    with (
        serving(tmp_path / "data", tls=MUTUAL) as app,
        pytest.raises(grpc.RpcError) as caught,
    ):
        _list_images(app, None if identity is None else TLS / identity)

    assert grpc.StatusCode.UNAVAILABLE == _code_of(caught)


def test_receivers_of_an_authority_of_ones_own_are_called_back(tmp_path: Path) -> None:
    with (
        Receiver(ssl_context=server_context()) as receiver,
        running(
            tmp_path / "data", allow_callback=(receiver.address,), callback_ca=AUTHORITY
        ) as service,
    ):
        request = pb.SubmitQueryRequest(text="a dog", callback_url=receiver.url)
        query = service.stub.SubmitQuery(request, metadata=service.metadata).query
        (received,) = receiver.wait_for(1)

    assert query.id == received.headers["webhook-id"]


def test_receivers_are_shown_a_certificate_and_reached_through_the_operators_proxy(
    tmp_path: Path,
) -> None:
    context = server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(AUTHORITY)
    with (
        Receiver(ssl_context=context) as receiver,
        ConnectProxy() as proxy,
        running(
            tmp_path / "data",
            allow_callback=(receiver.address,),
            callback_ca=AUTHORITY,
            callback_cert=TLS / "other.pem",
            callback_proxy=f"http://127.0.0.1:{proxy.port}",
        ) as service,
    ):
        request = pb.SubmitQueryRequest(text="a dog", callback_url=receiver.url)
        query = service.stub.SubmitQuery(request, metadata=service.metadata).query
        (received,) = receiver.wait_for(1)

    assert query.id == received.headers["webhook-id"]
    assert [receiver.address] == proxy.targets


@pytest.mark.parametrize(
    "files",
    [
        {"callback_cert": "missing.pem"},
        {"callback_cert": "make.sh"},
        {"callback_cert": "ca.pem"},
        {"callback_cert": "receiver.pem", "callback_key": "other.pem"},
        {"callback_key": "other.pem"},
    ],
)
def test_a_certificate_for_receivers_that_cannot_be_used_is_told_at_start(
    tmp_path: Path, files: dict[str, str]
) -> None:
    options: dict[str, Any] = {name: TLS / file for name, file in files.items()}
    with pytest.raises(ConfigError, match=r"^callback_(cert, callback_key: |key needs )"):
        App(Config(data=tmp_path / "data", listen="127.0.0.1:0", **options))


@pytest.mark.parametrize("name", ["missing.pem", "make.sh"])
def test_an_authority_of_receivers_that_cannot_be_read_is_told_at_start(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(ConfigError, match="callback_ca"):
        App(Config(data=tmp_path / "data", listen="127.0.0.1:0", callback_ca=TLS / name))


def test_tls_may_listen_where_others_can_reach_it(tmp_path: Path) -> None:
    with serving(tmp_path / "data", tls=SERVER_ONLY, listen="0.0.0.0:0") as app:
        assert f"0.0.0.0:{app.port}" == app.address


@pytest.mark.parametrize(
    "tls",
    [
        TlsSettings(certificate=TLS / "missing.pem", key=PAIR),
        TlsSettings(certificate=PAIR, key=TLS / "missing.pem"),
        TlsSettings(certificate=PAIR, key=PAIR, client_ca=TLS / "missing.pem"),
        TlsSettings(certificate=PAIR, key=AUTHORITY),  # no key in it
        TlsSettings(certificate=AUTHORITY, key=PAIR),  # the key of another certificate
        TlsSettings(certificate=TLS / "make.sh", key=PAIR),  # no PEM
        TlsSettings(certificate=PAIR, key=PAIR, client_ca=TLS / "make.sh"),
    ],
)
def test_files_that_cannot_work_are_told_before_anything_starts(
    tmp_path: Path, tls: TlsSettings
) -> None:
    with pytest.raises(ConfigError, match=r"cannot use TLS with .*receiver\.pem"):
        App(config_of(tmp_path / "data", tls=tls))


def test_a_key_that_is_locked_is_refused_without_asking_for_a_password(tmp_path: Path) -> None:
    locked = tmp_path / "locked.pem"
    locked.write_text(LOCKED_KEY)

    with pytest.raises(ConfigError, match="cannot use TLS"):
        App(config_of(tmp_path / "data", tls=TlsSettings(certificate=PAIR, key=locked)))

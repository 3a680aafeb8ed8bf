from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from server.config import ClarifaiSettings, Config, ConfigError, TlsSettings

TLS = TlsSettings(certificate=Path("cert.pem"), key=Path("key.pem"))


@pytest.mark.parametrize(
    "listen",
    ["127.0.0.1:0", "127.0.0.1:65535", "127.8.8.8:1", "localhost:50051", "[::1]:50051"],
)
def test_loopback_may_be_served_in_plaintext(listen: str) -> None:
    assert listen == Config(listen=listen).listen


@pytest.mark.parametrize(
    "listen",
    ["0.0.0.0:50051", "[::]:50051", "192.0.2.1:50051", "picback.example:50051", "localhost.evil:1"],
)
def test_what_others_can_reach_needs_tls_or_a_word(listen: str) -> None:
    with pytest.raises(ConfigError, match="API keys would cross the network in clear"):
        Config(listen=listen)

    assert listen == Config(listen=listen, tls=TLS).listen
    assert listen == Config(listen=listen, insecure=True).listen


@pytest.mark.parametrize(
    "listen",
    [
        "",
        ":",
        "127.0.0.1",
        ":50051",
        "127.0.0.1:",
        "127.0.0.1:http",
        "127.0.0.1:-1",
        "127.0.0.1:65536",
        "127.0.0.1:٣",
        "127.0.0.1:1\n",
        "unix:/run/picback",
    ],
)
def test_an_address_is_a_host_and_a_port(listen: str) -> None:
    with pytest.raises(ConfigError, match="listen must be HOST:PORT"):
        Config(listen=listen)


@pytest.mark.parametrize(
    ("tagger", "token", "in_use"),
    [
        ("auto", "", "local"),
        ("auto", "token", "clarifai"),
        ("clarifai", "token", "clarifai"),
        ("local", "token", "local"),
        ("none", "token", "none"),
    ],
)
def test_auto_is_clarifai_when_there_is_a_token(tagger: str, token: str, in_use: str) -> None:
    config = Config(tagger=tagger, clarifai=ClarifaiSettings(token=token))

    assert in_use == config.tagger_in_use


@pytest.mark.parametrize("tagger", ["clarifai", "Clarifai", "", "google"])
def test_a_tagger_that_cannot_be_is_refused(tagger: str) -> None:
    with pytest.raises(ConfigError, match="tagger"):
        Config(tagger=tagger)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("max_image_bytes", 1, 500_000_000),
        ("max_image_pixels", 1, 178_956_970),
        ("callback_timeout", 0.1, 86_400),
        ("stop_grace", 0, 86_400),
    ],
)
def test_numbers_have_bounds(name: str, least: float, most: float) -> None:
    def config(value: float) -> Any:
        options: dict[str, Any] = {name: value}
        return getattr(Config(**options), name)

    assert [least, most] == [config(least), config(most)]
    for value in (least - 1, most + 1, math.inf, -math.inf, math.nan):
        with pytest.raises(ConfigError, match=f"{name} must be from"):
            config(value)


def test_a_token_is_not_in_what_is_printed() -> None:
    assert "hush" not in repr(Config(clarifai=ClarifaiSettings(token="hush")))


@pytest.mark.parametrize("name", ["model", "user", "app", "model_version"])
@pytest.mark.parametrize(
    "value", ["", "two words", "https://clarifai.com/m", "ü", "x" * 101, "a\n"]
)
def test_clarifais_ids_are_ids(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"clarifai_{name} must be an id"):
        ClarifaiSettings(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("proxy", ["proxy:3128", "https://proxy:3128", "http://u:p@proxy:3128"])
def test_a_proxy_is_named_by_a_plain_url(proxy: str) -> None:
    with pytest.raises(ConfigError, match="callback_proxy must be http://HOST:PORT, not"):
        Config(callback_proxy=proxy)

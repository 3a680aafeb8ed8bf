"""Kinds of values on the callers' command lines: tags, spans of time, HTTP statuses."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import click

from picback.v1 import image_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping

_SECONDS: Final[Mapping[str, int]] = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class TagType(click.ParamType[image_pb2.Tag]):
    """NAME or NAME=CONFIDENCE, as an `image_pb2.Tag`. In variables, commas part several."""

    name = "tag"
    envvar_list_splitter = ","

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> image_pb2.Tag:
        """Return the tag; a name may itself contain "=" when a confidence follows."""
        if isinstance(value, image_pb2.Tag):
            return value
        name, equals, number = str(value).rpartition("=")
        if not equals:
            return image_pb2.Tag(name=number.strip())
        try:
            confidence = float(number)
        except ValueError:
            confidence = -1.0
        # 0 would mean 1 on the wire, so that it is no confidence a caller can want.
        if not 0 < confidence <= 1:
            self.fail(f"{value!r}: after = comes a confidence above 0, at most 1", param, ctx)
        return image_pb2.Tag(name=name.strip(), confidence=confidence)


class TagNameType(click.ParamType[str]):
    """The name of a tag. In variables, commas part several."""

    name = "tag name"
    envvar_list_splitter = ","

    def convert(
        self,
        value: object,
        param: click.Parameter | None,  # noqa: ARG002 - click's signature
        ctx: click.Context | None,  # noqa: ARG002 - click's signature
    ) -> str:
        """Return the name, without spaces around it."""
        return str(value).strip()


class SpanType(click.ParamType[int]):
    """A span of time such as 90, 90s, 15m, 1h30m or 2d, as whole seconds."""

    name = "span"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the seconds; a number alone is seconds."""
        text = str(value)
        if re.fullmatch(r"\d+", text, re.ASCII):
            return int(text)
        if not re.fullmatch(r"(\d+[smhd])+", text, re.ASCII):
            self.fail(f"{text!r}: a span of time is written like 90s, 15m, 1h30m or 2d", param, ctx)
        return sum(
            int(number) * _SECONDS[unit] for number, unit in re.findall(r"(\d+)([smhd])", text)
        )


class StatusListType(click.ParamType[tuple[int, ...]]):
    """HTTP statuses parted by commas, such as 503,503,204."""

    name = "statuses"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return the statuses: final ones, 200 to 599."""
        text = str(value)
        if not re.fullmatch(r"[2-5]\d\d(,[2-5]\d\d)*", text, re.ASCII):
            self.fail(f"{text!r}: HTTP statuses are written like 204 or 503,503,204", param, ctx)
        return tuple(int(status) for status in text.split(","))

"""A short run of what `make fuzz` does at length."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import matching_fuzz

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("seed", range(6))
def test_the_matcher_finds_what_looking_at_everything_finds(tmp_path: Path, seed: int) -> None:
    assert matching_fuzz.STATES * matching_fuzz.ASKED == matching_fuzz.run(tmp_path, seed)

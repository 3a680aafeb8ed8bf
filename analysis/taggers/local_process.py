"""The local tagger as the server sees it: models in a child process.

The server holds neither the models nor the library that runs them.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

from analysis.images import ProcessUnavailableError
from analysis.processes.child import ChildDiedError
from analysis.processes.pool import ProcessPool
from analysis.processes.turns import Cancellation, Turns, seconds_until
from analysis.taggers import (
    Interrupted,
    Refused,
    Tag,
    Tagged,
    TaggerLoadError,
    Unavailable,
    best_first,
    canonical,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analysis.taggers import Outcome

logger = logging.getLogger(__name__)

#: Address space of the child: 350 MB with the models and one image, and some more.
_MEMORY_BYTES: Final = 640_000_000
#: Processor time for one preview, in seconds. It takes 0.04.
_CPU_SECONDS: Final = 10.0
#: How long the models may take to load, in seconds, on a machine that is very busy.
_LOAD_SECONDS: Final = 120.0
#: How often an image is tried whose child ended, at once.
_MAX_ATTEMPTS: Final = 3


class LocalTaggerProcess:
    """Tags previews with the models that ship with picback, in a child process. Thread safe.

    Args:
        module: What the child runs.
    """

    batch_size = 1
    reads_previews = True

    def __init__(self, *, module: str = "analysis.processes.tagger_main") -> None:
        self._pool = ProcessPool(
            "tagger-process",
            module,
            ["--memory", str(_MEMORY_BYTES)],
            size=1,
        )
        self._turns = Turns(1)

    def start(self) -> None:
        """Start the child, in the background."""
        self._pool.start()

    def loaded(self) -> LocalTaggerProcess:
        """Return this tagger when its models are loaded.

        Raises:
            TaggerLoadError: A file is missing, altered, or no model; or no process can be started.
        """
        try:
            error = self._pool.wait_until_ready(timeout=_LOAD_SECONDS)
        except ProcessUnavailableError as unavailable:
            raise TaggerLoadError(str(unavailable)) from unavailable
        if error is not None:
            raise TaggerLoadError(error)
        return self

    def process_ids(self) -> list[int]:
        """Return the process id of the child, if it runs."""
        return self._pool.process_ids()

    def tag(self, contents: Sequence[bytes], *, timeout: float) -> list[Outcome]:
        """Tag previews as `Tagger.tag`."""
        deadline = time.monotonic() + timeout
        return [self._tag(content, deadline) for content in contents]

    def close(self) -> None:
        """End the child; images that are looked at become `Unavailable`."""
        self._turns.close()
        self._pool.close()

    def _tag(self, content: bytes, deadline: float) -> Outcome:
        cancellation = Cancellation()
        detail = ""
        for _ in range(_MAX_ATTEMPTS):
            try:
                with (
                    self._turns.turn(
                        "", cancellation=cancellation, timeout=seconds_until(deadline)
                    ),
                    self._pool.child(timeout=seconds_until(deadline)) as child,
                ):
                    response, _ = child.exchange(
                        {"cpu_seconds": _CPU_SECONDS}, [content], timeout=seconds_until(deadline)
                    )
                    return _outcome(response)
            except ProcessUnavailableError as error:
                return Unavailable(str(error))
            except ChildDiedError as death:
                if self._pool.is_closed:
                    return Unavailable("the tagger is closed")
                if death.was_late:
                    return Unavailable("the machine is too busy to tag the image")
                logger.warning("tagger.died", extra={"detail": str(death)})
                detail = str(death)
        return Interrupted(f"the tagger's process ended ({detail})")


def _outcome(response: dict[str, Any]) -> Outcome:
    if response["outcome"] != "tagged":
        return Refused(str(response["message"]))
    tags = (Tag(canonical(str(name)), int(confidence)) for name, confidence in response["tags"])
    return Tagged(best_first(tags), str(response["model"]))

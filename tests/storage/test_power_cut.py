"""Acknowledged means on disk: whatever callers were told survives a power cut."""

from __future__ import annotations

import random
import shutil
import threading
from typing import TYPE_CHECKING

import storage.database
from storage.api_keys import SCOPES, ApiKeys
from storage.database import Database
from storage.images import Images, NewImage
from storage.queries import Queries
from tests.powercut import Disk, OtherDisk, RecordingVfs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pytest

CUTS = 200


def _recorded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, pragmas: Sequence[str] = ()
) -> Disk:
    """Let four threads store images and queries, and return what the disk saw."""
    database = Database.own(folder)
    key = ApiKeys(database).create(
        "k", scopes=SCOPES, signing_secret="whsec_x", expires_at=None, now=0
    )
    database.close()
    disk = Disk({path.name: path.read_bytes() for path in folder.iterdir()})
    vfs = RecordingVfs(f"recording-{folder}", disk)
    # Small enough that many a cut falls into a checkpoint.
    driver = OtherDisk(f"recording-{folder}", pragmas=["wal_autocheckpoint=8", *pragmas])
    with monkeypatch.context() as patch:
        patch.setattr(storage.database, "driver", driver)
        patch.setattr(storage.database, "_migrate", lambda _: None)  # it is migrated
        database = Database.own(folder)
        queries, images = Queries(database), Images(database)

        def work(worker: int) -> None:
            for number in range(15):
                query, _ = queries.submit(
                    key_id=key.id,
                    text="dog",
                    callback_url="http://receiver/",
                    destination="http://receiver:80",
                    give_up_after=None,
                    request=None,
                    now=number,
                )
                disk.note("told", query.id)
                image, _ = images.add(
                    NewImage(
                        content=random.Random(number).randbytes(3_000),
                        sha256=f"{worker}-{number}",
                        media_type="image/png",
                        width=1,
                        height=1,
                    ),
                    tags_of_caller={"dog": 1_000_000},
                    request=None,
                    tag_it=False,
                    now=number,
                )
                disk.note("told", image.id)

        workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        database.close()
    vfs.unregister()
    return disk


def _lost_after_cuts(disk: Disk, folder: Path, cuts: int) -> int:
    """Return how many cuts lost something that was told; every database must be sound."""
    lossy = 0
    for seed in range(cuts):
        chance = random.Random(seed)
        at = chance.randrange(len(disk.record) + 1)
        folder.mkdir()
        disk.after_cut(at, chance, folder)
        database = Database.own(folder)
        try:
            assert [("ok",)] == database.read("PRAGMA integrity_check"), f"seed {seed}"
            found = {
                row[0] for row in database.read("SELECT id FROM query UNION SELECT id FROM image")
            }
        finally:
            database.close()
        lossy += not disk.told(at) <= found
        shutil.rmtree(folder)
    return lossy


def test_a_power_cut_loses_nothing_that_was_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = _recorded(tmp_path / "live", monkeypatch)

    assert len(disk.told(len(disk.record))) == 4 * 15 * 2
    assert 0 == _lost_after_cuts(disk, tmp_path / "cut", CUTS)


def test_the_simulation_notices_a_database_that_does_not_sync_its_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = _recorded(tmp_path / "live", monkeypatch, pragmas=["synchronous=NORMAL"])

    assert 0 < _lost_after_cuts(disk, tmp_path / "cut", CUTS)

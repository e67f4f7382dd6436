"""More than a year of a host, in seconds: each thing that falls due happens once, in order, when it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from kmsd.api.errors import NotFoundError
from kmsd.api.keys import DESCRIBE_KEY, ENABLE_KEY, DescribeKeyRequest, EnableKeyRequest
from kmsd.audit.record import Kind
from kmsd.service.seal import CONFIGURED
from tests.support.embedded import ALICE, Embedded
from tests.support.host_time import HostTime
from tests.support.key_life import (
    DAY,
    OF_KEYS,
    OF_THE_CLOCK,
    SECRET,
    cancel,
    decrypt,
    encrypt,
    id_of,
    rotate_every,
    row_of,
    schedule,
)

# A whole number, so that days are exact.
BEGINNING = 1_800_000_000.0
# How much time passes between two looks of the scheduler, for which it sleeps a minute.
STEP = DAY
DEFAULT = "alias/kmsd/default"
# Keys that are to be destroyed, by what their date falls into.
DESTROYED = ("gone", "sealed over", "off over", "asleep over", "behind", "ahead")


class Life:
    """A host with its service, what it did by itself and on which day, and what was encrypted."""

    def __init__(self, directory: Path) -> None:
        self.host = HostTime(BEGINNING)
        # True time, in seconds, whatever clocks say.
        self.passed = 0.0
        self.service: Embedded
        self.keys: dict[str, str] = {}
        self.blobs: dict[str, list[bytes]] = {}
        self.events: list[tuple[float, str, str]] = []
        # Of the services that were stopped.
        self.log = ""
        self._directory = directory
        self._seen = 0

    async def begin(self) -> None:
        self.service = await Embedded.open(self._directory, host_time=self.host)

    async def make(self, *names: str) -> None:
        for name in names:
            self.keys[name] = await self.service.make_key()
            await self.use(name)

    async def use(self, name: str) -> None:
        self.blobs.setdefault(name, []).append(await encrypt(self.service, self.keys[name]))

    async def until(self, day: float) -> None:
        """Let time pass while the scheduler looks."""
        while self.passed < day * DAY:
            self._let_pass(min(STEP, day * DAY - self.passed))
            await self.look()

    async def look(self) -> None:
        await self.service.minutes.wake()
        await self.service.minutes.again()
        self._note()

    def sleep_until(self, day: float) -> None:
        """Let time pass, of which the daemon sees nothing: the host is suspended, or the daemon is down or sealed."""
        self._let_pass(day * DAY - self.passed)

    def _let_pass(self, seconds: float) -> None:
        self.host.let_pass(seconds)
        self.passed += seconds

    async def be_off_until(self, day: float) -> None:
        """Switch the host off, and on again."""
        await self.stop()
        off_seconds = day * DAY - self.passed
        self.host.boot(off_seconds)
        self.host.step(off_seconds - (self.host.wall - BEGINNING - self.passed))
        self.passed += off_seconds
        await self.start()

    async def restart(self) -> None:
        """Stop the daemon and start it again, in the same boot."""
        await self.stop()
        await self.start()

    async def stop(self) -> None:
        await self.service.close()
        self.log += self.service.log.getvalue()

    async def start(self) -> None:
        self.service = await Embedded.open(self._directory, initialize=False, host_time=self.host)
        await self.unseal()

    async def seal(self) -> None:
        await self.service.unsealing.seal()

    async def unseal(self) -> None:
        await self.service.unsealing.unseal(CONFIGURED, lambda: None)
        await self.service.minutes.again()
        self._note()

    def _note(self) -> None:
        """Take note of what kmsd did by itself since it was looked at last."""
        lines = self.service.trail.read(after_seq=self._seen, limit=10_000, max_bytes=1 << 24)
        for line in map(msgspec.json.decode, lines):
            self._seen = line["seq"]
            if line["eventName"] in OF_KEYS | OF_THE_CLOCK and line["eventType"] in {Kind.OUTCOME, Kind.SYSTEM}:
                assert "errorCode" not in line
                self.events.append((self.passed / DAY, line["eventName"], self._name_of(line)))

    def _name_of(self, line: dict[str, Any]) -> str:
        if not line.get("resources"):
            return str(line["additionalEventData"].get("state", ""))
        arn = line["resources"][0]["ARN"]
        return next((name for name, one in self.keys.items() if one == arn), "default")


async def test_a_virtual_year(tmp_path: Path) -> None:
    """With a week switched off, a suspend, clocks that are set back and ahead, restarts, and a seal over a date."""
    life = Life(tmp_path)
    await life.begin()
    await life.make(
        "yearly", "quarterly", "gone", "spared", "sealed over", "off over", "asleep over", "behind", "ahead"
    )
    life.keys["default"] = DEFAULT
    await life.use("default")
    await rotate_every(life.service, life.keys["yearly"], 365)
    await rotate_every(life.service, life.keys["quarterly"], 90)

    await life.until(40)
    await schedule(life.service, life.keys["gone"])
    await life.until(50)
    await schedule(life.service, life.keys["spared"])
    await life.until(79)
    await cancel(life.service, life.keys["spared"])
    await life.service.ask(ALICE, ENABLE_KEY, EnableKeyRequest(key_id=life.keys["spared"]))
    await life.use("spared")

    await life.until(100)
    await life.use("quarterly")
    await schedule(life.service, life.keys["sealed over"], 7)
    await life.until(106)
    await life.seal()
    life.sleep_until(109)
    await life.unseal()

    await life.until(175)
    await schedule(life.service, life.keys["off over"], 7)
    await life.until(178)
    await life.be_off_until(185)
    await life.use("quarterly")

    await life.until(216)
    await schedule(life.service, life.keys["asleep over"], 7)
    await life.until(219)
    life.sleep_until(226)
    await life.look()

    await life.until(234)
    await schedule(life.service, life.keys["behind"], 7)
    await life.until(240)
    life.host.step(-30 * DAY)
    await life.until(242)
    life.host.step(30 * DAY)
    await life.look()

    await life.until(245)
    await schedule(life.service, life.keys["ahead"], 7)
    await life.until(250)
    life.host.step(3650 * DAY)
    await life.until(251)
    await life.restart()
    await schedule(life.service, life.keys["spared"], 7)
    assert (await row_of(life.service, life.keys["spared"])).deletion_ms >= (life.host.wall + 7 * DAY) * 1000
    await life.until(253)
    life.host.step(-3650 * DAY)
    await life.look()
    await cancel(life.service, life.keys["spared"])
    await life.service.ask(ALICE, ENABLE_KEY, EnableKeyRequest(key_id=life.keys["spared"]))

    await life.until(274.9)
    await life.stop()
    life.sleep_until(275.1)
    await life.start()
    await life.until(276)
    await life.until(400)
    for name in ("yearly", "quarterly", "default"):
        await life.use(name)
    await life.look()

    assert life.events == [
        (67, "WarnOfKeyDeletion", "gone"),
        (70, "DeleteKey", "gone"),
        (77, "WarnOfKeyDeletion", "spared"),
        (90, "RotateKey", "quarterly"),
        (104, "WarnOfKeyDeletion", "sealed over"),
        (109, "DeleteKey", "sealed over"),
        # In the order in which they fell due: on the days 179, 180 and 182.
        (185, "WarnOfKeyDeletion", "off over"),
        (185, "RotateKey", "quarterly"),
        (185, "DeleteKey", "off over"),
        (226, "WarnOfKeyDeletion", "asleep over"),
        (226, "DeleteKey", "asleep over"),
        (238, "WarnOfKeyDeletion", "behind"),
        (241, "ClockInDoubt", "behind"),
        (242, "ClockBelieved", ""),
        (242, "DeleteKey", "behind"),
        (249, "WarnOfKeyDeletion", "ahead"),
        (251, "ClockInDoubt", "ahead"),
        # Time goes on in doubt, as the host is up.
        (252, "DeleteKey", "ahead"),
        (253, "ClockBelieved", ""),
        (275.1, "RotateKey", "quarterly"),
        (365, "RotateKey", "yearly"),
        (365, "RotateKey", "default"),
        (366, "RotateKey", "quarterly"),
    ]
    for name, key in life.keys.items():
        if name not in DESTROYED:
            await check_uses(life, name)
            assert [await decrypt(life.service, blob) for blob in life.blobs[name]] == [SECRET] * len(life.blobs[name])
            continue
        assert await life.service.store.tombstone(id_of(key)) is not None
        for blob in life.blobs[name]:
            with pytest.raises(NotFoundError):
                await decrypt(life.service, blob)
    await life.stop()
    for failure in ("housekeeping_failed", "not_attended", "not_stored", "not_known"):
        assert failure not in life.log


async def check_uses(life: Life, name: str) -> None:
    """Each use was counted once, over restarts and reboots, whatever became of the daemon."""
    metadata = await life.service.ask(ALICE, DESCRIBE_KEY, DescribeKeyRequest(key_id=life.keys[name]))
    usage = await life.service.store.usage(metadata.key_metadata.key_id)
    assert usage is not None
    assert usage.counts == {"Encrypt": len(life.blobs[name])}

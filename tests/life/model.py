"""What AWS KMS promises of the life of a key, as far as a caller can see it: the whole model.

From the key states of its developer guide and the descriptions of its operations, not from kmsd's code. Times are in
milliseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from tests.life.clock import DAY, Clock, Times

ENABLED, DISABLED, PENDING = "Enabled", "Disabled", "PendingDeletion"
ALL_STATES = (ENABLED, DISABLED, PENDING)
AUTOMATIC, ON_DEMAND = "AUTOMATIC", "ON_DEMAND"
MOST_ON_DEMAND = 25
# Keys that one may have at a time: a setting of kmsd's.
MOST_KEYS = 8
# How long before its destruction a key is warned of, which AWS KMS does not do.
WARNING = 3 * DAY
# What the audit trail tells of by these names, once for each time that it happens.
TOLD = {
    *("CreateKey", "CreateAlias", "DeleteAlias", "RotateKeyOnDemand", "ScheduleKeyDeletion", "CancelKeyDeletion"),
    *("RotateKey", "WarnOfKeyDeletion", "DeleteKey"),
}
# The key that CreateKey makes, until it is known what the service called it.
NEW = "new"


class RefusedError(Exception):
    """The code with which a request is refused."""


class Ciphertext(NamedTuple):
    """What a version of a key's material made of a plaintext; of a file it is the header, and the file's own key."""

    key: str
    version: int
    plaintext: bytes
    blob: bytes
    is_file: bool = False


@dataclass
class Key:
    """What can be seen of a key: `rotations` by their type and date, `period` in days, 0 for none."""

    state: str = ENABLED
    description: str = ""
    rotations: list[tuple[str, int]] = field(default_factory=list)
    period: int = 0
    next_rotation: int = 0
    deletion: int = 0
    warned: bool = False

    @property
    def version(self) -> int:
        """Which version of its material encrypts."""
        return len(self.rotations) + 1


@dataclass
class Model:
    """Keys by their id, aliases with the key that each names, all ciphertexts that ever were made, and the time.

    `told` is how often something of `TOLD` happened.
    """

    clock: Clock
    keys: dict[str, Key] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    ciphertexts: list[Ciphertext] = field(default_factory=list)
    sealed: bool = True
    told: Counter[str] = field(default_factory=Counter)

    def copy(self) -> Model:
        """Return one that goes its own way; ciphertexts are only ever added."""
        keys = {name: replace(key, rotations=key.rotations.copy()) for name, key in self.keys.items()}
        return replace(self, clock=replace(self.clock), keys=keys, aliases=self.aliases.copy(), told=self.told.copy())

    def find(self, name: str, *states: str) -> Key:
        """Return the key of this id or alias, which has to be in one of these states."""
        self._need_keys()
        key = self.keys.get(self.aliases.get(name, name))
        if key is None:
            raise RefusedError("NotFoundException")
        if key.state not in states:
            raise RefusedError("DisabledException" if key.state == DISABLED else "KMSInvalidStateException")
        return key

    def create_key(self) -> None:
        self._need_keys()
        if len(self.keys) >= MOST_KEYS:
            raise RefusedError("LimitExceededException")
        self.keys[NEW] = Key()
        self.told["CreateKey"] += 1

    def describe(self, key: str, description: str) -> None:
        self.find(key, ENABLED, DISABLED).description = description

    def enable(self, key: str) -> None:
        self.find(key, ENABLED, DISABLED).state = ENABLED

    def disable(self, key: str) -> None:
        self.find(key, ENABLED, DISABLED).state = DISABLED

    # Aliases

    def create_alias(self, alias: str, key: str) -> None:
        self.find(key, ENABLED, DISABLED)
        if alias in self.aliases:
            raise RefusedError("AlreadyExistsException")
        self.aliases[alias] = key
        self.told["CreateAlias"] += 1

    def update_alias(self, alias: str, key: str) -> None:
        self.find(key, ENABLED, DISABLED)
        if alias not in self.aliases:
            raise RefusedError("NotFoundException")
        self.aliases[alias] = key

    def delete_alias(self, alias: str) -> None:
        self._need_keys()
        if self.aliases.pop(alias, None) is None:
            raise RefusedError("NotFoundException")
        self.told["DeleteAlias"] += 1

    # Use

    def encrypt(self, key: str) -> None:
        self.find(key, ENABLED)

    def decrypt(self, ciphertext: Ciphertext) -> bytes:
        """Return what it decrypts to: only its own key opens it, and only while that can be used."""
        self._need_keys()
        if ciphertext.is_file and ciphertext.key not in self.keys:
            raise RefusedError("MessageFormatException")  # kmsd's own: a message that none of its keys made
        self.find(ciphertext.key, ENABLED)
        return ciphertext.plaintext

    def re_encrypt(self, ciphertext: Ciphertext, key: str) -> None:
        """Move it to a key's current material: both keys have to be there, and then to be usable."""
        for one in (key, ciphertext.key):
            self.find(one, *ALL_STATES)
        for one in (ciphertext.key, key):
            self.find(one, ENABLED)

    # Rotation and deletion

    def enable_rotation(self, name: str, days: int) -> None:
        """Begin a period; one that is as long as the present one changes nothing."""
        key = self.find(name, ENABLED)
        if key.period != days:
            key.period, key.next_rotation = days, self.clock.latest + days * DAY

    def disable_rotation(self, key: str) -> None:
        self.find(key, ENABLED).period = 0

    def rotate(self, name: str) -> None:
        key = self.find(name, ENABLED)
        if sum(why == ON_DEMAND for why, _ in key.rotations) >= MOST_ON_DEMAND:
            raise RefusedError("LimitExceededException")
        key.rotations.append((ON_DEMAND, self.clock.times.wall))
        self.told["RotateKeyOnDemand"] += 1

    def schedule_deletion(self, name: str, days: int) -> None:
        key = self.find(name, ENABLED, DISABLED)
        if not 7 <= days <= 30:
            raise RefusedError("ValidationException")
        key.state, key.deletion, key.warned = PENDING, self.clock.latest + days * DAY, False
        self.clock.promise()
        self.told["ScheduleKeyDeletion"] += 1

    def cancel_deletion(self, name: str) -> None:
        """Keep a key; it is disabled then, whatever it was before."""
        key = self.find(name, *ALL_STATES)
        if key.state != PENDING:
            raise RefusedError("KMSInvalidStateException")
        key.state, key.deletion = DISABLED, 0
        self.told["CancelKeyDeletion"] += 1

    # What happens by itself

    def pass_time(self, times: Times) -> None:
        """Do all that is due by then."""
        for _ in self.happenings(times):
            pass

    def happenings(self, times: Times) -> Iterator[None]:
        """Look at the clock and do what is due, one after the other as it fell due; nothing while sealed."""
        if self.sealed:
            return
        self.clock.look(times)
        yield
        while (due := min(self._dates(), default=None)) is not None and due[0] <= self.clock.due:
            self._happen(due[1])
            yield

    def _dates(self) -> Iterator[tuple[int, str]]:
        """Yield when something is due of which key; of two at a time the smaller id is first."""
        for name, key in self.keys.items():
            if key.state == PENDING:
                yield key.deletion if key.warned else key.deletion - WARNING, name
            elif key.state == ENABLED and key.period:
                yield key.next_rotation, name

    def _happen(self, name: str) -> None:
        key = self.keys[name]
        if key.state == ENABLED:  # one rotation for all that were missed
            key.rotations.append((AUTOMATIC, self.clock.times.wall))
            key.next_rotation = self.clock.certain + key.period * DAY
            self.told["RotateKey"] += 1
        elif not key.warned:
            key.warned = True
            self.told["WarnOfKeyDeletion"] += 1
        else:
            del self.keys[name]
            self.aliases = {alias: target for alias, target in self.aliases.items() if target != name}
            self.told["DeleteKey"] += 1

    def confirm_clock(self) -> None:
        self._need_keys()
        self.clock.confirm()

    def seal(self) -> None:
        self.sealed = True

    def unseal(self, times: Times) -> Iterator[None]:
        """Bring the keys back, if they are away, and then do what was missed, one after the other."""
        if self.sealed:
            self.sealed = False
            yield from self.happenings(times)

    def start(self, times: Times) -> Iterator[None]:
        """Start, which unseals."""
        self.seal()
        return self.unseal(times)

    def _need_keys(self) -> None:
        if self.sealed:
            raise RefusedError("SealedException")

"""The whole life of keys against a model of it, over kills at any disk call, seals, and clocks that are set.

`make test` takes some 5,000 steps; `make soak` as many as one likes, and tells the seed by which they are repeated.
"""

from __future__ import annotations

import contextlib
import copy
import datetime as dt
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from kmsd.api.administration import SEAL, SealRequest
from kmsd.api.calendar import CONFIRM_CLOCK, ConfirmClockRequest
from kmsd.api.deletion import (
    CANCEL_KEY_DELETION,
    SCHEDULE_KEY_DELETION,
    CancelKeyDeletionRequest,
    ScheduleKeyDeletionRequest,
)
from kmsd.api.files import ENCRYPT_FILE, EncryptFileRequest
from kmsd.api.keys import (
    CREATE_ALIAS,
    CREATE_KEY,
    DELETE_ALIAS,
    DISABLE_KEY,
    ENABLE_KEY,
    UPDATE_ALIAS,
    UPDATE_KEY_DESCRIPTION,
    CreateAliasRequest,
    CreateKeyRequest,
    DeleteAliasRequest,
    EnableKeyRequest,
    UpdateAliasRequest,
    UpdateKeyDescriptionRequest,
)
from kmsd.api.operation import Operation
from kmsd.api.rotation import (
    DISABLE_KEY_ROTATION,
    ENABLE_KEY_ROTATION,
    ROTATE_KEY_ON_DEMAND,
    DisableKeyRotationRequest,
    EnableKeyRotationRequest,
    RotateKeyOnDemandRequest,
)
from kmsd.api.symmetric import (
    ENCRYPT,
    GENERATE_DATA_KEY,
    REENCRYPT,
    EncryptRequest,
    GenerateDataKeyRequest,
    ReEncryptRequest,
)
from tests.life.clock import DAY, HOUR, Clock, Times
from tests.life.daemon import Kill
from tests.life.host import NO_KILL, Answer, Forge, Host, KilledError
from tests.life.model import NEW, Ciphertext, Model, RefusedError
from tests.life.sight import decryption, differences, foreseen, key_foreseen, plaintext_of, see, see_key
from tests.life.trail import check_trail
from tests.support.faulty_disk import KILLS, build

STEPS = int(os.environ.get("KMSD_SOAK_STEPS", "5000"))
SEED = int(os.environ.get("KMSD_SOAK_SEED", str(random.SystemRandom().randrange(10**6))))
STEPS_OF_A_RUN = 250

_BEGIN = Times(wall=1_800_000_000_000, uptime=HOUR, boot="boot 0")

YEAR = 365 * DAY
ALIASES = ("alias/a", "alias/b", "alias/c")
NO_KEY = "00000000-0000-4000-8000-000000000000"

# A use makes some 2 disk calls, a change some 15, and a start some 40.
calls = st.one_of(st.integers(1, 50), st.integers(1, 1000))
# Two at least: housekeeping is exact to an hour. Seven days and 30 are the bounds of deletion.
hours = st.sampled_from([2, 25, 7 * 24, 30 * 24, 90 * 24, 365 * 24])
# Which of the keys, or of the ciphertexts, that there are: what is drawn depends on nothing that a kill decides.
places = st.integers(0, 255)
# A key that a request names by its place, or by an alias.
keys = st.one_of(places, places, st.sampled_from(ALIASES))


Change = Callable[[Model], Any]
KeyChange = Callable[[Model, str], None]
MakeRequest = Callable[[str], msgspec.Struct]


class KeyLives(RuleBasedStateMachine):
    """A host on which people use keys and everything happens that may happen to a host.

    No rule has a precondition: the model says what becomes of each request in each state, also while sealed.
    """

    forge: ClassVar[Forge]

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(Clock(_BEGIN, _BEGIN.wall))
        self.host = Host(self.forge, _BEGIN)
        self.kills: list[Kill] = []
        self.made = self.boots = 0
        self.start()

    def teardown(self) -> None:
        """In the end everything is looked at, all ciphertexts that were ever made, and the audit trail."""
        try:
            if sys.exc_info()[0] is None:
                self.host.planned = NO_KILL
                if self.model.sealed:
                    self.unseal()
                self.look(self.model.ciphertexts)
                check_trail(self.host, self.model)
        finally:
            self.host.close()

    # What the host does

    def start(self) -> None:
        while True:
            self.plan_kill()
            with contextlib.suppress(KilledError):
                self.host.start()
                break
        self.model.unseal(self.host.times)

    def recover(self, *possible: Model) -> None:
        """Start after a kill that fell upon a request, and learn what became of that: one of what was possible."""
        ciphertexts, seen = self.newest(), None
        while seen is None:
            self.start()
            with contextlib.suppress(KilledError):
                seen = see(self.host, ciphertexts)
        for model in possible:
            if model is not self.model:
                model.unseal(self.host.times)
            if NEW in model.keys and (made := seen.keys.keys() - model.keys.keys()):
                model.keys[made.pop()] = model.keys.pop(NEW)
        sights = [foreseen(model, ciphertexts) for model in possible]
        found = "\nor ".join(differences(seen, one) for one in sights)
        assert seen in sights, f"after a kill there is, and should be: {found}"
        self.model = possible[sights.index(seen)]

    def newest(self) -> list[Ciphertext]:
        """The last ciphertext of each version of a key's material."""
        return list({(one.key, one.version): one for one in self.model.ciphertexts}.values())

    def look(self, ciphertexts: list[Ciphertext]) -> None:
        """Look at everything."""
        try:
            seen, should = see(self.host, ciphertexts), foreseen(self.model, ciphertexts)
        except KilledError:
            self.recover(self.model)
            return
        assert seen == should, f"there is, and should be: {differences(seen, should)}"

    def do(
        self, change: Callable[[Model], Any], operation: Operation[Any, Any], request: msgspec.Struct
    ) -> Answer | None:
        """Have the model and the service do the same; return the answer, None if it was refused or killed."""
        before, refusal = copy.deepcopy(self.model), ""
        try:
            change(self.model)
        except RefusedError as refused:
            refusal = str(refused)
        try:
            answer = self.host.ask(operation, request)
        except KilledError:
            self.recover(before, self.model)
            return None
        assert answer.error == refusal, f"{operation.name}: {answer.error or 'done'}, and not {refusal or 'done'}"
        return None if answer.error else answer

    def key_at(self, place: int | str) -> str:
        """Return the id or alias of a key."""
        if isinstance(place, str):
            return place
        return list(self.model.keys)[place % len(self.model.keys)] if self.model.keys else NO_KEY

    def change(self, place: int, act: KeyChange, operation: Operation[Any, Any], make: MakeRequest) -> None:
        """Ask for a change of a key, and look at it."""
        key_id = self.key_at(place)
        self.do(lambda model: act(model, key_id), operation, make(key_id))
        if self.model.sealed or key_id not in self.model.keys:
            return
        try:
            seen = see_key(self.host, key_id)
        except KilledError:
            self.recover(self.model)
        else:
            assert seen == key_foreseen(self.model.keys[key_id])

    @initialize(kills=st.lists(st.builds(Kill, calls, st.sampled_from(KILLS)), min_size=3, max_size=12))
    def plan_kills(self, kills: list[Kill]) -> None:
        """Have the service killed amid this disk call, counted from here, and each later one from its start."""
        self.kills = kills
        self.plan_kill()

    def plan_kill(self) -> None:
        self.host.planned = self.kills.pop(0) if self.kills else None

    # Keys and aliases

    @rule()
    def create_key(self) -> None:
        """Make a key."""
        answer = self.do(Model.create_key, CREATE_KEY, CreateKeyRequest())
        if answer is not None:
            self.model.keys[answer.response.key_metadata.key_id] = self.model.keys.pop(NEW)

    @rule(place=places)
    def enable(self, place: int) -> None:
        """Let a key be used."""
        self.change(place, Model.enable, ENABLE_KEY, lambda key_id: EnableKeyRequest(key_id=key_id))

    @rule(place=places)
    def disable(self, place: int) -> None:
        """Let a key not be used."""
        self.change(place, Model.disable, DISABLE_KEY, lambda key_id: EnableKeyRequest(key_id=key_id))

    @rule(alias=st.sampled_from(ALIASES), place=places)
    def create_alias(self, alias: str, place: int) -> None:
        """Name a key."""
        key_id = self.key_at(place)
        request = CreateAliasRequest(alias_name=alias, target_key_id=key_id)
        self.do(lambda model: model.create_alias(alias, key_id), CREATE_ALIAS, request)

    @rule(place=places, text=st.sampled_from(["", "mine", "yours"]))
    def describe(self, place: int, text: str) -> None:
        """Say what a key is for."""
        self.change(
            place,
            lambda model, key_id: model.describe(key_id, text),
            UPDATE_KEY_DESCRIPTION,
            lambda key_id: UpdateKeyDescriptionRequest(key_id=key_id, description=text),
        )

    @rule(alias=st.sampled_from(ALIASES), place=places)
    def update_alias(self, alias: str, place: int) -> None:
        """Let a name mean another key."""
        key_id = self.key_at(place)
        request = UpdateAliasRequest(alias_name=alias, target_key_id=key_id)
        self.do(lambda model: model.update_alias(alias, key_id), UPDATE_ALIAS, request)

    @rule(alias=st.sampled_from(ALIASES))
    def delete_alias(self, alias: str) -> None:
        """Remove a name."""
        self.do(lambda model: model.delete_alias(alias), DELETE_ALIAS, DeleteAliasRequest(alias_name=alias))

    # Rotation and deletion

    @rule(place=places)
    def rotate(self, place: int) -> None:
        """Give a key new material now."""
        self.change(place, Model.rotate, ROTATE_KEY_ON_DEMAND, lambda key_id: RotateKeyOnDemandRequest(key_id=key_id))

    @rule(place=places, days=st.sampled_from([90, 365, 2560]))
    def enable_rotation(self, place: int, days: int) -> None:
        """Have a key rotated by itself."""
        self.change(
            place,
            lambda model, key_id: model.enable_rotation(key_id, days),
            ENABLE_KEY_ROTATION,
            lambda key_id: EnableKeyRotationRequest(key_id=key_id, rotation_period_in_days=days),
        )

    @rule(place=places)
    def disable_rotation(self, place: int) -> None:
        """Have a key not rotated by itself."""
        self.change(
            place,
            Model.disable_rotation,
            DISABLE_KEY_ROTATION,
            lambda key_id: DisableKeyRotationRequest(key_id=key_id),
        )

    @rule(place=places, days=st.sampled_from([6, 7, 30, 31]))
    def schedule_deletion(self, place: int, days: int) -> None:
        """Have a key destroyed after a while."""
        self.change(
            place,
            lambda model, key_id: model.schedule_deletion(key_id, days),
            SCHEDULE_KEY_DELETION,
            lambda key_id: ScheduleKeyDeletionRequest(key_id=key_id, pending_window_in_days=days),
        )

    @rule(place=places)
    def cancel_deletion(self, place: int) -> None:
        """Keep a key after all."""
        self.change(
            place, Model.cancel_deletion, CANCEL_KEY_DELETION, lambda key_id: CancelKeyDeletionRequest(key_id=key_id)
        )

    # Uses

    @rule(key=keys)
    def encrypt(self, key: int | str) -> None:
        """Encrypt something that nobody else did."""
        self.made += 1
        plaintext, name = f"plaintext {self.made}".encode(), self.key_at(key)
        answer = self.use(name, ENCRYPT, EncryptRequest(key_id=name, plaintext=memoryview(plaintext)))
        if answer is not None:
            self.keep(answer, plaintext, answer.response.ciphertext_blob)

    @rule(key=keys)
    def generate_data_key(self, key: int | str) -> None:
        """Make a data key."""
        name = self.key_at(key)
        answer = self.use(name, GENERATE_DATA_KEY, GenerateDataKeyRequest(key_id=name, number_of_bytes=16))
        if answer is not None:
            self.keep(answer, bytes(answer.response.plaintext), answer.response.ciphertext_blob)

    @rule(key=keys)
    def encrypt_file(self, key: int | str) -> None:
        """Begin a file."""
        name = self.key_at(key)
        answer = self.use(name, ENCRYPT_FILE, EncryptFileRequest(key_id=name))
        if answer is not None:
            self.keep(answer, answer.message_key, answer.response.header, is_file=True)

    @rule(place=places)
    def decrypt(self, place: int) -> None:
        """Decrypt something that was made once."""
        if (ciphertext := self.ciphertext_at(place)) is not None:
            answer = self.do(lambda model: model.decrypt(ciphertext), *decryption(ciphertext))
            assert answer is None or plaintext_of(answer) == ciphertext.plaintext

    @rule(place=places, key=keys)
    def re_encrypt(self, place: int, key: int | str) -> None:
        """Move something to a key's current material."""
        if (ciphertext := self.ciphertext_at(place)) is not None and not ciphertext.is_file:
            name = self.key_at(key)
            request = ReEncryptRequest(ciphertext_blob=ciphertext.blob, destination_key_id=name)
            answer = self.do(lambda model: model.re_encrypt(ciphertext, name), REENCRYPT, request)
            if answer is not None:
                self.keep(answer, ciphertext.plaintext, answer.response.ciphertext_blob)

    def use(self, name: str, operation: Operation[Any, Any], request: msgspec.Struct) -> Answer | None:
        """Ask for a use of a key."""
        return self.do(lambda model: model.encrypt(name), operation, request)

    def keep(self, answer: Answer, plaintext: bytes, blob: bytes, *, is_file: bool = False) -> None:
        """Note what a key's current material made."""
        key_id = answer.response.key_id.rpartition("/")[2]
        version = self.model.keys[key_id].version
        self.model.ciphertexts.append(Ciphertext(key_id, version, plaintext, blob, is_file))

    def ciphertext_at(self, place: int) -> Ciphertext | None:
        ciphertexts = self.model.ciphertexts
        return ciphertexts[place % len(ciphertexts)] if ciphertexts else None

    # What happens to the service

    @rule()
    def seal(self) -> None:
        """Take the keys away, as an administrator may at any time."""
        self.do(Model.seal, SEAL, SealRequest())

    @rule()
    def unseal(self) -> None:
        """Bring them back."""
        try:
            self.host.unseal()
        except KilledError:
            self.recover(self.model)
        else:
            self.model.unseal(self.host.times)

    @rule(how=st.sampled_from(["stop", "kill", "power off"]), hours=hours, off_by=st.sampled_from([0, 0, 0, -1, 1]))
    def restart(self, how: str, hours: int, off_by: int) -> None:
        """Stop the service, kill it, or switch the host off for some time; its clock may be years wrong then."""
        if not self.is_in_use():
            return
        with contextlib.suppress(KilledError):
            self.host.stop() if how == "stop" else self.host.kill()
        if how == "power off":
            self.boots += 1
            wall = self.host.times.wall + hours * HOUR + off_by * YEAR
            self.host.times = Times(wall, 2 * HOUR, f"boot {self.boots}")
        self.start()
        self.look(self.newest())

    def is_in_use(self) -> bool:
        """Tell whether the service has run for a while: what is started all the time is hardly used."""
        return self.host.asked > 30

    # Time

    @rule(hours=hours)
    def pass_time(self, hours: int) -> None:
        """Let time pass; the host may be suspended meanwhile."""
        now = self.host.times
        self.turn_clocks(now._replace(wall=now.wall + hours * HOUR, uptime=now.uptime + hours * HOUR))

    @rule(hours=hours, sign=st.sampled_from([-1, 1]))
    def set_clock(self, hours: int, sign: int) -> None:
        """Set the wall clock, which anybody may."""
        now = self.host.times
        self.turn_clocks(now._replace(wall=now.wall + sign * hours * HOUR))

    def turn_clocks(self, times: Times) -> None:
        try:
            self.host.pass_time(times)
        except KilledError:
            self.recover(self.model)
        else:
            self.model.pass_time(times)
            if not self.model.sealed:
                self.look([])

    @rule()
    def confirm_clock(self) -> None:
        """Say that the wall clock is right."""
        clock = dt.datetime.fromtimestamp(self.host.times.wall / 1000, dt.UTC)
        self.do(Model.confirm_clock, CONFIRM_CLOCK, ConfirmClockRequest(clock=clock))


@pytest.fixture(scope="module")
def forge(module_path: Path) -> Iterator[Forge]:
    forge = Forge(build(module_path))
    yield forge
    forge.close()


# A step takes some 3 ms; shrinking what was found takes hypothesis at most 5 minutes.
@pytest.mark.timeout(600 + STEPS // 20)
def test_a_key_lives_as_the_model_says(forge: Forge) -> None:
    """Whatever is asked, whenever the service is sealed, stopped or killed, and whatever the clocks tell."""
    print(f"KMSD_SOAK_SEED={SEED}")  # noqa: T201 - whoever finds something wants to find it again
    KeyLives.forge = forge
    run_state_machine_as_test(
        seed(SEED)(KeyLives),
        settings=settings(
            max_examples=max(1, STEPS // STEPS_OF_A_RUN),
            stateful_step_count=STEPS_OF_A_RUN,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )

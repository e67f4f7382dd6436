"""The whole life of keys against a model of it, over kills at any disk call, seals, and clocks that are set.

`make test` takes some 5,000 steps; `make soak` as many as one likes, and tells the seed by which they are repeated.
"""

from __future__ import annotations

import datetime as dt
import os
import random
import sys
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from kmsd.api.administration import SEAL, SealRequest
from kmsd.api.calendar import CONFIRM_CLOCK, ConfirmClockRequest
from kmsd.api.keys import (
    DELETE_ALIAS,
    DISABLE_KEY,
    ENABLE_KEY,
    UPDATE_ALIAS,
    UPDATE_KEY_DESCRIPTION,
    DeleteAliasRequest,
    EnableKeyRequest,
    UpdateAliasRequest,
    UpdateKeyDescriptionRequest,
)
from kmsd.api.rotation import (
    DISABLE_KEY_ROTATION,
    DisableKeyRotationRequest,
)
from kmsd.api.symmetric import (
    GENERATE_DATA_KEY,
    REENCRYPT,
    GenerateDataKeyRequest,
    ReEncryptRequest,
)
from tests.life.clock import DAY, HOUR
from tests.life.daemon import Kill
from tests.life.deeds import (
    Deed,
    cancel_deletion,
    create_alias,
    encrypt,
    encrypt_file,
    rotate,
    rotate_every,
    schedule_deletion,
)
from tests.life.host import Answer, Forge
from tests.life.model import Ciphertext, Model
from tests.life.pair import Fall, Pair
from tests.life.sight import decryption, plaintext_of
from tests.support.faulty_disk import KILLS

STEPS = int(os.environ.get("KMSD_SOAK_STEPS", "5000"))
SEED = int(os.environ.get("KMSD_SOAK_SEED", str(random.SystemRandom().randrange(10**6))))
STEPS_OF_A_RUN = 250
_KEYS_AT_FIRST = 3
# After so many steps somebody unseals it; and before so many nobody starts it again, for it would do little else.
_MOST_SEALED = 8
_LEAST_USED = 20

ALIASES = ("alias/a", "alias/b", "alias/c")
NO_KEY = "00000000-0000-4000-8000-000000000000"

# Nothing that is drawn depends on what there is, as a kill decides that: a place in a list counts modulo its length.
places = st.integers(0, 255)
# A key that is named by its place, or by an alias.
keys = st.one_of(places, places, st.sampled_from(ALIASES))
# A use makes some 2 disk calls, a change some 15, and a start some 40.
kills = st.builds(Kill, st.one_of(st.integers(1, 50), st.integers(1, 1000)), st.sampled_from(KILLS))
kills_of_housekeeping = st.builds(Kill, st.integers(1, 60), st.sampled_from(KILLS))
# 7 to 30 days are the bounds of deletion, 90 of rotation. Two hours at least: housekeeping is exact to one.
durations = st.sampled_from([2 * HOUR, DAY, 7 * DAY, 30 * DAY, 90 * DAY, 365 * DAY])
# By how much the wall clock is wrong.
errors = st.sampled_from([0, 0, 0, 0, 2 * HOUR, -2 * HOUR, 29 * DAY, -29 * DAY, 365 * DAY, -365 * DAY])
# With a clock that was set back nothing is due, and what a kill left half done is seen as it is.
falls = st.builds(Fall, kills, st.sampled_from([None, None, -365 * DAY, 0]))


class KeyLives(RuleBasedStateMachine):
    """A host on which people use and manage keys, and everything happens that may happen to a host.

    No rule has a precondition: the model says what becomes of each request in each state, also while sealed.
    """

    forge: ClassVar[Forge]

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair(self.forge)
        self.made = self.sealed = self.used = 0

    def teardown(self) -> None:
        """In the end everything is compared once more."""
        try:
            if sys.exc_info()[0] is None:
                self.pair.finish()
        finally:
            self.pair.host.close()

    @property
    def model(self) -> Model:
        return self.pair.model

    def ask(self, deed: Deed) -> Answer | None:
        self.count_asked()
        return self.pair.ask(deed)

    def count_asked(self) -> None:
        self.keep_unsealed()
        self.used += 1
        self.sealed += self.model.sealed

    def keep_unsealed(self) -> None:
        """Unseal it when it was sealed for long: a kill meanwhile may let the clock be set."""
        if self.sealed >= _MOST_SEALED:
            self.unseal()

    def key_at(self, place: int | str) -> str:
        """Return the id or alias of a key."""
        if isinstance(place, str):
            return place
        return list(self.model.keys)[place % len(self.model.keys)] if self.model.keys else NO_KEY

    @initialize(falls=st.lists(falls, min_size=2, max_size=8))
    def begin(self, falls: list[Fall]) -> None:
        """Begin with some keys."""
        for _ in range(_KEYS_AT_FIRST):
            self.create_key()
        self.pair.plan(falls)

    # Keys and aliases

    @rule()
    def create_key(self) -> None:
        """Make a key."""
        self.count_asked()
        self.pair.create_key()

    @rule(place=places, text=st.sampled_from(["", "mine", "yours"]))
    def describe(self, place: int, text: str) -> None:
        """Say what a key is for."""
        key = self.key_at(place)
        request = UpdateKeyDescriptionRequest(key_id=key, description=text)
        self.ask(Deed(lambda model: model.describe(key, text), UPDATE_KEY_DESCRIPTION, request))
        self.pair.look_at_key(key)

    @rule(place=places, on=st.sampled_from([True, True, False]))
    def switch(self, place: int, on: bool) -> None:
        """Enable a key, or disable it."""
        key = self.key_at(place)
        request = EnableKeyRequest(key_id=key)
        if on:
            self.ask(Deed(lambda model: model.enable(key), ENABLE_KEY, request))
        else:
            self.ask(Deed(lambda model: model.disable(key), DISABLE_KEY, request))
        self.pair.look_at_key(key)

    @rule(alias=st.sampled_from(ALIASES), place=places, how=st.sampled_from(["create", "create", "update", "delete"]))
    def name(self, alias: str, place: int, how: str) -> None:
        """Name a key, let a name mean another one, or remove a name."""
        key = self.key_at(place)
        if how == "create":
            self.ask(create_alias(alias, key))
        elif how == "update":
            update = UpdateAliasRequest(alias_name=alias, target_key_id=key)
            self.ask(Deed(lambda model: model.update_alias(alias, key), UPDATE_ALIAS, update))
        else:
            self.ask(Deed(lambda model: model.delete_alias(alias), DELETE_ALIAS, DeleteAliasRequest(alias_name=alias)))

    @rule(place=places, days=st.sampled_from([None, None, 0, 90, 90, 365, 2560]))
    def rotate(self, place: int, days: int | None) -> None:
        """Rotate a key now, never by itself, or every so many days."""
        key = self.key_at(place)
        if days is None:
            self.ask(rotate(key))
        elif days == 0:
            never = DisableKeyRotationRequest(key_id=key)
            self.ask(Deed(lambda model: model.disable_rotation(key), DISABLE_KEY_ROTATION, never))
        else:
            self.ask(rotate_every(key, days))
        self.pair.look_at_key(key)

    @rule(place=places, days=st.sampled_from([None, 6, 7, 7, 14, 30, 30, 31]))
    def delete(self, place: int, days: int | None) -> None:
        """Have a key destroyed after so many days, or keep it after all."""
        key = self.key_at(place)
        if days is None:
            self.ask(cancel_deletion(key))
        else:
            self.ask(schedule_deletion(key, days))
        self.pair.look_at_key(key)

    # Uses

    @rule(key=keys)
    def encrypt(self, key: int | str) -> None:
        """Encrypt something that nobody else did."""
        self.made += 1
        plaintext, name = f"plaintext {self.made}".encode(), self.key_at(key)
        answer = self.ask(encrypt(name, plaintext))
        if answer is not None:
            self.pair.keep(answer, plaintext, answer.response.ciphertext_blob)

    @rule(key=keys, is_file=st.booleans())
    def make_data_key(self, key: int | str, is_file: bool) -> None:
        """Make a data key, for somebody's own use or for a file."""
        name = self.key_at(key)
        if is_file:
            answer = self.ask(encrypt_file(name))
            if answer is not None:
                self.pair.keep(answer, answer.message_key, answer.response.header, is_file=True)
        else:
            request = GenerateDataKeyRequest(key_id=name, number_of_bytes=16)
            answer = self.ask(Deed(lambda model: model.encrypt(name), GENERATE_DATA_KEY, request))
            if answer is not None:
                self.pair.keep(answer, bytes(answer.response.plaintext), answer.response.ciphertext_blob)

    @rule(place=places)
    def decrypt(self, place: int) -> None:
        """Decrypt something that was made once."""
        if (ciphertext := self.ciphertext_at(place)) is not None:
            answer = self.ask(Deed(lambda model: model.decrypt(ciphertext), *decryption(ciphertext)))
            assert answer is None or plaintext_of(answer) == ciphertext.plaintext

    @rule(place=places, key=keys)
    def re_encrypt(self, place: int, key: int | str) -> None:
        """Move something to a key's current material."""
        if (ciphertext := self.ciphertext_at(place)) is not None and not ciphertext.is_file:
            name = self.key_at(key)
            request = ReEncryptRequest(ciphertext_blob=ciphertext.blob, destination_key_id=name)
            answer = self.ask(Deed(lambda model: model.re_encrypt(ciphertext, name), REENCRYPT, request))
            if answer is not None:
                self.pair.keep(answer, ciphertext.plaintext, answer.response.ciphertext_blob)

    def ciphertext_at(self, place: int) -> Ciphertext | None:
        ciphertexts = self.model.ciphertexts
        return ciphertexts[place % len(ciphertexts)] if ciphertexts else None

    # What happens to the service, and to the host

    @rule()
    def seal(self) -> None:
        """Take the keys away, as an administrator may at any time."""
        self.ask(Deed(Model.seal, SEAL, SealRequest()))

    @rule()
    def unseal(self) -> None:
        """Bring them back."""
        self.sealed = 0
        self.pair.unseal()

    @rule(how=st.sampled_from(["stop", "kill", "switch off"]), duration=durations, wrong=errors)
    def restart(self, how: str, duration: int, wrong: int) -> None:
        """Start the service again, or the host."""
        if self.used < _LEAST_USED:
            return
        self.used = 0
        if how == "switch off":
            self.pair.switch_off(duration, wrong)
        else:
            self.pair.restart(well=how == "stop")

    @rule(duration=durations, kill=st.none() | st.none() | st.none() | kills_of_housekeeping)
    def pass_time(self, duration: int, kill: Kill | None) -> None:
        """Let time pass, and the service be killed amid what falls due."""
        if kill is not None:
            self.pair.host.planned = kill
        self.pair.pass_time(duration)
        self.pair.look()

    @rule(wrong=errors)
    def set_clock(self, wrong: int) -> None:
        """Set the wall clock."""
        self.pair.set_clock(wrong)
        self.pair.look()

    @rule()
    def confirm_clock(self) -> None:
        """Say that the wall clock is right."""
        self.keep_unsealed()
        request = ConfirmClockRequest(clock=dt.datetime.fromtimestamp(self.pair.host.times.wall / 1000, dt.UTC))
        self.ask(Deed(Model.confirm_clock, CONFIRM_CLOCK, request))


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

"""A host and the model of it, to which the same is done, and which have to agree."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from kmsd.api.operation import Operation
from tests.life.clock import HOUR, Clock, Times
from tests.life.daemon import Kill
from tests.life.host import NO_KILL, Answer, Forge, Host, KilledError
from tests.life.model import NEW, Ciphertext, Model, RefusedError
from tests.life.sight import Sight, differences, foreseen, key_foreseen, see, see_key
from tests.life.trail import check_trail

_BEGIN = Times(wall=1_800_000_000_000, uptime=HOUR, boot="boot 0")
# Where a boot begins; housekeeping is exact to an hour.
_UPTIME = 2 * HOUR

# What is done to the model, and raises what a request is refused with.
Change = Callable[[Model], Any]


class Pair:
    """A host with a running service, and its model; whatever is done may end in a kill that was planned.

    `kills` are planned: one now, and each later one with the start that comes next. `wrong` is by how much the wall
    clock is wrong.
    """

    def __init__(self, forge: Forge) -> None:
        self.model = Model(Clock(_BEGIN, _BEGIN.wall))
        self.host = Host(forge, _BEGIN)
        self._kills: list[Kill] = []
        self._boots = 0
        self._wrong = 0
        self._start()

    def plan(self, kills: list[Kill]) -> None:
        """Have the service killed amid the first of these disk calls, counted from here, and so on."""
        self._kills = kills
        self._plan_next()

    def _plan_next(self) -> None:
        self.host.planned = self._kills.pop(0) if self._kills else NO_KILL

    def ask(self, change: Change, operation: Operation[Any, Any], request: msgspec.Struct) -> Answer | None:
        """Ask for something that the model does as well; return the answer, None if it was refused or killed."""
        before, refusal = copy.deepcopy(self.model), ""
        try:
            change(self.model)
        except RefusedError as refused:
            refusal = str(refused)
        try:
            answer = self.host.ask(operation, request)
        except KilledError:
            self._recover(before, self.model)
            return None
        assert answer.error == refusal, f"{operation.name}: {answer.error or 'done'}, and not {refusal or 'done'}"
        return None if answer.error else answer

    def look_at_key(self, key_id: str) -> None:
        """Compare what can be seen of a key, if anything can."""
        if self.model.sealed or key_id not in self.model.keys:
            return
        with self._recovering():
            seen, should = see_key(self.host, key_id), key_foreseen(self.model.keys[key_id])
            assert seen == should, f"there is {seen}, and should be {should}"

    def look(self, ciphertexts: Sequence[Ciphertext] = ()) -> None:
        """Compare everything that can be seen, and what becomes of these ciphertexts."""
        if self.model.sealed:
            return
        with self._recovering():
            seen, should = see(self.host, ciphertexts), foreseen(self.model, ciphertexts)
            assert seen == should, f"there is, and should be: {differences(seen, should)}"

    def newest(self) -> list[Ciphertext]:
        """Return the last ciphertext of each version of a key's material."""
        return list({(one.key, one.version): one for one in self.model.ciphertexts}.values())

    def unseal(self) -> None:
        """Bring the keys back."""
        with self._recovering():
            self.host.unseal()
            self.model.unseal(self.host.times)

    def restart(self, *, well: bool) -> None:
        """Stop the service, or kill it, and start it again."""
        self._end(well=well)
        self._start()
        self.look(self.newest())

    def switch_off(self, duration: int, wrong: int) -> None:
        """Switch the host off for a time, behind which its clock may be wrong."""
        self._end(well=False)
        self._boots += 1
        wall = self.host.times.wall + duration + wrong - self._wrong
        self.host.times, self._wrong = Times(wall, _UPTIME, f"boot {self._boots}"), wrong
        self._start()
        self.look(self.newest())

    def pass_time(self, duration: int) -> None:
        """Let time pass; whether the host is suspended meanwhile, its clocks do not tell."""
        now = self.host.times
        self._turn_clocks(now._replace(wall=now.wall + duration, uptime=now.uptime + duration))

    def set_clock(self, wrong: int) -> None:
        """Set the wall clock, right or by so much wrong."""
        now = self.host.times
        wall, self._wrong = now.wall + wrong - self._wrong, wrong
        self._turn_clocks(now._replace(wall=wall))

    def _turn_clocks(self, times: Times) -> None:
        with self._recovering():
            self.host.pass_time(times)
            self.model.pass_time(times)
        self.look()

    def finish(self) -> None:
        """Compare everything in the end, all ciphertexts that were ever made, and the audit trail."""
        self.host.planned = NO_KILL
        if self.model.sealed:
            self.unseal()
        self.look(self.model.ciphertexts)
        check_trail(self.host, self.model)

    def _start(self) -> None:
        while True:
            self._plan_next()
            with contextlib.suppress(KilledError):
                self.host.start()
                break
        self._unseal(self.model)

    def _end(self, *, well: bool) -> None:
        with contextlib.suppress(KilledError):
            self.host.stop() if well else self.host.kill()

    @contextlib.contextmanager
    def _recovering(self) -> Iterator[None]:
        """Start again if what is done, which changes nothing of the model but the time, is killed."""
        try:
            yield
        except KilledError:
            self._recover(self.model)

    def _recover(self, *possible: Model) -> None:
        """Start after a kill, and learn what became of what it fell upon: one of what was possible, and all of it."""
        ciphertexts = self.newest()
        seen = self._start_and_see(ciphertexts)
        for model in possible:
            self._unseal(model)
            if NEW in model.keys and (made := seen.keys.keys() - model.keys.keys()):
                model.keys[made.pop()] = model.keys.pop(NEW)
        sights = [foreseen(model, ciphertexts) for model in possible]
        found = "\nor ".join(differences(seen, one) for one in sights)
        assert seen in sights, f"after a kill there is, and should be: {found}"
        self.model = possible[sights.index(seen)]

    def _unseal(self, model: Model) -> None:
        """Have a model go through a start, in which the keys are away and come back."""
        model.seal()
        model.unseal(self.host.times)

    def _start_and_see(self, ciphertexts: Sequence[Ciphertext]) -> Sight:
        while True:
            self._start()
            with contextlib.suppress(KilledError):
                return see(self.host, ciphertexts)

"""A host and the model of it, to which the same is done, and which have to agree."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from tests.life.clock import HOUR, Clock, Times
from tests.life.daemon import Kill
from tests.life.deeds import CREATE, Deed
from tests.life.host import NO_KILL, Answer, Forge, Host, KilledError
from tests.life.model import NEW, Ciphertext, Model, RefusedError
from tests.life.sight import differences, foreseen, key_foreseen, see, see_key
from tests.life.trail import check_trail, told_by

_BEGIN = Times(wall=1_800_000_000_000, uptime=HOUR, boot="boot 0")
# Where a boot begins; housekeeping is exact to an hour.
_UPTIME = 2 * HOUR

# What happens to it, one after the other.
Happenings = Callable[[Model], Iterator[None]]


class Fall(NamedTuple):
    """A kill, and by how much the wall clock is wrong when the service starts again; None: it stays as it is."""

    kill: Kill
    wrong: int | None


class Pair:
    """A host with a running service, and its model; whatever is done may end in a fall that was planned.

    One is planned from when it is said, and each later one from the start that comes next.
    """

    def __init__(self, forge: Forge) -> None:
        self.model = Model(Clock(_BEGIN, _BEGIN.wall))
        self.host = Host(forge, _BEGIN)
        self._falls: list[Fall] = []
        self._wrong_behind: int | None = None  # the fall that is planned
        self._wrong = 0  # by how much the wall clock is
        self._boots = 0
        self._start()

    def plan(self, falls: list[Fall]) -> None:
        """Have the service fall amid these disk calls."""
        self._falls = falls
        self._plan_next()

    def _plan_next(self) -> None:
        self.host.planned, self._wrong_behind = self._falls.pop(0) if self._falls else (NO_KILL, None)

    def ask(self, deed: Deed) -> Answer | None:
        """Ask for something that the model does as well; return the answer, None if it was refused or killed."""
        before, refusal = self.model.copy(), ""
        try:
            deed.change(self.model)
        except RefusedError as refused:
            refusal = str(refused)
        try:
            answer = self.host.ask(deed.operation, deed.request)
        except KilledError:
            self._recover([before, self.model])
            return None
        assert answer.error == refusal, f"{deed.operation.name}: {answer.error or 'done'}, and not {refusal or 'done'}"
        return None if answer.error else answer

    def create_key(self) -> str | None:
        """Make a key; return its id, None if that was refused or killed."""
        answer = self.ask(CREATE)
        if answer is None:
            return None
        key_id: str = answer.response.key_metadata.key_id
        self.model.keys[key_id] = self.model.keys.pop(NEW)
        return key_id

    def keep(self, answer: Answer, plaintext: bytes, blob: bytes, *, is_file: bool = False) -> None:
        """Note what a key's current material made."""
        key_id = answer.response.key_id.rpartition("/")[2]
        version = self.model.keys[key_id].version
        self.model.ciphertexts.append(Ciphertext(key_id, version, plaintext, blob, is_file))

    def look_at_key(self, key_id: str) -> None:
        """Compare what can be seen of a key, if anything can."""
        if self.model.sealed or key_id not in self.model.keys:
            return
        try:
            seen, should = see_key(self.host, key_id), key_foreseen(self.model.keys[key_id])
        except KilledError:
            self._recover([self.model])
        else:
            assert seen == should, f"there is {seen}, and should be {should}"

    def look(self, ciphertexts: Sequence[Ciphertext] = ()) -> None:
        """Compare everything that can be seen, and what becomes of these ciphertexts."""
        if self.model.sealed:
            return
        try:
            seen, should = see(self.host, ciphertexts), foreseen(self.model, ciphertexts)
        except KilledError:
            self._recover([self.model])
        else:
            assert seen == should, f"there is, and should be: {differences(seen, should)}"

    def unseal(self) -> None:
        """Bring the keys back."""
        self._let_happen(self.host.unseal, lambda model: model.unseal(self.host.times))

    def restart(self, *, well: bool) -> None:
        """Stop the service, or kill it, and start it again."""
        self._end(well=well)
        self._start()

    def switch_off(self, duration: int, wrong: int) -> None:
        """Switch the host off for a time, behind which its clock may be wrong."""
        self._end(well=False)
        self._boots += 1
        self.host.times = Times(self._wall(wrong) + duration, _UPTIME, f"boot {self._boots}")
        self._start()

    def pass_time(self, duration: int) -> None:
        """Let time pass; whether the host is suspended meanwhile, its clocks do not tell."""
        now = self.host.times
        self._turn_clocks(now._replace(wall=now.wall + duration, uptime=now.uptime + duration))

    def set_clock(self, wrong: int) -> None:
        """Set the wall clock, right or by so much wrong."""
        self._turn_clocks(self.host.times._replace(wall=self._wall(wrong)))

    def _wall(self, wrong: int) -> int:
        """Return what the wall clock tells when it is wrong by so much."""
        wall, self._wrong = self.host.times.wall + wrong - self._wrong, wrong
        return wall

    def _turn_clocks(self, times: Times) -> None:
        self._let_happen(lambda: self.host.pass_time(times), lambda model: model.happenings(times))

    def finish(self) -> None:
        """Compare everything in the end, all ciphertexts that were ever made, and the audit trail."""
        self.host.planned = NO_KILL
        if self.model.sealed:
            self.unseal()
        self.look(self.model.ciphertexts)
        check_trail(self.host, self.model)

    def _let_happen(self, act: Callable[[], None], happen: Happenings) -> None:
        """Let the host do one thing after the other by itself, of which a kill may leave the first ones."""
        try:
            act()
        except KilledError:
            self._recover(stages(self.model, happen))
        else:
            for _ in happen(self.model):
                pass

    def _end(self, *, well: bool) -> None:
        with contextlib.suppress(KilledError):
            self.host.stop() if well else self.host.kill()
        self._wrong_behind = None  # what was planned and did not come

    def _start(self) -> None:
        """Start behind an end of which everything is known."""
        self._recover([self.model])

    def _recover(self, possible: list[Model]) -> None:
        """Start again, and learn from what is there what became of what was killed: one of what was possible."""
        ciphertexts, seen = self._newest(), None
        while seen is None:
            if self._wrong_behind is not None:
                self.host.times = self.host.times._replace(wall=self._wall(self._wrong_behind))
            self._plan_next()
            try:
                self.host.start()
                possible = [stages(model, self._happen_at_start)[-1] for model in possible]
                seen = see(self.host, ciphertexts)
            except KilledError:
                possible = [stage for model in possible for stage in stages(model, self._happen_at_start)]
        for model in possible:
            if NEW in model.keys and (made := seen.keys.keys() - model.keys.keys()):
                model.keys[made.pop()] = model.keys.pop(NEW)
        told = told_by(self.host)
        fitting = [model for model in possible if (foreseen(model, ciphertexts), model.told) == (seen, told)]
        assert fitting, "behind a kill there is, and should be: " + "\nor ".join(
            f"{differences(seen, foreseen(model, ciphertexts))}; {told} and {model.told}" for model in possible
        )
        self.model = fitting[0]

    def _happen_at_start(self, model: Model) -> Iterator[None]:
        return model.start(self.host.times)

    def _newest(self) -> list[Ciphertext]:
        """Return the last ciphertext of each version of a key's material."""
        return list({(one.key, one.version): one for one in self.model.ciphertexts}.values())


def stages(model: Model, happen: Happenings) -> list[Model]:
    """Return a model as it is, and behind each of the things that happen."""
    model = model.copy()
    return [model.copy(), *(model.copy() for _ in happen(model))]

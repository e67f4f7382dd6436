"""Refusals that are remembered: a bounded number, and nobody's at the expense of another."""

from __future__ import annotations

from kmsd.access.decision import Explanation, Outcome, Step
from kmsd.service.refusals import Refusal, Refusals
from tests.support.embedded import ALICE


def refusal(number: int, steps: int = 0) -> Refusal:
    step = Step("key policy", 1, "", "Allow", False, "the principal is not uid:7")
    explanation = Explanation(Outcome.IMPLICIT_DENY, "no statement allows it", (step,) * steps)
    return Refusal(f"{number:08x}{0:024x}", "Encrypt", ALICE.caller, "kms:Encrypt", "*", explanation)


def test_a_refusal_is_found_by_its_id_or_the_beginning_of_it() -> None:
    """Eight digits or more, and all of what is given must be right."""
    kept = Refusals()
    one = refusal(1)
    kept.add(one, 1000)

    for asked in (one.request_id, one.request_id[:8], one.request_id[:20]):
        assert kept.find(asked) is one
    for asked in ("00000002", one.request_id[:8] + "1", one.request_id + "0"):
        assert kept.find(asked) is None


def test_who_has_the_most_loses_his_oldest() -> None:
    """However many somebody else's are."""
    kept = Refusals(most=4)
    kept.add(refusal(0), 1000)
    for number in range(1, 10):
        kept.add(refusal(number), 1001)

    found = [number for number in range(10) if kept.find(f"{number:08x}")]
    assert found == [0, 7, 8, 9]


def test_long_explanations_are_fewer() -> None:
    """The steps of all are bounded, and one that is too long alone is not kept."""
    kept = Refusals(most_steps=100)
    kept.add(refusal(0), 1000)
    for number in range(1, 6):
        kept.add(refusal(number, steps=40), 1001)
    kept.add(refusal(6, steps=200), 1001)

    assert [number for number in range(7) if kept.find(f"{number:08x}")] == [0]

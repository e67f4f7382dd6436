"""What was acknowledged survives kills, power cuts and disks that fail, at any moment (DESIGN 8 and 9).

`make test` takes a sample that a fresh seed draws, which is told when something is wrong and can be given again by
KMSD_CAMPAIGN_SEED; `make crash` takes far more.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.faults.campaign import launch
from tests.support.faulty_disk import build

SEED = int(os.environ.get("KMSD_CAMPAIGN_SEED", str(random.SystemRandom().randrange(10**6))))
# With those of the whole daemon, in tests/e2e/test_crash.py, 150 kills.
KILLS = int(os.environ.get("KMSD_CRASH_KILLS", "140"))
# More than there are in the thorough campaign.
OUTAGES = int(os.environ.get("KMSD_CRASH_OUTAGES", "100"))
POWER_CUTS = int(os.environ.get("KMSD_CRASH_POWER_CUTS", "100"))
# So that a slow machine makes fewer runs: `make test` takes some 10 s a campaign on two cores, and the longest of the
# thorough ones half an hour.
_LONGEST_SECONDS = 45 if KILLS < 1000 else 3600


@pytest.fixture(scope="module")
def shim(module_path: Path) -> Path:
    """What a campaign has to have preloaded."""
    return build(module_path)


@pytest.mark.timeout(_LONGEST_SECONDS + 120)
def test_what_was_acknowledged_survives_kills(shim: Path) -> None:
    """Before, amid and after disk calls and at random times; also kills of the start that follows a kill."""
    assert launch(shim, "kills", runs=KILLS, seconds=_LONGEST_SECONDS, seed=SEED) > 0


@pytest.mark.timeout(_LONGEST_SECONDS + 120)
def test_whatever_disk_call_fails_the_outcome_is_legal(shim: Path) -> None:
    """Once or from then on, in a start, twenty operations or a stop; afterwards the service goes on."""
    assert launch(shim, "outages", runs=OUTAGES, seconds=_LONGEST_SECONDS, seed=SEED) > 0


@pytest.mark.timeout(_LONGEST_SECONDS + 120)
def test_what_was_acknowledged_survives_power_cuts(shim: Path) -> None:
    """Keys, aliases, ciphertexts; and with `audit.sync = always` the line of each, in a whole chain."""
    assert launch(shim, "power", runs=POWER_CUTS, seconds=_LONGEST_SECONDS, seed=SEED) > 0

"""What is counted and timed, and that Prometheus reads of it what was counted."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from kmsd.api import OPERATIONS, errors
from kmsd.api.operation import MAX_FRAME_BYTES
from kmsd.metrics.exposition import exposition
from kmsd.metrics.families import (
    BUILD,
    FAMILIES,
    SECRET_MEMORY_USED,
    Family,
    Kind,
    Reading,
)
from kmsd.metrics.meter import CANCELED, OF_REQUESTS, OK, REQUEST_BOUNDS, TOKEN_BOUNDS, Meter

NAMES = st.sampled_from(["Encrypt", "Decrypt", "unknown"])
OUTCOMES = st.sampled_from(["ok", "AccessDeniedException", "canceled"])
SECONDS = st.one_of(st.sampled_from(REQUEST_BOUNDS), st.floats(min_value=0, max_value=100))


def samples_of(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@given(st.lists(st.tuples(NAMES, OUTCOMES, st.one_of(st.none(), SECONDS))))
def test_what_prometheus_reads_is_what_was_counted(noted: list[tuple[str, str, float | None]]) -> None:
    """Counts by name and outcome; buckets hold all that took no longer than their bound."""
    meter = Meter(OF_REQUESTS)
    for name, outcome, seconds in noted:
        if seconds is None:
            meter.of(name).count(outcome)
        else:
            meter.of(name).note(outcome, seconds)

    read = samples_of(exposition(meter.readings()))

    expected: dict[tuple[str, tuple[tuple[str, str], ...]], Any] = {}
    for name, outcome, _ in noted:
        labels = (("operation", name), ("outcome", outcome))
        expected["kmsd_requests_total", labels] = sum((name, outcome) == one[:2] for one in noted)
    for name in {name for name, _, seconds in noted if seconds is not None}:
        times = [seconds for one, _, seconds in noted if one == name and seconds is not None]
        for bound in (*REQUEST_BOUNDS, float("inf")):
            le = "+Inf" if bound == float("inf") else str(bound)
            labels = (("le", le), ("operation", name))
            expected["kmsd_request_duration_seconds_bucket", labels] = sum(seconds <= bound for seconds in times)
        expected["kmsd_request_duration_seconds_count", (("operation", name),)] = len(times)
        expected["kmsd_request_duration_seconds_sum", (("operation", name),)] = pytest.approx(sum(times))
    assert read == expected


@pytest.mark.parametrize("bounds", [REQUEST_BOUNDS, TOKEN_BOUNDS])
def test_the_bounds_ascend(bounds: tuple[float, ...]) -> None:
    """As the search for a bucket needs them."""
    assert sorted(set(bounds)) == list(bounds)


def test_label_values_are_read_back_as_they_were() -> None:
    """Whatever stands in them."""
    text = exposition([Reading(BUILD, 1, ('1.0"\n\\',)), Reading(SECRET_MEMORY_USED, 5)])

    assert samples_of(text) == {
        ("kmsd_build_info", (("version", '1.0"\n\\'),)): 1,
        ("kmsd_secret_memory_used_bytes", ()): 5,
    }


def test_help_and_type_are_told_of_what_there_is() -> None:
    """And nothing of what there is not."""
    text = exposition([Reading(SECRET_MEMORY_USED, 5)])

    assert text.splitlines() == [
        f"# HELP kmsd_secret_memory_used_bytes {SECRET_MEMORY_USED.meaning}",
        "# TYPE kmsd_secret_memory_used_bytes gauge",
        "kmsd_secret_memory_used_bytes 5.0",
    ]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_names_are_as_prometheus_wants_them(family: Family) -> None:
    """A prefix, base units, and _total for what only goes up."""
    assert family.name.startswith("kmsd_")
    assert family.name.endswith("_total") is (family.kind is Kind.COUNTER)
    assert family.kind is not Kind.HISTOGRAM or family.name.endswith("_seconds")
    assert not any(unit in family.name.split("_") for unit in ("ms", "kib", "mib", "minutes", "days", "percent"))
    assert family.meaning.endswith(".")


def test_names_are_given_once() -> None:
    """Of families, and of what a histogram's series are called."""
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)


def test_the_library_is_imported_by_who_asks_for_metrics() -> None:
    """A daemon that nobody watches starts and runs without it."""
    program = "import sys, kmsd.server.assembly; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


def test_all_series_of_requests_there_can_be_fit_into_a_reply() -> None:
    """Every operation with every outcome, and a thousand million of each."""
    meter = Meter(OF_REQUESTS)
    kinds, outcomes = [errors.KmsError], [OK, CANCELED]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        outcomes.append(kind.code)
    for operation in OPERATIONS:
        tally = meter.of(operation.name)
        tally.outcomes.update(dict.fromkeys(outcomes, 10**9))
        tally.buckets = [10**9] * len(tally.buckets)

    # Half is left for all else, which is a hundred keys and what does not grow.
    assert len(exposition(meter.readings()).encode()) < MAX_FRAME_BYTES // 2

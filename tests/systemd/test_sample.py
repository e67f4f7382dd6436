"""The sample of the settings is the reference: complete, and true."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec

from kmsd.config import Config, load_config

SAMPLE = Path(__file__).parent.parent.parent / "systemd" / "kmsd.toml"


def uncommented() -> str:
    """The sample with every setting in force: prose has a blank behind its #, a setting has none."""
    return re.sub(r"^#(?=\w)", "", SAMPLE.read_text(), flags=re.MULTILINE)


def test_the_sample_as_it_is_changes_nothing() -> None:
    """An administrator may install it and go on from there."""
    assert load_config(SAMPLE) == Config()


def test_every_setting_of_the_sample_has_its_default(tmp_path: Path) -> None:
    """What the sample says a setting is without it is what it is."""
    path = tmp_path / "kmsd.toml"
    path.write_text(uncommented())

    assert load_config(path) == Config()


def test_no_setting_is_missing_in_the_sample() -> None:
    """Each one is named, in its section."""
    assert tomllib.loads(uncommented()) == msgspec.json.decode(msgspec.json.encode(Config()))


def test_every_setting_of_the_sample_is_explained() -> None:
    """A comment stands above it, or above the settings it is told with."""
    unexplained = []
    explained = False
    for line in SAMPLE.read_text().splitlines():
        if re.match(r"#\w", line):
            if not explained:
                unexplained.append(line)
        else:
            explained = line.startswith("# ")

    assert unexplained == []

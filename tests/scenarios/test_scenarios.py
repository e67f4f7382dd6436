"""Each .txt file beside this one is a session at a shell, and what it has to print.

    # a comment
    $ kms status            a command, run by sh in the scenario's own empty folder
    > state: unsealed       a line of its standard output; all lines, in this order
    ! kms: error: ...       a line of its standard error
    ? 1                     its exit code, when it is not 0

`...` in an expected line stands for any text, and a line of nothing else for any number of lines. The last line's line
feed may be missing. Variables set with `export` and changes of folder do not outlive a command; files do. Aliases are
for one scenario: all share a daemon.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.dev_daemon import DevDaemon

SCENARIOS = sorted(Path(__file__).parent.glob("*.txt"))


@dataclass
class Step:
    """A command and what is expected of it; `line` is where it stands."""

    command: str
    line: int
    output: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    code: int = 0


def parse(text: str) -> list[Step]:
    steps: list[Step] = []
    for number, line in enumerate(text.splitlines(), 1):
        mark, rest = line[:1], line[2:]
        if mark == "$":
            steps.append(Step(rest, number))
        elif mark == ">":
            steps[-1].output.append(rest)
        elif mark == "!":
            steps[-1].errors.append(rest)
        elif mark == "?":
            steps[-1].code = int(rest)
        else:
            assert mark in {"", "#"}, f"line {number}: {line}"
    return steps


def pattern(lines: list[str]) -> str:
    """A regular expression for these lines."""
    parts = [r"(?:.*\n)*" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") + "\n" for line in lines]
    return "".join(parts)


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path: Path, dev: DevDaemon, short_path: Path) -> None:
    """Every command prints exactly what the file says."""
    for step in parse(path.read_text()):
        ran = dev.run("sh", "-c", step.command, cwd=short_path)
        place = f"{path.name}:{step.line}: {step.command}"
        for expected, actual in ((step.output, ran.stdout), (step.errors, ran.stderr)):
            text = actual.decode()
            if text and not text.endswith("\n"):
                text += "\n"
            assert re.fullmatch(pattern(expected), text), f"{place}\nexpected:\n{chr(10).join(expected)}\ngot:\n{text}"
        assert ran.returncode == step.code, place


def test_there_are_scenarios() -> None:
    """So that none is lost without notice."""
    assert len(SCENARIOS) >= 8

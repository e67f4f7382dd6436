"""The README's commands work, and print what the README shows.

Its fenced `console` blocks are one session: `$ ` opens a command, a trailing backslash continues it, other lines are
its output, in which `...` stands for anything. What follows the command that opens a shell runs in that shell. A
command whose shown output has an `error:` line has to fail. `python` blocks run in the same session. `make` is not run,
but its targets have to exist.
"""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
SHELL = re.compile(r"kmsd dev .* -- bash")
MARK = "@@@"


@dataclass
class Step:
    """A command, and what the README shows of its output."""

    command: str
    shown: list[str] = field(default_factory=list)

    @property
    def fails(self) -> bool:
        return any("error:" in line for line in self.shown)


def steps() -> list[Step]:
    found: list[Step] = []
    for language, body in re.findall(r"^```(console|python)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE):
        if language == "python":
            found.append(Step(f"python3 -c {shlex.quote(body)}"))
            continue
        for line in body.replace("\\\n", "").splitlines():
            if line.startswith("$ "):
                found.append(Step(line.removeprefix("$ ")))
            else:
                found[-1].shown.append(line)
    return found


def targets() -> set[str]:
    return set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def script_of(numbered: list[tuple[int, Step]]) -> str:
    """A shell script that runs the steps, and marks where each begins and whether it failed."""
    lines = []
    for number, step in numbered:
        lines += [f"echo '{MARK} {number}'", step.command, f'[ $? = 0 ] || echo "{MARK} failed"']
    return "\n".join(lines)


def test_the_readme_opens_with_what_it_is_and_two_commands() -> None:
    """The first block is all that somebody in a hurry needs."""
    first = re.search(r"^```console\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)

    assert README.startswith("# kmsd\n\nkmsd is ")
    assert first is not None
    assert first.group(1) == "$ make setup\n$ make demo\n"


def test_make_targets_of_the_readme_exist() -> None:
    """Every `make` the README mentions, in a block or in a sentence, is there."""
    assert set(re.findall(r"\bmake (\w+)", README)) <= targets()


@pytest.mark.timeout(60)
def test_commands_of_the_readme_print_what_it_shows(short_path: Path) -> None:
    """From the first command to the last, in one session, on real parts."""
    numbered = [(number, step) for number, step in enumerate(steps()) if not step.command.startswith("make ")]
    opens = next(number for number, step in numbered if SHELL.fullmatch(step.command))
    inner = short_path / "inner.sh"
    inner.write_text(script_of([(number, step) for number, step in numbered if number > opens]))
    outer = [(number, step) for number, step in numbered if number <= opens]
    outer[-1] = (opens, Step(f"{outer[-1][1].command} {inner}"))
    (short_path / ".venv").symlink_to(sys.prefix)
    home = {"HOME": str(short_path), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}

    ran = subprocess.run(
        ["bash", "-c", script_of(outer)],
        cwd=short_path,
        env=home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )

    printed = dict(re.findall(rf"^{MARK} (\d+)\n(.*?)(?=^{MARK} \d|\Z)", ran.stdout, re.DOTALL | re.MULTILINE))
    for number, step in numbered:
        output = printed.get(str(number), "")
        assert str(number) in printed, f"was not run: {step.command}\n{ran.stdout}"
        assert step.fails == (f"{MARK} failed" in output), f"{step.command}\n{output}"
        if step.shown:
            pattern = re.escape("\n".join(step.shown)).replace(r"\.\.\.", ".*")
            assert re.fullmatch(pattern, output.replace(f"{MARK} failed", "").strip("\n"), re.DOTALL), (
                f"{step.command}\n{output}"
            )

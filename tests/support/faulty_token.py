"""A token that goes wrong when a test wants it to: `faulty_token.c` in front of a real module."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from kmsd.hsm.conversation import TokenConfig

_SOURCE = Path(__file__).with_name("faulty_token.c")


def build(folder: Path) -> Path:
    """Compile the module into `folder`; skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no C compiler (Debian: apt-get install gcc libc6-dev)")
    module = folder / "faulty.so"
    subprocess.run([compiler, "-Wall", "-shared", "-fPIC", "-O1", "-o", module, _SOURCE, "-ldl"], check=True)
    return module


class FaultyToken:
    """The token of `config` behind `module`; its files are in `folder`, which its jobs have to be able to write."""

    def __init__(self, module: Path, config: TokenConfig, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self._faults = folder / "faults"
        self._calls = folder / "calls"
        self._calls.touch()
        self.heal()
        ours = {
            "KMSD_FAULTY_MODULE": config.module,
            "KMSD_FAULTY_FAULTS": str(self._faults),
            "KMSD_FAULTY_CALLS": str(self._calls),
        }
        self.config = replace(config, module=str(module), environment=(*config.environment, *ours.items()))

    def fail(self, *faults: str) -> None:
        """Go wrong like this from now on, also in jobs that are under way."""
        draft = self.folder / "faults.new"
        draft.write_text("".join(f"{fault}\n" for fault in faults))
        draft.rename(self._faults)

    def heal(self) -> None:
        """Be as good as the real one again."""
        self.fail()

    def count(self, call: str) -> int:
        """How often a function was called."""
        return self._calls.read_text().split().count(call)

    @property
    def logins(self) -> int:
        """How often a PIN was tried."""
        return self.count("C_Login")

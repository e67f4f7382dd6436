"""The settings file that `kmsd init` writes: what differs from the defaults, and where the rest is explained."""

from __future__ import annotations

import json
from pathlib import Path

from kmsd.commands.steps import tell, write_new
from kmsd.config import Hsm

_HEAD = """\
# The settings of kmsd, made by `kmsd init`. What is not here has its default; the sample kmsd.toml that comes with kmsd
# explains every setting. Afterwards: `kmsd check-config`, then `systemctl restart kmsd`.
"""


def write_settings(path: Path, hsm: Hsm) -> None:
    """Write the settings of the token `hsm`; raises SetupError when the file was made meanwhile."""
    write_new(path, settings_text(hsm).encode(), mode=0o644, owner=(0, 0))
    tell(made=True, what=f"settings {path}")


def settings_text(hsm: Hsm) -> str:
    """Return the settings file for a token, as TOML."""
    default = Hsm()
    lines = [_HEAD, "[hsm]"]
    for name in hsm.__struct_fields__:
        value = getattr(hsm, name)
        if value != getattr(default, name):
            lines.append(f"{name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in sorted(value.items())) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # A string of JSON is one of TOML, but for a DEL, which JSON leaves as it is.
    return json.dumps(value).replace("\x7f", "\\u007f")

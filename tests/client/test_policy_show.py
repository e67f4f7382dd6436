"""`kms policy show` prints what is stored: `kmsd_client.cli.policies`."""

import json
import sys

import pytest

from kmsd.api.policies import GetKeyPolicyResponse
from kmsd_client.cli.main import main
from tests.client.scripted import ScriptedDaemon

KEY = "00000000-0000-0000-0000-000000000001"
HOSTILE = '{"Id": "\x9b2J",\r"Version": "2012-10-17"}'


@pytest.fixture(autouse=True)
def stored(daemon: ScriptedDaemon) -> None:
    daemon.answer = lambda _name, _request: (GetKeyPolicyResponse(policy=HOSTILE, policy_name="default"), [])


def test_a_policy_is_printed_as_it_is_stored(daemon: ScriptedDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    """To a file or pipe, with the line's end that it lacks."""
    assert main(["--socket", str(daemon.path), "policy", "show", KEY]) == 0
    assert capsys.readouterr().out == HOSTILE + "\n"


def test_a_policy_cannot_control_the_terminal(
    daemon: ScriptedDaemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor hide a line behind another; it is the same document all the same."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)

    assert main(["--socket", str(daemon.path), "policy", "show", KEY]) == 0
    shown = capsys.readouterr().out

    assert shown == '{"Id": "\\u009b2J",\n"Version": "2012-10-17"}\n'
    assert json.loads(shown) == json.loads(HOSTILE)

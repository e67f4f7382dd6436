"""What only the blocking client does."""

import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

from kmsd.api.symmetric import GENERATE_RANDOM, GenerateRandomRequest, GenerateRandomResponse
from kmsd_client import Client
from tests.client.scripted import Answer, ScriptedDaemon

RANDOM = GenerateRandomRequest(number_of_bytes=8)


def echo_number(_name: str, request: Any) -> Answer:
    return GenerateRandomResponse(plaintext=memoryview(request.number_of_bytes.to_bytes(4, "big"))), []


def ask(client: Client, number: int) -> int:
    response = client.call(GENERATE_RANDOM, GenerateRandomRequest(number_of_bytes=number))
    return int.from_bytes(response.plaintext, "big")


def test_importing_the_client_does_not_import_asyncio() -> None:
    """Start-up counts: asyncio would more than double it."""
    program = "import sys, kmsd_client; kmsd_client.Client; assert 'asyncio' not in sys.modules, 'imported'"

    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"PYTHONPATH": ":".join(sys.path)})


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    """Names are imported when asked for, but only those that there are."""
    import kmsd_client

    with pytest.raises(AttributeError, match="Clinet"):
        _ = kmsd_client.Clinet


def test_threads_may_share_a_client(daemon: ScriptedDaemon) -> None:
    """Each gets its own answer."""
    daemon.answer = echo_number
    answers: dict[int, int] = {}
    with Client(daemon.path) as client:
        threads = [
            threading.Thread(target=lambda number=number: answers.update({number: ask(client, number)}))
            for number in range(1, 21)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert {number: number for number in range(1, 21)} == answers


def test_a_forked_child_has_its_own_connection(daemon: ScriptedDaemon) -> None:
    """The daemon takes a connection for the process that opened it, and shared ones would mix their frames."""
    daemon.answer = echo_number
    with Client(daemon.path) as client:
        ask(client, 1)
        child = os.fork()
        if child == 0:
            os._exit(0 if ask(client, 2) == 2 else 1)
        _, status = os.waitpid(child, 0)

        assert os.waitstatus_to_exitcode(status) == 0
        assert ask(client, 3) == 3
    assert daemon.accepted == 2


def test_the_answer_to_an_interrupted_call_is_not_taken_for_another(daemon: ScriptedDaemon) -> None:
    """After Ctrl-C the client can be used as before."""
    daemon.answer = echo_number
    daemon.hold, daemon.held_back = "GenerateRandom", 1
    main = threading.get_ident()

    def interrupt() -> None:
        daemon.was_asked.wait(5)
        signal.pthread_kill(main, signal.SIGINT)

    with Client(daemon.path) as client:
        interrupter = threading.Thread(target=interrupt)
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            ask(client, 1)
        interrupter.join()
        daemon.held_back = 0

        assert ask(client, 2) == 2
    assert daemon.accepted == 2

"""What only the blocking client does."""

import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

from kmsd.api.errors import ConnectionLostError, KmsError, NotFoundError, SealedError, ThrottlingError
from kmsd.api.keys import DISABLE_KEY, EnableKeyRequest
from kmsd.api.symmetric import GENERATE_RANDOM, GenerateRandomRequest, GenerateRandomResponse
from kmsd_client import Client
from tests.client.scripted import Answer, HangUpError, ScriptedDaemon

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


def numbers(*wanted: int) -> list[GenerateRandomRequest]:
    return [GenerateRandomRequest(number_of_bytes=number) for number in wanted]


def test_many_are_asked_for_together(daemon: ScriptedDaemon) -> None:
    """The answers come in the order of the requests, whatever order the daemon answers in."""
    daemon.answer = echo_number
    with Client(daemon.path) as client:
        outcomes = client.call_many(GENERATE_RANDOM, numbers(*range(1, 1000)))

    assert [int.from_bytes(one.plaintext, "big") for one in outcomes if not isinstance(one, KmsError)] == [
        *range(1, 1000)
    ]
    assert daemon.accepted == 1


def test_what_one_of_many_is_refused_with_stands_in_its_place(daemon: ScriptedDaemon) -> None:
    """The others are answered; what may pass is asked again."""
    failures: dict[int, list[KmsError]] = {2: [NotFoundError("gone")] * 2, 3: [ThrottlingError("slower")]}

    def answer(name: str, request: Any) -> Answer:
        if failures.get(request.number_of_bytes):
            raise failures[request.number_of_bytes].pop()
        return echo_number(name, request)

    daemon.answer = answer
    with Client(daemon.path) as client:
        first, second, third = client.call_many(GENERATE_RANDOM, numbers(1, 2, 3))

    assert isinstance(second, NotFoundError)
    assert not isinstance(first, KmsError)
    assert not isinstance(third, KmsError)
    assert len(daemon.asked) == 4


def test_what_meets_all_of_many_is_raised(daemon: ScriptedDaemon) -> None:
    """Before it was waited for with each of them."""

    def sealed(_name: str, _request: Any) -> Answer:
        raise SealedError("kmsd is sealed")

    daemon.answer = sealed
    with Client(daemon.path) as client, pytest.raises(SealedError):
        client.call_many(GENERATE_RANDOM, numbers(*range(1, 65)))

    assert len(daemon.asked) < 70


def test_a_connection_that_is_lost_under_many_is_not_used_again(daemon: ScriptedDaemon) -> None:
    """Late answers must not be taken for those of later requests."""

    def answer(name: str, request: Any) -> Answer:
        if request.number_of_bytes == 3:
            raise HangUpError
        return echo_number(name, request)

    daemon.answer = answer
    with Client(daemon.path) as client:
        with pytest.raises(ConnectionLostError):
            client.call_many(GENERATE_RANDOM, numbers(1, 2, 3, 4))

        assert ask(client, 7) == 7


def test_what_changes_something_is_not_asked_for_together(daemon: ScriptedDaemon) -> None:
    """Some of it might happen twice."""
    with Client(daemon.path) as client, pytest.raises(ValueError, match="DisableKey is to be called one by one"):
        client.call_many(DISABLE_KEY, [EnableKeyRequest(key_id="a")])

    assert daemon.asked == []


def test_many_may_be_none(daemon: ScriptedDaemon) -> None:
    """Then nobody is asked."""
    with Client(daemon.path) as client:
        assert client.call_many(GENERATE_RANDOM, []) == []

    assert daemon.accepted == 0

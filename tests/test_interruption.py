"""Ctrl-C: first a request, then an exception. The tests send real signals to this process."""

import logging
import os
import signal
import threading

import pytest

from sae_lens_maira.interruption import noticed_interruptions


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request_and_the_second_an_exception(number, caplog):
    before = signal.getsignal(number)
    with caplog.at_level(logging.WARNING), noticed_interruptions("Stopping soon.") as request:
        assert not request.made
        os.kill(os.getpid(), number)
        assert request.made
        assert caplog.messages == ["Stopping soon."]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_other_threads_leave_signals_alone():
    found = []

    def work() -> None:
        with noticed_interruptions("") as request:
            found.append((request.made, signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, before)]

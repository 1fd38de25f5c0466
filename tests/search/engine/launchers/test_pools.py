"""What ends a run does not meet it while it begins a process."""

import os
import signal
import threading

import pytest

from stepsearch.engine.launchers.pools import Pool


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_another_thread_gets_waits_until_a_process_has_begun(end, monkeypatch):
    class HeardError(Exception):
        pass

    def hear(*_):
        raise HeardError

    begun = []

    def begin(self, call, /, *inputs):
        other = threading.Thread(target=other_thread)
        other.start()
        other.join()
        for _ in range(1000):  # a handler of Python runs between two of these
            begun.append(1)

    def other_thread():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [end])
        signal.pthread_kill(threading.get_ident(), end)

    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor.submit", begin)
    before = signal.signal(end, hear)
    try:
        with Pool(1) as pool, pytest.raises(HeardError):
            pool.submit(os.getpid)
        assert len(begun) == 1000
        assert signal.getsignal(end) is hear
    finally:
        signal.signal(end, before)

"""Caches in a process that is killed again and again: `python -m tests.activations.killing OUT SEED`.

A parent that never runs the model forks children that do, so that a kill costs no new start of Python. Half of the
kills come at random times, half right before a random opening or renaming of one of the cache's files.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from sae_lens_maira.activations.manifest import done_units
from sae_lens_maira.activations.write import write_cache
from tests.activations.conftest import make_model, make_settings, make_studies

N_KILLS = 20
N_UNITS = 5
N_FILE_EVENTS = 26  # about as many as an uninterrupted run has


def run_child(path: Path, die_at_event: int | None) -> int:
    """Fork a process that caches, and return its id; None lets it finish, a number kills it at that file event."""
    pid = os.fork()
    if pid:
        return pid
    n_events = 0

    def count(event: str, arguments: tuple) -> None:
        nonlocal n_events
        if event in ("open", "os.rename") and str(arguments[0]).startswith(str(path)):
            n_events += 1
            if n_events == die_at_event:
                os.kill(os.getpid(), signal.SIGKILL)

    if die_at_event is not None:
        sys.addaudithook(count)
    try:
        write_cache(model, path, settings, show_progress=False)
    except BaseException as error:
        sys.stderr.write(f"{error!r}\n")
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    out, rng = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
    torch.set_num_threads(1)
    model, settings = make_model(make_studies(N_UNITS)), make_settings(unit_size=1)
    start = time.monotonic()
    assert os.waitpid(run_child(out / "whole", None), 0)[1] == 0
    seconds = time.monotonic() - start
    n_kills = n_caches = 0
    progress = []
    while n_kills < N_KILLS:
        path = out / f"killed-{n_caches}"
        while True:
            at_event = n_kills % 2 == 0 and n_kills < N_KILLS
            pid = run_child(path, rng.randint(1, N_FILE_EVENTS) if at_event else None)
            if not at_event and n_kills < N_KILLS:
                time.sleep(rng.uniform(0.0, 0.5 * seconds))
                os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
            if status == 0:
                break
            assert os.WIFSIGNALED(status), f"a child failed with {status}"
            assert os.WTERMSIG(status) == signal.SIGKILL
            n_kills += 1
            progress.append(len(done_units(path, range(N_UNITS))))
        n_caches += 1
    sys.stdout.write(json.dumps({"n_kills": n_kills, "n_caches": n_caches, "progress": progress}) + "\n")

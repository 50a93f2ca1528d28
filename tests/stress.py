"""Verbs that write, under kill -9, a full disk and eight processes at once: `python -m tests.stress VERB OUT SEED`.

A parent that never runs the model forks children that do, so that a kill costs no new start of Python. Half of the
kills come at random times, half right before a random file event of an uninterrupted run.
"""

import hashlib
import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from sae_lens_maira.errors import UserError

N_KILLS, N_TOGETHER = 12, 8
FILE_EVENTS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "shutil.rmtree")


@dataclass(frozen=True)
class Verb:
    """What is tried.

    Args:
        run: makes ``out`` anew, from nothing or over an older one; ``older`` makes that.
        older: makes another one, which ``run`` replaces; None where a folder must be new.
        content: everything of the result that is the same in every run.
    """

    run: Callable[[Path], object]
    older: Callable[[Path], object] | None
    content: Callable[[Path], object]


def tree(path: Path) -> dict[str, str]:
    """Every file of a folder, by its hash."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def fork(work: Callable[[], object], out: Path, die_at_event: int | None = None, report: int | None = None) -> int:
    """Run something in a child: it may be killed at a file event, or report how many there were.

    The child's status is 0 for success, 3 for one sentence of ours, 1 for any other exception.
    """
    pid = os.fork()
    if pid:
        return pid
    n_events = 0

    def count(event: str, arguments: tuple) -> None:
        nonlocal n_events
        if event in FILE_EVENTS and str(out.parent) in str(arguments[0]):
            n_events += 1
            if n_events == die_at_event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    status = 0
    try:
        work()
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        status = 3
    except BaseException as error:
        sys.stderr.write(f"{error!r}\n")
        status = 1
    if report is not None:
        os.write(report, str(n_events).encode())
    os._exit(status)


def wait(pid: int) -> int:
    """The exit status of a child, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def check(condition: object, message: str) -> None:
    if not condition:
        sys.exit(message)


def kill_again_and_again(verb: Verb, place: Path, rng: random.Random) -> dict[str, int]:
    """After each kill the folder is whole, old or new or not there; the next run ends as if nothing had happened."""
    reading, writing = os.pipe()
    start = time.monotonic()
    check(wait(fork(lambda: verb.run(place / "whole"), place / "whole", report=writing)) == 0, "the run failed")
    seconds, n_events = time.monotonic() - start, int(os.read(reading, 20))
    new = verb.content(place / "whole")
    out = place / "killed"
    old = None
    if verb.older is not None:
        check(wait(fork(lambda: verb.older(out), out)) == 0, "the older one failed")  # pyright: ignore[reportOptionalCall]
        old = verb.content(out)
    found = {"old": 0, "new": 0, "nothing": 0, "killed": 0}
    for number in range(N_KILLS):
        at_event = rng.randint(1, n_events) if number % 2 == 0 else None
        pid = fork(lambda: verb.run(out), out, at_event)
        if at_event is None:
            time.sleep(rng.uniform(0.1, 0.9) * seconds)
            os.kill(pid, signal.SIGKILL)
        status = wait(pid)
        check(status in (0, -signal.SIGKILL), f"a run failed with {status}")
        found["killed"] += status != 0
        # A gallery that was moved away to be replaced is put back by whatever looks at it next.
        content = verb.content(out) if out.exists() else None
        check(content in (old, new, None), f"a kill left something else: {content}")
        found["nothing" if content is None else "old" if content == old else "new"] += 1
        if verb.older is None and content == new:
            out.rename(place / f"done-{number}")
    if verb.older is not None or not out.exists():
        check(wait(fork(lambda: verb.run(out), out)) == 0, "the last run failed")
    check(verb.content(out) == new, "the last run made something else")
    left = sorted(path.name for path in place.iterdir() if path.name.endswith(".unfinished"))
    check(not left, f"left behind: {left}")
    return found


def fill_the_disk(verb: Verb, place: Path) -> str:
    """With files limited below the largest one, the run ends in a sentence and the old one stays."""
    out = place / "full"
    if verb.older is not None:
        check(wait(fork(lambda: verb.older(out), out)) == 0, "the older one failed")  # pyright: ignore[reportOptionalCall]
    before = verb.content(out) if out.exists() else None
    largest = max(file.stat().st_size for file in (place / "whole").rglob("*") if file.is_file())

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, largest - 1))
        verb.run(out)

    status = wait(fork(limited, out))
    check(status == 3, f"a full disk ended with {status}")
    check((verb.content(out) if out.exists() else None) == before, "a full disk changed what was there")
    check(not [path for path in place.iterdir() if path.name.endswith(".unfinished")], "a full disk left something")
    check(wait(fork(lambda: verb.run(out), out)) == 0, "the run after the full disk failed")
    return "one sentence"


def run_together(verb: Verb, place: Path) -> dict[str, int]:
    """Of several processes at once, at least one succeeds and the others end in a sentence; the result is whole."""
    out = place / "together"
    statuses = [wait(pid) for pid in [fork(lambda: verb.run(out), out) for _ in range(N_TOGETHER)]]
    check(set(statuses) <= {0, 3}, f"processes ended with {statuses}")
    check(0 in statuses, "none succeeded")
    check(verb.content(out) == verb.content(place / "whole"), "together they made something else")
    return {"succeeded": statuses.count(0), "refused": statuses.count(3)}


def export_verb(place: Path) -> Verb:
    from sae_lens_maira.activations import ActivationCache
    from sae_lens_maira.activations.export import export_for_sae_lens
    from sae_lens_maira.activations.write import write_cache
    from tests.activations.conftest import HOOKS, make_model, make_settings, make_studies

    pid = fork(
        lambda: write_cache(make_model(make_studies(8)), place / "cache", make_settings(), show_progress=False),
        place / "cache",
    )
    check(wait(pid) == 0, "the cache failed")

    def run(out: Path) -> object:
        cache = ActivationCache.open(place / "cache")
        return export_for_sae_lens(cache, HOOKS[0], out, context_size=16, show_progress=False)

    # state.json holds a fingerprint of the place where the dataset was made.
    return Verb(run, None, lambda out: {name: file for name, file in tree(out).items() if name != "state.json"})


def import_verb(place: Path) -> Verb:
    from sae_lens_maira.share import import_sae
    from tests.share.test_dictionary_learning import make_theirs, write_folder

    folder = write_folder(place / "theirs", make_theirs())
    (folder / "interpretations.csv").write_text("latent,explanation\n3,edema\n")
    other = write_folder(place / "others", make_theirs(threshold=0.5))

    def older(out: Path) -> None:
        import_sae(str(other), out)
        (out / "notes.txt").write_text("of a person")

    def content(out: Path) -> object:
        return {name: checksum for name, checksum in tree(out).items() if name != "notes.txt"}

    return Verb(lambda out: import_sae(str(folder), out, overwrite=True), older, content)


def push_verb(place: Path) -> Verb:
    from sae_lens_maira.sae import MairaMatryoshkaTrainingSAE, MairaMatryoshkaTrainingSAEConfig
    from sae_lens_maira.share import push_saes

    config = MairaMatryoshkaTrainingSAEConfig(d_in=8, d_sae=32, k=4, matryoshka_widths=[4, 8, 32])
    MairaMatryoshkaTrainingSAE(config).save_inference_model(place / "sae")
    return Verb(lambda out: push_saes(place / "sae", "someone/saes", dry_run_path=out), None, tree)


def dashboard_verb(place: Path) -> Verb:
    from sae_lens_maira.dashboard import DashboardSettings, make_dashboards
    from sae_lens_maira.files import restore_replaced
    from tests.dashboard.small_gallery import make_model, make_sae, make_studies

    model = make_model(make_studies()[:5])
    sae = make_sae(model)

    def make(title: str) -> Callable[[Path], object]:
        settings = DashboardSettings(pages="none", title=title)
        return lambda out: make_dashboards(sae, model, out, settings, show_progress=False)

    def content(out: Path) -> object:
        restore_replaced(out)
        return tree(out)

    return Verb(make("New"), make("Old"), content)


VERBS = {"export": export_verb, "import": import_verb, "push": push_verb, "dashboard": dashboard_verb}


def main(name: str, out: Path, seed: int) -> None:
    torch.set_num_threads(1)
    verb = VERBS[name](out)
    report = {
        "killed": kill_again_and_again(verb, out, random.Random(seed)),
        "full disk": fill_the_disk(verb, out),
        "together": run_together(verb, out),
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))

"""Plants bugs one at a time and tells which of them the tests beside them catch: `make mutants`.

A bug is one edit of a source file. It is planted in a copy of the repository, never in the repository itself, and only
the tests that should catch it run. Add a row when a bug was found that no test caught.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Bug:
    """One edit.

    Args:
        what: what is wrong with it.
        file: below ``sae_lens_maira``.
        right, wrong: a text that occurs once in the file, and what takes its place.
        tests: files or tests, at least one of which must fail.
    """

    what: str
    file: str
    right: str
    wrong: str
    tests: str


BUGS = (
    Bug(
        "a failed write replaces the good file",
        "files.py",
        "        unfinished.unlink(missing_ok=True)\n        raise",
        "        unfinished.replace(path)\n        raise",
        "tests/test_files.py",
    ),
    Bug(
        "cleaning up removes the mark first",
        "files.py",
        "if left.name not in (_LOCK, MARKER):",
        "if left.name not in (_LOCK,):",
        "tests/test_stress.py",
    ),
    Bug(
        "a truncated unit counts as done",
        "activations/manifest.py",
        "and file.stat().st_size == record.n_bytes",
        "",
        "tests/activations/test_verify.py tests/activations/test_resume.py",
    ),
    Bug(
        "one order of runs in every epoch",
        "activations/shuffle.py",
        "_permutation(n_runs, [self.seed, number])",
        "_permutation(n_runs, [self.seed, 0])",
        "tests/activations/test_shuffle.py",
    ),
    Bug(
        "one order within a window in every epoch",
        "activations/shuffle.py",
        "[self.seed, epoch, window]",
        "[self.seed, window]",
        "tests/activations/test_shuffle.py",
    ),
    Bug(
        "the provider stays in its first epoch",
        "activations/provider.py",
        "self.order.take(self.epoch, self.place, stop)",
        "self.order.take(0, self.place, stop)",
        "tests/activations/test_provider.py",
    ),
    Bug(
        "norms are limited at one hook point",
        "activations/selection.py",
        "selected &= block.norms[name] <= limit",
        "selected = selected & (block.norms[name] <= limit)\n            break",
        "tests/activations/test_norms.py",
    ),
    Bug(
        "skipped studies are forgotten when a run resumes",
        "training/skipped.py",
        "self._indices = set(state.tolist())",
        "self._indices = set()",
        "tests/training/test_skipped.py",
    ),
    Bug(
        "a copied tree is not left out",
        "files.py",
        "if folder == is_top else []",
        "if False else []",
        "tests/test_files.py",
    ),
    Bug(
        "private text under no banner",
        "dashboard/on_demand.py",
        'if settings.include_private and read(self._folder / INDEX)["banner"]:',
        "if settings.include_private:",
        "tests/dashboard/test_view.py",
    ),
    Bug(
        "another gallery's origin is taken",
        "dashboard/origin.py",
        "!= gallery_id:",
        '== "":',
        "tests/dashboard/test_view.py",
    ),
)


def is_caught(bug: Bug) -> bool:
    """Whether a test fails in a copy of the repository with the bug in it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv*", "out", "__pycache__"))
        path = copy / "sae_lens_maira" / bug.file
        text = path.read_text(encoding="utf-8")
        if text.count(bug.right) != 1:
            sys.exit(
                f"The text of the bug '{bug.what}' occurs {text.count(bug.right)} times in {bug.file}; mend its row."
            )
        path.write_text(text.replace(bug.right, bug.wrong), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *bug.tests.split()]
        return subprocess.run(command, cwd=copy, env=_environment(copy), capture_output=True).returncode == 1


def _environment(copy: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(copy)}


def main(wanted: str = "") -> None:
    """Plant every bug whose description holds a text, and print a line for each."""
    missed = 0
    for bug in BUGS:
        if wanted in bug.what:
            caught = is_caught(bug)
            missed += not caught
            sys.stdout.write(f"{'caught' if caught else 'MISSED'}  {bug.what} ({bug.tests})\n")
            sys.stdout.flush()
    sys.exit(f"{missed} missed" if missed else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""``sae-lens-maira <verb>``: one table from verbs to functions, each in its own module."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

from typing_extensions import override

from sae_lens_maira import __version__
from sae_lens_maira.cli.architecture import describe_architecture
from sae_lens_maira.cli.arguments import read_arguments
from sae_lens_maira.cli.attribute import attribute
from sae_lens_maira.cli.cache import cache
from sae_lens_maira.cli.concepts import concepts
from sae_lens_maira.cli.dashboard import dashboard
from sae_lens_maira.cli.dictionaries import dictionaries
from sae_lens_maira.cli.import_sae import import_sae
from sae_lens_maira.cli.interpret import interpret
from sae_lens_maira.cli.label import label
from sae_lens_maira.cli.push import push
from sae_lens_maira.cli.report import report
from sae_lens_maira.cli.steer import steer
from sae_lens_maira.cli.studies import studies
from sae_lens_maira.cli.train import train
from sae_lens_maira.cli.view import view
from sae_lens_maira.errors import UserError, printable, printable_lines
from sae_lens_maira.setting_values import unknown_name

VERBS: dict[str, tuple[Callable[..., None], str]] = {
    "report": (report, "write the findings of one study"),
    "studies": (studies, "summarize a source of studies, and what in it cannot be used"),
    "cache": (cache, "write a model's activations to disk, once"),
    "train": (train, "train an SAE"),
    "concepts": (concepts, "compare an SAE's features with the labels of studies, beside controls"),
    "interpret": (interpret, "explain an SAE's features, and score the explanations on other patients"),
    "attribute": (attribute, "measure what drives features: image, prior, request or the report itself"),
    "steer": (steer, "edit latents while the model writes, and measure what they do"),
    "dashboard": (dashboard, "make a gallery of an SAE's features, and sae-dashboard's pages"),
    "view": (view, "serve a gallery on this machine and open the browser"),
    "dictionaries": (dictionaries, "compare kinds of dictionaries on the phantom's exact truth"),
    "import": (import_sae, "convert an SAE of dictionary_learning to SAE-Lens's format"),
    "label": (label, "label reports by rules, and compare with the labels that come with them"),
    "push": (push, "share an SAE on the Hub, with a model card and without any training text"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb, and return the exit status.

    A ``UserError`` becomes one sentence on stderr and status 2; any other exception is raised with its traceback.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, handlers=[_log_handler()])
    try:
        _run(given)
    except UserError as error:
        sys.stderr.write(f"sae-lens-maira: {printable(error)}\n")
        return 2
    except KeyboardInterrupt as error:
        sys.stderr.write(f"sae-lens-maira: {printable(error)}\n" if str(error) else "sae-lens-maira: interrupted\n")
        return 130
    return 0


class _Printable(logging.Formatter):
    """Messages as they are, but for what a terminal would obey: ids and file names come from foreign files."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def _log_handler() -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable("%(message)s"))
    return handler


def _run(given: list[str]) -> None:
    if not given or given[0].startswith("-"):
        _parser().parse_args(given or ["--help"])
    name = given[0]
    if name not in VERBS:
        raise unknown_name(name, list(VERBS), what="verb")
    verb = VERBS[name][0]
    verb(**read_arguments(name, verb, given[1:], epilog=describe_architecture() if verb is train else ""))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sae-lens-maira",
        usage="%(prog)s VERB [-h] ...",
        description="Sparse autoencoders for MAIRA-2. 'sae-lens-maira VERB --help' lists a verb's settings.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="verbs:\n" + "\n".join(f"  {name:<14}{summary}" for name, (_, summary) in VERBS.items()),
    )
    parser.add_argument("--version", action="version", version=__version__)
    return parser


if __name__ == "__main__":
    sys.exit(main())

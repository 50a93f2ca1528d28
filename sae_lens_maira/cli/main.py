"""`sae-lens-maira <verb>`: thin, one function a verb."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from sae_lens_maira.cli.cache import add_cache
from sae_lens_maira.cli.dashboard import add_dashboard, add_view
from sae_lens_maira.cli.studies import add_studies


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; errors that a user can mend are one sentence on stderr and exit status 2."""
    parser = argparse.ArgumentParser(prog="sae-lens-maira", description="Sparse autoencoders for MAIRA-2.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_report(verbs)
    _add_train(verbs)
    add_cache(verbs)
    _add_import(verbs)
    _add_push(verbs)
    add_studies(verbs)
    add_dashboard(verbs)
    add_view(verbs)
    options, remaining = parser.parse_known_args(arguments)
    if remaining and options.verb not in ("train", "cache", "dashboard"):
        parser.error(f"unrecognized arguments: {' '.join(remaining)}")
    options.overrides = remaining
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        options.run(options)
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"sae-lens-maira: {error}\n")
        return 2
    except KeyboardInterrupt as error:
        sys.stderr.write(f"sae-lens-maira: {error}\n" if str(error) else "sae-lens-maira: interrupted\n")
        return 130
    return 0


def _add_report(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = verbs.add_parser("report", help="write the findings of one study")
    verb.add_argument("frontal", help="current frontal image (PNG, JPEG, DICOM, ...)")
    verb.add_argument("--model", default="microsoft/maira-2", help="checkpoint folder or Hub id")
    verb.add_argument("--lateral", help="current lateral image")
    verb.add_argument("--prior", help="prior frontal image")
    for section in ("indication", "technique", "comparison", "prior-report"):
        verb.add_argument(f"--{section}")
    verb.add_argument("--grounded", action="store_true", help="ask for bounding boxes")
    verb.add_argument("--max-new-tokens", type=int, help="default 300, grounded 450")
    verb.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> None:
    import torch

    from sae_lens_maira.maira2 import FindingsPrompt, Maira2ForConditionalGeneration, Maira2Processor

    prompt = FindingsPrompt(
        frontal=options.frontal,
        lateral=options.lateral,
        prior=options.prior,
        indication=options.indication,
        technique=options.technique,
        comparison=options.comparison,
        prior_report=options.prior_report,
        grounded=options.grounded,
    )
    processor = Maira2Processor.from_pretrained(options.model)
    inputs = processor(prompt)
    on_gpu = torch.cuda.is_available()
    model = Maira2ForConditionalGeneration.from_pretrained(
        options.model, dtype=torch.bfloat16 if on_gpu else "auto", device_map="auto" if on_gpu else None
    )
    max_new_tokens = options.max_new_tokens or (450 if options.grounded else 300)
    output = model.generate(**inputs.to(model.device), max_new_tokens=max_new_tokens, do_sample=False)
    (text,) = processor.decode_reports(output, inputs["input_ids"])
    sys.stdout.write(text + "\n")


def _add_train(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = verbs.add_parser(
        "train",
        help="train an SAE",
        description="Train an SAE from a YAML. Any setting can be given anew: --sae.k 32 --runner.lr 0.001.",
        allow_abbrev=False,
    )
    verb.add_argument("--config", required=True, type=Path, help="a YAML, as in configs/")
    verb.add_argument("--out", required=True, type=Path, help="the result's folder")
    verb.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    verb.add_argument("--overwrite", action="store_true", help="allow --out to hold an earlier run")
    verb.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> None:
    from sae_lens_maira.training.config import load_config
    from sae_lens_maira.training.multi import train_several
    from sae_lens_maira.training.run import train

    config = load_config(options.config, options.overrides)
    how = {"resume": options.resume, "overwrite": options.overwrite}
    results = train_several(config, options.out, **how) if config.saes else {"": train(config, options.out, **how)}
    for result in results.values():
        sys.stdout.write(f"{result.path}: {result.scores.describe()}\n")


def _add_import(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = verbs.add_parser("import", help="bring an SAE of dictionary_learning into SAE-Lens's format")
    verb.add_argument("source", help="a folder, a weights file, or a Hub repository such as microsoft/maira-2-sae")
    verb.add_argument("--out", required=True, type=Path, help="the folder to write")
    verb.add_argument("--folder", default="", help="the SAE's folder in a Hub repository")
    verb.add_argument("--interpretations", help="a table of feature descriptions, on disk or in the repository")
    verb.set_defaults(run=_import)


def _import(options: argparse.Namespace) -> None:
    from sae_lens_maira.share import import_sae

    result = import_sae(options.source, options.out, options.folder, options.interpretations)
    sys.stdout.write(f"{result.path}: SAE-Lens's format, {result.n_interpretations} interpretations\n")


def _add_push(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = verbs.add_parser("push", help="share an SAE on the Hub, with a model card and without any training text")
    verb.add_argument("source", type=Path, help="the folder of an SAE, or a folder of such folders")
    verb.add_argument("repository", help="on the Hub: owner/name")
    verb.add_argument("--name", help="the SAE's folder on the Hub; its own name if not given")
    verb.add_argument("--public", action="store_true", help="create the repository public; otherwise it is private")
    verb.add_argument("--dry-run", type=Path, metavar="FOLDER", help="write what would be uploaded to a folder instead")
    verb.add_argument("--licence", default="mit")
    verb.add_argument("--note", default="", help="a paragraph for the model card")
    verb.set_defaults(run=_push)


def _push(options: argparse.Namespace) -> None:
    from sae_lens_maira.share import push_saes

    result = push_saes(
        options.source,
        options.repository,
        sae_id=options.name,
        public=options.public,
        dry_run_path=options.dry_run,
        licence=options.licence,
        note=options.note,
        metrics=_scores(options.source, options.name),
    )
    left_out = f"; left out: {', '.join(result.left_out)}" if result.left_out else ""
    sys.stdout.write(f"{result.url or options.dry_run}: {', '.join(result.files)}{left_out}\n")


def _scores(source: Path, name: str | None) -> dict[str, dict[str, float]]:
    """What training wrote beside each SAE, for the model card."""
    paths = [*source.glob("scores.json"), *source.glob("*/scores.json")]
    return {
        (name or path.parent.name) if path.parent == source else path.parent.name: json.loads(path.read_text())
        for path in paths
    }


if __name__ == "__main__":
    sys.exit(main())

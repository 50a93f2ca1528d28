"""`sae-lens-maira cache`: write, verify, merge and export caches of activations."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sae_lens_maira.errors import CacheError


def add_cache(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    verb = verbs.add_parser(
        "cache",
        help="write a model's activations to disk, once",
        description="Cache activations as a YAML says. Any setting can be given anew: --cache.dtype bfloat16.",
        allow_abbrev=False,
    )
    verb.set_defaults(run=run)
    verb.add_argument("--config", type=Path, help="a YAML, as configs/cache_phantom.yaml")
    verb.add_argument("--out", type=Path, help="the folder to write")
    verb.add_argument("--shard", default="0/1", metavar="I/N", help="do the share I of N only, counted from 0")
    verb.add_argument("--verify", type=Path, metavar="CACHE", help="check every byte of a cache")
    verb.add_argument("--merge", type=Path, nargs="+", metavar="CACHE", help="put caches made by shards into --out")
    verb.add_argument(
        "--export-sae-lens", type=Path, metavar="CACHE", help="write a hook point for SAE-Lens's own reader into --out"
    )
    verb.add_argument("--hook-name", help="for --export-sae-lens; not needed if the cache has one hook point")
    verb.add_argument("--context-size", type=int, default=128, help="for --export-sae-lens")


def run(options: argparse.Namespace) -> None:
    """Run the verb.

    Raises:
        CacheError: options do not go together, or a cache is damaged.
    """
    jobs = [name for name in ("config", "verify", "merge", "export_sae_lens") if getattr(options, name) is not None]
    if len(jobs) != 1:
        raise CacheError("Give exactly one of --config, --verify, --merge and --export-sae-lens.")
    if options.out is None and jobs != ["verify"]:
        raise CacheError("--out is missing: the folder to write.")
    if options.overrides and jobs != ["config"]:
        raise CacheError(f"unrecognized arguments: {' '.join(options.overrides)}")
    {"config": _write, "verify": _verify, "merge": _merge, "export_sae_lens": _export}[jobs[0]](options)


def _write(options: argparse.Namespace) -> None:
    from sae_lens_maira.activations.config import Shard, load_cache_config
    from sae_lens_maira.activations.write import write_cache
    from sae_lens_maira.training.run import load_model, load_studies

    config = load_cache_config(options.config, options.overrides)
    shard = Shard.parse(options.shard)
    model = load_model(config, load_studies(config.source))
    report = write_cache(model, options.out, config.cache, shard=shard)
    sys.stdout.write(f"{options.out}: {report.describe()}\n")


def _verify(options: argparse.Namespace) -> None:
    from sae_lens_maira.activations.verify import verify_cache

    problems = verify_cache(options.verify)
    if problems:
        raise CacheError(" ".join(problems))
    sys.stdout.write(f"{options.verify}: every byte is as it was written\n")


def _merge(options: argparse.Namespace) -> None:
    from sae_lens_maira.activations.manifest import merge_caches

    manifest = merge_caches(options.merge, options.out)
    sys.stdout.write(f"{options.out}: {manifest['n_tokens']} tokens of {manifest['n_studies']} studies\n")


def _export(options: argparse.Namespace) -> None:
    from sae_lens_maira.activations.export import export_for_sae_lens
    from sae_lens_maira.activations.read import ActivationCache

    cache = ActivationCache.open(options.export_sae_lens)
    if options.hook_name is None and len(cache.hook_names) > 1:
        raise CacheError(f"--hook-name is missing: one of {', '.join(cache.hook_names)}.")
    hook_name = options.hook_name or next(iter(cache.hook_names))
    n_contexts = export_for_sae_lens(cache, hook_name, options.out, context_size=options.context_size)
    sys.stdout.write(f"{options.out}: {n_contexts} contexts of {options.context_size} tokens at {hook_name}\n")

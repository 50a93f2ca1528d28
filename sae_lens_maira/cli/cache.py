"""``sae-lens-maira cache``: write, verify, merge and export caches of activations."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from sae_lens_maira.activations.config import CacheConfig, Shard
from sae_lens_maira.cli.arguments import Overrides, check_out
from sae_lens_maira.errors import CacheError
from sae_lens_maira.settings import AtLeastOne, Settings


@dataclass(frozen=True)
class CacheOptions(Settings):
    """Options of the verb.

    Args:
        config: a YAML with the settings of the cache to write, such as configs/cache_phantom.yaml.
        out: the folder to write.
        shard: I/N writes only part I of N, counted from 0.
        verify: check every byte of this cache.
        merge: merge caches written by shards into --out.
        export_sae_lens: export one hook point of this cache to --out, for SAE-Lens's own reader.
        hook_name: the hook point for --export-sae-lens; not needed if the cache has only one.
        export_context_size: tokens per context, for --export-sae-lens.
    """

    GROUP = "--"
    ERROR = CacheError

    config: Path | None = None
    out: Path | None = None
    shard: str = "0/1"
    verify: Path | None = None
    merge: tuple[Path, ...] | None = None
    export_sae_lens: Path | None = None
    hook_name: str | None = None
    export_context_size: AtLeastOne = 128

    def check(self) -> None:
        jobs = [self.config, self.verify, self.merge, self.export_sae_lens]
        if sum(job is not None for job in jobs) != 1:
            raise CacheError("Give exactly one of --config, --verify, --merge and --export-sae-lens.")
        if self.out is None and self.verify is None:
            raise CacheError("--out is missing; give the folder to write.")
        if self.out is not None:
            check_out(self.out)


def cache(options: CacheOptions, settings: Overrides[CacheConfig]) -> None:
    """Cache a model's activations with the settings of a YAML. Any of them can be overridden here: --dtype bfloat16."""
    if settings.values and options.config is None:
        raise CacheError(f"--{next(iter(settings.values))} is a setting of --config, which is not given.")
    if options.verify is not None:
        text = _verify(options.verify)
    elif options.merge is not None:
        text = _merge(options.merge, _need(options.out))
    elif options.export_sae_lens is not None:
        text = _export(options, options.export_sae_lens, _need(options.out))
    else:
        text = _write(settings.over(_need(options.config)), _need(options.out), Shard.parse(options.shard))
    sys.stdout.write(f"{text}\n")


def _write(config: CacheConfig, out: Path, shard: Shard) -> str:
    from sae_lens_maira.activations.write import write_cache
    from sae_lens_maira.hooked.loading import load_model
    from sae_lens_maira.sources import open_source

    model = load_model(config.model, open_source(config.source), config.policy)
    return f"{out}: {write_cache(model, out, config, shard=shard).describe()}"


def _verify(path: Path) -> str:
    from sae_lens_maira.activations.verify import verify_cache

    problems = verify_cache(path)
    if problems:
        raise CacheError(" ".join(problems))
    return f"{path}: every byte is as it was written"


def _merge(parts: tuple[Path, ...], out: Path) -> str:
    from sae_lens_maira.activations.manifest import merge_caches

    manifest = merge_caches(list(parts), out)
    return f"{out}: {manifest['n_tokens']} tokens of {manifest['n_studies']} studies"


def _export(options: CacheOptions, path: Path, out: Path) -> str:
    from sae_lens_maira.activations.export import export_for_sae_lens
    from sae_lens_maira.activations.read import ActivationCache

    cache = ActivationCache.open(path)
    if options.hook_name is None and len(cache.hook_names) > 1:
        raise CacheError(f"--hook-name is missing; give one of {', '.join(cache.hook_names)}.")
    hook_name = options.hook_name or next(iter(cache.hook_names))
    n_contexts = export_for_sae_lens(cache, hook_name, out, context_size=options.export_context_size)
    return f"{out}: {n_contexts} contexts of {options.export_context_size} tokens at {hook_name}"


def _need(path: Path | None) -> Path:
    assert path is not None, "checked by CacheOptions"
    return path

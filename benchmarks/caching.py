"""Caching activations and reading them back; ``python -m benchmarks.caching --smoke`` runs tiny sizes.

1. caching: ``write_cache`` from studies to synced files, including opening images, against the bare truncated forward
   pass of ``benchmarks.bridge`` on the same batches with inputs already made. The model has about 300 M parameters.
2. lengths: studies in batches by length, as caching makes them, against about as many batches in order of arrival, each
   padded to its longest study. Lengths are those of all Open-i reports in the phantom's tokens: text only, with the
   phantom's tokens per image, and with MAIRA-2's. Timed without images, which cost the same in both.
3. readers: shuffled batches of this package, SAE-Lens's cached dataset, and a plain read of the memory map in order, in
   turn. With files in the page cache they are read as float32 and as stored (float16); with files on disk, as float32,
   and this package shuffles runs of 256 KiB, as it does for caches too large to stay in memory.
4. memory: peak resident memory of caching few and many studies, each in a separate process; without mapped files
   (the libraries') it is the largest of samples taken every 20 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks._memory import memory_mib
from benchmarks.bridge import MIDDLE, bare_forward, make_model, seconds
from sae_lens_maira.activations import ActivationCache, Block
from sae_lens_maira.activations.block import BlockStudy
from sae_lens_maira.activations.config import WriteConfig
from sae_lens_maira.activations.decode_ahead import DecodedStudy, decode_study
from sae_lens_maira.activations.export import export_for_sae_lens
from sae_lens_maira.activations.format import FORMAT, HEADER_NAME, VERSION, identity_hash
from sae_lens_maira.activations.manifest import finish
from sae_lens_maira.activations.plan import Planner, cut_into_batches
from sae_lens_maira.activations.provider import RUN_BYTES, CachedActivations
from sae_lens_maira.activations.unit_file import write_unit
from sae_lens_maira.activations.write import write_cache
from sae_lens_maira.data.source import OpeniConfig
from sae_lens_maira.data.study import Study
from sae_lens_maira.errors import SourceError
from sae_lens_maira.files import to_json, write_text
from sae_lens_maira.hooked import HookedMaira2
from sae_lens_maira.maira2 import Maira2ForConditionalGeneration, Maira2Processor
from sae_lens_maira.maira2.adapter import Maira2StudyProcessor
from sae_lens_maira.phantom.model.architecture import make_config, make_processor
from sae_lens_maira.phantom.model.pretrained import PHANTOM_PATH
from sae_lens_maira.phantom.model.tokenizer import train_tokenizer
from sae_lens_maira.rows.policy import TokenPolicy
from sae_lens_maira.rows.row import encode_study
from sae_lens_maira.sources import open_source

HOOK = f"blocks.{MIDDLE}.hook_resid_post"
MAX_OVERHEAD, MIN_LENGTH_GAIN, MIN_OVER_SAE_LENS, MIN_OF_SEQUENTIAL, MAX_GROWTH = 0.10, 1.5, 5.0, 0.8, 0.05
MAIRA2_IMAGE_TOKENS = 1369


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    n_studies: int = 16
    n_rounds: int = 5
    n_reports: int = 4_000
    n_units: int = 8
    n_bytes_per_unit: int = 64 << 20
    widths: tuple[int, ...] = (1024, 4096)
    n_few: int = 1_000
    n_many: int = 20_000


SMOKE = Sizes(4, 1, 24, 2, 4 << 20, (256,), 40, 80)


@torch.no_grad()
def caching(sizes: Sizes) -> None:
    """Whole caching against the bare forward pass."""
    model, processor, studies = make_model()
    hooked = HookedMaira2(model, processor, studies[: sizes.n_studies])
    settings = WriteConfig((HOOK,), unit_size=sizes.n_studies, max_batch_tokens=2048)
    known = hooked.studies
    plan = Planner(hooked, known, settings.context_size, settings.max_batch_tokens).plan(range(len(known)))
    ready: list[dict[str, Any]] = []
    for batch in plan.batches:
        decoded = [study for entry in batch if isinstance(study := decode_study(entry, hooked), DecodedStudy)]
        ids, rows = [study.ids for study in batch], [study.row for study in batch]
        width = max(len(row.tokens) for row in rows)
        images = [study.inputs for study in decoded]
        ready.append(hooked.reader.assemble(ids, rows, width, "right", images).model_inputs)
    ratios: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        bare_forward(model, ready[0])
        for turn in range(sizes.n_rounds):
            path = Path(folder) / str(turn)
            ways: dict[str, Callable[[], object]] = {
                "bare": lambda: [bare_forward(model, inputs) for inputs in ready],
                "cache": lambda path=path: write_cache(hooked, path, settings, show_progress=False),
            }
            order = list(ways) if turn % 2 == 0 else list(ways)[::-1]
            found = {name: seconds(ways[name]) for name in order}
            ratios.append(found["cache"] / found["bare"])
            print(f"  round {turn}: bare {found['bare']:.2f} s, caching {found['cache']:.2f} s")
    print(
        f"caching over the bare forward pass: {statistics.median(ratios) - 1:+.1%} on "
        f"{len(studies[: sizes.n_studies])} studies in {len(ready)} batches (target at most {MAX_OVERHEAD:+.0%})"
    )


@torch.no_grad()
def lengths(sizes: Sizes) -> None:
    """Batches by length against batches by arrival."""
    try:
        studies = open_source(OpeniConfig(missing_images="phantom"))
    except SourceError as error:
        print(f"lengths: left out ({error})")
        return
    processor = Maira2Processor.from_pretrained(PHANTOM_PATH)
    chosen = studies[:: max(len(studies) // sizes.n_reports, 1)][: sizes.n_reports]
    prompts = [encode_study(study, Maira2StudyProcessor(processor), TokenPolicy())[0] for study in chosen]
    n_images = [int((ids == processor.image_token_id).sum()) // processor.n_image_tokens for ids in prompts]
    texts = [len(ids) - n * processor.n_image_tokens for ids, n in zip(prompts, n_images, strict=True)]
    print(f"  {len(texts)} reports, {statistics.mean(n_images):.2f} images each")
    for unit_size, budget in ((256, 8192), (1024, 8192), (1024, 16384), (1024, 65536)):
        for n_image_tokens in (0, processor.n_image_tokens, MAIRA2_IMAGE_TOKENS):
            values = [n + images * n_image_tokens for n, images in zip(texts, n_images, strict=True)]
            by_length, by_arrival = _batches(values, unit_size, budget)
            padded = [_padded(batches) for batches in (by_length, by_arrival)]
            print(
                f"    sorted in units of {unit_size}, {budget} tokens per batch, {n_image_tokens} tokens per image: "
                f"{sum(values) / padded[0]:.1%} of tokens real by length, {sum(values) / padded[1]:.1%} by arrival, "
                f"{padded[1] / padded[0]:.2f} x padded tokens"
            )
    phantom = Maira2ForConditionalGeneration.from_pretrained(PHANTOM_PATH, dtype=torch.float32).eval()
    with_images = [n + images * processor.n_image_tokens for n, images in zip(texts, n_images, strict=True)]
    for name, values in (("text alone", texts[::4]), ("64 tokens per image", with_images[::4])):
        by_length, by_arrival = _batches(values, 256, 8192)
        _run_texts(phantom, by_length[:1])
        took: dict[str, float] = {}
        for way, batches in (("length", by_length), ("arrival", by_arrival)):
            start = time.process_time()
            _run_texts(phantom, batches)
            took[way] = time.process_time() - start
        print(
            f"batches by arrival over by length, {name}: {took['arrival'] / took['length']:.2f} x processor time "
            f"({_padded(by_arrival) / _padded(by_length):.2f} x padded tokens) on {len(values)} reports, the "
            f"phantom's first 3 layers (target at least {MIN_LENGTH_GAIN} x)",
            flush=True,
        )


def _batches(values: Sequence[int], unit_size: int, budget: int) -> tuple[list[list[int]], list[list[int]]]:
    """Batches of lengths as caching makes them, and about as many batches in order of arrival."""
    by_length: list[list[int]] = []
    for start in range(0, len(values), unit_size):
        ordered = sorted(values[start : start + unit_size])
        by_length += [[ordered[index] for index in cut] for cut in cut_into_batches(ordered, budget)]
    n_each = max(round(len(values) / len(by_length)), 1)
    return by_length, [list(values[start : start + n_each]) for start in range(0, len(values), n_each)]


def _padded(batches: Sequence[Sequence[int]]) -> int:
    return sum(len(batch) * max(batch) for batch in batches)


def _run_texts(model: Maira2ForConditionalGeneration, batches: Sequence[Sequence[int]]) -> None:
    """The language model's first layers on token ids of given lengths."""
    for batch in batches:
        mask = torch.arange(max(batch))[None] < torch.tensor(batch)[:, None]
        ids = torch.full(mask.shape, 5)
        bare_forward(model, {"input_ids": ids, "attention_mask": mask.long()}, layer=2)


def readers(sizes: Sizes) -> None:
    """Tokens per second of readers of the same activations."""
    for d_in in sizes.widths:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            n_tokens = sizes.n_bytes_per_unit // (2 * d_in)
            _compare_readers(_make_cache(path / "cache", sizes.n_units, n_tokens, d_in), path, sizes)


def _compare_readers(cache: ActivationCache, folder: Path, sizes: Sizes) -> None:
    context, batch_size = 128, 4096
    export_for_sae_lens(cache, HOOK, folder / "export", context_size=context, show_progress=False)
    theirs = _sae_lens_store(folder / "export", cache.d_in, context, batch_size)
    n_batches = cache.n_tokens // batch_size
    fp32 = CachedActivations(cache, HOOK, batch_size=batch_size)
    fp16 = CachedActivations(cache, HOOK, batch_size=batch_size, dtype=torch.float16)
    ways: dict[str, Callable[[], int]] = {
        "plain, float32": lambda: _read_in_order(cache, batch_size, torch.float32),
        "one buffer, float32": lambda: _read_in_order(cache, batch_size, torch.float32, into_one=True),
        "shuffled, float32": lambda: _served(fp32, n_batches),
        "SAE-Lens, float32": lambda: _served(theirs, max(n_batches // 4, 4)),
        "plain, as stored": lambda: _read_in_order(cache, batch_size, torch.float16),
        "shuffled, as stored": lambda: _served(fp16, n_batches),
    }
    for way in ways.values():
        way()

    def from_disk(read: Callable[[ActivationCache], int]) -> float:
        for file in (cache.path / "units").iterdir():
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return _rate(lambda: read(ActivationCache.open(cache.path)))

    def in_runs(reopened: ActivationCache) -> int:
        run_length = RUN_BYTES // (2 * cache.d_in)
        provider = CachedActivations(
            reopened, HOOK, batch_size=batch_size, run_length=run_length, window_bytes=sizes.n_bytes_per_unit
        )
        return _served(provider, n_batches)

    rounds: list[dict[str, float]] = []
    for turn in range(3 * sizes.n_rounds):
        chosen = list(ways.items())
        chosen = chosen[turn % len(chosen) :] + chosen[: turn % len(chosen)]
        rounds.append({name: _rate(way) for name, way in chosen})
    del fp32, fp16
    for found in rounds[: sizes.n_rounds]:
        found["plain, from disk"] = from_disk(lambda again: _read_in_order(again, batch_size, torch.float32))
        found["shuffled, from disk"] = from_disk(in_runs)
    print(f"  width {cache.d_in}, {cache.n_tokens} tokens, float16, {batch_size} per batch")
    for name in rounds[0]:
        print(f"    {name:20} {statistics.median(f[name] for f in rounds if name in f):12.0f} tokens per second")

    def ratio(one: str, other: str) -> float:
        return statistics.median(found[one] / found[other] for found in rounds if one in found)

    over = ratio("shuffled, float32", "SAE-Lens, float32")
    print(f"  shuffled over SAE-Lens's reader: {over:.1f} x (target at least {MIN_OVER_SAE_LENS:g} x)")
    for kind in ("float32", "as stored", "from disk"):
        share = ratio(f"shuffled, {kind}", f"plain, {kind}")
        print(f"  shuffled over a plain read in order, {kind}: {share:.0%} (target at least {MIN_OF_SEQUENTIAL:.0%})")
    print(f"  shuffled over a read in order into one buffer: {ratio('shuffled, float32', 'one buffer, float32'):.0%}")


def _read_in_order(cache: ActivationCache, batch_size: int, dtype: torch.dtype, *, into_one: bool = False) -> int:
    """Copy batches into fresh tensors, or all of them into one."""
    n_batches = 0
    buffer = torch.empty(batch_size, cache.d_in, dtype=dtype)
    for block in cache.blocks(HOOK):
        values = block.activations[HOOK]
        for start in range(0, len(values) - batch_size + 1, batch_size):
            batch = values[start : start + batch_size]
            buffer.copy_(batch) if into_one else batch.to(dtype, copy=True)
            n_batches += 1
    return n_batches * batch_size


def _served(iterator: Any, n_batches: int) -> int:
    return sum(len(next(iterator)) for _ in range(n_batches))


def _rate(way: Callable[[], int]) -> float:
    start = time.perf_counter()
    return way() / (time.perf_counter() - start)


def _make_cache(path: Path, n_units: int, n: int, d_in: int) -> ActivationCache:
    """A cache of ``n_units`` units with ``n`` tokens each, all noise."""
    sizes = {"d_in": d_in, "n_studies": n_units, "unit_size": 1}
    identity = {"hook_names": [HOOK], "dtype": "float16", "source": {"kind": "noise"}, **sizes}
    path.mkdir()
    header = {"format": FORMAT, "version": VERSION, "identity": identity, "about": {}}
    write_text(path / HEADER_NAME, to_json(header))
    for unit in range(n_units):
        values = torch.randn(n, d_in).half()
        block = Block(
            activations={HOOK: values},
            norms={HOOK: values.float().norm(dim=-1)},
            token_ids=torch.zeros(n, dtype=torch.long),
            study_index=torch.full((n,), unit),
            position=torch.arange(n),
            kind=torch.zeros(n, dtype=torch.uint8),
            studies=[BlockStudy(unit, str(unit), n, {})],
        )
        write_unit(path, unit, identity_hash(identity), block)
    finish(path)
    return ActivationCache.open(path)


def _sae_lens_store(path: Path, d_in: int, context: int, batch_size: int) -> Any:
    from sae_lens.training.activations_store import ActivationsStore

    no_model: Any = None
    return ActivationsStore(
        model=no_model,
        dataset=None,
        streaming=False,
        hook_name=HOOK,
        hook_head_index=None,
        context_size=context,
        d_in=d_in,
        n_batches_in_buffer=4 * batch_size // context,
        total_training_tokens=1,
        store_batch_size_prompts=batch_size // context,
        train_batch_size_tokens=batch_size,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
        cached_activations_path=str(path),
    )


@dataclass(frozen=True)
class _NoiseImage:
    seed: int

    def open(self) -> Image.Image:
        return Image.fromarray(np.random.default_rng(self.seed).integers(0, 255, (112, 112), dtype=np.uint8))


class _ManyStudies(Sequence[Study]):
    """Studies that take no memory until they are read."""

    def __init__(self, n: int) -> None:
        self.n, self.fingerprint = n, f"noise {n}"

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: Any) -> Any:
        return Study(f"s{index}", f"p{index}", _NoiseImage(index), findings="Small effusion. " * (1 + index % 7))


def _cache_many(n: int) -> None:
    """Cache ``n`` studies with a tiny model, and print memory peaks in MiB."""
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(["Small effusion. No pneumothorax."] * 4)
    config = make_config(tokenizer, d_vision=32, n_vision_layers=1, d_model=64, n_layers=1, d_mlp=64)
    model = HookedMaira2(
        Maira2ForConditionalGeneration(config).eval(), make_processor(tokenizer), _ManyStudies(n), name="tiny"
    )
    own: list[float] = []
    is_over = threading.Event()

    def sample() -> None:
        while not is_over.wait(0.02):
            own.append(memory_mib("RssAnon"))

    sampler = threading.Thread(target=sample)
    sampler.start()
    with tempfile.TemporaryDirectory() as folder:
        write_cache(model, Path(folder), WriteConfig(("blocks.0.hook_resid_post",)), show_progress=False)
    is_over.set()
    sampler.join()
    print(json.dumps([max(own), memory_mib("VmHWM")]))


def memory(sizes: Sizes) -> None:
    """Peak memory of caching few and many studies."""
    peaks: list[list[float]] = []
    for n in (sizes.n_few, sizes.n_many):
        command = [sys.executable, "-m", "benchmarks.caching", "--only-cache", str(n)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(json.loads(result.stdout.splitlines()[-1]))
        print(f"  {n} studies: {peaks[-1][0]:.0f} MiB own memory at the peak, {peaks[-1][1]:.0f} with mapped files")
    for name, few, many in zip(("of its own", "with mapped files"), *peaks, strict=True):
        print(f"growth of peak memory {name}: {many / few - 1:+.1%} (target at most {MAX_GROWTH:+.0%})")


def main(arguments: Sequence[str] = ()) -> None:
    """Run all four parts, or those named."""
    parts = {"caching": caching, "lengths": lengths, "readers": readers, "memory": memory}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *parts], help="all if none is named")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--only-cache", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.only_cache is not None:
        _cache_many(options.only_cache)
        return
    sizes = SMOKE if options.smoke else Sizes()
    print(f"{torch.get_num_threads()} threads; {sizes}")
    for name in options.parts or parts:
        print(f"\n### {name}", flush=True)
        parts[name](sizes)


if __name__ == "__main__":
    main(sys.argv[1:])

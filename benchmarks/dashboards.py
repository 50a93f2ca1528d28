"""Dashboards: the cost of a gallery of the phantom, and dashboards against a plain loop over sae-dashboard.

1. The phantom, and an SAE of random weights with thresholds that let about 25 features fire per token: seconds, bytes
   and peak memory of the gallery of all features, in a separate process. The time includes making the studies. Standard
   pages are left out, since they are made for chosen features only.
2. The random 300 M parameter model of the bridge benchmark, on a few studies, three variants in turn in one process:
   sae-dashboard's page of every feature in a plain loop over ``SaeVisRunner`` with its defaults, which runs the model
   again for every 256 features; the same pages by ``write_pages``, which runs it once (up to 1,024 features, since
   nearly all of the time is sae-dashboard's own code); and the default result, a gallery of all features with the pages
   of the 100 strongest.

``python -m benchmarks.dashboards --help`` lists the sizes; ``--smoke`` chooses small ones.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks._memory import memory_mib
from benchmarks.bridge import MIDDLE, make_model, seconds
from sae_lens_maira.dashboard import DashboardSettings, make_dashboards
from sae_lens_maira.dashboard.make import subject_of
from sae_lens_maira.dashboard.standard.pages import write_pages
from sae_lens_maira.hooked import HookedMaira2
from sae_lens_maira.phantom.source import PhantomSource

MAX_SECONDS, MAX_MEGABYTES, MAX_GIGABYTES = 90, 80, 3
MIN_SPEED_UP = 3.0
ACTIVE_FEATURES = 25
MOST_PAGES = 1024


def make_sae(model: HookedMaira2, hook_name: str, d_sae: int, context_size: int) -> Any:
    """JumpReLU with random weights; thresholds come from the activations of eight studies."""
    from sae_lens import SAE
    from sae_lens.saes.jumprelu_sae import JumpReLUSAEConfig

    metadata = {
        "hook_name": hook_name,
        "model_name": "benchmark",
        "context_size": context_size,
        "matryoshka_widths": [d_sae // 16, d_sae // 4, d_sae],
    }
    config = JumpReLUSAEConfig(d_in=model.cfg.d_model, d_sae=d_sae).to_dict()
    sae: Any = SAE.from_dict(
        {**config, "architecture": "jumprelu", "dtype": "float32", "device": "cpu", "metadata": metadata}
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (sae.W_enc, sae.W_dec):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        tokens = model.reader.rows(range(min(8, len(model.studies))), context_size)
        stop = int(hook_name.split(".")[1]) + 1
        activations = model.run_with_cache(tokens, names_filter=[hook_name], stop_at_layer=stop)[1][hook_name]
        found = activations[tokens != model.processor.tokenizer.pad_token_id]
        sae.b_enc.copy_(-(found @ sae.W_enc).mean(dim=0))
        hidden = found @ sae.W_enc + sae.b_enc
        sae.threshold.copy_(hidden.quantile(max(1 - ACTIVE_FEATURES / d_sae, 0.5), dim=0).clamp(min=1e-4))
    return sae


def gallery_of_the_phantom(n_studies: int, d_sae: int) -> dict[str, float]:
    """Seconds, megabytes on disk, and the process's peak memory."""
    model = HookedMaira2.from_pretrained("phantom", PhantomSource(n_studies, seed=0))
    sae = make_sae(model, f"blocks.{model.cfg.n_layers // 2 - 1}.hook_resid_post", d_sae, 224)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gallery"
        settings = DashboardSettings(pages="none")
        taken = seconds(lambda: make_dashboards(sae, model, path, settings, show_progress=False))
        n_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {"seconds": taken, "megabytes": n_bytes / 1e6, "gigabytes": memory_mib("VmHWM") * 2**20 / 1e9}


def plain_loop(
    sae: Any, model: HookedMaira2, tokens: torch.Tensor, hook_name: str, n_features: int, path: Path
) -> None:
    """sae-dashboard as its own documentation shows it: one runner, its defaults, one page per feature."""
    from sae_dashboard.data_writing_fns import save_feature_centric_vis
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner

    runner: Any = SaeVisRunner(SaeVisConfig(hook_point=hook_name, features=list(range(n_features))))
    data = runner.run(encoder=copy.deepcopy(sae), model=model, tokens=tokens)
    path.mkdir()
    save_feature_centric_vis(data, path / "page.html", separate_files=True)


def compare(model: HookedMaira2, n_features: int, scratch: Path) -> tuple[float, float | None, float]:
    """Seconds of the plain loop, of the same pages by this package (None if too many), and of its default result."""
    hook_name, context_size = f"blocks.{MIDDLE}.hook_resid_post", 128
    sae = make_sae(model, hook_name, n_features, context_size)
    tokens = model.reader.rows(range(len(model.studies)), context_size)
    model.run_with_cache(tokens[:1], names_filter=[hook_name], stop_at_layer=MIDDLE + 1)  # warms up
    settings = DashboardSettings(max_batch_tokens=2200)

    def pages() -> None:
        studies = model.studies[:]
        subject = subject_of(sae, model, studies, scratch / f"recording-{n_features}", settings, show_progress=False)
        write_pages(subject, range(n_features), scratch / f"pages-{n_features}", show_progress=False)

    return (
        seconds(lambda: plain_loop(sae, model, tokens, hook_name, n_features, scratch / f"plain-{n_features}")),
        seconds(pages) if n_features <= MOST_PAGES else None,
        seconds(lambda: make_dashboards(sae, model, scratch / f"gallery-{n_features}", settings, show_progress=False)),
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dashboards")
    parser.add_argument("--features", type=int, nargs="*", default=[256, 1024, 4096], help="of the 300 M model's SAE")
    parser.add_argument("--studies", type=int, default=8, help="studies for the 300 M model, at most 16")
    parser.add_argument("--phantom-features", type=int, default=2048)
    parser.add_argument("--phantom-studies", type=int, default=2000, help="0 leaves this part out")
    parser.add_argument("--smoke", action="store_true", help="small sizes, to check that it runs")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args([] if arguments is None else arguments)
    if options.smoke:
        options.features, options.studies = [8, 16], 2
        options.phantom_features, options.phantom_studies = 64, 20
    if options.child:
        print(json.dumps(gallery_of_the_phantom(options.phantom_studies, options.phantom_features)))
        return
    if options.phantom_studies:
        sizes = ["--phantom-features", str(options.phantom_features), "--phantom-studies", str(options.phantom_studies)]
        command = [sys.executable, "-m", "benchmarks.dashboards", "--child", *sizes]
        cost = json.loads(
            subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
        )
        print(
            f"phantom, {options.phantom_features} features, {options.phantom_studies} studies, "
            f"{torch.get_num_threads()} threads: {cost['seconds']:.0f} s (target {MAX_SECONDS}), "
            f"{cost['megabytes']:.0f} MB (target {MAX_MEGABYTES}), {cost['gigabytes']:.2f} GB (target {MAX_GIGABYTES})"
        )
    real, processor, studies = make_model()
    model = HookedMaira2(real, processor, studies[: options.studies])
    print(f"300 M parameters, {len(model.studies)} studies; seconds (and ratio to the plain loop)")
    print(f"{'features':>8} {'plain loop':>11} {'our pages':>17} {'gallery + 100 pages':>22}")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="eindex")
        for n_features in options.features:
            plain, pages, default = compare(model, n_features, Path(folder))
            of_pages = "" if pages is None else f"{pages:9.1f} ({plain / pages:4.2f}x)"
            print(f"{n_features:8} {plain:11.1f} {of_pages:17} {default:14.1f} ({plain / default:4.2f}x)", flush=True)
    print(f"target: gallery + 100 pages at least {MIN_SPEED_UP:.0f}x at 1024 features, and growing")


if __name__ == "__main__":
    main(sys.argv[1:])

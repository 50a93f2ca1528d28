"""Shares of all latents, and gradient maps of a hundred: against one latent and one swap at a time.

Peers, on the same studies, SAE and machine, in turn:

- *one latent and one swap at a time*: for every latent and combination of sources, a forward pass of the whole prompt
  from the pixels up to the hook point, with the SAE's encoder. It is timed for a few combinations of every study, and
  multiplied by the number of combinations and latents.
- *one swap at a time*: the same, with all latents read in each pass. The honest half of the ratio: what shared images,
  shared tokens and batches save.
- *forward passes*: a map of 100 features is compared with a forward pass of the study through the whole model, images
  included, as :class:`HookedMaira2` runs it; and with the same passes of the plain model.

``--studies N`` sets the number of studies.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

TARGET_SHARES, TARGET_MAPS = 20, 10
N_FEATURES, D_SAE = 100, 640


def timed(function: Callable[[], Any], rounds: int = 3) -> float:
    """The median time of some calls, after one that is not timed."""
    function()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def random_sae(d_in: int) -> Any:
    """Speed does not depend on the weights."""
    from sae_lens import SAE, JumpReLUSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    metadata = SAEMetadata(hook_name="blocks.2.hook_resid_post")
    sae = SAE.from_dict(
        JumpReLUSAEConfig(d_in=d_in, d_sae=D_SAE, dtype="float32", device="cpu", metadata=metadata).to_dict()
    )
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    return sae


def compare_shares(reader: Any, studies: list[Any]) -> None:
    from sae_lens_maira.attribution.combinations import encode, play
    from sae_lens_maira.attribution.swaps import Donors, sources_of
    from sae_lens_maira.hooked.embedded import embed_images, embed_prompt, read_site

    donors = Donors(studies, seed=0)
    ours = alone = 0.0
    n_combinations = 0
    for index, study in enumerate(studies):
        replacement = donors.replacement(index, "different")
        start = time.perf_counter()
        play(reader, study, replacement)
        ours += time.perf_counter() - start

        def one_pass(study: Any = study) -> None:
            with torch.no_grad():
                images = embed_images(reader.vlm, [study])[0]
                prompt = embed_prompt(reader.vlm, encode(reader.vlm, study), images)
                reader.largest(read_site(reader.vlm, reader.place, prompt.embeddings[None])[0])

        start = time.perf_counter()
        for _ in range(2):
            one_pass()
        n = 2 ** len(sources_of(study))
        alone += (time.perf_counter() - start) / 2 * n
        n_combinations += n
    per_100 = 100 / len(studies)
    print(f"shares of {D_SAE} latents, {n_combinations} combinations of {len(studies)} studies; per 100 studies:")
    print(f"  all at once {ours * per_100:8.1f} s")
    print(f"  one swap at a time {alone * per_100:8.1f} s, ratio {alone / ours:.1f}")
    ratio = alone * D_SAE / ours
    print(f"  one latent and one swap at a time {alone * D_SAE * per_100:8.0f} s, ratio {ratio:.0f}", end="")
    print(f"; target {TARGET_SHARES}: {'met' if ratio >= TARGET_SHARES else 'MISSED'}")


def compare_maps(model: Any, reader: Any, studies: list[Any]) -> None:
    from sae_lens_maira.attribution.erasing import Target, load_image, mean_images
    from sae_lens_maira.attribution.maps import make_map
    from sae_lens_maira.data.study import TokenKind
    from sae_lens_maira.hooked.embedded import embed_images, embed_prompt

    study = next(study for study in studies if study.lateral is not None and study.prior_frontal is not None)
    encoded = reader.vlm.processor.encode(study, "prompt")
    prompt = embed_prompt(reader.vlm, encoded, embed_images(reader.vlm, [study])[0])
    at = prompt.positions(TokenKind.FRONTAL_IMAGE)
    image = load_image(reader.vlm, study, "frontal")
    average = mean_images(reader.vlm, studies[:4])["frontal"]
    target = Target(reader, prompt, len(prompt.kinds) - 1, at, image, average, tuple(range(N_FEATURES)))
    few = Target(reader, prompt, len(prompt.kinds) - 1, at, image, average, tuple(range(4)))
    inputs = model.full_inputs(model.to_tokens(study))
    with torch.no_grad():
        hooked = timed(lambda: model(inputs))
        plain = timed(lambda: model.vlm.module(**inputs.model_inputs, use_cache=False))
    print(f"a map of {N_FEATURES} features of a study with three images; a forward pass: {1e3 * hooked:.0f} ms", end="")
    print(f" (plain model {1e3 * plain:.0f} ms)")
    for method in ("gradient", "relp"):
        seconds = timed(lambda method=method: make_map(target, method))
        met = "met" if seconds / hooked <= TARGET_MAPS else "MISSED"
        print(f"  {method}: {seconds:.2f} s = {seconds / hooked:.1f} forward passes", end="")
        print(f" ({seconds / plain:.1f} of the plain model); target {TARGET_MAPS}: {met}")
    for method in ("integrated_gradients", "occlusion", "pixel_gradients", "pixel_occlusion"):
        seconds = timed(lambda method=method: make_map(few, method), rounds=1)
        print(f"  {method}, 4 features: {seconds:.2f} s = {seconds / hooked:.1f} forward passes")


def main() -> None:
    from sae_lens_maira import phantom
    from sae_lens_maira.attribution.reading import FeatureReader
    from sae_lens_maira.hooked import HookedMaira2

    parser = argparse.ArgumentParser()
    parser.add_argument("--studies", type=int, default=16)
    n_studies = parser.parse_known_args()[0].studies
    studies = list(phantom.studies(n_studies, seed=1))
    model = HookedMaira2.from_pretrained("phantom", studies)
    reader = FeatureReader(model, random_sae(model.cfg.d_model))
    compare_shares(reader, studies)
    compare_maps(model, reader, studies)


if __name__ == "__main__":
    main()

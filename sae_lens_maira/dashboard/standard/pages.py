"""Standard pages: sae-dashboard's runner and writers on a recording, one file per feature."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from sae_lens_maira.dashboard.safety import inert, secure_page
from sae_lens_maira.dashboard.standard.replay import ReplayedModel, run_sae_vis
from sae_lens_maira.features.subject import Subject


def page_name(feature: int) -> str:
    """The file of a feature's standard page, in the gallery's folder ``pages``."""
    return f"feature_{feature}.html"


def write_pages(
    subject: Subject,
    features: Sequence[int],
    folder: Path,
    *,
    banner: str = "",
    among: Sequence[int] | None = None,
    show_progress: bool = True,
) -> list[Path]:
    """Write sae-dashboard's page of each feature.

    Args:
        subject: the SAE, its model and the recording, whose texts appear on the pages.
        features: which ones.
        folder: for ``feature_123.html``.
        banner: a line above each page.
        among: further features among which correlated ones are looked for.
        show_progress: whether to show a progress bar.
    """
    from sae_dashboard.data_writing_fns import save_feature_centric_vis
    from sae_dashboard.layout import SaeVisLayoutConfig

    layout = SaeVisLayoutConfig.default_feature_centric_layout()
    assert layout.seq_cfg is not None
    before, after = layout.seq_cfg.buffer or (0, 0)
    texts = [inert(text) for text in subject.texts()]
    model = ReplayedModel(
        subject.recording,
        subject.model.row_vocabulary,
        texts,
        subject.unembedding,
        subject.hook_name,
        (before + 1, after),
        subject.pad_token_id,
    )
    folder.mkdir(parents=True, exist_ok=True)
    wanted = set(features)
    computed = [*features, *(feature for feature in among or () if feature not in wanted)]
    written: list[Path] = []
    progress = tqdm(total=len(features), desc="pages", disable=not show_progress)
    with tempfile.TemporaryDirectory(prefix=".pages-", dir=folder.parent) as scratch, progress:
        for data in run_sae_vis(subject.sae, model, computed, subject.hook_name, layout):
            own = [feature for feature in data.feature_data_dict if feature in wanted]
            for feature in own:
                save_feature_centric_vis(data, Path(scratch) / "page.html", include_only=[feature], feature_idx=feature)
                page = (Path(scratch) / "page.html").read_text(encoding="utf-8")
                path = folder / page_name(feature)
                unfinished = Path(scratch) / path.name
                unfinished.write_text(secure_page(page, f"Feature {feature}", banner), encoding="utf-8")
                written.append(unfinished.replace(path))
                progress.update()
    return written

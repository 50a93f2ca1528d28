"""A gallery of a small SAE with hostile texts in it, made once."""

import numpy as np
import pytest

from sae_lens_maira.dashboard import DashboardSettings, make_dashboards
from sae_lens_maira.features.interpretations import Interpretation
from tests.dashboard.small_gallery import ALWAYS, ATTACK, DEAD, N_STUDIES, Made, make_model, make_sae, make_studies


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    patch = pytest.MonkeyPatch()
    patch.setenv("SAE_LENS_MAIRA_CACHE", str(tmp_path_factory.mktemp("rows")))
    studies = make_studies()
    model = make_model(studies)
    # A vocabulary may hold markup in one entry: here, the reports' most frequent token.
    rows = model.reader.rows(range(N_STUDIES), None)
    ids, counts = np.unique(rows[rows > model.tokenizer.pad_token_id].numpy(), return_counts=True)
    model.tokenizer.vocab._texts[int(ids[counts.argmax()])] = ATTACK
    sae = make_sae(model)
    path = tmp_path_factory.mktemp("dashboards") / "gallery"
    settings = DashboardSettings(pages=f"{ALWAYS},{DEAD},5,30", neuronpedia=True, n_examples=4)
    meanings = [Interpretation(5, f"Fluid {ATTACK}", 0.75), Interpretation(7, "Tubes and lines", None)]
    result = make_dashboards(sae, model, path, settings, interpretations=meanings, show_progress=False)
    patch.undo()
    return Made(sae, model, studies, path, result)

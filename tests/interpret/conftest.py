"""Evidence with planted features, made once."""

import pytest

from sae_lens_maira.interpret.evidence import Evidence
from tests.interpret.planted import make_evidence


@pytest.fixture(scope="session")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return make_evidence(tmp_path_factory.mktemp("planted"))

"""The phantom as a source: what was made by another version of the generator is told apart."""

import pytest

from sae_lens_maira.phantom import source as phantom_source
from sae_lens_maira.phantom.source import PhantomSource


def test_the_fingerprint_changes_with_the_generators_version_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = PhantomSource(3, seed=1)
    assert before.fingerprint == PhantomSource(3, seed=1).fingerprint
    monkeypatch.setattr(phantom_source, "GENERATOR_VERSION", phantom_source.GENERATOR_VERSION + 1)
    after = PhantomSource(3, seed=1)
    assert after.fingerprint != before.fingerprint
    assert {key for key in after.description if after.description[key] != before.description[key]} == {"content"}

"""One way to open any source: settings that fit the kind, sequences, fingerprints, first studies."""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from sae_lens_maira import phantom
from sae_lens_maira.data.manifest import read_manifest
from sae_lens_maira.data.source import ManifestConfig, OpeniConfig, PhantomConfig, SourceConfig
from sae_lens_maira.errors import SourceError
from sae_lens_maira.settings import Settings
from sae_lens_maira.sources import open_source


@dataclass(frozen=True)
class AnySource(Settings):
    """A group that holds a source, as a training's does."""

    source: SourceConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "nowhere"}, "source.kind 'nowhere' is unknown; choose phantom, manifest, openi or mimic_cxr"),
        ({"kind": "phantom"}, "source.n_studies is missing"),
        ({"n_studies": 0}, "source.n_studies is 0; it must be at least 1."),
        ({"n_studies": "many"}, "source.n_studies is 'many'; it must be a whole number."),
        ({"n_studies": 1, "n_held_out": -1}, "source.n_held_out is -1; it must be at least 0."),
        (
            {"n_studies": 1, "path": "x"},
            "source.path means nothing to kind phantom; its settings are n_studies, seed, n_held_out.",
        ),
        ({"kind": "manifest"}, "source.path is missing: the manifest's file"),
        ({"kind": "mimic_cxr"}, "source.path is missing: the folder of MIMIC-CXR-JPG"),
        (
            {"kind": "openi", "missing_images": "draw"},
            "source.missing_images 'draw' is unknown; choose skip or phantom",
        ),
        ({"kind": "mimic_cxr", "path": "x", "split": "dev"}, "split 'dev' is unknown; choose train, validate or test"),
        ({"kind": "mimic_cxr", "path": "x", "shareable": True}, "source.shareable means nothing to kind mimic_cxr"),
        (
            {"kind": "openi", "labels": "negbio"},
            "source.labels means nothing to kind openi; its settings are path, images",
        ),
        ({"kind": "manifest", "path": "x", "seed": 1}, "source.seed means nothing to kind manifest"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(SourceError, match=message):
        AnySource.from_dict({"source": settings})


def test_the_phantom_by_index_is_the_phantom_in_order():
    source = open_source(PhantomConfig(n_studies=5, seed=3))
    assert list(source) == list(phantom.studies(5, seed=3))
    assert source[-1] == source[4]
    assert source[1:3] == [source[1], source[2]]
    assert source[4].study_id == "phantom-3-000004"
    for index in (5, -6):
        with pytest.raises(IndexError, match=f"There is no study {index} among 5"):
            source[index]


def test_fingerprints_tell_sources_apart_and_survive_pickling():
    def source(n, seed):
        return open_source(PhantomConfig(n_studies=n, seed=seed))

    assert source(4, 0).fingerprint == source(4, 0).fingerprint
    assert len({source(4, 0).fingerprint, source(5, 0).fingerprint, source(4, 1).fingerprint}) == 3
    again = pickle.loads(pickle.dumps(source(4, 0)))
    assert (again.fingerprint, list(again)) == (source(4, 0).fingerprint, list(source(4, 0)))
    assert json.loads(json.dumps(again.description)) == again.description


def test_a_manifest_is_a_source_whose_content_counts(tmp_path):
    def write(name, side, findings):
        Image.new("L", (side, side), 3).save(tmp_path / "a.png")
        (tmp_path / name).write_text(f"study_id,frontal,findings\ns1,a.png,{findings}\ns2,a.png,Clear.\n")
        return open_source(ManifestConfig(path=str(tmp_path / name)))

    source = write("studies.csv", 8, "Effusion.")
    assert list(source) == read_manifest(tmp_path / "studies.csv")
    assert source.description["path"] == "studies.csv"
    fingerprints = {source.fingerprint, write("studies.csv", 8, "Edema.").fingerprint}
    fingerprints.add(write("studies.csv", 300, "Edema.").fingerprint)
    assert len(fingerprints) == 3
    assert write("studies.csv", 8, "Effusion.").fingerprint == source.fingerprint


def test_the_first_studies_of_a_source(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    path = tmp_path / "studies.jsonl"
    path.write_text("\n".join(json.dumps({"study_id": f"s{k}", "frontal": "a.png"}) for k in range(4)))
    few = open_source(ManifestConfig(path=str(path), n_studies=2))
    assert [study.study_id for study in few] == ["s0", "s1"]
    assert few.description["n_studies"] == 2
    every = open_source(ManifestConfig(path=str(path), n_studies=9))
    assert len(every) == every.description["n_studies"] == 4
    assert few.fingerprint != every.fingerprint


def test_descriptions_hold_no_folder(tmp_path):
    folder = tmp_path / "secret-folder"
    folder.mkdir()
    Image.new("L", (8, 8)).save(folder / "a.png")
    (folder / "s.csv").write_text("study_id,frontal\ns1,a.png\n")
    source = open_source(ManifestConfig(path=str(folder / "s.csv")))
    assert "secret" not in json.dumps(source.description)
    config = OpeniConfig(path="a/b", images=str(Path("c") / "d"))
    assert config.options["images"] == "d"

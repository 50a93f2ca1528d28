"""Open-i's MeSH tags as drawings: side, size, and what no tag decides."""

import pickle
from collections import Counter

import numpy as np
import pytest

from sae_lens_maira.data.openi_reports import parse_openi_report
from sae_lens_maira.phantom.generate import GENERATOR_VERSION
from sae_lens_maira.phantom.mesh import PhantomDrawer, phantom_state
from tests.data.miniature_openi import write_report


@pytest.mark.parametrize(
    ("tags", "drawn"),
    [
        (["Pleural Effusion/left/small"], {"effusion_left_small": 1}),
        (["Pleural Effusion/right/large", "Costophrenic Angle/right/blunted"], {"effusion_right_large": 2}),
        (["Pleural Effusion/bilateral/small"], {"effusion_right_small": 1, "effusion_left_small": 1}),
        (["Cardiomegaly/severe"], {"cardiomegaly": 1}),
        (["Airspace Disease/lung/base/left/severe"], {"consolidation_left": 2}),
        (["Hydropneumothorax/right"], {"effusion_right_small": 1, "pneumothorax_right": 1}),
        (["Pulmonary Edema/mild"], {"edema": 1}),
        (["Lung/hyperdistention"], {"hyperinflation": 1}),
        (["Lung/hypoinflation", "Scoliosis", "normal"], {}),
        (["Fractures, Bone/ribs/left"], {"rib_fracture_left": 1}),
        (["Fractures, Bone/clavicle/left"], {}),
    ],
)
def test_tags_are_drawn_on_their_side_and_in_their_size(tags, drawn):
    state = phantom_state("CXR7", tags)
    assert {name: appearance.extent for name, appearance in state.items()} == drawn


def test_a_side_that_is_left_open_depends_on_the_report_alone():
    tags = ["Nodule/lung", "Opacity/lung/base"]
    states = [phantom_state(f"CXR{n}", tags) for n in range(40)]
    assert states == [phantom_state(f"CXR{n}", tags[::-1]) for n in range(40)]
    sides = Counter("right" if "nodule_right" in state else "left" for state in states)
    assert min(sides.values()) >= 8
    assert all(("nodule_right" in state) == ("consolidation_right" in state) for state in states)


def test_a_drawer_draws_a_report_the_same_way_in_every_process():
    report = parse_openi_report(write_report(7, major=["Pulmonary Edema/severe"]))
    drawer = PhantomDrawer()
    again = pickle.loads(pickle.dumps(drawer))
    assert again == drawer
    for view in ("frontal", "lateral"):
        image = drawer.draw(report, view)
        assert list(image.state) == ["edema"]
        np.testing.assert_array_equal(image.pixels(), again.draw(report, view).pixels())
    assert not np.array_equal(drawer.draw(report, "frontal").pixels(), drawer.draw(report, "lateral").pixels())


def test_the_drawers_version_is_the_generators():
    assert str(GENERATOR_VERSION) in PhantomDrawer().version

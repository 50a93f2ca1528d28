"""The contact sheet shows every image that a study has, and its words."""

import numpy as np

from sae_lens_maira import phantom
from sae_lens_maira.data.contact_sheet import contact_sheet


def test_a_sheet_has_a_cell_for_each_study_and_shows_its_frontal_image() -> None:
    study = phantom.render(["pacemaker"], 1, lateral=False)
    one, two = contact_sheet([study], columns=1, image_side=112), contact_sheet([study] * 3, columns=2, image_side=112)
    assert two.size == (2 * one.size[0], 2 * one.size[1])
    frontal = np.asarray(one)[8 : 8 + 112, 8 : 8 + 112]
    np.testing.assert_array_equal(frontal, study.frontal.pixels())


def test_a_missing_view_leaves_its_place_dark() -> None:
    study = phantom.render(["pacemaker"], 1, lateral=False)
    lateral_place = np.asarray(contact_sheet([study], columns=1, image_side=112))[20:110, 8 + 120 + 1 : 8 + 120 + 111]
    assert lateral_place.max() < 60


def test_words_are_drawn_and_cut_when_there_is_no_room() -> None:
    study = phantom.render(["pacemaker", "edema", "cardiomegaly", "effusion_left_small"], 1)
    short, long = (np.asarray(contact_sheet([study], columns=1, text_lines=n)) for n in (1, 8))
    assert long.shape[0] > short.shape[0]
    assert (long[190:] > 200).any()

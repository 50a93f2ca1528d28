"""Features that carry labels, and the figures made of them, on tables whose answers are known."""

import numpy as np
import pyarrow as pa
import pytest

from sae_lens_maira import phantom
from sae_lens_maira.attribution.carriers import expected_driver, find_carriers, label_table
from sae_lens_maira.attribution.figures import carrier_figures, map_figures, winning_method
from sae_lens_maira.data.study import Label, Study


class NoImage:
    def open(self):
        raise AssertionError("not needed")


def labelled(index, **labels):
    named = {name: Label("present" if value else "absent") for name, value in labels.items()}
    return Study(f"s{index}", f"p{index}", NoImage(), findings="x", labels=named)


@pytest.fixture
def studies():
    return [labelled(index, edema=index % 2 == 0, device=index % 3 == 0) for index in range(60)]


def test_the_best_feature_is_chosen_on_one_part_and_scored_on_the_other(studies):
    chosen, others = np.arange(30), np.arange(30, 60)
    rng = np.random.default_rng(0)
    own = rng.normal(size=(60, 3, 4))
    is_edema = np.arange(60) % 2 == 0
    own[:, 0, 2] = is_edema  # at the last token of the prompt, feature 2 is edema
    own[:30, 1, 1] = (np.arange(30) % 3 == 0) * 1.0  # in the request, feature 1 is a device: on the chosen part alone
    own[30:, 1, 1] = -1.0 * (np.arange(30, 60) % 3 == 0)
    own[:, 2, 3] = is_edema  # a word of the report does not count
    found = {carrier.label: carrier for carrier in find_carriers(own, studies, chosen, others, 0.98)}
    assert (found["edema"].feature, found["edema"].place) == (2, "last_prompt")
    assert (found["edema"].chosen_auroc, found["edema"].auroc) == (1.0, 1.0)
    assert (found["device"].feature, found["device"].place) == (1, "request")
    assert (found["device"].chosen_auroc, found["device"].auroc) == (1.0, 0.0)


def test_labels_that_are_too_rare_are_left_out(studies):
    rare = [labelled(index, rare=index < 3, edema=index % 2 == 0) for index in range(60)]
    found = find_carriers(np.random.default_rng(0).normal(size=(60, 3, 4)), rare, np.arange(30), np.arange(30, 60), 0.9)
    assert {carrier.label for carrier in found} == {"edema"}
    assert all(carrier.is_best for carrier in found)


def test_kinds_of_change_are_labels():
    study = phantom.render(["edema"], 1, prior=[])
    names, positive = label_table([study, phantom.render([], 2)])
    assert positive[0, names.index("edema")]
    assert positive[0, names.index("change: new")]
    assert not positive[1, names.index("edema")]
    assert not positive[1, names.index("change: new")]


def test_the_phantom_knows_what_should_drive_a_feature(studies):
    study = phantom.render([], 1)
    expected = {"edema": "image", "pacemaker": "image", "indication_fever": "text", "change: larger": "prior"}
    assert {label: expected_driver(study, label) for label in expected} == expected
    assert expected_driver(studies[0], "edema") is None


def test_only_carriers_above_the_threshold_count():
    rows = [
        {
            "swap": "different",
            "label": label,
            "is_control": control,
            "is_best": True,
            "expected": "image",
            "chosen_auroc": area,
            "is_right": right,
        }
        for label, control, area, right in [
            ("a", False, 0.99, True),
            ("b", False, 0.99, False),
            ("c", False, 0.99, None),
            ("d", False, 0.6, False),
            ("a", True, 0.99, False),
        ]
    ]
    found = carrier_figures(pa.Table.from_pylist(rows), "different", 0.98)
    assert (found["features"]["n_right"], found["features"]["n"]) == (1, 2)
    assert found["random directions that carry a label"]["n"] == 1
    assert found["labels that no feature carries"] == ["d"]


def map_row(part, label, method, deletion, patient, **box):
    return {
        "part": part,
        "label": label,
        "feature": 0,
        "method": method,
        "deletion": deletion,
        "patient": patient,
        "insertion": 0.5,
        "deletion_embeddings": 0.5,
        "agreement": None,
        "agreement_random": None,
        **box,
    }


def test_the_winner_is_chosen_on_one_part_and_figures_are_of_the_other():
    rows = [
        *(map_row("chosen", "a", method, value, "p0") for method, value in [("relp", 0.1), ("gradient", 0.5)]),
        *(
            map_row(
                "reported",
                label,
                method,
                value,
                f"p{index}",
                box_share=0.1,
                box_pointing=1.0 * (method == "relp"),
                box_energy=0.4,
                box_iou=0.2,
            )
            for index, label in enumerate("aabb")
            for method, value in [("relp", 0.6), ("gradient", 0.2), ("random", 0.7), ("center", 0.5)]
        ),
    ]
    assert winning_method(rows, ["gradient", "relp"]) == "relp"
    found = map_figures(rows, ["gradient", "relp"])
    assert found["relp"]["labels_better_than_controls"] == [0, 2]  # better than random, not than the center
    assert found["gradient"]["labels_better_than_controls"] == [2, 2]
    assert found["relp"]["pointing"][0] == 1.0
    assert found["gradient"]["pointing"][0] == 0.0
    assert found["relp"]["energy_over_share"][0] == pytest.approx(4.0)
    assert found["relp"]["pointing_by_chance"][0] == pytest.approx(0.1)
    assert winning_method([], ["relp"]) is None

"""Steered reports: a row's tokens do not depend on the rows beside it."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sae_lens_maira.errors import SteeringError
from sae_lens_maira.hooked import Ablate, Add, Clamp, Where
from sae_lens_maira.steering.continuation import Row
from sae_lens_maira.steering.reports import is_loop, sample, write_reports
from tests.steered_sae import D_SAE

N_NEW = 16
PLACES = [Where(), Where(include=("report",)), Where(include=("images", "report"), window=(2, 9))]
rows = st.builds(
    Row,
    st.lists(
        st.one_of(
            st.builds(Add, st.integers(0, D_SAE - 1), st.sampled_from([-1.0, 0.5, 4.0])),
            st.builds(Clamp, st.integers(0, D_SAE - 1), st.sampled_from([0.0, 1.0])),
            st.builds(Ablate, st.integers(0, D_SAE - 1)),
        ),
        max_size=2,
        unique_by=lambda edit: edit.feature,
    ).map(tuple),
    st.sampled_from(PLACES),
    st.integers(0, 5),
)


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(batch=st.lists(rows, min_size=2, max_size=4), temperature=st.sampled_from([0.0, 0.7]), number=st.integers(0, 3))
def test_a_rows_report_is_the_same_alone_and_in_any_batch(engine, studies, batch, temperature, number):
    prefill = engine.prefill(studies[number])
    options = {"max_new_tokens": N_NEW, "temperature": temperature}
    together = write_reports(engine, prefill, batch, **options)
    alone = [write_reports(engine, prefill, [row], **options)[0] for row in batch]
    in_parts = write_reports(engine, prefill, batch, max_rows=2, **options)
    for own, other, third in zip(together, alone, in_parts, strict=True):
        assert own == other == third
        assert own.n_asked == own.n_edited


@pytest.mark.parametrize("where", PLACES, ids=str)
def test_reports_are_those_of_generate_inside_steered(engine, model, studies, dictionary, where):
    batch = [Row((Add(feature, 2.0), Ablate(7)), where) for feature in (1, 2, 3)]
    found = write_reports(engine, studies[0], batch, max_new_tokens=N_NEW)
    for row, report in zip(batch, found, strict=True):
        with model.steered(row.edits, where, saes=dictionary) as steering:
            expected = model.generate(studies[0], max_new_tokens=len(report.tokens) + (report.ending == "end"))
        assert report.text == expected[0]
        assert report.n_edited == sum(steering.n_edited.values())


def test_an_unsteered_row_is_the_models_own_report(engine, model, studies):
    for study in studies:
        (report,) = write_reports(engine, study, [Row()], max_new_tokens=160)
        assert [report.text] == model.generate(study, max_new_tokens=160)
        assert (report.ending, report.n_edited) == ("end", 0)


def test_the_length_is_kept_and_repetition_is_stopped_and_counted(engine, studies):
    loud = [Row((Add(feature, 60.0),)) for feature in range(6)]
    found = write_reports(engine, studies[1], [Row(), *loud], max_new_tokens=60)
    assert found[0].ending == "end"
    looped = [report for report in found if report.ending == "repetition"]
    assert looped
    assert all(len(report.tokens) < 60 and is_loop(report.tokens) for report in looped)
    assert all(not is_loop(report.tokens[:-1]) for report in looped)
    (short,) = write_reports(engine, studies[1], [Row()], max_new_tokens=5)
    assert (len(short.tokens), short.ending) == (5, "length")
    assert short.tokens == found[0].tokens[:5]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1] * 12, True),
        ([1] * 11, False),
        ([9, 8, *[1, 2, 3, 4] * 4], True),
        ([1, 2, 3, 4] * 3, False),
        (list(range(20)) * 4, True),
        ([*list(range(20)) * 4, 5], False),
        (list(range(200)), False),
    ],
)
def test_loops(tokens, expected):
    assert is_loop(tokens) == expected


def test_samples_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    generators = [torch.Generator().manual_seed(seed) for seed in range(1)]
    drawn = torch.cat([sample(logits, generators) for _ in range(4000)])
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(shares, logits[0].softmax(0), atol=0.03, rtol=0)


def test_a_seed_gives_the_same_sample_and_another_seed_another(engine, studies):
    found = write_reports(
        engine, studies[0], [Row(seed=1), Row(seed=1), Row(seed=2)], temperature=1.5, max_new_tokens=20
    )
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_a_negative_temperature_is_refused(engine, studies):
    with pytest.raises(SteeringError, match="The temperature is -1.0; give 0, or a positive number to sample."):
        write_reports(engine, studies[0], [Row()], temperature=-1.0)

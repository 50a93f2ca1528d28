"""Composed reports: true, complete, exactly labeled, and changed only where their concepts change."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_maira.data import Box, Label
from sae_lens_maira.maira2 import grounding
from sae_lens_maira.phantom.words.report import compose, grounded_text
from sae_lens_maira.phantom.words.scoring import parse_report, true_assertions
from sae_lens_maira.phantom.world.concepts import CONCEPTS, FAMILIES, VISIBLE, Appearance, as_state, visible_labels


@st.composite
def states(draw: st.DrawFn) -> dict[str, Appearance]:
    """Any state that can be: up to five families, each with one member, any extent, any faintness."""
    families = draw(st.lists(st.sampled_from(list(FAMILIES)), max_size=5, unique=True))
    state = {}
    for family in families:
        concept = CONCEPTS[draw(st.sampled_from(FAMILIES[family]))]
        state[concept.name] = Appearance(draw(st.sampled_from(concept.extents)), concept.subtle and draw(st.booleans()))
    return as_state(state)


SEEDS = st.integers(0, 2**31 - 1)


@given(states(), st.none() | states(), SEEDS)
@settings(max_examples=300, deadline=None)
def test_a_report_is_read_back_as_what_it_was_made_of(state: dict, prior: dict | None, seed: int) -> None:
    findings, labeled = compose(state, prior, seed)
    truth = visible_labels(state, prior)
    for text in (findings, grounded_text(findings, labeled)):
        parsed = parse_report(text)
        assert parsed.assertions == true_assertions(labeled)
        assert (parsed.unparsed, parsed.malformed) == ((), 0)
        assert parsed.positives == set(state)
        assert all(truth[name] == (presence, change) for name, presence, change in parsed.assertions)
    gone = {name for name in VISIBLE if truth[name].change == "removed"}
    assert {name for name, _, change in parsed.assertions if change == "removed"} == gone


@given(states(), st.none() | states(), SEEDS)
@settings(max_examples=100, deadline=None)
def test_spans_are_the_sentences_and_leave_out_nothing(state: dict, prior: dict | None, seed: int) -> None:
    findings, labeled = compose(state, prior, seed)
    spoken = [findings[sentence.start : sentence.end] for sentence in labeled]
    assert " ".join(spoken) == findings
    assert findings
    assert all(text[0].isupper() and text.endswith(".") and text.count(".") == 1 for text in spoken)
    assert [parse_report(text).sentences[0].labels for text in spoken] == [sentence.labels for sentence in labeled]


@given(states(), SEEDS, st.sampled_from(VISIBLE))
@settings(max_examples=150, deadline=None)
def test_another_concept_changes_only_the_sentences_that_speak_of_it(state: dict, seed: int, name: str) -> None:
    family = FAMILIES[CONCEPTS[name].family]
    without = {other: look for other, look in state.items() if other not in family}
    with_it = as_state({**without, name: Appearance(CONCEPTS[name].extents[0])})
    first, first_labels = compose(without, None, seed)
    second, second_labels = compose(with_it, None, seed)
    shared_first = [first[s.start : s.end] for s in first_labels if name not in s.labels]
    shared_second = [second[s.start : s.end] for s in second_labels if name not in s.labels]
    assert shared_first == shared_second  # the same words in the same order


def test_without_a_prior_no_word_of_change_is_said() -> None:
    for seed in range(200):
        findings, _ = compose(as_state(["edema", "pacemaker"]), None, seed)
        assert "prior" not in findings
        assert not {"unchanged", "new", "removed", "again"} & set(findings.lower().replace(".", "").split())


def test_what_is_faint_is_hedged_and_what_is_plain_is_not() -> None:
    for seed in range(50):
        faint, _ = compose({"nodule_left": Appearance(1, subtle=True)}, None, seed)
        plain, _ = compose({"nodule_left": Appearance(1)}, None, seed)
        assert any(word in faint.lower() for word in ("possible", "may be", "suspected"))
        assert not any(word in plain.lower() for word in ("possible", "may be", "suspected"))


def test_sentence_order_varies_and_normal_findings_are_mentioned() -> None:
    state = as_state(["pacemaker", "cardiomegaly", "effusion_left_small"])
    orders, negations = set(), 0
    for seed in range(100):
        _, labeled = compose(state, None, seed)
        orders.add(tuple(name for s in labeled for name, label in s.labels.items() if label.positive))
        negations += any(label == Label("absent") for s in labeled for label in s.labels.values())
    assert len(orders) >= 3
    assert 30 <= negations <= 100


def test_a_report_never_denies_what_it_states() -> None:
    for seed in range(300):
        _, labeled = compose(as_state(["pneumothorax_left"]), None, seed)
        assert not any(s.labels.get("pneumothorax_left") == Label("absent") for s in labeled)


def test_a_grounded_report_by_hand() -> None:
    boxes = {"pacemaker": (Box(0.1, 0.205, 0.3, 1.0), Box(0.0, 0.0, 0.999, 0.5))}
    findings, labeled = compose(as_state(["pacemaker"]), None, 4, boxes)
    sentence = next(s for s in labeled if "pacemaker" in s.labels)
    spoken = findings[sentence.start : sentence.end]
    wanted = f"<obj>{spoken}<box><x10><y20><x30><y99></box><box><x0><y0><x99><y50></box></obj>"
    assert wanted in grounded_text(findings, labeled)


def test_grounded_reports_agree_with_the_models_own_grammar() -> None:
    state = as_state(["pacemaker", "edema"])
    boxes = {"pacemaker": (Box(0.12, 0.2, 0.3, 0.4),), "edema": (Box(0.0, 0.1, 0.5, 1.0), Box(0.5, 0.1, 1.0, 0.9))}
    findings, labeled = compose(state, {}, 3, boxes)
    report = grounding.parse_grounded(grounded_text(findings, labeled))
    assert report.problems == ()
    assert report.text == findings
    assert [len(phrase.boxes) for phrase in report.phrases] == [len(s.boxes) for s in labeled]
    assert "<box><x12><y20><x30><y40></box>" in grounding.format_grounded(list(report.phrases))
    assert grounding.format_grounded(list(report.phrases)) == grounded_text(findings, labeled)

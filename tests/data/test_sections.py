"""Free-text reports, in the many ways in which radiologists write headings. All reports are invented."""

import string
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_maira.data.headings import classify
from sae_lens_maira.data.sections import ReportSections, parse_sections


def parse(text: str) -> dict[str, str]:
    sections = parse_sections(dedent(text))
    return {name: text for name in ReportSections.__slots__ if (text := getattr(sections, name)) is not None}


STANDARD = """\
                                     FINAL REPORT
     EXAMINATION:  CHEST (PA AND LAT)

     INDICATION:  ___F with cough  // pneumonia?

     TECHNIQUE:  Chest PA and lateral

     COMPARISON:  ___

     FINDINGS:

     The lungs are clear. Heart size is
     normal.

     No effusion.

     IMPRESSION:

     No acute process.
"""
STANDARD_SECTIONS = {
    "examination": "CHEST (PA AND LAT)",
    "indication": "___F with cough // pneumonia?",
    "technique": "Chest PA and lateral",
    "comparison": "___",
    "findings": "The lungs are clear. Heart size is normal. No effusion.",
    "impression": "No acute process.",
}


def test_a_standard_report():
    assert parse(STANDARD) == STANDARD_SECTIONS


@pytest.mark.parametrize("ending", ["\r\n", "\n \n"])
def test_other_line_ends_and_empty_lines_change_nothing(ending):
    assert parse_sections(STANDARD.replace("\n\n", "\n" + ending)) == parse_sections(STANDARD)


def test_a_report_that_lost_its_line_breaks():
    assert parse(" ".join(STANDARD.split())) == STANDARD_SECTIONS


@pytest.mark.parametrize(
    ("heading", "section"),
    [
        ("FINDINGS", "findings"),
        ("Findings", "findings"),
        ("FINDING", "findings"),
        ("FINDINGS AND IMPRESSION", "findings"),
        ("FINDINGS/IMPRESSION", "findings"),
        ("FINDINGS / IMPRESSION", "findings"),
        ("IMPRESSION AND FINDINGS", "findings"),
        ("FINDNGS", "findings"),
        ("FINIDNGS", "findings"),
        ("IMPRESSION", "impression"),
        ("Impression", "impression"),
        ("IMPRESSIONS", "impression"),
        ("IMPRESSON", "impression"),
        ("MPRESSION", "impression"),
        ("IMPRESSOIN", "impression"),
        ("CONCLUSION", "impression"),
        ("CONCLUSIONS", "impression"),
        ("IMPRESSION AND RECOMMENDATION", "impression"),
        ("INDICATION", "indication"),
        ("NDICATION", "indication"),
        ("CLINICAL INDICATION", "indication"),
        ("CLINICAL INFORMATION", "indication"),
        ("CLINICAL HISTORY", "indication"),
        ("HISTORY", "indication"),
        ("PATIENT HISTORY", "indication"),
        ("REASON FOR EXAM", "indication"),
        ("REASON FOR EXAMINATION", "indication"),
        ("REASON FOR THE EXAM", "indication"),
        ("REASON FOR THIS EXAMINATION", "indication"),
        ("REASON FOR STUDY", "indication"),
        ("UNDERLYING MEDICAL CONDITION", "indication"),
        ("INDICATION AND HISTORY", "indication"),
        ("HISTORY/INDICATION", "indication"),
        ("HISTORY OF PRESENT ILLNESS", "indication"),
        ("TECHNIQUE", "technique"),
        ("TECNIQUE", "technique"),
        ("Technique", "technique"),
        ("VIEWS", "technique"),
        ("COMPARISON", "comparison"),
        ("COMPARISONS", "comparison"),
        ("COMPARISON(S)", "comparison"),
        ("COMPARISION", "comparison"),
        ("COMPARSION", "comparison"),
        ("COMPARISON EXAM", "comparison"),
        ("COMPARISON FILM", "comparison"),
        ("COMPARISON STUDIES", "comparison"),
        ("REFERENCE EXAM", "comparison"),
        ("PRIOR STUDY", "comparison"),
        ("EXAMINATION", "examination"),
        ("EXAM", "examination"),
        ("TYPE OF EXAMINATION", "examination"),
        ("STUDY", "examination"),
        ("RECOMMENDATION(S)", "recommendations"),
        ("RECOMMENDATIONS", "recommendations"),
        ("NOTIFICATION", "notification"),
        ("ADDENDUM", "addendum"),
        ("WET READ", "wet_read"),
        ("WETREAD", "wet_read"),
        ("PROVISIONAL FINDINGS IMPRESSION (PFI)", "wet_read"),
    ],
)
def test_spellings_of_headings(heading, section):
    assert classify(heading) == section
    assert parse(f" FINAL REPORT\n EXAMINATION: Chest.\n\n {heading}:  Some words.\n")[section].endswith("Some words.")
    assert parse(f" FINAL REPORT\n\n {heading}:\n \n Some words.\n")[section] == "Some words."


@pytest.mark.parametrize(
    "name",
    ["LUNGS", "Lungs", "HEART AND MEDIASTINUM", "LINES AND TUBES", "NOTE", "PLEURA", "impresson", "At 5", "BONES"],
)
def test_other_names_are_no_sections(name):
    assert classify(name) is None


def test_headings_without_a_colon_stand_alone_after_an_empty_line():
    report = """\
        FINAL REPORT

        HISTORY

        Fall.

        FINDINGS

        No fracture.

        IMPRESSION

        Normal
        IMPRESSION
    """
    assert parse(report) == {"indication": "Fall.", "findings": "No fracture.", "impression": "Normal IMPRESSION"}


def test_subheadings_belong_to_the_findings():
    report = """\
        FINDINGS:
        LUNGS: Clear.
        HEART AND MEDIASTINUM: Normal.
        IMPRESSION: Normal.
    """
    assert parse(report) == {
        "findings": "LUNGS: Clear. HEART AND MEDIASTINUM: Normal.",
        "impression": "Normal.",
    }


def test_a_body_without_a_heading_is_untitled():
    report = """\
                                     FINAL REPORT
         REASON FOR EXAMINATION:  Followup of a patient after
         lobectomy.

         Portable AP radiograph was compared to yesterday.

         The chest tube is unchanged. No pneumothorax.
    """
    sections = parse_sections(dedent(report))
    assert sections.indication == "Followup of a patient after lobectomy."
    assert sections.findings is None
    assert sections.untitled == sections.substitute
    assert sections.untitled == (
        "Portable AP radiograph was compared to yesterday. The chest tube is unchanged. No pneumothorax."
    )


def test_titles_are_told_from_a_body_before_any_heading():
    title = " FINAL REPORT\n AP CHEST, 5:15 A.M., ___\n\n HISTORY:  Hypoxia.\n\n IMPRESSION:  AP chest: clear lungs.\n"
    assert parse(title) == {
        "examination": "AP CHEST, 5:15 A.M., ___",
        "indication": "Hypoxia.",
        "impression": "AP chest: clear lungs.",
    }
    assert parse_sections(title).substitute == "AP chest: clear lungs."
    assert parse(" FINAL REPORT\n Chest radiograph performed on ___.\n\n FINDINGS: Clear.\n") == {
        "examination": "Chest radiograph performed on ___.",
        "findings": "Clear.",
    }
    assert parse(" FINAL REPORT\n The lungs are clear.\n") == {"untitled": "The lungs are clear."}


def test_a_heading_that_names_the_views_starts_the_body():
    report = " INDICATION: Cough.\n PA AND LATERAL VIEWS OF THE CHEST: The lungs are clear.\n IMPRESSION: Normal.\n"
    assert parse(report) == {"indication": "Cough.", "untitled": "The lungs are clear.", "impression": "Normal."}


@pytest.mark.parametrize("separator", ["", "_" * 78])
def test_a_wet_read_is_not_the_report(separator):
    report = f"""\
        WET READ: ___ ___ ___ 9:14 PM
         No pneumonia.
         IMPRESSION: Normal.
        {separator}
                                     FINAL REPORT
         INDICATION: Cough.

         FINDINGS: Left lower lobe opacity.

         IMPRESSION: Pneumonia.
    """
    assert parse(report) == {
        "wet_read": "___ ___ ___ 9:14 PM No pneumonia. IMPRESSION: Normal.",
        "indication": "Cough.",
        "findings": "Left lower lobe opacity.",
        "impression": "Pneumonia.",
    }


@pytest.mark.parametrize("banner", ["FINAL ADDENDUM", "ADDENDUM", "ADDENDUM:"])
def test_an_addendum_before_or_after_the_report_does_not_change_it(banner):
    addendum = f" {banner}\n The tube was pulled back.\n IMPRESSION: Tube well placed.\n"
    before = f"{addendum} {'_' * 70}\n FINAL REPORT\n FINDINGS: Tube too low.\n"
    after = f" FINAL REPORT\n FINDINGS: Tube too low.\n\n{addendum}"
    expected = {
        "findings": "Tube too low.",
        "addendum": "The tube was pulled back. IMPRESSION: Tube well placed.",
    }
    assert parse(before) == expected
    assert parse(after) == expected


def test_a_wet_read_alone_still_has_its_sections():
    assert parse(" WET READ: 9 PM\n\n FINDINGS: Clear.\n") == {"wet_read": "9 PM", "findings": "Clear."}


def test_recommendations_and_notifications_end_the_impression():
    report = """\
        IMPRESSION: Nodule.

        RECOMMENDATION(S):  CT.

        NOTIFICATION:  Dr. ___ was told at 3 PM
        by telephone.
    """
    assert parse(report) == {
        "impression": "Nodule.",
        "recommendations": "CT.",
        "notification": "Dr. ___ was told at 3 PM by telephone.",
    }


def test_sections_that_come_twice_are_joined():
    report = (
        " HISTORY: Fall.\n REASON FOR EXAM: Fracture?\n FINDINGS: Clear.\n IMPRESSION: A.\n FINDINGS: Ribs intact.\n"
    )
    assert parse(report) == {
        "indication": "Fall. Fracture?",
        "findings": "Clear. Ribs intact.",
        "impression": "A.",
    }


def test_times_ratios_and_placeholders_are_no_headings():
    body = "Portable view at 10:45 AM. Ratio 1:2. Dr. ___: told. The impression: unchanged."
    assert parse(f" FINDINGS: {body}\n") == {"findings": body}


def test_empty_reports_have_no_sections():
    assert parse("") == parse(" \n____________\n FINAL REPORT\n FINDINGS:\n \n IMPRESSION:\n") == {}


words = st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=9), min_size=1, max_size=40).map(" ".join)
NAMES = {
    "indication": ("INDICATION", "HISTORY", "Reason for exam"),
    "technique": ("TECHNIQUE", "Technique"),
    "comparison": ("COMPARISON", "COMPARISONS", "Comparison"),
    "findings": ("FINDINGS", "Findings"),
    "impression": ("IMPRESSION", "CONCLUSION", "Impression"),
}


@settings(deadline=None)
@given(
    sections=st.fixed_dictionaries({name: st.none() | words for name in NAMES}),
    spelling=st.integers(0, 2),
    width=st.integers(10, 100),
    on_next_line=st.booleans(),
    dense=st.booleans(),
)
def test_what_is_written_under_headings_is_found_again(sections, spelling, width, on_next_line, dense):
    lines = ["                FINAL REPORT"]
    for name, text in sections.items():
        if text is not None:
            heading = NAMES[name][spelling % len(NAMES[name])] + ":"
            start = [heading, *([] if dense else [" "])] if on_next_line else []
            wrapped = wrap(text if on_next_line else f"{heading} {text}", width)
            lines += start + wrapped + ([] if dense else [" "])
    assert parse("\n".join(lines)) == {name: text for name, text in sections.items() if text is not None}


def wrap(text, width):
    """Greedy line breaks, written here so that the tests do not depend on how `textwrap` treats long words."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width and not lines[-1].endswith((" for", "Reason")):
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return [f" {line}" for line in lines]


@settings(deadline=None)
@given(st.text(max_size=400))
def test_any_text_is_parsed_and_no_word_is_invented(text):
    sections = parse(text)
    said = " ".join(sections.values()).split()
    for word in said:
        assert word in " ".join(text.split()) or any(word in part for part in text.split())

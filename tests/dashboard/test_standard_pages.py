"""sae-dashboard's pages: its numbers are those of the SAE, and untrusted text does nothing in them."""

import json
import re
from typing import Any

import numpy as np
import pytest
import torch

from sae_lens_maira.activations.live import LiveActivations
from sae_lens_maira.dashboard.safety import PageError, inert, secure_page, to_script_json
from sae_lens_maira.dashboard.standard.pages import write_pages
from sae_lens_maira.dashboard.standard.replay import RowTexts
from sae_lens_maira.features.recording import record
from sae_lens_maira.features.subject import Subject
from tests.dashboard.small_gallery import ALWAYS, ATTACK, DEAD, HOOK, make_model, make_sae, make_studies, plain_firings


def data_of(page: str):
    """The object that a page's script returns."""
    found = re.findall(r"^    return (\{.*\});$", page, re.MULTILINE)
    assert len(found) == 1
    return json.loads(found[0])


def page_data(made, feature):
    return data_of((made.path / "pages" / f"feature_{feature}.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("feature", [ALWAYS, DEAD, 5, 30])
def test_a_pages_numbers_are_those_of_the_sae(made, feature):
    data = page_data(made, feature)
    own = data["DASHBOARD_DATA"][str(feature)]
    every = np.concatenate(plain_firings(made))[:, feature]
    (histogram,) = own["actsHistogramData"].values()
    assert histogram["title"] == f"ACTIVATIONS<br>DENSITY = {(every > 0).mean():.3%}"
    assert sum(histogram["y"]) == (every > 0).sum()
    groups = list(own["tokenData"].values())
    assert groups[0]["title"] == f"TOP ACTIVATIONS<br>MAX = {every.max():.3f}"
    if feature != DEAD:
        middle = [sequence[len(sequence) // 2].get("featAct", 0) for sequence in groups[0]["data"]]
        assert middle == pytest.approx(np.sort(every)[::-1][: len(middle)], rel=1e-5, abs=2e-4)
    direction = made.sae.W_dec[feature] / made.sae.W_dec[feature].norm()
    logits = (made.model.maira2.lm_head.weight @ direction).detach()
    (table,) = own["logitsTableData"].values()
    assert [row["value"] for row in table["posLogits"]] == pytest.approx(logits.topk(10).values.tolist(), abs=6e-3)
    assert [row["value"] for row in table["negLogits"]] == pytest.approx(
        (-logits).topk(10).values.neg().tolist(), abs=6e-3
    )


def test_the_shares_of_intervals_are_of_tokens(made):
    every = np.concatenate(plain_firings(made))[:, 5]
    groups = page_data(made, 5)["DASHBOARD_DATA"]["5"]["tokenData"].values()
    titles = [group["title"] for group in groups if group["title"].startswith("INTERVAL")]
    assert titles
    for title in titles:
        low, high, share = map(float, re.findall(r"[0-9.]+", title))
        inside = ((every >= low - 5e-4) & (every <= high + 5e-4)).mean()
        assert share / 100 == pytest.approx(inside, abs=2 / len(every))


def test_the_first_and_last_tokens_of_a_row_can_be_examples(made):
    """sae-dashboard leaves out tokens near the ends of its rows; ours have margins, which are no tokens."""
    own = page_data(made, ALWAYS)["DASHBOARD_DATA"][str(ALWAYS)]
    shown = [sequence for group in own["tokenData"].values() for sequence in group["data"]]
    assert all(sequence[len(sequence) // 2]["tok"] for sequence in shown)
    assert any(sequence[0]["tok"] == "" for sequence in shown)


def test_no_text_of_a_token_is_markup(made):
    for path in (made.path / "pages").iterdir():
        page = path.read_text(encoding="utf-8")
        line = next(line for line in page.splitlines() if line.startswith("    return {"))
        assert "<" not in line
        for group in next(iter(data_of(page)["DASHBOARD_DATA"].values()))["tokenData"].values():
            for sequence in group["data"]:
                assert not any(re.search(r"[<>]", token["tok"]) for token in sequence)


@pytest.mark.parametrize(
    "text", [ATTACK, "&lt;script&gt;", "&#60;img&#62;", "a & b", "A&P", '"', "\\", "</script>", "&amp;lt;", " plain"]
)
def test_inert_text_survives_sae_dashboards_own_handling_without_markup(text):
    from sae_dashboard.utils_fns import get_decode_html_safe_fn, unprocess_str_tok

    tokenizer: Any = RowTexts((inert(text),))
    decoded: Any = get_decode_html_safe_fn(tokenizer)(0)
    shown = unprocess_str_tok(decoded)
    assert "<" not in shown
    assert ">" not in shown
    assert re.sub(r"[\u200c]", "", inert(text)).replace("\u2039", "<").replace("\u203a", ">") == text
    assert not re.search(r"&#?\w+;", shown)


@pytest.mark.parametrize("value", [ATTACK, "\u2028", {"<!--": ["</script>", '"', "\\"]}, [1.5, None, "ä"]])
def test_script_json_says_the_same_without_dangerous_characters(value):
    text = to_script_json(value)
    assert json.loads(text) == value
    assert not set(text) & set("<\u2028\u2029")


def test_a_page_that_is_made_otherwise_is_an_error_and_not_an_unsafe_page():
    with pytest.raises(PageError, match="does not load"):
        secure_page("<script>alert(1)</script>", "", "")
    scripts = "".join(
        f'<script src="{address}"></script>'
        for address in ("https://d3js.org/d3.v6.min.js", "https://cdn.plot.ly/plotly-latest.min.js")
    )
    with pytest.raises(PageError, match="holds no data"):
        secure_page(scripts + "<script>alert(1)</script>", "", "")


def test_a_page_asks_for_nothing_from_elsewhere(made):
    for path in (made.path / "pages").iterdir():
        page = path.read_text(encoding="utf-8")
        assert re.findall(r'(?:src|href)="([^"]*)"', page) == ["../vendor/d3.min.js", "../vendor/plotly-basic.min.js"]
        for name in ("d3.min.js", "plotly-basic.min.js"):
            assert (made.path / "vendor" / name).is_file()


def test_one_feature_alone_has_a_page_with_correlated_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_LENS_MAIRA_CACHE", str(tmp_path / "rows"))
    model = make_model(make_studies()[3:8])
    sae = make_sae(model)
    recording = record(LiveActivations(model, [HOOK], context_size=64), HOOK, tmp_path)
    subject = Subject(sae, model, recording)
    (path,) = write_pages(subject, [5], tmp_path / "pages", among=[6, 7, 8, 9], show_progress=False)
    (tables,) = data_of(path.read_text(encoding="utf-8"))["DASHBOARD_DATA"]["5"]["featureTablesData"].values()
    assert {row["index"] for row in tables["correlatedFeatures"]} <= {6, 7, 8, 9}
    assert torch.equal(sae.W_dec, make_sae(model).W_dec)
    (alone,) = write_pages(subject, [7], tmp_path / "pages", show_progress=False)
    assert alone.is_file()

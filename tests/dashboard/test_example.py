"""The gallery that git keeps is what the code makes today, without the files that stand in the package already."""

import json
import re
import runpy
from pathlib import Path

import pytest

from sae_lens_maira.dashboard.data_files import script

ROOT = Path(__file__).parent.parent.parent
EXAMPLE_PATH = ROOT / "dashboards" / "example"
example = runpy.run_path(str(ROOT / "dashboards" / "example.py"))


def read(name: str) -> dict:
    text = (EXAMPLE_PATH / "data" / f"{name}.js").read_text()
    value = re.fullmatch(r'GALLERY\.put\("[a-z/0-9]+",(.*)\);\n', text, re.DOTALL)
    assert value is not None, name
    return json.loads(value[1])


def test_its_first_page_is_todays_with_links_into_the_package():
    html = (EXAMPLE_PATH / "index.html").read_text()
    assert html == example["linked_index"]()
    links = re.findall(r'(?:src|href)="([^"#]+)"', html)
    assert len(links) == 9
    assert all((EXAMPLE_PATH / link).resolve().parent == example["STATIC"] for link in links)
    assert all((EXAMPLE_PATH / link).is_file() for link in links)


def test_it_keeps_nothing_that_stands_in_the_package():
    assert {path.name for path in EXAMPLE_PATH.iterdir()} == {*example["FOLDERS"], "index.html"}


def test_its_standard_pages_find_their_libraries():
    pages = sorted((EXAMPLE_PATH / "pages").glob("*.html"))
    assert pages
    for page in pages:
        links = re.findall(r'(?:src|href)="([^"#]+)"', page.read_text())
        assert len(links) == 2
        assert all((page.parent / link).is_file() for link in links)


def test_its_data_files_are_those_that_the_code_writes():
    index = read("index")
    n_files = -(-index["nFeatures"] // index["featuresPerFile"])
    features = {f"{number}.js" for number in range(n_files)}
    assert {path.name for path in (EXAMPLE_PATH / "data" / "features").iterdir()} == features
    assert {path.name for path in (EXAMPLE_PATH / "data").iterdir() if path.is_file()} == {
        "index.js",
        "hierarchy.js",
        "results.js",
        "serving.js",
    }
    for path in (EXAMPLE_PATH / "data").rglob("*.js"):
        name = str(path.relative_to(EXAMPLE_PATH / "data").with_suffix(""))
        assert path.read_text() == script(name, read(name)), f"{name} is not written as the code writes it"


@pytest.mark.parametrize("text", ['<script src="core.js">', '<script src="main.js">'])
def test_the_link_rewriting_would_miss_no_script(text):
    assert text in (example["STATIC"] / "index.html").read_text()

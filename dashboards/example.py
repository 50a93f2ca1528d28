"""Makes ``dashboards/example`` from a gallery: ``python dashboards/example.py GALLERY [EXAMPLE]``.

The example holds a gallery's data, images and pages. Style, scripts and libraries are in the repository only once, in
``sae_lens_maira/dashboard/static``; the example's pages link to them there, so it opens from disk after a clone.
"""

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
STATIC = ROOT / "sae_lens_maira" / "dashboard" / "static"
EXAMPLE = ROOT / "dashboards" / "example"
FOLDERS = ("data", "images", "pages")
_TO_STATIC = "../../sae_lens_maira/dashboard/static/"


def linked_index() -> str:
    """The gallery's first page, with links to the style and scripts in the package."""
    html = (STATIC / "index.html").read_text()
    return html.replace('href="gallery.css"', f'href="{_TO_STATIC}gallery.css"').replace('src="', f'src="{_TO_STATIC}')


def linked_page(html: str) -> str:
    """A standard page of the gallery, with links to the libraries in the package."""
    return html.replace('src="../vendor/', f'src="../{_TO_STATIC}vendor/')


def main(gallery: str, example: str = str(EXAMPLE)) -> None:
    """Replace the example by one made from a gallery."""
    target = Path(example)
    shutil.rmtree(target, ignore_errors=True)
    for name in FOLDERS:
        shutil.copytree(Path(gallery) / name, target / name)
    (target / "index.html").write_text(linked_index())
    for page in (target / "pages").glob("*.html"):
        page.write_text(linked_page(page.read_text()))


if __name__ == "__main__":
    main(*sys.argv[1:])

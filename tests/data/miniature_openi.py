"""A collection in Open-i's format with invented reports."""

import io
import tarfile
from typing import Literal

import numpy as np
from PIL import Image

from sae_lens_maira.data.source import OpeniConfig
from sae_lens_maira.sources import open_source


def write_report(number, *, images=2, findings="Small left effusion.", impression="Effusion.", major=(), automatic=()):
    def tag(name, text):
        return f"<{name}>{text}</{name}>"

    parents = "".join(
        f'<parentImage id="CXR{number}_IM-{number:04d}-{k}001"><caption>PA and lateral chest</caption></parentImage>'
        for k in range(1, images + 1)
    )
    tags = "".join(tag("major", text) for text in major) + "".join(tag("automatic", text) for text in automatic)
    return f"""<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="CXR{number}"/><licenseURL>http://creativecommons.org/licenses/by-nc-nd/4.0/</licenseURL>
<MedlineCitation><Article><Abstract>
<AbstractText Label="COMPARISON">None.</AbstractText>
<AbstractText Label="INDICATION">  Cough &amp;
   fever </AbstractText>
<AbstractText Label="FINDINGS">{findings}</AbstractText>
<AbstractText Label="IMPRESSION">{impression}</AbstractText>
</Abstract></Article></MedlineCitation><MeSH>{tags}</MeSH>{parents}</eCitation>""".encode()


def add_images(folder, *names):
    for value, name in enumerate(names, start=1):
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(folder / f"{name}.png")


def write_archive(path, files, mode: Literal["w", "w:gz"] = "w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def openi(path, **settings):
    return open_source(OpeniConfig(path=str(path), **settings))

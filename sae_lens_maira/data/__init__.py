"""Studies and where they come from.

::

    study                                one type for all sources: Study, its images, labels and boxes
    source                               a source gives studies by index and says which source it is; its settings
    manifest                             a table of your own
    openi, openi_reports, openi_images   Indiana University's collection
    mimic_cxr, mimic_tables              a local copy of MIMIC-CXR-JPG
    sections, headings                   free-text reports to sections
    summary, contact_sheet               what a source holds, in numbers and as a picture

Importing this loads neither torch nor numpy nor Pillow: an image library is imported when an image is opened.
"""

from sae_lens_maira.data.study import Box, Change, FileImage, Label, LazyImage, Presence, SentenceLabel, Study

__all__ = ["Box", "Change", "FileImage", "Label", "LazyImage", "Presence", "SentenceLabel", "Study"]

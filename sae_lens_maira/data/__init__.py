"""Studies and where they come from. Importing this is light: no torch, no image library until an image is opened."""

from sae_lens_maira.data.study import Box, Change, FileImage, Label, LazyImage, Presence, SentenceLabel, Study

__all__ = ["Box", "Change", "FileImage", "Label", "LazyImage", "Presence", "SentenceLabel", "Study"]

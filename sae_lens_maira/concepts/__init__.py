"""Features against known labels: which concept a feature detects, beside controls chosen by the same rule."""

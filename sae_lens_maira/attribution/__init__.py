"""What drives a feature: image, prior, prompt or the report's own words; and where in the image."""

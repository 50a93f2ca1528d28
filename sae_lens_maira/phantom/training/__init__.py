"""How the phantom's weights were made, and how they are scored."""

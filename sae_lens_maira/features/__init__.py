"""What is known of every feature: where it fires, how strongly, with what, and which labels it matches."""

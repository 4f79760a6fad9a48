"""From sources to clean, split, counted text, and from text to tokens."""

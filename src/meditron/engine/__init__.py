"""Something that scores and generates."""

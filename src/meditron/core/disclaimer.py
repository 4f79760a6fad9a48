"""What every surface says about use."""

__all__ = ["ADVISORY"]

ADVISORY = (
    "For research only. This is no medical device: its answers may be wrong and must never be used for "
    "diagnosis, treatment or any other clinical decision."
)
"""The sentence on every page, card and chat."""

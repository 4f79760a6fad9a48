"""The research-use disclaimer, shown on every page, card and chat."""

__all__ = ["DISCLAIMER"]

DISCLAIMER = (
    "For research only. This is not a medical device: its answers may be wrong and must never be used for "
    "diagnosis, treatment or any other clinical decision."
)
"""The disclaimer."""

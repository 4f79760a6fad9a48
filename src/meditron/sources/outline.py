"""Construction of a document's sections from a sequence of headings and texts."""

from meditron.sources.document import Section

__all__ = ["Outline"]


class Outline:
    """A sequence of headings and texts that becomes sections.

    A section's path has the headings of the enclosing sections: a heading encloses the following ones of a
    higher level number. Sections without text are left out; their headings remain in the paths of the
    sections that they enclose.
    """

    def __init__(self) -> None:
        self._open_headings: list[tuple[int, str]] = []
        self._pieces: list[str] = []
        self._sections: list[Section] = []

    def add_heading(self, level: int, heading: str) -> None:
        """Begin a section. Level 1 is the outermost; a heading without text only ends the section."""
        self._end_section()
        self._open_headings = [(above, text) for above, text in self._open_headings if above < level]
        if heading:
            self._open_headings.append((level, heading))

    def add_text(self, text: str, *, tight: bool = False) -> None:
        """Add text to the current section, after a blank line or (`tight`) on the next line."""
        if text:
            self._pieces += [("\n" if tight else "\n\n") if self._pieces else "", text]

    def sections(self) -> tuple[Section, ...]:
        """Return all sections so far, including the current one."""
        self._end_section()
        return tuple(self._sections)

    def _end_section(self) -> None:
        if self._pieces:
            *above, label = [heading for _, heading in self._open_headings] or [""]
            self._sections.append(Section("".join(self._pieces), label or None, heading_path=tuple(above)))
            self._pieces = []

"""Joining: every way in which parts can be wrong."""

import shutil
from pathlib import Path

import pytest

from meditron.core.errors import DigestError, InputError, SourceError, UsageError
from meditron.release.gguf_join import join_parts
from meditron.release.gguf_split import split_bytes, split_gguf
from meditron.store.checksums import write_checksums
from meditron.store.files import sha256_file
from split_models import write_model


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    (tmp_path / "whole").mkdir()
    return write_model(tmp_path / "whole" / "m.gguf")


def in_folder(whole: Path, folder: Path, *, plain: bool = False, limit: int = 2500) -> list[Path]:
    """Split a file, and move its parts to a folder."""
    folder.mkdir()
    files = (split_bytes if plain else split_gguf)(whole, limit)["files"]
    return [Path(shutil.move(file["path"], folder)) for file in files]


@pytest.mark.parametrize("plain", [False, True])
def test_any_order_and_any_part_give_the_file_under_the_common_name(tmp_path: Path, whole: Path, plain: bool):
    parts = in_folder(whole, tmp_path / "parts", plain=plain)
    for given in (parts, parts[::-1], parts[:1], parts[-1:], parts[1:2]):
        result = join_parts(given)
        joined = tmp_path / "parts" / "m.gguf"
        assert result["path"] == str(joined)
        assert result["kind"] == ("plain" if plain else "gguf-split")
        assert result["sha256"] == sha256_file(joined) == sha256_file(whole)
        joined.unlink()


def test_numbered_pieces_join_too(tmp_path: Path, whole: Path):
    pieces = in_folder(whole, tmp_path / "parts", plain=True)
    for number, piece in enumerate(pieces, start=1):
        piece.rename(piece.with_name(f"m.gguf.part{number}of{len(pieces)}"))
    join_parts([tmp_path / "parts" / f"m.gguf.part2of{len(pieces)}"])
    assert (tmp_path / "parts" / "m.gguf").read_bytes() == whole.read_bytes()


def test_renamed_parts_join_by_their_content(tmp_path: Path, whole: Path):
    parts = in_folder(whole, tmp_path / "parts")
    renamed = [
        part.rename(part.with_name(f"{name}.bin")) for part, name in zip(parts, "zyxwvu", strict=False)
    ]
    with pytest.raises(UsageError, match="--out"):
        join_parts(renamed)
    join_parts(renamed, tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == whole.read_bytes()
    with pytest.raises(InputError, match="of which 1 are missing"):
        join_parts(renamed[:-1], tmp_path / "third.gguf")


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("missing", [0, 1, -1])
def test_a_missing_part_is_an_error(tmp_path: Path, whole: Path, plain: bool, missing: int):
    parts = in_folder(whole, tmp_path / "parts", plain=plain)
    parts[missing].unlink()
    left = [part for part in parts if part.exists()]
    with pytest.raises(InputError, match=r"missing|is not a GGUF file|tensor .* ends at"):
        join_parts(left)
    assert sorted((tmp_path / "parts").iterdir()) == sorted(left)


@pytest.mark.parametrize("plain", [False, True])
def test_a_part_given_twice_is_an_error(tmp_path: Path, whole: Path, plain: bool):
    parts = in_folder(whole, tmp_path / "parts", plain=plain)
    link, copy = tmp_path / parts[0].name, tmp_path / "copy"
    link.hardlink_to(parts[0])
    for twin in (parts[0], link):
        with pytest.raises(InputError, match="must be given once"):
            join_parts([*parts, twin])
    link.unlink()
    copy.mkdir()
    shutil.copy(parts[0], copy)
    with pytest.raises(InputError, match=r"is part 1, as|is piece 1, as"):
        join_parts([*parts, copy / parts[0].name])


def test_parts_of_other_models_are_an_error(tmp_path: Path, whole: Path):
    parts = in_folder(whole, tmp_path / "parts")
    other = in_folder(write_model(tmp_path / "other.gguf", layers=5), tmp_path / "other")
    pieces = in_folder(whole, tmp_path / "pieces", plain=True)
    with pytest.raises(InputError, match="belongs to another model than m-00001"):
        join_parts([parts[0], other[1]])
    shutil.copy(other[1], parts[1])
    with pytest.raises(
        InputError, match=r"expected part 2|has 12 tensors|has 10 tensors|is in .* too|one of"
    ):
        join_parts([parts[0]])
    with pytest.raises(InputError, match="unlike m-00001"):
        join_parts([parts[0], pieces[1]])
    with pytest.raises(InputError, match="a whole GGUF file"):
        join_parts([whole])
    with pytest.raises(InputError, match="a whole GGUF file"):
        join_parts([pieces[0], whole])
    (tmp_path / "note.txt").write_text("note")
    with pytest.raises(InputError, match="neither a part of a GGUF file"):
        join_parts([tmp_path / "note.txt"])
    with pytest.raises(SourceError, match="no such file"):
        join_parts([tmp_path / "nothing-00001-of-00002.gguf"])
    with pytest.raises(InputError, match="not a regular file"):
        join_parts([tmp_path])


def test_a_piece_too_many_and_pieces_in_the_wrong_order_are_errors(tmp_path: Path, whole: Path):
    pieces = in_folder(whole, tmp_path / "parts", plain=True, limit=3000)
    extra = pieces[-1].with_name(f"m.gguf-split-{chr(ord(pieces[-1].name[-1]) + 1)}")
    extra.write_bytes(b"x" * 3000)
    with pytest.raises(InputError, match="3,012 bytes after its last tensor"):
        join_parts(pieces[:1])
    extra.unlink()
    first, second = pieces[0].read_bytes(), pieces[1].read_bytes()
    pieces[0].write_bytes(second)
    pieces[1].write_bytes(first)
    with pytest.raises(InputError, match="is not a GGUF file"):
        join_parts(pieces)
    assert sorted((tmp_path / "parts").iterdir()) == pieces


@pytest.mark.parametrize("plain", [False, True])
def test_an_input_or_an_existing_file_is_never_overwritten(tmp_path: Path, whole: Path, plain: bool):
    """Faults of gguf-split: with a shell's pattern it wrote over the second part (llama.cpp #6657, #8264)."""
    parts = in_folder(whole, tmp_path / "parts", plain=plain)
    before = [part.read_bytes() for part in parts]
    link = tmp_path / "link.gguf"
    link.symlink_to(parts[1])
    hard = tmp_path / "hard.gguf"
    hard.hardlink_to(parts[1])
    for out in (parts[1], link, hard):
        with pytest.raises(UsageError, match="never overwritten"):
            join_parts(parts, out)
    (tmp_path / "parts" / "m.gguf").write_text("mine")
    with pytest.raises(UsageError, match="never overwritten"):
        join_parts(parts)
    assert [part.read_bytes() for part in parts] == before


@pytest.mark.parametrize("plain", [False, True])
def test_a_checksum_beside_the_parts_is_compared(tmp_path: Path, whole: Path, plain: bool):
    parts = in_folder(whole, tmp_path / "parts", plain=plain)
    write_checksums(tmp_path / "parts", {"m.gguf": "0" * 64})
    with pytest.raises(DigestError, match="expected 000"):
        join_parts(parts)
    assert not (tmp_path / "parts" / "m.gguf").exists()
    write_checksums(tmp_path / "parts", {"m.gguf": sha256_file(whole)})
    join_parts(parts)


def test_a_shard_cut_short_is_named(tmp_path: Path, whole: Path):
    parts = in_folder(whole, tmp_path / "parts")
    parts[1].write_bytes(parts[1].read_bytes()[:-200])
    with pytest.raises(InputError, match=r"m-00002-of-.*ends at byte"):
        join_parts(parts)

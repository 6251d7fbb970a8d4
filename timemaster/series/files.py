"""Prepares files for their readers: encodings, zip files, and the variants of `.ts` and `.arff` files.

Knows nothing about series: the values of a `.ts` or `.arff` row stay text here. Raises InputError for a file that
cannot be prepared, and warns of everything that it leaves out.
"""

from __future__ import annotations

import codecs
import errno
import logging
import lzma
import re
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from timemaster.types import InputError

logger = logging.getLogger(__name__)

NUM_LISTED = 5  # names that a message lists at most
MAX_NESTED = 3  # levels of zip files in zip files
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
OTHER_TMPDIR = "choose another folder for temporary files: TMPDIR=DIR"
OTHER_LIMITS = (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)  # errors that do not come from a disk
ENCRYPTED = 0x1  # a bit in the flags of a zip entry

CLASS = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^,]*"""
ARFF_ROW = re.compile(rf"(?P<values>.*?)\s*,\s*(?P<label>{CLASS})")
ARFF_CHANNELS = re.compile(rf"""(?P<quote>['"])(?P<values>.*?)(?P=quote)\s*,\s*(?P<label>{CLASS})""")
ARFF_ATTRIBUTE = re.compile(r"""@attribute\s+(?:'[^']*'|"[^"]*"|\S+)\s*(?P<type>.*)""", re.IGNORECASE)


def listed(names: Sequence[str]) -> str:
    """The first names and the number of the others. Example: a, b, c, d, e, and 3 more"""
    rest = f", and {len(names) - NUM_LISTED} more" if len(names) > NUM_LISTED else ""
    return ", ".join(names[:NUM_LISTED]) + rest


def report_left_out(what: str, names: Sequence[str], why: str) -> None:
    """Warn that a reader leaves something out: the number of `what`, the first names, and the reason."""
    if names:
        logger.warning("%d %s left out, %s: %s", len(names), what, why, listed(names))


@contextmanager
def writing(path: Path | str, otherwise: str) -> Iterator[None]:
    """Turn the error of a full or read-only disk into InputError. `otherwise` says how to choose another place."""
    try:
        yield
    except OSError as error:
        if error.errno in OTHER_LIMITS:
            raise
        reason = error.strerror or error
        raise InputError(
            f"{path} cannot be written: {reason}. Free space there or make it writable, or {otherwise}."
        ) from error


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder, which is deleted at the end of the block."""
    with writing("The folder for temporary files", OTHER_TMPDIR):
        folder = tempfile.TemporaryDirectory()
    with folder as name:
        yield Path(name)


def text_of(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte-order mark. Raises InputError for other encodings."""
    return decoded(_read_bytes(path), str(path))


def decoded(data: bytes, where: str) -> str:
    """`data` as text. See `text_of`."""
    try:
        return data.decode("utf-16" if data.startswith(UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: neither UTF-8 nor UTF-16 with a byte-order mark ({error}). Convert it: iconv -f latin1 -t utf-8."
        ) from error


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}.") from error


# ---- zips


@contextmanager
def unpacked(archives: Sequence[Path]) -> Iterator[Path]:
    """A folder with the content of zip files, each in a subfolder. The folder is deleted at the end of the block.

    Zip files in zip files are unpacked, too. Files that macOS adds (`__MACOSX/`, `.DS_Store`) are left out. Raises
    InputError for a file that is damaged, encrypted or empty, has a compression that Python does not know, or contains
    paths outside its folder.
    """
    with temporary_folder() as folder:
        with writing(folder, OTHER_TMPDIR):
            for archive in archives:
                _unzip(archive, folder / f"{archive.name}.unpacked", str(archive), MAX_NESTED)
        yield folder


def _unzip(archive: Path, folder: Path, shown: str, depth: int) -> None:
    if not depth:
        raise InputError(f"{shown}: zip files in zip files, over {MAX_NESTED} levels. Unpack it and give the folder.")
    try:
        stream = archive.open("rb")
    except OSError as error:
        raise InputError(f"{shown}: cannot be read: {error.strerror}.") from error
    try:
        with stream, zipfile.ZipFile(stream) as content:
            for member in _members(content, shown):
                content.extract(member, folder)
    except NotImplementedError as error:
        raise InputError(f"{shown}: {error}, which Python cannot unpack. Unpack it and give the folder.") from error
    except (zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, UnicodeError) as error:
        raise _damaged(shown, error) from error
    except OSError as error:
        if error.errno is None:  # from a decoder, not from a disk
            raise _damaged(shown, error) from error
        raise
    for inner in sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".zip" and path.is_file()):
        _unzip(inner, inner.with_name(f"{inner.name}.unpacked"), f"{shown}/{inner.relative_to(folder)}", depth - 1)


def _damaged(shown: str, error: Exception) -> InputError:
    return InputError(
        f"{shown}: not a zip file, or a damaged one ({error}). If it was downloaded, delete it and download it again; "
        "unpack other types of archives and give the folder."
    )


def _members(content: zipfile.ZipFile, shown: str) -> list[zipfile.ZipInfo]:
    """The entries to unpack, with "/" as the separator in their paths."""
    members = []
    for member in content.infolist():
        member.filename = member.filename.replace("\\", "/")  # some programs write backslashes on Windows
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts:
            raise InputError(
                f"{shown}: contains the path {member.filename!r}, outside its folder. Use a source that you trust."
            )
        if "__MACOSX" in path.parts or path.name == ".DS_Store":
            continue
        if member.flag_bits & ENCRYPTED:
            raise InputError(f"{shown}: is encrypted. Unpack it with its password, and give the folder.")
        members.append(member)
    if not any(not member.is_dir() for member in members):
        raise InputError(f"{shown}: is an empty zip file. Download it again, or give the folder with the files.")
    repeated = [name for name, count in Counter(member.filename for member in members).items() if count > 1]
    if repeated:
        logger.warning(
            "%s: contains %d files twice or more; the last one is used: %s", shown, len(repeated), listed(repeated)
        )
    return members


# ---- .ts and .arff


def clean_ts(path: Path) -> tuple[str, list[str]]:
    """The text of a `.ts` file in the form that sktime reads, and the class of each row as the file spells it.

    Accepts comments anywhere, tags in any case, any number of blanks, and classes in quotes. In the returned text,
    every class is 0, and line numbers do not change. Raises InputError for a file or a row without a class.
    """
    lines, first_row = _lines(path)
    is_timed = False
    for number, line in enumerate(lines[:first_row]):
        words = line.split()
        tag, value = (words[0].lower(), " ".join(words[1:2]).lower()) if words else ("", "")
        if tag == "@targetlabel" or (tag == "@classlabel" and value == "false"):
            raise InputError(f"{path}: its series have no classes ({line}). Give a classification dataset.")
        is_timed |= tag == "@timestamps" and value == "true"
        lines[number] = "@classLabel true 0" if tag == "@classlabel" else " ".join(words)
    classes = []
    for number, line in enumerate(lines[first_row:], start=first_row):
        if not line:
            continue
        values, colon, name = line.rpartition(":")
        if not colon or not name.strip() or (is_timed and values.rstrip()[-1:] not in (")", ":")):
            raise InputError(f"{path}, line {number + 1}: no class at its end (values:class).")
        classes.append(_unquoted(name))
        lines[number] = f"{values}:0"
    return "\n".join(lines), classes


def clean_arff(path: Path) -> tuple[str, list[str]]:
    """The text of an `.arff` file in the form that sktime reads, and the class of each row. See `clean_ts`."""
    lines, first_row = _lines(path)
    types = [match["type"] for line in lines[:first_row] if (match := ARFF_ATTRIBUTE.fullmatch(line))]
    nominal = [number for number, kind in enumerate(types, start=1) if kind.startswith("{")]
    if nominal and nominal != [len(types)]:
        raise InputError(
            f"{path}: attributes {nominal} of {len(types)} are classes. The last one must be a class, "
            "and all others numbers."
        )
    is_relational = any(kind.lower().startswith("relational") for kind in types)
    row = ARFF_CHANNELS if is_relational else ARFF_ROW
    expected = "'values\\nvalues',class" if is_relational else "values,class"
    classes = []
    for number, line in enumerate(lines[first_row:], start=first_row):
        if not line:
            continue
        match = None if line.startswith("{") else row.fullmatch(line)
        if not match or not match["label"]:
            sparse = " Sparse rows, {index value, ...}, are not read." if line.startswith("{") else ""
            raise InputError(f"{path}, line {number + 1}: not of the form {expected}.{sparse}")
        values, size = match["values"], match["values"].count(",") + 1
        if not is_relational and types and size != len(types) - 1:
            raise InputError(f"{path}, line {number + 1}: {size} values and a class; the header has {len(types)}.")
        classes.append(_unquoted(match["label"]))
        lines[number] = f"'{values}',0" if is_relational else f"{values},0"
    return "\n".join(lines), classes


def _unquoted(name: str) -> str:
    name = name.strip()
    if len(name) > 1 and name[0] == name[-1] and name[0] in "'\"":
        name = re.sub(r"\\(.)", r"\1", name[1:-1]).strip()
    return name


def _lines(path: Path) -> tuple[list[str], int]:
    """The lines of a file, with comments emptied, and the position of the line after @data."""
    data = _read_bytes(path)
    if data.startswith(UTF16):
        data = decoded(data, str(path)).encode()
    raw = [line.strip() for line in data.removeprefix(codecs.BOM_UTF8).splitlines()]
    # Comments are removed before decoding, because they are often in another encoding.
    texts = [b"" if line.startswith((b"#", b"%")) else line for line in raw]
    lines = [decoded(line, f"{path}, line {number}") for number, line in enumerate(texts, start=1)]
    first_row = next((number for number, line in enumerate(lines, start=1) if line.lower() == "@data"), 0)
    if not first_row:
        raise InputError(f"{path}: not a readable {path.suffix} file: no line @data.")
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}: {line[:40]!r}"
        if number < first_row and line and not line.startswith("@"):
            raise InputError(f"{where} stands before @data; expected a tag (@...) or a comment.")
        if number > first_row and line.startswith("@"):
            raise InputError(f"{where} is a tag after @data. If two files were joined, give them one by one.")
    if not any(lines[first_row:]):
        raise InputError(f"{path}: no series after @data.")
    return lines, first_row

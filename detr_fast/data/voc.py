"""Reading data sets in the format of Pascal VOC: an XML file for each image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from xml.parsers import expat

from detr_fast.data.faults import DataError, Fault, FaultKind
from detr_fast.data.source import FileError, Place, Source, category_ids, read_text, require_directory
from detr_fast.images import SUFFIXES

if TYPE_CHECKING:
    from detr_fast.data.annotations import Category

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(slots=True)
class Element:
    """An element of an XML file.

    Attributes:
        name: Its name.
        line: Number of the line where it begins, from 1.
        text: Its text, without that of its children.
        children: The elements in it.
    """

    name: str
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def child(self, name: str) -> Element | None:
        """Return the first child with a name; None if there is none."""
        for child in self.children:
            if child.name == name:
                return child
        return None

    def text_of(self, name: str) -> str | None:
        """Return the text of the first child with a name, without surrounding spaces; None if there is none."""
        child = self.child(name)
        return None if child is None else child.text.strip()


def parse_xml(text: str) -> Element:
    """Parse XML that declares no document type, and so no entities.

    Raises:
        FileError: It is not well formed, or declares a document type.
    """
    document = Element("", 0)
    path = [document]
    parser = expat.ParserCreate()

    def start(name: str, attributes: dict[str, str]) -> None:
        element = Element(name, parser.CurrentLineNumber)
        path[-1].children.append(element)
        path.append(element)

    def end(name: str) -> None:
        path.pop()

    def characters(data: str) -> None:
        path[-1].text += data

    def doctype(*declaration: object) -> None:
        raise FileError("the file declares a document type, which is refused, since its entities may have any size")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = characters, doctype
    parser.buffer_text = True
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        raise FileError(f"the file is not well-formed XML ({error})") from error
    return document.children[0]


def read_voc(path: str, folder: str, imposed: Sequence[Category] | None) -> Source:
    """Read the entries of a data set in the format of Pascal VOC.

    Coordinates are numbers of pixels, from 1, and both corners belong to the box: a box from 1 to the width of the
    image is as wide as the image. Objects that are marked as ``difficult`` are crowd regions, which are neither learned
    nor missed. The ``part`` elements of an object are left out.

    Args:
        path: The directory of the XML files, or a file in ``ImageSets/Main`` which lists the stems of some of them,
            whose XML files are in ``Annotations`` beside ``ImageSets``.
        folder: The directory of the images. An image has the stem of its XML file.
        imposed: The categories of a trained model, whose ids are those of the same names; None numbers the names from 1
            in alphabetical order.

    Raises:
        DataError: There are no XML files, or the directory of the images does not exist.
    """
    source = Source()
    files = _listed(path, source) if os.path.isfile(path) else _found(path)
    require_directory(folder, path)
    images: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        if os.path.splitext(name)[1].lower() in SUFFIXES:
            images.setdefault(os.path.splitext(name)[0], []).append(name)
    for identifier, file in enumerate(files, 1):
        try:
            root = parse_xml(read_text(file))
        except FileError as error:
            source.faults.append(Fault(FaultKind.MALFORMED_FILE, file, identifier, None, str(error)))
            continue
        stem = os.path.splitext(os.path.basename(file))[0]
        source.images.append({"id": identifier, "file_name": _image_name(root, stem, images), **_size(root)})
        source.image_files[identifier] = file
        for element in root.children:
            if element.name == "object":
                _read_object(source, element, Place(file, element.line), identifier)
    if not source.images:
        raise DataError(f"{path}: none of its {len(files)} XML files can be used; {source.faults[0]}")
    names = sorted({entry["category_id"] for entry in source.annotations})
    ids = dict(zip(names, category_ids(names, imposed, 1), strict=True))
    source.categories = [{"id": ids[name], "name": name} for name in names]
    for entry in source.annotations:
        entry["category_id"] = ids[entry["category_id"]]
    return source


def _read_object(source: Source, element: Element, place: Place, image: int) -> None:
    """Append the annotation of an object, with the name of its category in place of the id, or its fault."""
    name, difficult = element.text_of("name"), element.text_of("difficult") or "0"
    box = element.child("bndbox")
    corners = [box.text_of(corner) for corner in _CORNERS] if box else []
    kind = FaultKind.MALFORMED_ANNOTATION
    try:
        if not name:
            raise ValueError("an object needs a name")
        if difficult not in ("0", "1"):
            raise ValueError(f"difficult must be 0 or 1, got {difficult!r}")
        kind = FaultKind.MALFORMED_BOX
        if not corners or None in corners:
            raise ValueError("an object needs a bndbox with xmin, ymin, xmax and ymax")
        left, top, right, bottom = (float(corner) for corner in corners if corner is not None)
    except ValueError as error:
        source.faults.append(Fault(kind, place.file, image, None, str(error), place.line))
        return
    source.add_annotation(
        place,
        image_id=image,
        category_id=name,
        bbox=[left - 1, top - 1, right - left + 1, bottom - top + 1],
        iscrowd=int(difficult),
    )


def _image_name(root: Element, stem: str, images: dict[str, list[str]]) -> str:
    """Return the name of the image of an XML file; of several with its stem the one that the file names."""
    stated = root.text_of("filename") or f"{stem}.jpg"
    candidates = images.get(stem, [])
    return candidates[0] if candidates and stated not in candidates else stated


def _size(root: Element) -> dict[str, int]:
    """Return the width and height that an XML file states, as far as they are integers."""
    size = root.child("size")
    texts = {name: size.text_of(name) or "" for name in ("width", "height")} if size else {}
    return {name: int(text) for name, text in texts.items() if text.isdecimal() and len(text) < 20}


def _found(directory: str) -> list[str]:
    return sorted(entry.path for entry in os.scandir(directory) if _is_xml(entry.name) and entry.is_file())


def _is_xml(name: str) -> bool:
    return name.lower().endswith(".xml") and not name.startswith(".")


def _listed(path: str, source: Source) -> list[str]:
    """Return the XML files whose stems a file lists, and append the faults of its lines."""
    annotations = os.path.join(os.path.dirname(path), os.pardir, os.pardir, "Annotations")
    annotations = os.path.normpath(annotations)
    if not os.path.isdir(annotations):
        raise DataError(f"{annotations}: there is no such directory; it should contain the XML files of {path}")
    try:
        lines = read_text(path).splitlines()
    except FileError as error:
        raise DataError(f"{path}: {error}") from error
    files: dict[str, None] = {}
    for number, words in _words(lines):
        stem, file = words[0], os.path.join(annotations, f"{words[0]}.xml")
        if os.path.basename(stem) != stem:
            message = f"{stem!r} must be the stem of a file in {annotations}"
            source.faults.append(Fault(FaultKind.UNSAFE_FILE_NAME, path, None, None, message, number))
        elif not os.path.isfile(file):
            message = f"there is no file {file}"
            source.faults.append(Fault(FaultKind.MALFORMED_FILE, path, None, None, message, number))
        elif file in files:
            source.faults.append(Fault(FaultKind.DUPLICATE_IMAGE, path, None, None, f"{stem} is listed again", number))
        else:
            files[file] = None
    if not files:
        raise DataError(f"{path}: lists none of the XML files in {annotations}")
    return list(files)


def _words(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(lines, 1):
        if words := line.split():
            yield number, words

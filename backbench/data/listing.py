"""List the images below a folder; count and name other files by reason."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from backbench.data.decode import EXTENSIONS
from backbench.errors import DataError
from backbench.printable import printable

HIDDEN = "hidden files"
SYSTEM = "files of thumbnails and system folders"
OTHER = "files of another ending than images have"
BESIDE = "images beside the class folders"
FOLDER_AGAIN = "links to folders that are read already"
IMAGE_AGAIN = "links to images of the same class"

# Folders and files of network storage (Synology, QNAP, NetApp), macOS archives, Windows and Linux. Lower case.
_SYSTEM_FOLDERS = frozenset(
    {"@eadir", "@__thumb", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "~snapshot"}
    | {"__macosx", "$recycle.bin", "system volume information", "recycler", "lost+found"}
)
_Identity = tuple[int, int]  # device and inode of a file or folder: equal for a link and its target


def listed(passed_over: Mapping[str, tuple[int, str]]) -> str:
    """Return `24 hidden files (n01/.a.jpg), 1 ...`: the count and the first file for each reason."""
    return ", ".join(f"{count} {reason} ({printable(name)})" for reason, (count, name) in passed_over.items())


class Listing:
    """The images of a split's folder, class after class."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.passed_over: dict[str, tuple[int, str]] = {}  # reason -> how many files, the first one
        # Visited folders with their class; folders above the root, which a link must not lead to, with None.
        self._entered: dict[_Identity, str | None] = {}
        for folder in (self.root.resolve(), *self.root.resolve().parents):
            self._entered[_identity(os.stat(folder))] = None  # noqa: PTH116

    def folders(self) -> list[str]:
        """Return the sorted names of class folders. Raises DataError for a broken link: a class may be missing."""
        names = []
        for entry in self._entries(""):
            if reason := _reserved(entry):
                self._pass_over_all(reason, entry.name)
            elif self._is_folder(entry, entry.name):
                names.append(entry.name)
            else:
                self._pass_over(BESIDE if _is_image(entry.name) else OTHER, entry.name)
        return names

    def images(self, name: str) -> list[str]:
        """Return sorted paths, relative to the root, of the images below a class folder; '' is the root itself.

        Raises:
            DataError: a folder cannot be read, or a link is broken or leads to a folder of another class.
        """
        found: list[str] = []
        links: list[str] = []
        folders, linked = ([name], []) if not name or not (self.root / name).is_symlink() else ([], [name])
        while folders or linked:  # links last: their targets may be listed here under their own names
            folder = folders.pop() if folders else linked.pop()
            if folder and not self._enter(folder, name):
                continue
            for entry in self._entries(folder):
                path = f"{folder}/{entry.name}" if folder else entry.name
                if reason := _reserved(entry):
                    self._pass_over_all(reason, path)
                elif self._is_folder(entry, path):
                    (linked if entry.is_symlink() else folders).append(path)
                elif _is_image(entry.name):
                    (links if entry.is_symlink() else found).append(path)
                else:
                    self._pass_over(OTHER, path)
        return sorted(found + self._other_images(links, found))

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        """Return the entries sorted by name, so that the first example is the same on every machine."""
        try:
            with os.scandir(self.root / folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"{self.root / folder}: cannot be read ({error.strerror})") from None

    def _is_folder(self, entry: os.DirEntry[str], path: str) -> bool:
        """Whether the entry is a folder or a link to one. Raises DataError for a broken link that may have been one."""
        if not entry.is_symlink():
            return entry.is_dir()
        try:
            return _is_directory(entry)
        except OSError as error:
            if _is_image(entry.name):  # said when it is read: pretraining can do without it
                return False
            raise DataError(
                f"{self.root / path}: a link that cannot be followed ({error.strerror}); is a disk not mounted? Mend or "
                "remove it"
            ) from None

    def _enter(self, folder: str, name: str) -> bool:
        """Whether a folder is new. Raises DataError when it belongs to another class."""
        identity = _identity(os.stat(self.root / folder))  # noqa: PTH116 (one way for all)
        if identity not in self._entered:
            self._entered[identity] = name
            return True
        other = self._entered[identity]
        if other not in (None, name):
            raise DataError(
                f"{self.root / folder}: is or leads to a folder of class '{other}': its images would be of two classes; "
                "remove one of them"
            )
        self._pass_over(FOLDER_AGAIN, folder)
        return False

    def _other_images(self, links: list[str], found: list[str]) -> list[str]:
        """Keep the links whose target is neither an image of the class nor the target of another link."""
        if not links:
            return []
        seen = {_identity(os.stat(self.root / path)) for path in found}  # noqa: PTH116
        kept = []
        for path in sorted(links):
            try:
                identity = _identity(os.stat(self.root / path))  # noqa: PTH116
            except OSError:  # said when it is read
                kept.append(path)
                continue
            if identity in seen:
                self._pass_over(IMAGE_AGAIN, path)
            else:
                seen.add(identity)
                kept.append(path)
        return kept

    def _pass_over(self, reason: str, name: str, count: int = 1) -> None:
        if count:
            before, first = self.passed_over.get(reason, (0, name))
            self.passed_over[reason] = (before + count, first)

    def _pass_over_all(self, reason: str, path: str) -> None:
        """Yield a file, or all files below a folder."""
        place = self.root / path
        if not place.is_dir() or place.is_symlink():
            self._pass_over(reason, path)
            return
        self._pass_over(reason, path, sum(len(files) for _, _, files in os.walk(place)))


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino


def _is_directory(entry: os.DirEntry[str]) -> bool:
    """Whether a link leads to a folder. Raises OSError for a broken link, where `is_dir` returns False."""
    entry.stat()
    return entry.is_dir()


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


def _reserved(entry: os.DirEntry[str]) -> str | None:
    """Return the reason to pass over an entry that the user did not make, or None."""
    if entry.name.startswith("."):
        return HIDDEN
    return SYSTEM if entry.name.lower() in _SYSTEM_FOLDERS and entry.is_dir(follow_symlinks=False) else None

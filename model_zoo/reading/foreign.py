"""Files often mistaken for checkpoints; each gets an error that helps."""

from __future__ import annotations

import re

from backbench.errors import CheckpointError

_PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\x00": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"\x04\x22\x4d\x18": ("lz4", "unlz4"),
    b"\x5d\x00\x00": ("lzma", "unlzma"),
    b"\x1f\x9d": ("compress", "uncompress"),
    b"7z\xbc\xaf\x27\x1c": ("7z", "7z x"),
    b"Rar!\x1a\x07": ("rar", "unrar x"),
}
_SAVE = "which is not supported; save its arrays by name with numpy.savez"
_OTHERS = tuple(
    (re.compile(pattern, re.DOTALL), what)
    for pattern, what in (
        (rb"\x89HDF\r\n\x1a\n", f"is an HDF5 file (Keras?), {_SAVE}"),
        (rb"\x08[\x01-\x1f](\x12|:|B)", f"is a protocol buffer (ONNX, TensorFlow?), {_SAVE}"),
        (rb"\x0a[\x01-\x40][ -~]+(\x12|\x1a|\x22)", f"is a protocol buffer (Caffe, ONNX?), {_SAVE}"),
        (rb"model_checkpoint_path", "is the index of a TensorFlow checkpoint, " + _SAVE),
        (rb"GGUF|....TFL3|MATLAB 5\.0 MAT-file", f"is a file of GGUF, TensorFlow Lite or MATLAB, {_SAVE}"),
        (rb"[\x81-\x8f][\xa0-\xbf][ -~]", f"is a file of msgpack (flax?), {_SAVE}"),
        (
            rb"\s*[{\[]\s*([\"{\[\]}]|-?\d)",
            "is JSON text, not a checkpoint (a server's answer, a configuration or an index?)",
        ),
        (rb"(\.\./)*/?(\.git/)?annex/objects/", "is a pointer of git-annex; fetch the file itself: `git annex get`"),
        (rb"\0{512}", "begins with zeros only: an incomplete download or copy; fetch it again"),
    )
)


def refuse(head: bytes) -> None:
    """Raise CheckpointError if the first bytes show that the file is not a checkpoint."""
    if head.lstrip().startswith(b"<"):
        raise CheckpointError("is a web page, not a checkpoint (a download that ended at a login or error page?)")
    if head.startswith(b"version https://git-lfs.github.com"):
        raise CheckpointError(
            "not a readable torch checkpoint but a pointer of Git LFS; fetch the file itself: `git lfs pull`"
        )
    if is_tar(head):
        raise CheckpointError(
            "is a tar archive, which is never unpacked here: unpack it yourself (`tar -xf`) and give the checkpoint in it; "
            "PyTorch wrote checkpoints as tar until 2017: load and save such a file with the PyTorch that wrote it"
        )
    for magic, (name, command) in _PACKED.items():
        if head.startswith(magic):
            raise CheckpointError(
                f"is compressed with {name}: unpack it first (`{command}`), then give the checkpoint in it"
            )
    for pattern, what in _OTHERS:
        if pattern.match(head):
            raise CheckpointError(what)


def is_tar(head: bytes) -> bool:
    """Return whether the first 512 bytes are a tar header: POSIX, GNU, or an old one, recognised by its checksum."""
    if len(head) < 512:
        return False
    if head[257:262] == b"ustar":
        return True
    try:
        stored = int(head[148:156].split(b"\0")[0].strip() or b"x", 8)
    except ValueError:
        return False
    return stored == sum(head[:148]) + 8 * 32 + sum(head[156:512])

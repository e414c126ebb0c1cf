"""Files that are either whole or not there, and that nobody else may read."""

import os
from pathlib import Path

PUBLIC, PRIVATE, PROGRAM = 0o644, 0o600, 0o755


def write(path: Path, content: str | bytes, mode: int = PUBLIC) -> None:
    """Write a file in one step; it never exists with other permissions than these."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(descriptor, mode)  # whatever the umask says
        os.fsync(descriptor)
    temporary.replace(path)


def make_private_folder(path: Path) -> Path:
    """Make a folder for its owner alone, with its parents; one that exists is closed to others."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
    return path

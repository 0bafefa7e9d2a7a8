"""A home folder for processes that have none, such as those of containers that run as a user without an account.

Ray, Matplotlib and PyTorch keep files in the home folder, and ask for the name of the user.
"""

from __future__ import annotations

import getpass
import os
import tempfile
from contextlib import suppress
from pathlib import Path

_NAME = "lungseg-ray-home-"


def ensure_home() -> None:
    """Sets HOME to a temporary folder if there is no home folder that can be written, and names the user."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"uid{os.getuid()}"
    try:
        home = Path.home()
    except RuntimeError:
        home = Path()
    if home.is_absolute() and os.access(home, os.W_OK | os.X_OK):
        return
    place = Path(tempfile.gettempdir()) / f"{_NAME}{os.getuid()}"
    with suppress(FileExistsError):
        place.mkdir(mode=0o700)
    if place.is_symlink() or not place.is_dir() or place.stat().st_uid != os.getuid():
        # Another user has taken the name.
        place = Path(tempfile.mkdtemp(prefix=_NAME))
    os.environ["HOME"] = str(place)


def is_temporary() -> bool:
    """Returns whether the home folder is one that `ensure_home` made, which need not outlive the machine."""
    return Path.home().name.startswith(_NAME)

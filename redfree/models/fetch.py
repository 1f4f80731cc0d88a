"""Fetching of checkpoints, of which nothing is kept that is not the published file."""

from __future__ import annotations

from pathlib import Path

from redfree.download import PATIENCE, Patience, download
from redfree.errors import UserError
from redfree.models.checkpoints import Checkpoint, checkpoint_of, checkpoint_path, verified


def fetch(name: str, folder: Path, patience: Patience = PATIENCE) -> Path:
    """Downloads a checkpoint, unless it is already there, and checks its size and hash.

    What came before an interruption is kept as `<filename>.part`, and a later call asks only for the rest. Processes
    that fetch the same file into the same folder wait for the one that downloads. A file put there by hand will do.

    Args:
        name: a name of `checkpoints()`.
        folder: folder of checkpoints; made if it is missing.
        patience: timeout and number of tries.

    Returns:
        The path of the file, checked in this call.

    Raises:
        MismatchError: the file that is there, or that came, has another size or hash than published or locked.
        UserError: the name is unknown, the file is gated, or the server cannot be reached, refuses, breaks off every
            time or sends something else; or there is too little space.
    """
    checkpoint, target = checkpoint_of(name), checkpoint_path(name, folder)
    if target.exists():
        verified(target, checkpoint)
    else:
        download(checkpoint.published(), _url_of(checkpoint), target, patience)
    return target


def _url_of(checkpoint: Checkpoint) -> str:
    if checkpoint.url is None:
        raise UserError(
            f"{checkpoint.name} has no open download ({checkpoint.licence}): accept its licence at {checkpoint.page}, "
            "download it there, and pass it with --checkpoint PATH"
        )
    return checkpoint.url

"""Shares of a recovery key in files, which are there before anything depends on them.

Each is drafted first, whole and durable; then the store is made with the recovery key; then the drafts get their final
names, if they open the store indeed. Whoever is interrupted in between finds the drafts, and another run finishes them.
A draft is a share like any other: it lacks nothing but its name.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

from kmsd.commands.steps import SetupError, sync_directory, tell, write_new
from kmsd.recovery.shares import SharesError, ShareSet, share_in_file

_MODE = 0o600
_TEXT = """\
# Share {number} of {count} of the recovery key of kmsd on the host {host}, made on {date}.
# Any {threshold} of the {count} shares open its keys without its token: kms unseal --share
# Keep it secret, and apart from the other shares and from the host. As long as the token works it is not needed.
{words}
"""


class ShareFiles:
    """The files of the shares of `host` in `directory`."""

    def __init__(self, directory: Path, host: str) -> None:
        self._directory = directory
        self._host = host
        self._ending = f".draft-of-{host.replace('/', '_')}"

    def check_room(self) -> None:
        """Raise SetupError unless the directory is there, and shares of something else are not."""
        if not self._directory.is_dir():
            raise SetupError(f"{self._directory} is no directory: make it, or name another one for the shares")
        facts = self._directory.stat()
        if facts.st_uid != 0 or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise SetupError(f"others than root can write in {self._directory}: name another directory for the shares")
        for path in sorted(self._directory.glob("kmsd-share-*.txt")):
            raise SetupError(f"{path} is there, and is the share of something else: name another directory")

    def drop_drafts(self) -> None:
        """Remove what a run left that was interrupted before there was a store."""
        for path in self._drafts():
            path.unlink()
        for path in self._directory.glob(f".kmsd-share-*{self._ending}.new"):
            path.unlink()

    def draft(self, shares: Sequence[str], threshold: int, date: str) -> None:
        """Write all shares, durably."""
        for number, words in enumerate(shares, 1):
            name = f"kmsd-share-{number}-of-{len(shares)}.txt{self._ending}"
            text = _TEXT.format(
                number=number, count=len(shares), threshold=threshold, host=self._host, date=date, words=words
            )
            write_new(self._directory / name, text.encode(), mode=_MODE, owner=(0, 0))

    def are_drafted(self) -> bool:
        """Whether there are shares that have not got their final names."""
        return bool(self._drafts())

    def recovery_key(self) -> bytes:
        """Return the key that the shares make; for a process that ends soon."""
        shares = ShareSet()
        try:
            for path in self._all():
                shares.add(share_in_file(path.read_text()))
            return shares.combine()
        except SharesError as error:
            raise SetupError(f"the shares in {self._directory} are not whole: {error}") from None

    def publish(self) -> None:
        """Give the drafts their final names, over nobody else's files."""
        for draft in self._drafts():
            path = self._final(draft)
            try:
                path.hardlink_to(draft)
            except FileExistsError:
                # An interrupted run may have been between the two names.
                if not path.samefile(draft):
                    raise SetupError(
                        f"{path} is in the way of the share {draft}: move it away, and run this again"
                    ) from None
            sync_directory(self._directory)
            draft.unlink()
            tell(made=True, what=f"share {path}: give it to somebody who keeps it, and remove it here")
        sync_directory(self._directory)

    def _drafts(self) -> list[Path]:
        return sorted(self._directory.glob(f"kmsd-share-*.txt{self._ending}"))

    def _all(self) -> list[Path]:
        """Return each share once, whichever name it has by now."""
        drafts = self._drafts()
        published = {self._final(draft) for draft in drafts}
        return [*drafts, *(path for path in sorted(self._directory.glob("kmsd-share-*.txt")) if path not in published)]

    def _final(self, draft: Path) -> Path:
        return draft.with_name(draft.name.removesuffix(self._ending))

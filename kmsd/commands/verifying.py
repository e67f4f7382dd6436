"""Whether a backup is whole, and opens; without a daemon, and without a change."""

from __future__ import annotations

import datetime as dt
import tempfile
from pathlib import Path

from kmsd.commands.offline import Opened, Opening
from kmsd.store.base import Store

# The most keys that are counted at once.
_PAGE = 1000


def verify(opening: Opening) -> bool:
    """Check every chunk, every row and the state row of a backup and print what is in it; raises what is wrong."""

    async def check(opened: Opened) -> None:
        # For its owner only, and gone afterwards: what lies there is wrapped as it is in the store.
        with tempfile.TemporaryDirectory(prefix="kmsd-verify-") as folder:
            store = await opened.restoration.build(Path(folder, "store.sqlite"))
            try:
                keys = await _count_keys(store)
            finally:
                await store.close()
        header = opened.reader.header
        created = dt.datetime.fromtimestamp(header.creation_ms / 1000, dt.UTC)
        print(
            f"{opening.name}: whole, opened by the {opened.by}\n"
            f"made      {created:%Y-%m-%d %H:%M:%S} UTC by kmsd {header.version}\n"
            f"account   {header.account}, region {header.region}\n"
            f"keys      {keys}, under {len(header.domain_keys)} domain keys\n"
            f"state     as of change {header.store_sequence} of the store\n"
            f"recovery  {'by shares too' if all(one.recovery_wrapped for one in header.domain_keys) else 'none'}\n"
            f"sha256    {opened.file.sha256}",
            flush=True,
        )

    opening.run(check)
    return True


async def _count_keys(store: Store) -> int:
    count, after = 0, None
    while page := await store.keys(after=after, limit=_PAGE):
        count += len(page)
        after = page[-1].key_id
    return count

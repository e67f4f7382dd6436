"""Whether store, trail and token tell the same story: checked when the keys are there, before they are of use.

Each of the three remembers something of the others, so that none can be put back to an earlier state, or be changed by
somebody who has not the keys, unseen:

1. The store's rows fit its state row (`Store.check_state`): no row was changed, removed, put back or added.
2. The store's sequence is not below what the trail told of it: no older store was put in its place.
3. The trail holds the checkpoint that the store remembers, and its chain goes on from there to its end: it was not cut
   off, is no other trail, and was not begun anew by a repair that nobody accepted. Such a repair, once signed, would
   explain why anchors in the journal are not in the trail.
4. The store's sequence is not below what the token remembers: not store and trail together were put back.

What all three cannot show is that store, trail and token were put back together; the anchors in the journal can.
A difference may have a good reason, such as a disk that was restored by somebody. Then an administrator accepts it, on
record, and the memories are made to agree again.
"""

from __future__ import annotations

from kmsd.api.errors import IntegrityError
from kmsd.audit.checkpoint import Checkpoint, Signer
from kmsd.audit.writer import Trail
from kmsd.store.base import StateReport, Store
from kmsd.store.rows import AnchorRow


class Integrity:
    """Compares a store with its trail."""

    def __init__(self, store: Store, trail: Trail) -> None:
        self._store = store
        self._trail = trail

    async def findings(self, report: StateReport, token_sequence: int | None, signer: Signer) -> list[str]:
        """Return what differs, in sentences; `token_sequence` is what the token remembers, if it does.

        `signer` is the audit key, with which what it signed is recognized.
        """
        found = list(report.findings)
        told, remembered = self._trail.store_sequence, token_sequence or 0
        if report.adopted:
            # Its rows come from a kmsd that kept no state: then nobody can remember one, its settings included.
            settings = await self._store.settings()
            if told or remembered or (settings is not None and settings.counted) or not self._trail.head[0]:
                found.append("the store lacks the state row that it had: it was removed, or an old store was put back")
        elif not report.findings:
            if report.sequence < told:
                found.append(
                    f"the store is older than its audit trail: it counts {report.sequence} changes, and the "
                    f"trail tells of {told}; an earlier copy of the store was put back, or another store's trail"
                )
            if report.sequence < remembered:
                found.append(
                    f"the store is older than the token remembers: it counts {report.sequence} changes, and the token "
                    f"has seen {remembered}; an earlier copy of the store was put back"
                )
        try:
            anchor = await self._store.anchor()
        except IntegrityError as error:
            return [*found, str(error)]
        if anchor is None:
            return found
        if not self._trail.holds(_checkpoint(anchor), signer):
            found.append(
                f"the audit trail does not hold record {anchor.seq} of {anchor.event_time}, a checkpoint that the "
                "store remembers: the trail's end was cut off, it was changed, or another one was put in its place"
            )
        elif fault := self._trail.fault_behind(_checkpoint(anchor), signer):
            found.append(
                f"the audit trail behind record {anchor.seq} of {anchor.event_time}, the last that the store remembers "
                f"as signed, was changed, or begun anew by a repair: {fault}"
            )
        return found


def _checkpoint(row: AnchorRow) -> Checkpoint:
    return Checkpoint(row.seq, row.prev, row.event_time, row.key_id, row.signature)

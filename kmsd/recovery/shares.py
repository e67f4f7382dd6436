"""Shares of the recovery key, as words of SLIP-0039. Pure; `RECOVERY.md` says what shares are and can do.

A share is 33 words: one group, a threshold from 2 to 8, no passphrase, a secret of 256 bits. The arithmetic is that of
`shamir-mnemonic`, the reference implementation of SLIP-0039's authors, which works in objects that nobody can wipe: so
only processes that end soon call this, and none that holds other keys.
"""

from __future__ import annotations

from shamir_mnemonic import MnemonicError, Share, combine_mnemonics, generate_mnemonics
from shamir_mnemonic.constants import MAX_SHARE_COUNT
from shamir_mnemonic.wordlist import WORD_INDEX_MAP

from kmsd.recovery import RECOVERY_KEY_BYTES

# SLIP-0039, section "Format of the share mnemonic", for a secret of 256 bits.
SHARE_WORDS = 33
MAX_SHARES = MAX_SHARE_COUNT
# More would be no safer, only harder to bring together; and the words of so many shares fit one page (4,096 bytes).
MAX_THRESHOLD = 8
# SLIP-0039's default, 20,000 iterations of PBKDF2. They slow nobody down here, where there is no passphrase; a share
# that asks for up to 2^15 times as many is not ours, and would keep a process busy for an hour.
_ITERATION_EXPONENT = 1


class SharesError(ValueError):
    """Words are no share, or shares do not make a key; the message says what is wrong, and holds no word of them."""


class ShareSet:
    """Shares of one recovery key, as they are gathered."""

    def __init__(self) -> None:
        self._shares: list[Share] = []

    def __len__(self) -> int:
        return len(self._shares)

    @property
    def missing(self) -> int:
        """How many more are needed; 1 as long as there is none that could tell."""
        return max(self._shares[0].member_threshold - len(self._shares), 0) if self._shares else 1

    @property
    def needed(self) -> str:
        """As many of the shares as are needed, one a line."""
        return "".join(f"{share.mnemonic()}\n" for share in self._needed)

    @property
    def _needed(self) -> list[Share]:
        return self._shares[: self._shares[0].member_threshold] if self._shares else []

    def add(self, words: str) -> None:
        """Take one share in; capital letters and blanks do not matter. Raises SharesError, and is as before then."""
        number = len(self._shares) + 1
        share = _parsed(words, f"share {number}")
        for earlier, other in enumerate(self._shares, 1):
            if share == other:
                raise SharesError(f"share {number} is the same as share {earlier}: each counts once")
            if share.group_parameters() != other.group_parameters() or share.index == other.index:
                raise SharesError(f"share {number} is of another set than share {earlier}: they do not go together")
        self._shares.append(share)

    def combine(self) -> bytes:
        """Return the recovery key; raises SharesError, which tells how many shares are missing."""
        if not self._shares:
            raise SharesError("there is no share")
        if self.missing:
            needed = self._shares[0].member_threshold
            raise SharesError(f"{needed} shares are needed, and there are {len(self)}: bring {self.missing} more")
        try:
            # The package wants exactly as many as are needed.
            return bytes(combine_mnemonics([share.mnemonic() for share in self._needed]))
        except MnemonicError:
            raise SharesError("the shares do not fit together: one of them is of another set") from None


def share_in_file(content: str) -> str:
    """Return the words in a file that holds one share; what stands behind a # at the start of a line explains it."""
    return " ".join(line for line in content.splitlines() if not line.lstrip().startswith("#"))


def read_shares(text: str) -> ShareSet:
    """Return the shares in `text`, one a line; raises SharesError."""
    shares = ShareSet()
    for line in text.splitlines():
        if line.strip():
            shares.add(line)
    return shares


def split(key: bytes, *, threshold: int, count: int) -> list[str]:
    """Return `count` shares of `key`, of which any `threshold` make it again; raises ValueError for other numbers."""
    check_numbers(threshold, count)
    if len(key) != RECOVERY_KEY_BYTES:
        raise ValueError(f"a recovery key has {RECOVERY_KEY_BYTES} bytes, not {len(key)}")
    [group] = generate_mnemonics(1, [(threshold, count)], key, iteration_exponent=_ITERATION_EXPONENT)
    return list(group)


def check_numbers(threshold: int, count: int) -> None:
    """Raise ValueError, in words for people, unless a key can be split so."""
    if not 2 <= threshold <= MAX_THRESHOLD:  # noqa: PLR2004 - one share alone would be the key
        raise ValueError(f"the keys open with 2 to {MAX_THRESHOLD} shares, not with {threshold}")
    if not threshold <= count <= MAX_SHARES:
        raise ValueError(f"where {threshold} shares are needed there are {threshold} to {MAX_SHARES}, not {count}")


def _parsed(text: str, name: str) -> Share:
    # Bounded first: what comes may be anything.
    words = text.lower().split(maxsplit=SHARE_WORDS)
    if len(words) != SHARE_WORDS:
        more = "more" if len(words) > SHARE_WORDS else str(len(words))
        raise SharesError(f"{name} has {more} words; a share has {SHARE_WORDS}")
    for place, word in enumerate(words, 1):
        if word not in WORD_INDEX_MAP:
            raise SharesError(f"{name}: word {place} is in no share's list of words: look whether it is mistyped")
    try:
        share = Share.from_mnemonic(" ".join(words))
    except MnemonicError:
        raise SharesError(f"{name}: its checksum is wrong: look whether a word is another one, or misplaced") from None
    if not _is_ours(share):
        raise SharesError(f"{name} is a share of something else than kmsd's recovery key")
    return share


def _is_ours(share: Share) -> bool:
    return bool(
        share.group_count == 1
        and 2 <= share.member_threshold <= MAX_THRESHOLD  # noqa: PLR2004 - as in check_numbers
        and share.iteration_exponent == _ITERATION_EXPONENT
        and share.extendable
    )

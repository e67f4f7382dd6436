"""A broken trail, from the refused start to the day after the repair."""

import subprocess
from pathlib import Path

from tests.support.dev_daemon import SCRIPTS


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{SCRIPTS}:/usr/bin:/bin", "LANG": "C.UTF-8"}
    return subprocess.run([*map(str, words)], env=environment, capture_output=True, text=True, check=False)


def test_a_broken_trail_is_repaired_accepted_and_verified(short_path: Path) -> None:
    """No start goes over it; what the public key and the anchors show of it stays so, beside what was broken."""
    home, log, key, anchors = (short_path / name for name in ("dev", "dev/audit.log", "key.pem", "anchors"))
    kmsd, kms = SCRIPTS / "kmsd", SCRIPTS / "kms"
    note = f"kms random 8 | wc -c && kms audit public-key > {key} && kms audit anchors > {anchors}"
    assert run(kmsd, "dev", home, "--", "sh", "-c", note).returncode == 0
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:3], *lines[4:]]))

    refused = run(kmsd, "dev", home, "--", "true")
    assert refused.returncode == 1
    assert "line 4, seq 4: removed" in refused.stderr
    assert "kmsd audit-repair" in refused.stderr

    repaired = run(kmsd, "audit-repair", "--dev", home, "--yes")
    assert (repaired.returncode, repaired.stderr) == (0, "")
    verify = (kms, "audit", "verify", log, f"{log}.broken-1", "--public-key", key, "--anchors", anchors)
    assert "nobody accepted it so far" in run(*verify).stderr
    assert "--accept-changes" in run(kmsd, "dev", home, "--", "true").stderr

    accepted = run(kmsd, "dev", "--accept-changes", home, "--", "kms", "audit", "verify")
    assert accepted.returncode == 0, accepted.stderr
    verified = run(*verify)
    assert verified.returncode == 0, verified.stderr
    assert "anchors: 1 agree" in verified.stdout
    assert "set aside by a repair" in verified.stdout
    assert run(kmsd, "dev", home, "--", "true").returncode == 0

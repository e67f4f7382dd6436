#!/bin/sh
# `make demo`: the main job on real parts. Encrypts a file of 64 MiB under a key that never leaves the daemon, decrypts
# it, shows who is refused, and reads in the trail who did what. Ends with "demo: ok"; leaves nothing behind.
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
PATH=$top/.venv/bin:$PATH

fail() {
    echo "demo: error: $1" >&2
    exit 1
}

say() { printf '\n# %s\n' "$*"; }

# Shows a command as a person would type it, and runs it.
show() {
    printf '$ %s\n' "$*"
    "$@"
}

# The same for a command that has to be refused with the words $1.
refused() {
    words=$1
    shift
    printf '$ %s\n' "$*"
    if "$@" 2>refusal >/dev/null; then fail "that should have been refused"; fi
    cat refusal
    grep -q "$words" refusal || fail "refused for another reason than '$words'"
}

# The user daemon, whom every Debian has. The one capability only lets it read this clone where that lies under a folder
# of root's; what kmsd asks the kernel is the uid.
as_daemon="setpriv --reuid=daemon --regid=daemon --clear-groups --inh-caps=+dac_override --ambient-caps=+dac_override"

if [ "${1:-}" != inside ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    trap 'exit 1' HUP INT TERM
    cd "$work"
    share=
    if [ "$(id -u)" = 0 ]; then
        chmod 755 "$work"
        share=--share # so that another uid can reach the socket at all, and policy has to decide
    fi
    printf '$ kmsd dev %s...\n' "${share:+$share }"
    # shellcheck disable=SC2086 # none is no word
    kmsd dev $share "$work/kmsd" -- "$top/tests/support/demo.sh" inside
    cd /
    rm -rf "$work"
    printf '\ndemo: ok\n'
    exit
fi

say "A key in kmsd, known by an alias"
show kms key create --alias alias/demo

say "A file of 64 MiB, encrypted under it"
head -c 67108864 /dev/urandom >letter
show kms encrypt -k alias/demo -c purpose=demo letter
mv letter original

say "Decrypted again, and the same"
show kms decrypt letter.kms
show cmp letter original
rm letter

say "Another encryption context is refused, and so is a file with one byte changed"
refused context kms decrypt -c purpose=theft letter.kms
cp letter.kms changed.kms
printf X | dd of=changed.kms bs=1 seek=33554432 conv=notrunc status=none
cmp -s letter.kms changed.kms && printf Y | dd of=changed.kms bs=1 seek=33554432 conv=notrunc status=none
refused InvalidCiphertextException kms decrypt changed.kms
[ ! -e changed ] || fail "a partial file was left"

if [ "$(id -u)" = 0 ]; then
    say "Another user of this host is refused"
    # shellcheck disable=SC2086 # it is several words
    refused 'may not kms:Decrypt' $as_daemon kms decrypt -o - letter.kms
else
    say "Not root, so no other user is tried"
fi

say "Who did what"
show kms audit tail
show kms audit verify

#!/usr/bin/env bash
# What valgrind calls definitely lost after 10,000 broadcasts must be what is lost after 100: the interpreter's own.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

lost() {
    PYTHONMALLOC=malloc PYTHONHASHSEED=0 valgrind --leak-check=full --show-leak-kinds=definite --log-file="$work/log" \
        --error-exitcode=0 "$python" "$here/broadcasts.py" "$1" "$work/socket$1" >&2
    # The interpreter has findings of its own; ours begin in the extension, or in a function of libc that it called.
    if grep -A2 -E '(Invalid|uninitiali.ed|overlap)' "$work/log" | grep -E '(at|by) 0x.*\((_core|frame|mask|send|drain)\.c:' >&2; then
        return 1
    fi
    grep 'definitely lost' "$work/log" | sed 's/.*lost: //' || echo "0 bytes in 0 blocks"
}

few=$(lost 100)
many=$(lost 10000)
echo "definitely lost after 100 broadcasts: $few; after 10,000: $many"
[ "$few" = "$many" ]

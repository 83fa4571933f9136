#!/usr/bin/env bash
# Copies the server's database and artifacts, beside a running server: FOLDER/mlflow-<UTC time>/.
# Usage: backup.sh [--compose] FOLDER; the settings are those of serve.sh, or of compose.yaml.
set -euo pipefail
umask 077
# shellcheck source=mlflow/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

[[ ${1:-} != --compose ]] || { use_compose && shift; }
[[ $# == 1 && $1 != -* ]] || fail "usage: backup.sh [--compose] FOLDER"
[[ -d $1 ]] || fail "$1: no such folder"
target=$(cd "$1" && pwd)/mlflow-$(date -u +%Y%m%dT%H%M%SZ)
[[ ! -e $target ]] || fail "$target exists"
mkdir "$target.partial" || fail "$target.partial: another backup is being written, or one was broken off"
trap 'rm -rf "$target.partial"' EXIT
cd "$target.partial"

# The database before the artifacts: whatever it names is then among them.
case $database in
    postgresql*) at_database pg_dump "${connection[@]}" --format=custom --no-owner >database.dump ;;
    sqlite*)
        python3 - "${database#sqlite:///}" database.sqlite <<'PYTHON'
import sqlite3, sys

with sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True) as source, sqlite3.connect(sys.argv[2]) as copy:
    source.backup(copy)
PYTHON
        ;;
esac
if [[ -n $artifacts_folder ]]; then
    at_artifacts tar -C "$artifacts_folder" -cf - . >artifacts.tar
else
    echo "backup.sh: $artifacts is not copied: use the bucket's own versioning" >&2
fi
sha256sum -- * >SHA256SUMS
mv -T "$target.partial" "$target"
trap - EXIT
echo "$target"

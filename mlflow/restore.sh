#!/usr/bin/env bash
# Puts a backup into an empty database and an empty artifact folder, while no server runs on them.
# Usage: restore.sh [--compose] FOLDER/mlflow-<UTC time>; the settings are those of serve.sh, or of compose.yaml.
set -euo pipefail
umask 077
# shellcheck source=mlflow/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

[[ ${1:-} != --compose ]] || { use_compose && shift; }
[[ $# == 1 && $1 != -* ]] || fail "usage: restore.sh [--compose] FOLDER/mlflow-<UTC time>"
[[ -f $1/SHA256SUMS ]] || fail "$1: no backup, or not a whole one: SHA256SUMS is missing"
cd "$1"
sha256sum --check --quiet --strict SHA256SUMS || fail "$1: files are damaged"

# Everything is looked at before anything is written.
case $database in
    postgresql*)
        [[ -f database.dump ]] || fail "$1: holds no PostgreSQL database; this server's is one"
        tables=$(at_database psql "${connection[@]}" -qAtX -v ON_ERROR_STOP=1 -c \
            "select count(*) from pg_tables where schemaname not in ('pg_catalog', 'information_schema')" </dev/null)
        [[ $tables == 0 ]] || fail "the database holds $tables tables; only an empty one is restored into"
        ;;
    sqlite*)
        [[ -f database.sqlite ]] || fail "$1: holds no SQLite database; this server's is one"
        [[ ! -e ${database#sqlite:///} ]] || fail "${database#sqlite:///} exists; nothing is overwritten"
        ;;
esac
if [[ -f artifacts.tar ]]; then
    [[ -n $artifacts_folder ]] || fail "$1 holds artifacts, but this server's lie in $artifacts"
    at_artifacts mkdir -p "$artifacts_folder" </dev/null
    there=$(at_artifacts find "$artifacts_folder" -mindepth 1 -print -quit </dev/null)
    [[ -z $there ]] || fail "$artifacts_folder is not empty; nothing is overwritten"
    at_artifacts tar -C "$artifacts_folder" -xf - <artifacts.tar
fi
case $database in
    postgresql*)
        at_database pg_restore "${connection[@]}" --single-transaction --exit-on-error --no-owner <database.dump
        ;;
    sqlite*)
        mkdir -p "$(dirname "${database#sqlite:///}")"
        cp database.sqlite "${database#sqlite:///}"
        ;;
esac
echo "restored $1"

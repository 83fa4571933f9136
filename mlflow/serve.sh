#!/usr/bin/env bash
# An MLflow server with users and passwords: without containers, and in the container of compose.yaml.
# Usage: serve.sh; every setting is a variable of .env.example. Stops on SIGINT, SIGTERM and SIGHUP.
set -euo pipefail
umask 077
# shellcheck source=mlflow/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

(($# == 0)) || fail "takes no arguments, its settings are variables: see .env.example"
admin=${MLFLOW_AUTH_ADMIN_PASSWORD:-}
[[ -n $admin ]] || fail "MLFLOW_AUTH_ADMIN_PASSWORD is not set: the administrator's password, 12 characters or more"
((${#admin} >= 12)) || fail "MLFLOW_AUTH_ADMIN_PASSWORD is shorter than the 12 characters that MLflow asks for"
[[ -n ${MLFLOW_FLASK_SERVER_SECRET_KEY:-} ]] ||
    fail "MLFLOW_FLASK_SERVER_SECRET_KEY is not set: openssl rand -hex 32 makes one"
permission=${MLFLOW_DEFAULT_PERMISSION:-READ}
[[ $permission =~ ^(READ|USE|EDIT|MANAGE|NO_PERMISSIONS)$ ]] ||
    fail "MLFLOW_DEFAULT_PERMISSION: $permission is none of NO_PERMISSIONS, READ, USE, EDIT, MANAGE"

program=$(command -v mlflow || true)
[[ -n $program ]] || program=$here/../.venv/bin/mlflow
[[ -x $program ]] || fail "no mlflow on the PATH: python -m pip install -c constraints.txt 'mlflow[auth]' psycopg2-binary"

mkdir -p "$state"
[[ -z $artifacts_folder ]] || mkdir -p "$artifacts_folder"

# The users stand in the runs' database, in tables of their own, so that one dump holds both. In an ini file
# a % is written twice.
rm -f "$state/basic_auth.ini"
cat >"$state/basic_auth.ini" <<INI
[mlflow]
default_permission = $permission
database_uri = ${database//%/%%}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
INI

export MLFLOW_AUTH_CONFIG_PATH=$state/basic_auth.ini
export MLFLOW_AUTH_ADMIN_USERNAME=${MLFLOW_AUTH_ADMIN_USERNAME:-admin}
export MLFLOW_BACKEND_STORE_URI=$database # not an argument: those can be seen by every user of the machine
export MLFLOW_DISABLE_TELEMETRY=true
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false # jobs of the GenAI pages
unset MLFLOW_TRACKING_URI MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD
cd "$state"
"$program" server \
    --app-name basic-auth \
    --host "${MLFLOW_HOST:-127.0.0.1}" \
    --port "${MLFLOW_PORT:-5000}" \
    --workers "${MLFLOW_WORKERS:-2}" \
    --allowed-hosts "${MLFLOW_SERVER_ALLOWED_HOSTS:-localhost,localhost:*,127.0.0.1,127.0.0.1:*}" \
    --serve-artifacts \
    --artifacts-destination "$artifacts" &
server=$!
# The server would take the SIGHUP of a closed terminal as a request to restart its workers.
trap 'kill -TERM "$server" 2>/dev/null' HUP INT TERM
status=0
while kill -0 "$server" 2>/dev/null; do # a trapped signal ends `wait` early
    wait "$server" && status=0 || status=$?
done
exit "$status"

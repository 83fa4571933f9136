# Read by serve.sh, backup.sh and restore.sh: the settings, from the environment and from .env beside this file.
# shellcheck shell=bash

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 2
}

# NAME=VALUE lines, quotes around a value taken off, nothing expanded or run; the environment wins.
read_env_file() {
    local line name value
    while IFS= read -r line || [[ -n $line ]]; do
        [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
        [[ $line =~ ^([A-Z][A-Z0-9_]*)=(.*)$ ]] || fail "$1: not NAME=VALUE: ${line%%=*}"
        name=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
        [[ $value =~ ^\'(.*)\'$ || $value =~ ^\"(.*)\"$ ]] && value=${BASH_REMATCH[1]}
        [[ -v $name ]] || export "$name=$value"
    done <"$1"
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[[ -f $here/.env ]] && read_env_file "$here/.env"

# shellcheck disable=SC2034 # read by the scripts that source this
state=${MLFLOW_STATE:-${XDG_STATE_HOME:-$HOME/.local/state}/pm25-mlflow}
[[ $state == /* ]] || fail "MLFLOW_STATE: $state is no absolute path"
database=${MLFLOW_BACKEND_STORE_URI:-sqlite:///$state/mlflow.db}
artifacts=${MLFLOW_ARTIFACTS_DESTINATION:-$state/artifacts}

case $database in
    # SQLAlchemy 2.1 takes a plain postgresql:// for psycopg 3; MLflow is at home on psycopg2.
    postgresql://* | postgres://*) database=postgresql+psycopg2://${database#*://} ;;
    postgresql+psycopg2://* | sqlite:////*) ;;
    *) fail "MLFLOW_BACKEND_STORE_URI: neither postgresql://... nor sqlite:////ABSOLUTE/PATH" ;;
esac

# The artifacts' folder, or nothing where they lie in a bucket.
case $artifacts in
    /*) artifacts_folder=$artifacts ;;
    file:///*) artifacts_folder=${artifacts#file://} ;;
    *://*) artifacts_folder= ;;
    *) fail "MLFLOW_ARTIFACTS_DESTINATION: $artifacts is neither an absolute path nor a URI" ;;
esac

# Read by serve.sh, backup.sh and restore.sh: the settings, from the environment and from .env beside this file.
# shellcheck shell=bash disable=SC2034,SC2329 # the names are for the scripts that source this

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

# Where backup.sh and restore.sh run the programs of the database and of the artifacts: here, or in the containers.
connection=("--dbname=postgresql://${database#*://}")
at_database() { "$@"; }
at_artifacts() { "$@"; }

use_compose() {
    database=postgresql://postgres/mlflow
    connection=(--username=mlflow --dbname=mlflow)
    [[ -n ${MLFLOW_ARTIFACTS_DESTINATION:-} ]] || artifacts=/artifacts artifacts_folder=/artifacts
    compose() { docker compose --file "$here/compose.yaml" "$@"; }
    at_database() { compose exec -T postgres "$@"; }
    at_artifacts() { compose run --rm --no-deps -T --entrypoint "$1" mlflow "${@:2}"; }
}

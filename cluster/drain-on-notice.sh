#!/usr/bin/env bash
# drain-on-notice.sh aws|gcp|now HOST:PORT [SECONDS]: tells Ray at HOST:PORT that this machine will be taken away.
#
# aws, gcp: when the cloud gives a spot machine notice, which Ray's cluster launcher does not listen to. now: at once, for
# a Kubernetes preStop hook; then waits until Ray has left this node, SECONDS (30) at most. A node that drains gets
# nothing new, and what it trained goes on elsewhere from its last checkpoint without counting as a failure.
set -euo pipefail

cloud=$1 address=$2 seconds=${3:-30}
metadata=${METADATA_URL:-http://169.254.169.254}
processes=${PROCESSES:-/proc}
export PATH="$HOME/env/bin:$PATH" RAY_AUTH_MODE=token

say() { echo "$(date -u +%FT%TZ) drain-on-notice.sh: $*" >&2; }

# The id of the only Ray node on this machine. `ray drain-node` has a default for it that must not be used: seen with
# Ray 2.60, it started a node of its own and drained that, or drained the head.
node() {
    local ids
    ids=$(cat "$processes"/[0-9]*/cmdline 2>/dev/null | tr '\0' '\n' | sed -n 's/^--node_id=\([0-9a-f]\{56\}\)$/\1/p' | sort -u)
    [[ $ids =~ ^[0-9a-f]{56}$ ]] && echo "$ids"
}

drain() {  # SECONDS WHY
    local id
    if ! id=$(node); then
        say "no Ray node runs here, or more than one"
        return 1
    fi
    say "$2; $1 s left for node $id"
    ray drain-node --address "$address" --node-id "$id" --reason DRAIN_NODE_REASON_PREEMPTION \
        --reason-message "$2" --deadline-remaining-seconds "$1"
}

# The seconds until the machine goes; fails while there is no notice. 404 is the usual answer of both services.
notice_aws() {
    local token action left
    token=$(curl -sf --max-time 2 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$metadata/latest/api/token") &&
        action=$(curl -sf --max-time 2 -H "X-aws-ec2-metadata-token: $token" \
            "$metadata/latest/meta-data/spot/instance-action") &&
        [[ $action =~ \"time\":\ *\"([^\"]+)\" ]] || return 1
    left=$(($(date -d "${BASH_REMATCH[1]}" +%s) - $(date +%s)))
    echo $((left > 0 ? left : 0))
}

notice_gcp() {
    [[ $(curl -sf --max-time 2 -H 'Metadata-Flavor: Google' "$metadata/computeMetadata/v1/instance/preempted") == TRUE ]] &&
        echo 30
}

case $cloud in
    aws | gcp)
        # `ray up` starts this again: the first one goes on, with the newest address.
        echo "$address" >"$HOME/.drain-on-notice.address"
        exec 9>"$HOME/.drain-on-notice.lock"
        flock -n 9 || exit 0
        until left=$("notice_$cloud"); do sleep "${POLL_S:-2}"; done
        address=$(<"$HOME/.drain-on-notice.address")
        until drain "$left" "notice of $cloud"; do sleep 1; done
        ;;
    now)
        drain "$seconds" "the pod is told to end"
        for ((i = 0; i < seconds; i++)); do
            node >/dev/null || exit 0
            sleep 1
        done
        ;;
    *)
        say "$cloud: neither aws, gcp nor now"
        exit 2
        ;;
esac

#!/usr/bin/env bash
# Sets a Jetson's power mode by its name, and on request holds all clocks up.  For root, and for boot
# (quamba-edge-power.service).
#
# `quamba-edge power` shows modes, measures and advises; this is only its hand. It is a script of its own because what
# root runs at boot must be short enough to read and must not lie in a user's folder. nvpmodel keeps its mode over a
# boot, jetson_clocks does not.
#
#     power.sh show
#     sudo power.sh set 25W [--clocks] [--yes]     --yes: without asking;  --dry-run: only say it
#     sudo power.sh unlock                         clocks follow the load again, as they did before --clocks
set -euo pipefail

ROOT='' YES=0 DRY=0 CLOCKS=0 WORDS=()
while [ $# -gt 0 ]; do
    case $1 in
        --yes) YES=1 ;;
        --dry-run) DRY=1 ;;
        --clocks) CLOCKS=1 ;;
        --root) ROOT=${2?--root needs a folder}; shift ;;
        -*) echo "no such option: $1" >&2; exit 2 ;;
        *) WORDS+=("$1") ;;
    esac
    shift
done
CONF=$ROOT/etc/nvpmodel.conf
STORE=$ROOT/var/lib/quamba-edge/clocks.before
[ -e "$CONF" ] || { echo "$CONF is not there: only Jetsons have power modes" >&2; exit 4; }

modes() { sed -n 's/^< *POWER_MODEL  *ID=\([0-9]\{1,\}\)  *NAME=\([^ ]\{1,\}\) *>.*/\2 \1/p' "$CONF"; }
current() {
    local number
    number=$(sed -n 's/.*pmode:0*\([0-9]\{1,\}\).*/\1/p' "$ROOT/var/lib/nvpmodel/status" 2>/dev/null | head -n 1)
    modes | awk -v id="${number:-none}" '$2 == id { print $1 }'
}
run() {
    echo "  \$ $*"
    if [ "$DRY" = 0 ]; then "$@"; fi
}
consent() {
    [ "$DRY" = 0 ] && [ "$YES" = 0 ] || return 0
    [ -t 0 ] || { echo 'Nothing was changed: no terminal to ask on, and no --yes.'; exit 2; }
    read -r -p "$1 [y/N] " answer || true
    case ${answer:-n} in y | Y | yes) ;; *) echo 'Nothing was changed.'; exit 2 ;; esac
}

case ${WORDS[0]:-show} in
    show)
        modes | while read -r name number; do
            echo "$([ "$name" = "$(current)" ] && echo '*' || echo ' ') $name (nvpmodel -m $number)"
        done
        ;;
    set)
        name=${WORDS[1]?a mode by its name: power.sh show}
        number=$(modes | awk -v name="$name" '$1 == name { print $2; exit }')
        [ -n "$number" ] || { echo "no mode '$name' here; there are: $(modes | cut -d ' ' -f 1 | xargs)" >&2; exit 2; }
        if [ "$name" = "$(current)" ]; then echo "$name is on already"
        else
            consent "Switch from $(current) to $name?"
            # A mode that powers other parts of the GPU asks for a reboot; that is never answered from here.
            run nvpmodel -m "$number" </dev/null
        fi
        if [ "$CLOCKS" = 1 ]; then
            consent 'Hold all clocks at the most this mode allows, which costs power while idle?'
            [ -e "$STORE" ] || { run mkdir -p "$(dirname "$STORE")" && run jetson_clocks --store "$STORE"; }
            run jetson_clocks
        fi
        ;;
    unlock)
        [ -e "$STORE" ] || { echo "nothing to undo: $STORE is not there"; exit 0; }
        consent 'Let clocks follow the load again?'
        run jetson_clocks --restore "$STORE"
        run rm "$STORE"
        ;;
    *) echo "no such action: ${WORDS[0]}; show, set NAME or unlock" >&2; exit 2 ;;
esac

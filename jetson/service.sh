# The step of setup.sh --service: systemd units for the server and for the power mode.  Sourced by setup.sh.
#
# The server starts at once and at every boot. The unit of the power mode is only put there: whoever wants a mode at
# boot writes its name into /etc/default/quamba-edge and enables it (docs/guide.md).
# shellcheck shell=bash

UNITS=$ROOT/etc/systemd/system
SETTINGS=$ROOT/etc/default/quamba-edge
HELPER=$ROOT/usr/local/lib/quamba-edge/power.sh

# Where the environment is elsewhere than the unit says, the unit is changed on the way.
unit() { sed "s|/opt/quamba-edge|$PREFIX|g" "$HERE/systemd/$1"; }
put_unit() { mkdir -p "$UNITS" && unit "$1" >"$UNITS/$1"; }
same_units() {
    local name
    for name in quamba-edge.service quamba-edge-power.service; do
        cmp -s <(unit "$name") "$UNITS/$name" || return 1
    done
    cmp -s "$HERE/power.sh" "$HELPER" && [ -e "$SETTINGS" ]
}

service() {
    step 'The service' "$UNITS/quamba-edge.service answers on 127.0.0.1:8080 from now on and after every boot" \
        "settings: $SETTINGS; to remove it: systemctl disable --now quamba-edge, then delete the unit"
    if same_units; then already; return; fi
    run put_unit quamba-edge.service
    run put_unit quamba-edge-power.service
    run install -D -m 755 "$HERE/power.sh" "$HELPER"
    [ -e "$SETTINGS" ] || run write "$SETTINGS" "BUNDLE=$MODEL" PORT=8080 \
        '# More flags of quamba-edge serve, such as --max-sessions 4' ARGS= \
        '# For quamba-edge-power.service: a mode by its name, and --clocks to hold all clocks up' \
        POWER_MODE= POWER_ARGS=
    [ -n "$ROOT" ] || run systemctl daemon-reload
    [ -n "$ROOT" ] || run systemctl enable --now quamba-edge.service
}

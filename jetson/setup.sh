#!/usr/bin/env bash
# Puts quamba_edge on a board, from the kit folder that this script lies in, without a network.
#
# It looks at the machine (look.sh), prints every step with its commands, asks, and only then changes anything. A
# second run finds what is done and changes nothing. All of it lies in one folder and one link. Only --service needs
# root. In a checkout, where there is no kit, the checkout itself is installed, with libraries from pip's usual index.
#
# Traps of single releases, power modes, swap and memory are told by `quamba-edge doctor`, which is run at the end.
set -euo pipefail
unset PYTHONPATH PYTHONHOME  # shells of robots often have them, and then other packages seem to be in ours

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
usage() {
    cat <<EOF
Usage: ${0##*/} [options]

  --dry-run             look, say what would be done, change nothing
  --yes                 do it without asking (needed where there is no terminal)
  --prefix DIR          where to put it (~/.quamba-edge; with --service /opt/quamba-edge)
  --bundle FILE         the model to copy there and try (the one in the kit)
  --no-cuda             leave the GPU's library out: the cpu backend needs none
  --with-jetson-stats   jtop too (AGPL; its root service stays yours to start)
  --with-demo           Gradio too, for the page of demos/chat.py, where the kit has it
  --service             install the systemd units and start the server (needs root)
  --root DIR            read system files, and with --service write units, below DIR instead of /

PYTHON=/path/to/python3 chooses the Python.
Exit code: 0 done, 2 no consent or wrong usage, 3 bad kit, 4 this machine lacks something.
EOF
}

DRY=0 YES=0 PREFIX='' BUNDLE='' CUDA=1 SERVICE=0 ROOT='' EXTRAS=serve
while [ $# -gt 0 ]; do
    case $1 in
        --dry-run) DRY=1 ;;
        --yes) YES=1 ;;
        --no-cuda) CUDA=0 ;;
        --service) SERVICE=1 ;;
        --with-jetson-stats) EXTRAS+=,jetson ;;
        --with-demo) EXTRAS+=,demo ;;
        --prefix | --bundle | --root)
            [ $# -ge 2 ] || { echo "$1 needs a value: ${0##*/} --help" >&2; exit 2; }
            case $1 in --prefix) PREFIX=$2 ;; --bundle) BUNDLE=$2 ;; --root) ROOT=${2%/} ;; esac
            shift ;;
        --help | -h) usage; exit 0 ;;
        *) echo "no such option: $1: ${0##*/} --help" >&2; exit 2 ;;
    esac
    shift
done
BIN=$HOME/.local/bin
[ "$SERVICE" = 0 ] || { umask 022; BIN=${ROOT}/usr/local/bin; PREFIX=${PREFIX:-/opt/quamba-edge}; }
PREFIX=$(realpath -m -- "${PREFIX:-$HOME/.quamba-edge}")
VENV=$PREFIX/venv

# shellcheck source-path=SCRIPTDIR
. "$HERE/look.sh"

# --- Steps.  Each is run twice: once to be shown, once, with consent, to be done. ------------------------

MODE=show STEPS=0 TODO=0
step() { STEPS=$((STEPS + 1)); printf '\n%d. %s\n' "$STEPS" "$1"; shift; printf '   %s\n' "$@"; }
already() { printf '   already so\n'; }
run() {
    local word line=''
    for word in "$@"; do
        if [[ $word =~ ^[A-Za-z0-9_.,:=@%+/-]+$ ]]; then line+=" $word"; else line+=" '$word'"; fi
    done
    printf '     $%s\n' "$line"
    if [ "$MODE" = show ]; then TODO=$((TODO + 1)); else "$@"; fi
}
# shellcheck disable=SC2329  # through run
write() { mkdir -p "$(dirname "$1")" && printf '%s\n' "${@:2}" >"$1"; }  # write FILE LINE...
pip() { run "$VENV/bin/python" -m pip --disable-pip-version-check -q "$@"; }
has() { "$VENV/bin/python" -c "import sys, importlib.util as u; sys.exit(not u.find_spec('$1'))" 2>/dev/null; }

environment() {
    step 'A Python environment' "$PREFIX, apart from the system's Python; to remove everything again: rm -r $PREFIX"
    if [ -e "$PREFIX/.quamba-edge" ] && has pip &&
        [ "$("$VENV/bin/python" -c "$VERSION")" = "$PYVER" ]; then already; return; fi
    run write "$PREFIX/.quamba-edge" 'Made by setup.sh of quamba_edge; this whole folder can be removed.'
    if [ -z "$PIP_WHEEL" ]; then run "$PY" -m venv --clear "$VENV"; return; fi
    run "$PY" -m venv --clear --without-pip "$VENV"  # Ubuntu keeps ensurepip in a package of its own
    run env "PYTHONPATH=$PIP_WHEEL" "$VENV/bin/python" -m pip -q install "${SOURCE[@]}" pip
}

package() {
    local have='' extras again=() target=quamba-edge
    [ "${#SOURCE[@]}" -gt 0 ] || target=$CHECKOUT
    step 'quamba_edge and its libraries' "into that environment, $SOURCE_NAME"
    [ ! -e "$VENV/quamba-edge.kit" ] || have=$(cat "$VENV/quamba-edge.kit")
    extras=$(tr , '\n' <<<"${have##* },$EXTRAS" | sort -u | xargs | tr ' ' ,)  # what an earlier run brought stays
    if [ "$have" = "$SUM $extras" ]; then already; return; fi
    case $have in '' | "$SUM "*) ;; *) again=(--force-reinstall) ;; esac  # another kit may have the same version number
    pip install "${again[@]}" "${SOURCE[@]}" "${target}[$extras]"
    if [[ ,$EXTRAS, = *,demo,* && -d $HERE/demos ]]; then run cp -r "$HERE/demos" "$PREFIX/"; fi
    run write "$VENV/quamba-edge.kit" "$SUM $extras"
    case ",$EXTRAS," in *,jetson,*)
        echo "   jtop also needs its service, which is yours to start: sudo $VENV/bin/jtop --install-service" ;;
    esac
}

gpu() {
    [ "$CUDA" = 1 ] || return 0
    step 'pycuda, for the GPU' "compiled on this board, which takes minutes, and kept in $CACHE" \
        "CUDA's headers are named to it, since JetPack leaves nvcc off the path; libcurand is left out"
    if has pycuda; then already; return; fi
    if ! compgen -G "$CACHE/pycuda-*.whl" >/dev/null; then
        local home=$PREFIX/.pycuda-home
        # pycuda's build reads this file of the home folder.  It gets another home, so that the user's file stays.
        run write "$home/.aksetup-defaults.py" 'CUDA_ENABLE_CURAND = False' "CUDA_INC_DIR = [\"$TOOLKIT/include\"]" \
            "CUDADRV_LIB_DIR = [\"$TOOLKIT/lib64/stubs\", \"$ROOT/usr/lib/aarch64-linux-gnu/nvidia\"]" || return
        run env "HOME=$home" "$VENV/bin/python" -m pip --disable-pip-version-check -q wheel --no-cache-dir \
            "${SOURCE[@]}" --wheel-dir "$CACHE" 'pycuda>=2025.1.2' || return
        run rm -r "$home" || return
    fi
    pip install --find-links "$CACHE" "${SOURCE[@]}" 'pycuda>=2025.1.2'
}

launcher() {
    local link=$BIN/quamba-edge
    step 'The command quamba-edge' "$link"
    if [ "$(readlink "$link")" = "$VENV/bin/quamba-edge" ]; then already; return; fi
    case $(readlink "$link" || ls "$link" 2>/dev/null) in
        '' | */venv/bin/quamba-edge) run mkdir -p "$BIN" && run ln -sfn "$VENV/bin/quamba-edge" "$link" ;;
        *) printf '   left alone: another program is there.  Ours is %s\n' "$VENV/bin/quamba-edge" ;;
    esac
}

model() {
    [ -n "$BUNDLE" ] || return 0
    step 'The model' "$MODEL"
    if cmp -s "$BUNDLE" "$MODEL"; then already; return; fi
    run mkdir -p "$PREFIX/bundles"
    run cp "$BUNDLE" "$MODEL.part"
    run mv "$MODEL.part" "$MODEL"  # so that a copy that was cut short is not taken for a bundle
}

# shellcheck source-path=SCRIPTDIR
[ "$SERVICE" = 0 ] || . "$HERE/service.sh"

all_steps() {
    STEPS=0
    environment
    package
    gpu || echo '   pycuda was not installed: everything runs on the CPU meanwhile, and setup.sh can be run again'
    launcher
    model
    if [ "$SERVICE" = 1 ]; then service; fi
}

echo 'Looking, without changing anything:'
look_board
look_kit
look_python
look_room
look_prefix
look_cuda
[ "$CODE" = 0 ] || { echo 'Nothing was changed.'; exit "$CODE"; }
MODEL=${BUNDLE:+$PREFIX/bundles/$(basename "$BUNDLE")}

all_steps
echo
if [ "$DRY" = 1 ]; then
    echo "A dry run: nothing was changed, $TODO commands would be run."
    exit 0
fi
if [ "$TODO" = 0 ]; then
    echo 'Everything is already so: nothing was changed.'
else
    if [ "$YES" = 0 ]; then
        [ -t 0 ] || { echo 'Nothing was changed: no terminal to ask on, and no --yes.'; exit 2; }
        read -r -p 'Do all of this? [y/N] ' answer || true
        case ${answer:-n} in y | Y | yes) ;; *) echo 'Nothing was changed.'; exit 2 ;; esac
    fi
    MODE=act
    all_steps
    echo
fi

MODE=act
run "$VENV/bin/quamba-edge" doctor ${MODEL:+--bundle "$MODEL"} || CODE=4
if [ "$CODE" = 0 ] && [ -n "$MODEL" ]; then
    WITH=()
    if [ "$CUDA" = 1 ] && has pycuda && ! run "$VENV/bin/quamba-edge" verify "$MODEL" --backend cuda; then
        WITH=(--backend cpu)
        echo '   The GPU does not say what it must: use --backend cpu, and please report the lines above.'
    fi
    run "$VENV/bin/quamba-edge" run "$MODEL" --prompt 'Once upon a time' --max-tokens 16 "${WITH[@]}" || CODE=4
    echo "To talk: quamba-edge chat $MODEL${WITH[*]:+ ${WITH[*]}}"
fi
[[ :$PATH: = *:$BIN:* ]] || echo "$BIN is not on the path of this shell: export PATH=$BIN:\$PATH, or log in again"
exit "$CODE"

# What setup.sh looks at before it proposes anything.  Nothing in this file changes the machine.
#
# Sourced by setup.sh, which sets ROOT, HERE, PREFIX, VENV, EXTRAS, BUNDLE, SERVICE and CUDA. Each look prints one
# line: ok, warn (it goes on, with less), or stop. A stop sets CODE, and all looks are made before setup.sh ends, so
# that one run names all that is missing. What is found is left in SUM, SOURCE (where pip takes packages from), PY,
# PYVER, PIP_WHEEL, TOOLKIT and CACHE.
# shellcheck shell=bash disable=SC2034  # most of these variables are used in setup.sh

# Measured: an environment with the server and pycuda takes 175 MB.  The rest is room to unpack in.
INSTALLED_MB=250

VERSION='import sys; print("%d.%d" % sys.version_info[:2])'
CODE=0
found() { printf '%-6s%-10s%s%s\n' "$1" "$2" "$3" "${4:+  ->  $4}"; }
refuse() { found stop "$1" "$2" "$3"; CODE=${4:-4}; }
of_kit() { sed -n "s/^$1=//p" "$HERE/kit.txt" | head -n 1; }

look_board() {
    local line major minor release
    line=$(head -n 1 "$ROOT/etc/nv_tegra_release" 2>/dev/null || true)
    if [[ ! $line =~ ^#\ R([0-9]+)\ \(release\),\ REVISION:\ ([0-9]+)(\.[0-9]+)? ]]; then
        found warn board "not a Jetson (no release in $ROOT/etc/nv_tegra_release): installs for the CPU"
        CUDA=0
        return
    fi
    major=${BASH_REMATCH[1]} minor=${BASH_REMATCH[2]} release=${BASH_REMATCH[1]}.${BASH_REMATCH[2]}${BASH_REMATCH[3]}
    if [ "$major" -lt 36 ]; then
        refuse board "L4T $release is JetPack 5 or older (Python 3.8, CUDA 11.4); expected JetPack 6.1 or later" \
            'flash JetPack 6.2.2 or 7.2: developer.nvidia.com/embedded/jetpack'
        CUDA=0
    elif [ "$major" = 36 ] && [ "$minor" -lt 4 ]; then
        found warn board "L4T $release is JetPack 6.0, whose CUDA 12.2 does not take these kernels: CPU only" \
            'upgrade to JetPack 6.2.2, then again'
        CUDA=0
    elif [ "$major" = 36 ]; then
        CUDA_MAJOR=12
        found ok board "L4T $release, JetPack 6, CUDA 12.6"
    elif [ "$major" -lt 39 ]; then
        found warn board "L4T $release is JetPack 7.0 or 7.1, not for an Orin, and the kernels are an Orin's: CPU only"
        CUDA=0
    else
        CUDA_MAJOR=13
        found ok board "L4T $release, JetPack 7, CUDA 13"
    fi
}

look_python() {
    local name all=''
    for name in ${PYTHON:-python3 python3.12 python3.11 python3.10}; do
        PY=$(command -v "$name") || continue
        PYVER=$("$PY" -c "$VERSION" 2>/dev/null) || continue
        all+="${all:+, }$name is $PYVER"
        "$PY" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || continue
        case " ${KIT_PYTHONS:-$PYVER} " in *" $PYVER "*) ;; *) continue ;; esac
        if "$PY" -c 'import ensurepip, venv' 2>/dev/null; then PIP_WHEEL=''
        elif "$PY" -c 'import venv' 2>/dev/null && [ -n "$PIP_WHEEL" ]; then :  # the kit's own pip will do
        else all+=', which cannot make environments'; continue; fi
        PY=$("$PY" -c 'import sys; print(sys.executable)')  # not a shim, which may be another one tomorrow
        found ok python "$PY, $PYVER"
        return
    done
    refuse python "${all:-none}; expected ${KIT_PYTHONS:-3.10 or later}, with venv" \
        'sudo apt install python3 python3-venv, or PYTHON=/path/to/python3'
}

look_kit() {
    KIT_PYTHONS='' PIP_WHEEL=''
    CHECKOUT=$(dirname "$HERE")
    if [ ! -e "$HERE/kit.txt" ]; then
        if [ ! -e "$CHECKOUT/pyproject.toml" ]; then
            refuse kit "$HERE has no kit.txt, and is no checkout" 'copy the whole kit folder (make offline-kit)' 3
        else
            SUM="checkout $(git -C "$CHECKOUT" rev-parse HEAD 2>/dev/null || echo unknown)"
            SOURCE=() SOURCE_NAME="from $CHECKOUT, and libraries over the network"
            found ok kit "none: installs the checkout $CHECKOUT, with libraries from pip's usual index"
        fi
        return
    fi
    local bad
    if ! bad=$(cd "$HERE" && sha256sum --check --quiet --strict SHA256SUMS 2>&1); then
        refuse kit "not as it was made: $(head -n 3 <<<"$bad" | tr '\n' ' ')" 'copy the kit again' 3
        return
    fi
    SUM=$(sha256sum "$HERE/SHA256SUMS" | cut -d ' ' -f 1)
    SOURCE=(--no-index --find-links "$HERE/wheels") SOURCE_NAME='from the kit, without a network'
    KIT_PYTHONS=$(of_kit pythons)
    PIP_WHEEL=$(find "$HERE/wheels" -name 'pip-*.whl' | head -n 1)
    [ -n "$BUNDLE" ] || BUNDLE=$HERE/$(of_kit bundle)
    if [[ ,$EXTRAS, = *,demo,* && " $(of_kit extras) " != *' demo '* ]]; then
        refuse kit 'Gradio is not in this kit' 'make offline-kit KIT_EXTRAS=demo, or without --with-demo' 3
    fi
    found ok kit "$HERE, quamba_edge $(of_kit version), whole: $(wc -l <"$HERE/SHA256SUMS") files have their sums"
}

look_room() {
    local free need=$INSTALLED_MB place=$PREFIX total available
    if [ -n "$BUNDLE" ]; then
        if [ ! -f "$BUNDLE" ]; then refuse bundle "$BUNDLE is not there" 'name a file: --bundle FILE.qedge' 3
        else need=$((need + $(stat -c %s "$BUNDLE") / 1000000)); fi
    fi
    while [ ! -d "$place" ]; do place=$(dirname "$place"); done
    free=$(($(df -Pk "$place" | awk 'NR == 2 { print $4 }') * 1024 / 1000000))
    if [ -e "$VENV/quamba-edge.kit" ]; then found ok disk "$free MB free on $place"
    elif [ "$free" -ge "$need" ]; then found ok disk "$free MB free on $place, about $need are needed"
    else refuse disk "$free MB free on $place; expected $need" 'sudo apt clean, or on another disk: --prefix DIR'; fi
    read -r total available < <(awk '/^MemTotal:/ { t = $2 } /^MemAvailable:/ { print t, $2 }' "$ROOT/proc/meminfo") ||
        return 0
    found ok memory "$((available * 1024 / 1000000)) MB available of $((total * 1024 / 1000000))"
}

look_prefix() {
    if [ -d "$PREFIX" ] && [ ! -e "$PREFIX/.quamba-edge" ] && [ -n "$(ls -A "$PREFIX")" ]; then
        refuse prefix "$PREFIX has other files in it" 'take a folder of its own: --prefix DIR'
    fi
    [ "$SERVICE" = 1 ] || return 0
    [ "$(id -u)" = 0 ] || refuse service 'installing units needs root' "sudo $0 --service"
    if [[ $PREFIX/ = /home/* || $PREFIX/ = /root/* ]]; then
        refuse service "$PREFIX is in a home, which the server's user cannot read" 'leave --prefix out'
    fi
}

look_cuda() {
    [ "$CUDA" = 1 ] && [ "$CODE" = 0 ] || return 0
    TOOLKIT=$ROOT/usr/local/cuda
    CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/quamba-edge/cuda$CUDA_MAJOR-cp${PYVER/./}
    # Whoever has compiled it on one board copies that folder beside setup.sh for the next.
    if compgen -G "$HERE/${CACHE##*/}/pycuda-*.whl" >/dev/null; then CACHE=$HERE/${CACHE##*/}; fi
    local lacks=''
    [ -e "$TOOLKIT/include/cuda.h" ] || lacks+="cuda-toolkit-$([ "$CUDA_MAJOR" = 12 ] && echo 12-6 || echo 13-2) "
    command -v g++ >/dev/null || lacks+='g++ '
    [ -e "$("$PY" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] || lacks+="python$PYVER-dev "
    if compgen -G "$CACHE/pycuda-*.whl" >/dev/null; then found ok pycuda "compiled before, kept in $CACHE"
    elif [ -z "$lacks" ]; then found ok pycuda "can be compiled with $TOOLKIT"
    else
        found warn pycuda 'cannot be compiled here, so no GPU yet: CPU only' "sudo apt install ${lacks% }, then again"
        CUDA=0
    fi
}

#!/usr/bin/env bash
# Runs the commands of docs/jetson.md literally on emulated boards: aarch64 by qemu-user, with Python 3.10, 3.11 and 3.12,
# and files that say it is a Jetson with JetPack 6 or, for Python 3.12, JetPack 7. There is no GPU in it.
#
#   boards/rehearse.sh [FOLDER]    PYTHONS="3.10 3.11 3.12"; needs qemu-aarch64 of qemu 10 or newer, mmdebstrap,
#                                  gcc-aarch64-linux-gnu, and edgemem with the extra export in the Python of $PYTHON
#   SHORT=1 boards/rehearse.sh     the page's blocks with Python 3.11 and a few tests, in some 2 minutes; where
#                                  those programs are missing it says so and ends with 0
#
# Python 3.11 is Debian's. The others are interpreters of cx_Freeze's wheels for aarch64 with the standard library of this
# machine's python3.10 and python3.12 (boards/startup.py).
#
# A block of the page after `<!-- not here: REASON -->` is not run, and is listed at the end. A block after
# `<!-- refused here: TEXT -->` must end with exit code 1 and say TEXT.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(realpath -m "${1:-$(mktemp -d)}")
SHORT=${SHORT:-}
PYTHON=${PYTHON:-python3} PYTHONS=${PYTHONS:-$([ "$SHORT" ] && echo 3.11 || echo 3.10 3.11 3.12)}
root=$work/root bench=$work/workstation copied=$work/copied
mkdir -p "$bench" "$copied" "$work/bin" "$work/workstation-bin" "$root"
true > "$work/failed" # a line for each failure

cannot() {
    echo "the boards cannot be rehearsed here: $1"
    exit "$([ "$SHORT" ] && echo 0 || echo 2)"
}
for tool in qemu-aarch64 mmdebstrap aarch64-linux-gnu-gcc; do
    command -v "$tool" > /dev/null || cannot "$tool is not installed (Debian: qemu-user of backports, mmdebstrap, gcc-aarch64-linux-gnu)"
done
qemu=$(qemu-aarch64 --version | sed -n 's/^qemu-aarch64 version \([0-9]*\).*/\1/p')
[ "$qemu" -ge 10 ] || cannot "qemu-aarch64 is of qemu $qemu, which crashes as it imports onnxruntime 1.32: 10 or newer is needed (Debian 12: qemu-user of backports)"

if [ ! -e "$root/usr/bin/python3.11" ]; then # beside the work of the workstation, which does not need it
    mmdebstrap --quiet --mode="$([ "$(id -u)" = 0 ] && echo root || echo unshare)" --variant=extract --architectures=arm64 \
        --include=python3-minimal,python3-venv,python3.11-venv,libpython3.11-stdlib,libstdc++6 bookworm "$root" &
fi

# An interpreter of a wheel, in a folder of its own: python, and lib with the standard library and startup.py.
wheel_python() {
    local version=$1 package=$2 into=$work/python$1 library
    [ ! -e "$into/python" ] || return 0
    library=$("python$version" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
    mkdir -p "$into/wheel" "$into/lib"
    "$PYTHON" -m pip install --quiet --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
        --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 --target "$into/wheel" "$package"
    (cd "$library" && tar c --exclude=site-packages --exclude=test --exclude=__pycache__ --exclude=lib-dynload .) | tar x -C "$into/lib"
    find "$into/wheel" -name '*.so*' ! -name '*.cpython-*' -exec cp {} "$into/lib/" \;
    mkdir "$into/lib/lib-dynload" && find "$into/wheel" -name '*.cpython-*.so' -exec cp {} "$into/lib/lib-dynload/" \;
    for name in __startup__ __init__python; do cp "$here/boards/startup.py" "$into/lib/$name.py"; done
    find "$into/wheel" -path '*bases/console-*' -exec cp {} "$into/python" \;
    rm -r "$into/wheel"
    cp "$into"/lib/_sysconfigdata_*_linux_*.py "$into/lib/_sysconfigdata__linux_aarch64-linux-gnu.py"
}

# Writes a program that starts the emulated Python of a version; its child processes start that program again.
emulated() {
    local program="$work/python$1/python" library="-E LD_LIBRARY_PATH=$work/python$1/lib" as='$0'
    if [ "$1" = 3.11 ]; then program=$root/usr/bin/python3.11 library=; else as=$program; fi
    [ "$1:$2" != "3.11:$work/bin/python3.emulated" ] || as=/usr/bin/python3
    printf '#!/bin/sh\nexport QEMU_CPU=cortex-a76 EMULATED_AS="$0"\nexec qemu-aarch64 -L %s %s -0 "%s" %s "$@"\n' \
        "$root" "$library" "$as" "$program" > "$2"
    chmod +x "$2"
}

# What the page calls on the board. pip runs on this machine, for the board's platform: emulated it takes minutes.
board_programs() {
    local pip="$PYTHON -m pip"
    [ "$1" = 3.11 ] || pip="python$1 -m pip" # so that what depends on the version of Python is taken as on the board
    emulated "$1" "$work/bin/python3.emulated"
    cat > "$work/bin/python3" <<SHIM
#!/usr/bin/env bash
set -euo pipefail
if [ "\${1:-} \${2:-}" != "-m venv" ]; then exec "$work/bin/python3.emulated" "\$@"; fi
folder=\${*: -1} site=\${*: -1}/lib/python$1/site-packages
mkdir -p "\$folder/bin" "\$site"
printf 'home = /usr/bin\ninclude-system-site-packages = true\nversion = $1\n' > "\$folder/pyvenv.cfg"
true > "\$folder/bin/activate"
cp "$work/python.venv" "\$folder/bin/python"
printf '#!/bin/sh\nexec "%s/bin/python" "%s/bin/edgemem" "\$@"\n' "\$folder" "\$site" > "\$folder/bin/edgemem"
cat > "\$folder/bin/pip" <<PIP
#!/usr/bin/env bash
set -euo pipefail
[ "\\\$1" = install ] || { echo "the rehearsal knows only: pip install"; exit 2; }
shift
exec $pip install --progress-bar off --upgrade --only-binary=:all: --python-version $1 --implementation cp \\
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \\
    --platform manylinux2014_aarch64 --target "\$site" "\\\$@"
PIP
chmod +x "\$folder"/bin/{pip,edgemem}
SHIM
    emulated "$1" "$work/python.venv"
    chmod +x "$work/bin/python3"
}

cat > "$work/workstation-bin/scp" <<'SHIM'
#!/bin/sh
# jetson:PATH is the board's home, everything else the workstation.
for last; do :; done
case "$last" in jetson:*) for file; do case "$file" in jetson:*|-r) ;; *) cp -r "$file" "$BOARD/" ;; esac; done ;;
*) cp -r "$BOARD/${1#jetson:}" "$last" ;; esac
SHIM
chmod +x "$work/workstation-bin/scp"

# Runs a command, and tells whether it ended as wanted: `step NAME WANTED TEXT COMMAND…`.
step() {
    local name=$1 wanted=$2 text=$3 log=$work/out/$1 started=$SECONDS code=0
    shift 3
    "$@" > "$log" 2>&1 || code=$?
    if [ "$code" != "$wanted" ] || { [ -n "$text" ] && ! grep -qF -- "$text" "$log"; }; then
        echo "$name" >> "$work/failed"; echo "FAILED  $name: exit code $code, wanted $wanted ${text:+and: $text}"; tail -n 40 "$log" | sed 's/^/    /'
    else
        echo "ok      $name ($((SECONDS - started)) s)${text:+: $text}"
    fi
}

# Runs the page's blocks of one kind, NN-kind.sh, from the one of a number to the one of another, on the board of a folder.
blocks() {
    local version=$1 board=$2 block name folder path wanted text
    for block in "$work"/blocks/*-*.sh; do
        name=$(basename "$block" .sh) wanted=0 text=
        [ "$((10#${name%%-*}))" -ge "$3" ] && [ "$((10#${name%%-*}))" -le "$4" ] || continue
        if [ -e "${block%.sh}.refused" ]; then wanted=1 text=$(cat "${block%.sh}.refused"); fi
        case $name in
            *workstation) folder=$bench path=$work/workstation-bin:$(dirname "$PYTHON"):$PATH ;;
            *) folder=$board path=$board/edgemem/bin:$work/bin:$PATH ;;
        esac
        # shellcheck disable=SC2086  # in short, wheels are built with the setuptools that is there
        step "$version-$name" "$wanted" "$text" env -C "$folder" --unset=PYTHONPATH HOME="$folder" BOARD="$board" PATH="$path" \
            ${SHORT:+PIP_NO_BUILD_ISOLATION=0} \
            OMP_NUM_THREADS=1 PYTHON="$PYTHON" bash -euo pipefail "$block"
    done
}

# What the page does not say: the right advice, the same text as on this machine, the wheels, and the size on disk.
more() {
    local version=$1 board=$2 site="$2/edgemem/lib/python$1/site-packages" options
    step "$version-advice" 0 "sudo apt install python3-libnvinfer" cat "$work/out/$version-02-board"
    for options in "--temperature 0" "--temperature 0.8 --seed 7"; do
        # shellcheck disable=SC2086
        step "$version-same-text${options//[^0-9]/}" 0 "" cmp <("$board/edgemem/bin/edgemem" run "$board/bundle-orin-nano" --device cpu \
            --prompt "The import" --max-tokens 40 $options 2> /dev/null) <("$PYTHON" -m edgemem run "$bench/bundle" --device cpu \
            --prompt "The import" --max-tokens 40 $options 2> /dev/null)
    done
    grep -E '^ *(Downloading|Using cached) \S+\.whl' "$work/out/$version-02-board" | sed 's/^ */        /' || true
    "$PYTHON" "$here/boards/size.py" "$site" || echo size >> "$work/failed"
}

rm -rf "$work/blocks" "$work/out" && mkdir "$work/blocks" "$work/out"
"$PYTHON" "$here/boards/blocks.py" "$here/docs/jetson.md" "$work/blocks"
cp -r "$here"/{pyproject.toml,setup.py,README.md,LICENSE,constraints.txt,Makefile,edgemem,export,runtimes} "$bench/"
[ -e "$bench/bundle" ] || "$PYTHON" "$here/boards/model.py" "$bench/bundle"
blocks workstation "$copied" 0 0
wait # for the root
[ -e "$root/usr/bin/python3.11" ] || { echo "mmdebstrap did not make a root with Python 3.11"; exit 1; }
mkdir -p "$root/proc/device-tree" "$root/etc"
printf 'NVIDIA Jetson Orin Nano Developer Kit\0' > "$root/proc/device-tree/model"
gpu_tests=$((10#$(basename "$(grep -l pytest "$work"/blocks/*.sh)" | cut -c1-2)))
for version in $PYTHONS; do
    [ "$version" != 3.10 ] || wheel_python 3.10 cx_Freeze==7.2.10
    [ "$version" != 3.12 ] || wheel_python 3.12 freeze-core==0.8.1
    echo "# R$([ "$version" = 3.12 ] && echo 39 || echo 36) (release), REVISION: 2.0, GCID: 0, BOARD: generic, EABI: aarch64" > "$root/etc/nv_tegra_release"
    board_programs "$version"
    rm -rf "$work/board" && cp -r "$copied" "$work/board"
    blocks "$version" "$work/board" 1 2
    more "$version" "$work/board" > "$work/out/more" 2>&1 & # beside the blocks, neither changes what the other reads
    blocks "$version" "$work/board" 3 $((gpu_tests - 1))
    wait
    cat "$work/out/more"
    cp -r "$here/tests" "$work/board/"
    blocks "$version" "$work/board" "$gpu_tests" 99
    # shellcheck disable=SC2046  # in short, the first few
    step "$version-tests" 0 passed env -C "$work/board" CI=true OMP_NUM_THREADS=1 edgemem/bin/python -m pytest -q -p no:cacheprovider -k "not torch" \
        $(sed 's/#.*//' "$here/boards/torch-free" | { [ "$SHORT" ] && head -n 7 || cat; })
done
[ "$SHORT" ] || step native-operators 0 passed env -C "$here" PYTHONPATH="$here" OMP_NUM_THREADS=1 "$PYTHON" -m pytest -p no:cacheprovider \
    -m "long or not long" tests/runtimes/native/test_aarch64.py -k "same_bits or 64-3"
echo "Not run here:"; cat "$work/blocks/left-out"
failed=$(wc -l < "$work/failed")
echo "$failed failed, $SECONDS s"
exit $((failed > 0))

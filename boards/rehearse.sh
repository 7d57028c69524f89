#!/usr/bin/env bash
# Runs the commands of docs/jetson.md, as they stand there, on an emulated board: aarch64 by qemu-user, a root of
# Debian 12 with Python 3.11, and files that say it is a Jetson Orin Nano with JetPack 6. There is no GPU in it.
#
#   boards/rehearse.sh [FOLDER]        needs: qemu-aarch64 of qemu 10 or newer, mmdebstrap, gcc-aarch64-linux-gnu,
#                                      and edgemem with the extra export in the Python of $PYTHON
#
# A block of the page after `<!-- not here: REASON -->` is not run, and is listed at the end. A block after
# `<!-- refused here: TEXT -->` must end with exit code 1 and say TEXT.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(realpath -m "${1:-$(mktemp -d)}")
PYTHON=${PYTHON:-python3}
root=$work/root home=$work/board bench=$work/workstation
mkdir -p "$home" "$bench" "$work/bin" "$work/workstation-bin"
began=$SECONDS

for tool in qemu-aarch64 mmdebstrap aarch64-linux-gnu-gcc; do
    command -v "$tool" > /dev/null || { echo "$tool is not installed (Debian: qemu-user of backports, mmdebstrap, gcc-aarch64-linux-gnu)"; exit 2; }
done

if [ ! -e "$root/usr/bin/python3.11" ]; then
    mmdebstrap --quiet --mode="$([ "$(id -u)" = 0 ] && echo root || echo unshare)" --variant=extract --architectures=arm64 \
        --include=python3-minimal,python3-venv,python3.11-venv,libpython3.11-stdlib,libstdc++6 bookworm "$root"
fi
mkdir -p "$root/proc/device-tree" "$root/etc"
printf 'NVIDIA Jetson Orin Nano Developer Kit\0' > "$root/proc/device-tree/model"
echo '# R36 (release), REVISION: 4.3, GCID: 0, BOARD: generic, EABI: aarch64' > "$root/etc/nv_tegra_release"

# An emulated Python under a name: its child processes start this script again, so they are emulated too.
emulated() {
    printf '#!/bin/sh\nexport QEMU_CPU=cortex-a76\nexec qemu-aarch64 -L %q -0 %s %q/usr/bin/python3.11 "$@"\n' \
        "$root" "$2" "$root" > "$1"
    chmod +x "$1"
}

# What the page calls on the board. pip runs on this machine, for the board's platform: emulated it takes minutes.
emulated "$work/bin/python3.emulated" /usr/bin/python3
cat > "$work/bin/python3" <<SHIM
#!/usr/bin/env bash
set -euo pipefail
if [ "\${1:-} \${2:-}" != "-m venv" ]; then exec "$work/bin/python3.emulated" "\$@"; fi
folder=\${*: -1}
"$work/bin/python3.emulated" "\$@" --without-pip
rm "\$folder"/bin/python*
printf '#!/bin/sh\nexport QEMU_CPU=cortex-a76\nexec qemu-aarch64 -L %q -0 "\$0" %q/usr/bin/python3.11 "\$@"\n' "$root" "$root" > "\$folder/bin/python"
site=\$folder/lib/python3.11/site-packages
printf '#!/bin/sh\nexec "%s/bin/python" "%s/bin/edgemem" "\$@"\n' "\$folder" "\$site" > "\$folder/bin/edgemem"
cat > "\$folder/bin/pip" <<PIP
#!/usr/bin/env bash
set -euo pipefail
[ "\\\$1" = install ] || { echo "the rehearsal knows only: pip install"; exit 2; }
shift
exec "$PYTHON" -m pip install --quiet --upgrade --only-binary=:all: --python-version 3.11 --implementation cp \\
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \\
    --platform manylinux2014_aarch64 --target "\$folder/lib/python3.11/site-packages" "\\\$@"
PIP
chmod +x "\$folder"/bin/{python,pip,edgemem}
SHIM
cat > "$work/workstation-bin/scp" <<SHIM
#!/bin/sh
# jetson:PATH is the board's home, everything else the workstation.
for last; do :; done
case "\$last" in jetson:*) for file; do case "\$file" in jetson:*|-r) ;; *) cp -r "\$file" "$home/" ;; esac; done ;;
*) cp -r "$home/\${1#jetson:}" "\$last" ;; esac
SHIM
chmod +x "$work/bin/python3" "$work/workstation-bin/scp"

# The page's blocks, each in a file: NN-kind[-reason].sh; kind: workstation, board.
rm -rf "$work/blocks" && mkdir "$work/blocks"
"$PYTHON" "$here/boards/blocks.py" "$here/docs/jetson.md" "$work/blocks"

cp -r "$here"/{pyproject.toml,setup.py,README.md,LICENSE,constraints.txt,Makefile,edgemem,export,runtimes} "$bench/"
[ -e "$bench/bundle" ] || "$PYTHON" "$here/boards/model.py" "$bench/bundle"
failed=0
for block in "$work"/blocks/*.sh; do
    name=$(basename "$block" .sh) wanted=0 text=
    if [ -e "${block%.sh}.refused" ]; then wanted=1 text=$(cat "${block%.sh}.refused"); fi
    case $name in
        *workstation) folder=$bench path=$work/workstation-bin:$(dirname "$PYTHON"):$PATH ;;
        *) folder=$home path=$home/edgemem/bin:$work/bin:$PATH ;;
    esac
    started=$SECONDS code=0
    (if [ "$folder" = "$home" ]; then unset PYTHONPATH; fi
        cd "$folder" && HOME=$folder PATH=$path OMP_NUM_THREADS=1 PYTHON=$PYTHON bash -euo pipefail "$block") > "$work/blocks/$name.out" 2>&1 || code=$?
    if [ "$code" != "$wanted" ] || { [ -n "$text" ] && ! grep -qF -- "$text" "$work/blocks/$name.out"; }; then
        failed=$((failed + 1)); echo "FAILED  $name: exit code $code, wanted $wanted ${text:+and: $text}"; sed 's/^/    /' "$block" "$work/blocks/$name.out"
    else
        echo "ok      $name ($((SECONDS - started)) s)${text:+, refused: $text}"
    fi
done

# What the page does not say: the same text as on this machine, and how large the device's installation is.
device=$home/edgemem/bin
for options in "--temperature 0" "--temperature 0.8 --seed 7"; do
    # shellcheck disable=SC2086
    board=$(PYTHONPATH="" "$device/edgemem" run "$home/bundle-orin-nano" --device cpu --prompt "The import" --max-tokens 40 $options 2> "$work/run.err" || cat "$work/run.err")
    # shellcheck disable=SC2086
    same=$("$PYTHON" -m edgemem run "$bench/bundle" --device cpu --prompt "The import" --max-tokens 40 $options 2> "$work/run.err" || cat "$work/run.err")
    if [ "$board" = "$same" ]; then echo "ok      run $options: the same bytes as on this machine"; else failed=$((failed + 1)); echo "FAILED  run $options: other bytes than on this machine"; fi
done
"$PYTHON" "$here/boards/size.py" "$home/edgemem/lib/python3.11/site-packages" || failed=$((failed + 1))
echo "Not run here:"; cat "$work/blocks/left-out"
echo "$failed failed, $((SECONDS - began)) s"
exit $((failed > 0))

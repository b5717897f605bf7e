#!/usr/bin/env bash
# Sets up the checkout: Debian packages (as root or with sudo), then .venv from the hash-pinned lock.
#   tools/setup/setup.sh           what `make demo` needs
#   tools/setup/setup.sh tests     what `make test` and `make check` need too
set -euo pipefail
cd "$(dirname "$0")/../.."
what=${1:-run}
lock=requirements.lock
packages=(python3-venv mosquitto libportaudio2 fonts-dejavu-core fonts-lohit-deva)
if [ "$what" = tests ]; then
  lock=requirements-dev.lock
  # libatomic1: the browser driver of Playwright
  packages+=(network-manager rauc squashfs-tools openssl softhsm2 ffmpeg poppler-utils)
  packages+=(dcmtk dicom3tools postgresql chromium libatomic1 strace nftables iproute2 chrony systemd libasound2-plugins pulseaudio pulseaudio-utils)
fi

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo -n)
  if [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; then
    echo "==> Debian packages: ${missing[*]}"
    "${as_root[@]}" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  else
    echo "Missing Debian packages. Run this line, then the same command again:" >&2
    echo "  sudo apt-get install -y --no-install-recommends ${missing[*]}" >&2
    [ -x "$(command -v mosquitto || true)" ] || [ -x /usr/sbin/mosquitto ] || exit 1
    python3 -c 'import ensurepip' 2>/dev/null || exit 1
  fi
fi

stamp=.venv/.installed-from
wanted=$(cat "$lock" pyproject.toml | sha256sum | cut -d' ' -f1)
if [ ! -e "$stamp" ] || { [ "$(sed -n 1p "$stamp")" != "$wanted" ] && { [ "$what" = tests ] || [ "$(sed -n 2p "$stamp")" != tests ]; }; } ; then
  echo "==> Python packages from $lock"
  [ -x .venv/bin/python ] || python3 -m venv .venv
  if [ ! -x .venv/bin/uv ]; then
    sed -n '/^uv==/,/^[a-z]/p' "$lock" | sed '1!{/^[a-z]/d}' | grep -v '# via' > .venv/uv.txt
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.txt
  fi
  export UV_NATIVE_TLS=1
  .venv/bin/uv pip sync --quiet --compile-bytecode --python .venv --require-hashes "$lock"
  .venv/bin/uv pip install --quiet --python .venv --no-deps --editable .
  printf '%s\n%s\n' "$wanted" "$what" > "$stamp"
fi

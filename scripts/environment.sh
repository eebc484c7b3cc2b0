# Sourced by the other scripts: makes an environment from a hashed lock, or finds it made and does nothing.
# Needs bash and a Python of at least 3.11; talks on stderr.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$ROOT/.venv
PY=$VENV/bin/python

# Ignore the caller's Python settings.
unset PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONDONTWRITEBYTECODE VIRTUAL_ENV
unset PIP_TARGET PIP_PREFIX PIP_USER PIP_REQUIREMENT PIP_CONSTRAINT PIP_NO_BINARY PIP_REQUIRE_VIRTUALENV
export PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore

say() { printf '==> %s\n' "$*" >&2; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11; do
    if is_new_enough "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

ETC=/etc
POLICY=/usr/sbin/policy-rc.d
POLICY_MARK="# of payagent's scripts: remove it if none of them runs"

# The services that systemd or sysvinit starts at boot.
boot_services() {
  find "$ETC"/systemd/system/*.wants "$ETC"/rc[2-5].d \( -name '*.service' -o -name 'S[0-9][0-9]*' \) -printf '%f\n' 2>/dev/null |
    sed -E 's/^S[0-9]{2}//; s/\.service$//' | sort -u
}

# without_services COMMAND...: runs COMMAND while Debian's packages start, stop and restart no service: they ask POLICY
# first. If the machine has one of its own, it stays in force.
without_services() (
  if [ ! -e "$POLICY" ] || grep -q "$POLICY_MARK" "$POLICY"; then
    trap 'rm -f "$POLICY"' EXIT
    printf '#!/bin/sh\n%s\nexit 101\n' "$POLICY_MARK" >"$POLICY" && chmod 755 "$POLICY"
  fi
  "$@"
)

# install_system WHY PACKAGE...: needs root and apt-get, and fails otherwise. A service that comes with
# a package is neither started nor left enabled: payagent starts the servers that it needs itself.
install_system() {
  local before status service
  local -x DEBIAN_FRONTEND=noninteractive
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
  say "$1: installing the system package ${*:2} with apt-get"
  before=$(boot_services)
  apt-get update -q >&2 && without_services apt-get install -q -y --no-install-recommends "${@:2}" >&2
  status=$?
  for service in $(comm -13 <(printf '%s\n' "$before") <(boot_services)); do
    say "disabling $service at boot"
    update-rc.d "$service" disable >&2 || systemctl disable "$service" >&2
  done
  return "$status"
}

# A .venv that was copied from another folder, or whose Python is gone, is not usable.
venv_is_usable() {
  is_new_enough "$PY" && "$PY" -m pip --version >/dev/null 2>&1 && grep -qF "$VENV" "$VENV/bin/activate" 2>/dev/null
}

make_venv() {
  local python package
  python=$(find_python) ||
    { install_system "Python 3.11 or newer is missing" python3 python3-venv && python=$(find_python); } ||
    die "Python 3.11 or newer is needed; install the packages python3 and python3-venv, then run this again"
  if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    install_system "$python cannot make a virtual environment" "$package" ||
      die "$python cannot make a virtual environment; install the package $package, then run this again"
  fi
  # --clear would empty the folder that a link leads to, which belongs to another tree.
  if [ -L "$VENV" ]; then rm "$VENV"; fi
  say "making ${VENV##*/} with $("$python" --version) ($python)"
  "$python" -m venv --clear "$VENV" || die "$python could not make $VENV"
}

fingerprint() {
  { cat "$1" "$ROOT/pyproject.toml" && "$PY" --version; } | sha256sum
}

# Passes pip's lines to a log and shows how far it is.
show_progress() {
  local total=$1 log=$2 count=0 line name
  while IFS= read -r line; do
    printf '%s\n' "$line" >>"$log"
    case $line in
      Collecting*)
        count=$((count + 1))
        name=${line#Collecting }
        if [ -t 2 ]; then
          printf '\r    %3d of at most %d  %-40.40s' "$count" "$total" "${name%% *}" >&2
        elif [ $((count % 10)) = 0 ]; then
          printf '    %3d of at most %d  %s\n' "$count" "$total" "${name%% *}" >&2
        fi
        ;;
      "Installing collected packages"*)
        if [ -t 2 ]; then printf '\n' >&2; fi
        printf '    all here; unpacking\n' >&2
        ;;
    esac
  done
}

# ensure_environment runtime|dev|bench: $VENV holds what the lock of that name says, and payagent itself (editable).
ensure_environment() {
  local kind=$1 lock log total
  case $kind in
    runtime) lock=$ROOT/requirements.txt ;;
    dev) lock=$ROOT/requirements-dev.txt ;;
    bench)
      lock=$ROOT/requirements-bench.txt
      # Not in .venv, or tests would find packages there that the dev lock does not have.
      VENV=$ROOT/.venv-bench
      PY=$VENV/bin/python
      ;;
  esac
  venv_is_usable || make_venv
  if [ "$(cat "$VENV/.installed-$kind" 2>/dev/null)" = "$(fingerprint "$lock")" ]; then
    return
  fi
  rm -f "$VENV"/.installed-*
  total=$(grep -c '==' "$lock")
  log=$VENV/install.log
  : >"$log"
  say "installing $total packages into ${VENV##*/} (the first time this takes a minute or two)"
  if ! "$PY" -m pip install --require-hashes --only-binary :all: -r "$lock" 2>&1 | show_progress "$total" "$log"; then
    tail -n 30 "$log" >&2
    die "the packages could not be installed; the whole log is in $log"
  fi
  # The build backend is in the lock, so nothing outside it is fetched here.
  "$PY" -m pip install --quiet --no-deps --no-build-isolation -e "$ROOT" >>"$log" 2>&1 ||
    { tail -n 30 "$log" >&2; die "payagent itself could not be installed; the whole log is in $log"; }
  fingerprint "$ROOT/requirements.txt" >"$VENV/.installed-runtime"
  if [ "$kind" != runtime ]; then fingerprint "$lock" >"$VENV/.installed-$kind"; fi
}

# ensure_node_packages FOLDER: what its package-lock.json says is there; fails, and says why, where that cannot be.
ensure_node_packages() {
  local folder=$1 wanted stamp=$1/node_modules/.installed
  if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    install_system "${folder#"$ROOT"/} runs on node" nodejs npm || { say "node and npm are missing (packages nodejs, npm)"; return 1; }
  fi
  wanted=$(sha256sum <"$folder/package-lock.json")
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    say "installing the packages of ${folder#"$ROOT"/} (npm ci)"
    (cd "$folder" && npm ci --ignore-scripts --no-audit --no-fund >&2) || { say "npm ci failed"; return 1; }
    printf '%s\n' "$wanted" >"$stamp"
  fi
}

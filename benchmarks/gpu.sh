#!/usr/bin/env bash
# The benchmarks that matter on a GPU, the demo and the tests that need one, in under eight minutes.
#
#     benchmarks/gpu.sh [--device cpu] [--quick] [--results FOLDER]
#
# PYTHON is the interpreter: .venv's where there is one, else python3 with torch and the packages of pyproject.toml.
# WHEELS is a folder of wheels to install first, for a machine with torch and no network.
# Each part has a limit in seconds (ten times as long on a CPU); one that fails or runs past it is said at the end, and the next one begins. Every
# benchmark writes its numbers as it ends: benchmarks/results/DEVICE.json, or FOLDER.
set -u
cd "$(dirname "$0")/.."
device=cuda options=()
while [ $# -gt 0 ]; do
    case $1 in
        --device) device=$2; shift ;;
        --quick) options+=(--quick) ;;
        --results) options+=(--results "$2"); shift ;;
        *) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
    shift
done
python=${PYTHON:-}
if [ -z "$python" ]; then python=python3; [ -x .venv/bin/python ] && python=.venv/bin/python; fi
# Without byte code every process would compile its imports again.
unset PYTHONDONTWRITEBYTECODE
export PYTHONUNBUFFERED=1
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl || exit 1
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi

failed=() slower=1
[ "$device" = cpu ] && slower=10
part() { # limit name command...
    local limit=$(($1 * slower)) name=$2 start=$SECONDS; shift 2
    timeout --kill-after=5 "$limit" "$@" || failed+=("$name ($([ $? = 124 ] && echo "over $limit s" || echo failed))")
    echo "== $name: $((SECONDS - start)) s"
}
bench() { part "$1" "$2" "$python" -m benchmarks "$2" --device "$device" ${options[@]+"${options[@]}"}; }

part 45 'CUDA tests' "$python" -m pytest -q -p no:cacheprovider -m gpu \
    $(grep -rl --include="test_*.py" "mark\.gpu" tests)
bench 100 training_step
bench 90 stacked_training
bench 50 token_projection
bench 40 curvature
bench 70 demo
bench 30 probe_solver
bench 50 probe_kinds
echo "== all: $SECONDS s on $device"
if [ ${#failed[@]} -gt 0 ]; then printf 'not done: %s\n' "${failed[@]}" >&2; exit 1; fi

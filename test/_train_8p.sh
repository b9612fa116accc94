# Sourced by train_8p_full.sh and train_8p_performance.sh: options, launch, log, summary. May be called from anywhere.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/.." && pwd)
. "$root/tools/_launch.sh"

usage() {
    cat <<EOF
usage: test/$(basename "$0") [options] [-- arguments of tools/train.py]

$purpose

  --devices N       processes, one a device (default 8; 1 also works without a GPU)
  --batch-size B    samples of a device (default 4)
  --global-batch G  samples of an optimizer step (full run only, default 32): where N x B is less, the gradients of
                    G / (N x B) iterations are accumulated
  --steps S         iterations (performance run only, default 600)
  --warmup W        iterations left out of the mean step time (default 100)
  --config FILE     default $config
  --output DIR      work dir and log go here (default test/output); what an earlier run left there is removed
  --port P          port of the first process (default: a free one)

Examples of arguments of tools/train.py: --cfg-options data_root=/data/nuscenes load_from=None
EOF
}

devices=8 batch=4 global=32 steps=600 warmup=100 output=$here/output port=
rest=()
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help)
            usage
            exit 0
            ;;
        --)
            shift
            rest=("$@")
            break
            ;;
        --devices | --batch-size | --global-batch | --steps | --warmup | --config | --output | --port)
            [ $# -ge 2 ] || die "$1: a value is missing"
            name=${1#--}
            case $name in
                batch-size) batch=$2 ;;
                global-batch) global=$2 ;;
                *) printf -v "$name" '%s' "$2" ;;
            esac
            shift 2
            ;;
        *) die "unknown option '$1', see --help" ;;
    esac
done
for name in devices batch global steps warmup; do
    [[ ${!name} =~ ^[0-9]+$ ]] || die "--$name: a number is expected, found '${!name}'"
done
[ "$devices" -ge 1 ] && [ "$batch" -ge 1 ] || die "--devices and --batch-size: at least 1 is expected"
cd "$root"
need_file config "$config"

run_training() { # FULL|PERF OVERRIDES...
    local kind=$1
    shift
    local work=$output/work_dirs/FBOCC log=$output/0/train_0.log
    # only what this script made: anything else in the folder stays
    rm -rf "$output/work_dirs/FBOCC" "$output/0"
    mkdir -p "$work" "$output/0"
    local start=$SECONDS
    [ -z "$port" ] || export PORT=$port
    set +e
    (launch "$devices" train.py "$config" --work-dir "$work" ${rest[@]+"${rest[@]}"} \
        --cfg-options train_dataloader.batch_size="$batch" "$@") 2>&1 | tee "$log"
    local code=${PIPESTATUS[0]}
    set -e
    [ "$code" -eq 0 ] || die "the training ended with status $code, see $log"
    "$(find_python)" tools/analysis/step_time.py "$work" --samples "$((devices * batch))" --warmup "$warmup" \
        --title FBOCC --case "FBOCC_bs${batch}_${devices}p_$kind" --seconds "$((SECONDS - start))" \
        --out "$output/FBOCC_bs${batch}_${devices}p_$kind.log"
}

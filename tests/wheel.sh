#!/bin/bash
# Both phases on a small toy dataset with an installed wheel, in a new folder outside the checkout.
#
#   wheel.sh WHEEL ENVIRONMENT      the environment in which the wheel was installed
#
# `test_packaging.py` compares every file of wheel and sdist with the checkout.
set -euo pipefail
wheel=$(realpath "$1")
PATH="$(realpath "$2")/bin:$PATH"
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

fail() {
    echo "$1: expected $2; found $3" >&2
    exit 1
}

expected="eoid.py evaluation pipeline student teacher_cache"
found=$(python -m zipfile -l "$wheel" | sed '1d; s/[/ ].*//' | grep -v dist-info | sort -u | xargs)
[ "$found" = "$expected" ] || fail "$wheel" "$expected" "$found"
version=$(python -c "import eoid; print(eoid.__version__)")
[[ $wheel == */eoid-"$version"-* ]] || fail "eoid.__version__" "that of $wheel" "$version"
for command in eoid-data eoid-cache eoid-train eoid-eval eoid-predict; do
    "$command" --help >help.txt
done

set -x
eoid-data toy toy --train 24 --test 8
eoid-cache build toy --out cache --detector toy --clip-model toy
eoid-train student --preset toy --data toy --cache cache --split ua --pretrained toy --out run \
    --epochs 1
eoid-predict run toy/images/test2015/toy_test_00000001.jpg --threshold 0 --top 5 --out drawn
eoid-eval report run --out report.html
# Weights of the package, in a folder without a run. ("toy" is a folder here, the dataset.)
eoid-predict toy toy/images/test2015/toy_test_00000001.jpg --out ready
(mkdir empty && cd empty && python -c "import eoid; [eoid.Detector.open(name) for name in ('toy', 'toy-text')]")
# Data that the commands above do not read.
python -c "import eoid; [eoid.load_vocabulary(name) for name in ('hico-det', 'vcoco')]"
eoid-cache batch-scripts scripts
eoid-train batch-scripts scripts
set +x

for file in cache/manifest.json run/results.json run/report.html drawn/*.jpg drawn/*.json ready/*.jpg report.html \
    scripts/cache.sbatch scripts/cache_array.sbatch scripts/train.sbatch; do
    [ -s "$file" ] || fail "$file" "a file with content" "none"
done
echo "eoid $version: the wheel has both phases, report and drawings"

#!/usr/bin/env bash
# Creates a TPU VM, installs this checkout on it, and trains there with the flags given:
#     ZONE=us-central1-b TYPE=v2-8 cloud/tpu_vm.sh NAME --train_dir=gs://... FLAGS
# Run again it goes on: the VM is kept, and the run resumed. To delete the VM:
#     gcloud compute tpus tpu-vm delete NAME --zone=ZONE
set -euo pipefail
cd "$(dirname "$0")/.."

name=${1:?"usage: cloud/tpu_vm.sh NAME FLAGS of train.py"}
shift
zone=--zone=${ZONE:-us-central1-b}
version=${VERSION:-tpu-ubuntu2204-base}  # v2-alpha-tpuv5-lite for v5e, -tpuv6e for v6e
tpu=(gcloud compute tpus tpu-vm)

if ! "${tpu[@]}" describe "$name" "$zone" > /dev/null; then
  "${tpu[@]}" create "$name" "$zone" \
    --accelerator-type="${TYPE:-v2-8}" --version="$version"
fi

archive=$(mktemp -d)
trap 'rm -rf "$archive"' EXIT
tar -czf "$archive/yt8m.tar.gz" setup.py pyproject.toml README.md ./*.py yt8m
"${tpu[@]}" scp "$archive/yt8m.tar.gz" "$name:yt8m.tar.gz" "$zone"

# tensorflow-tpu stands in for tensorflow, which must not be installed beside it.
"${tpu[@]}" ssh "$name" "$zone" --command="
  set -e
  mkdir -p yt8m && tar -xzf yt8m.tar.gz -C yt8m && cd yt8m
  sudo apt-get update -q && sudo apt-get install -qy python3-venv
  python3 -m venv ~/venv
  ~/venv/bin/pip install -q 'tensorflow-tpu>=2.18,<2.22' \
    -f https://storage.googleapis.com/libtpu-tf-releases/index.html
  ~/venv/bin/pip install -q --no-deps -e .
  ~/venv/bin/yt8m train --strategy=tpu --tpu=local $(printf '%q ' "$@")"

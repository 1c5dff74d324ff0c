#!/bin/sh
# Makes the virtual environment and installs the package into it: what make and the images run.
# usage: setup.sh PYTHON VENV WHAT [TORCH]     WHAT: "." or ".[dev]"; TORCH: cpu for torch's CPU wheel
set -eu
python=$1 venv=$2 what=$3 torch=${4:-}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: llmtrain needs Python 3.11 or newer; $python is $("$python" -V 2>&1): make PYTHON=python3.12" >&2
    exit 2
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
if [ "$torch" = cpu ]; then # found where pip is set up to look: PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "torch==2.13.0+cpu"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable "$what"

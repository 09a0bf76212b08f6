"""Start docker compose as the README says, ask the contract of it, break parts of it under load, and find nothing lost."""

import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import orjson

from tests.compose.load import Load
from tests.compose.project import ROOT, Failed, Project, run

STOP_S = 30.0  # DRAIN_S and a little: beyond it the engine would have killed


def main() -> int:
    if shutil.which("docker") is None:
        print("compose-test needs a container engine: install docker with compose v2.", file=sys.stderr)
        return 2
    try:
        run("docker", "info", cwd=ROOT, timeout=30)
        run("docker", "compose", "version", cwd=ROOT, timeout=30)
        with Project() as project:
            test(project)
    except Failed as failed:
        print(f"compose-test: {failed}", file=sys.stderr)
        return 1
    print("Nothing was lost, and nothing was wrong.")
    return 0


def test(project: Project) -> None:
    with step("cp .env.example .env && docker compose up --build"):
        project.up("--build")
        predict(project, "Bonjour tout le monde", {"language": "fr", "probability": 0.9451})
    with step("the contract"):
        environment = {**os.environ, "BASE_URL": project.url}
        said = run(sys.executable, "-m", "pytest", "-q", "tests/contract", cwd=ROOT, env=environment)
        print(" ", said.strip().splitlines()[-1])
    for image in ("foretell-gateway", "foretell-processor"):
        size = int(project.docker("inspect", "--format", "{{.Size}}", image))
        print(f"  {image}: {size / 1e6:.0f} MB, its base included")

    project.configure(MODEL="examples/moody.py:Moody")
    with step("another model, by its setting"):
        project.up()
    with Load(project.url) as load:
        with step("--scale processor=3"):
            project.up("--no-recreate", "--scale", "processor=3")
            load.wait_for_more()
        with step("docker kill of a processor"):
            project.docker("kill", project.containers("processor")[0])
            load.wait_for_more()
        with step("docker stop of a processor"):
            stop_well(project, project.containers("processor")[0])
            load.wait_for_more()
        with step("docker compose restart redis"):
            project.compose("restart", "redis")
            load.wait_for_more()
        with step("docker compose restart gateway"):
            project.compose("restart", "gateway")
            load.wait_for_more()
    with step("every accepted prediction has its result"):
        load.check()
        print(f"  {load.accepted} accepted; answers {dict(load.answers)}")
        queue_is_empty(project)
        every_line_is_json(project)

    with step("three lines of Dockerfile for a model of one's own"):
        project.docker("build", "--quiet", "--tag", "foretell-own-model", "examples/own_model")
        (project.folder / "docker-compose.override.yml").write_text(own_model_override())
        project.compose("down", "--timeout", "40")  # the volume stays
        project.configure()  # MODEL in .env would win over the image's own
        started = time.monotonic()
        project.up("--build")
        predict(project, "A good day", {"score": 1, "mood": "good"})
        print(f"  from nothing to the first prediction: {time.monotonic() - started:.1f} s")
    with step("what was there before the restart is there"):
        load.check()
    with step("docker compose stop"):
        services = {name: project.containers(name) for name in ("gateway", "processor", "redis")}
        project.compose("stop")
        for name, containers in services.items():
            for container in containers:
                state = project.state(container)
                if state["ExitCode"] != 0:
                    raise Failed(
                        f"{name} ended with {state['ExitCode']}, out of memory: {state['OOMKilled']}"
                    )


@contextmanager
def step(name: str) -> Iterator[None]:
    print(name, flush=True)
    started = time.monotonic()
    yield
    print(f"  {time.monotonic() - started:.1f} s", flush=True)


def predict(project: Project, input_: object, result: object) -> None:
    answer = httpx2.post(f"{project.url}/predict", json={"input": input_}, timeout=60, trust_env=False)
    if answer.json() != {"input": input_, "result": result}:
        raise Failed(f"a prediction of {input_!r} got {answer.status_code} {answer.text}")


def stop_well(project: Project, container: str) -> None:
    """`docker stop` as anybody would say it, with our grace: it must end by itself."""
    started = time.monotonic()
    project.docker("stop", "--time", str(int(STOP_S)), container)
    if code := project.state(container)["ExitCode"]:
        raise Failed(f"a processor ended with {code} after {time.monotonic() - started:.1f} s of docker stop")


def queue_is_empty(project: Project) -> None:
    metrics = httpx2.get(f"{project.url}/metrics", timeout=30, trust_env=False).text
    for name in ("unfinished", "running", "dead"):
        found = re.search(rf"^foretell_queue_{name} (\S+)$", metrics, re.MULTILINE)
        if not found or float(found[1]):
            raise Failed(f"foretell_queue_{name} is {found and found[1]}, not 0")


def every_line_is_json(project: Project) -> None:
    for service in ("gateway", "processor"):
        for line in project.compose("logs", "--no-log-prefix", "--no-color", service).splitlines():
            line = line.removeprefix("\x1b[2K")  # some versions of compose clear each line first
            try:
                orjson.loads(line)
            except orjson.JSONDecodeError:
                raise Failed(f"{service} logged what is no JSON: {line!r}") from None


def own_model_override() -> str:
    """The file that examples/own_model/README.md shows."""
    found = re.search(r"```yaml\n(.*?)```", (ROOT / "examples/own_model/README.md").read_text(), re.DOTALL)
    assert found
    return found[1]


if __name__ == "__main__":
    sys.exit(main())

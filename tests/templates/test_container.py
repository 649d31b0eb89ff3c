"""The image and the services that a fraud project describes, without Docker: what the files say is
done here, in a folder that stands for the image."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pegboard.cli.scaffold import create, find_template
from pegboard.settings import ServeSettings

REPOSITORY = Path(__file__).resolve().parents[2]
TRAINING = {"matplotlib", "onnx", "onnxscript", "polars", "scikit-learn", "torch", "xgboost-cpu"}
SECRET = re.compile(r"TOKEN|KEY|PASSWORD|SECRET")
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?::([?-])([^}]*))?\}")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project as `pegboard new` makes it."""
    folder = tmp_path_factory.mktemp("shipping") / "my-fraud"
    create(find_template("fraud"), folder, {})
    return folder


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distribution with a solution of one's own, as `pegboard new plugin` makes it."""
    folder = tmp_path_factory.mktemp("plugin") / "worn"
    create(find_template("plugin"), folder, {})
    return folder


@pytest.fixture(scope="module")
def inspection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A defect project as `pegboard new` makes it."""
    folder = tmp_path_factory.mktemp("inspection") / "my-defect"
    create(find_template("defect"), folder, {})
    return folder


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A medical-segmentation project as `pegboard new` makes it."""
    folder = tmp_path_factory.mktemp("hospital") / "my-segmentation"
    create(find_template("medical-segmentation"), folder, {})
    return folder


@pytest.fixture(scope="module")
def classification(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A medical-classification project as `pegboard new` makes it."""
    folder = tmp_path_factory.mktemp("clinic") / "my-classification"
    create(find_template("medical-classification"), folder, {})
    return folder


@pytest.fixture(scope="module")
def detection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lidar project as `pegboard new` makes it."""
    folder = tmp_path_factory.mktemp("vehicle") / "my-lidar"
    create(find_template("lidar"), folder, {})
    return folder


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip project as `pegboard new` makes it."""
    folder = tmp_path_factory.mktemp("archive") / "my-clip"
    create(find_template("clip"), folder, {})
    return folder


SHIPPED = ["project", "inspection", "segmentation", "classification", "detection", "gallery"]


@pytest.fixture(params=[*SHIPPED, "plugin"])
def shipped(request: pytest.FixtureRequest) -> Path:
    """What each template makes."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


# --------------------------------------------------------------------------- reading the files


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return a Dockerfile's instructions: name and the rest of the line."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in whole.splitlines() if line]


def said(project: Path, name: str) -> str:
    """Return what the last instruction of a name says."""
    return [rest for known, rest in instructions(project / "Dockerfile") if known == name][-1]


def exec_form(rest: str) -> list[str]:
    words = json.loads(rest[rest.index("[") :])
    assert all(isinstance(word, str) for word in words)
    return list(words)


def flags_and_rest(rest: str) -> tuple[dict[str, str], list[str]]:
    words = shlex.split(rest)
    flags = [word for word in words if word.startswith("--")]
    named = {name: value for name, _, value in (flag[2:].partition("=") for flag in flags)}
    return named, [word for word in words if not word.startswith("--")]


def ignored(path: str, patterns: list[str]) -> bool:
    """Whether .dockerignore keeps a path out: the last pattern that fits it or a folder above."""
    out = False
    parts = path.split("/")
    above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    for pattern in patterns:
        if any(_fits(folder, pattern.removeprefix("!")) for folder in above):
            out = not pattern.startswith("!")
    return out


def _fits(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return any(_fits(path.split("/", n)[-1], pattern[3:]) for n in range(path.count("/") + 1))
    parts, wanted = path.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def context_of(project: Path) -> list[str]:
    """Return the files that a build is given."""
    lines = (project / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    files = (path for path in project.rglob("*") if path.is_file())
    names = (path.relative_to(project).as_posix() for path in files)
    return sorted(name for name in names if not ignored(name, patterns))


# --------------------------------------------------------------------------- what can be read


def test_the_image_is_given_what_it_serves_and_nothing_else(project: Path, tmp_path: Path) -> None:
    full = shutil.copytree(project, tmp_path / "full")
    served = ["wheels/own-1-py3-none-any.whl", "bundle/bundle.json", "rules/blocked.txt"]
    served += ["runs/2026/bundle/bundle.json", "runs/2026/bundle/models/onnx/fp32/model.onnx"]
    kept_out = [
        ".env",
        "data/payments.csv",
        "runs/2026/checkpoints/last.pt",
        "serve/identifier.key",
    ]
    kept_out += ["runs/2026/rows.npz", ".venv/bin/python", ".git/config", "rules/__pycache__/a.pyc"]
    for name in served + kept_out:
        (full / name).parent.mkdir(parents=True, exist_ok=True)
        (full / name).write_text("x")
    own = ["hooks.py", "pegboard.toml", "requirements-serve.txt", "rules/rules.toml"]
    assert context_of(full) == sorted(served + own)


def test_an_inspectors_image_is_given_its_region_and_no_picture(
    inspection: Path, tmp_path: Path
) -> None:
    full = shutil.copytree(inspection, tmp_path / "full")
    for name in ("region.png", "bundle/bundle.json", "pictures/good/1.png", "reviewed.csv", ".env"):
        (full / name).parent.mkdir(parents=True, exist_ok=True)
        (full / name).write_text("x")
    own = ["hooks.py", "pegboard.toml", "requirements-serve.txt"]
    assert context_of(full) == sorted([*own, "region.png", "bundle/bundle.json"])


@pytest.mark.parametrize("name", ["segmentation", "classification"])
def test_no_patient_reaches_an_image_or_the_source_code(
    request: pytest.FixtureRequest, name: str, tmp_path: Path
) -> None:
    """But for the records that the bundle verifies itself with."""
    project: Path = request.getfixturevalue(name)
    full = shutil.copytree(project, tmp_path / "full")
    patients = ["data/cases.csv", "data/.pseudonym-key", "dicom/DOE/IM0001", "ct.nii.gz", "a.zip"]
    patients += ["findings.csv", "data/phantoms-1/a.dcm", "serve/answers.jsonl"]
    for file in ("bundle/golden.npz", *patients):
        (full / file).parent.mkdir(parents=True, exist_ok=True)
        (full / file).write_text("x")
    own = ["hooks.py", "pegboard.toml", "requirements-serve.txt"]
    assert context_of(full) == sorted([*own, "bundle/golden.npz"])
    subprocess.run(["git", "init", "--quiet"], cwd=full, check=True)
    listed = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard"],
        cwd=full,
        check=True,
        capture_output=True,
        text=True,
    )
    assert not {*patients, "bundle/golden.npz"} & set(listed.stdout.splitlines())


@pytest.mark.parametrize("name", ["segmentation", "classification"])
def test_a_hospitals_server_is_not_asked_to_install_what_trains(
    request: pytest.FixtureRequest, name: str
) -> None:
    project: Path = request.getfixturevalue(name)
    text = (project / "requirements-serve.txt").read_text()
    assert re.findall(r"^pegboard-medical\[(.*)\]$", text, re.M) == ["serve"]


@pytest.mark.parametrize("name", ["segmentation", "classification", "detection", "gallery"])
@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_every_variable_of_a_hospitals_compose_is_explained_and_no_secret_has_a_default(
    request: pytest.FixtureRequest, name: str, readme: str
) -> None:
    project: Path = request.getfixturevalue(name)
    found = VARIABLE.findall((project / "compose.yaml").read_text())
    explained = (project / readme).read_text(encoding="utf-8")
    assert {name for name, _, _ in found} == set(re.findall(r"^\| `([A-Z_]+)` \|", explained, re.M))
    assert all(kind == "?" or not SECRET.search(name) for name, kind, _ in found)


def test_an_inspection_server_is_not_asked_to_install_what_trains(inspection: Path) -> None:
    text = (inspection / "requirements-serve.txt").read_text()
    assert re.findall(r"^pegboard-defect\[(.*)\]$", text, re.M) == ["serve"]


def test_a_vehicles_image_is_given_no_scan_and_asks_for_nothing_that_trains(
    detection: Path, tmp_path: Path
) -> None:
    full = shutil.copytree(detection, tmp_path / "full")
    for name in (
        "bundle/bundle.json",
        "scans/1.bin",
        "data/objects-1.npz",
        "serve/a.jsonl",
        ".env",
    ):
        (full / name).parent.mkdir(parents=True, exist_ok=True)
        (full / name).write_text("x")
    own = ["hooks.py", "pegboard.toml", "requirements-serve.txt"]
    assert context_of(full) == sorted([*own, "bundle/bundle.json"])
    text = (full / "requirements-serve.txt").read_text()
    assert re.findall(r"^pegboard-lidar\[(.*)\]$", text, re.M) == ["serve"]
    # Open3D's system libraries are for what trains.
    assert "apt-get" not in (full / "Dockerfile").read_text()


def test_a_gallerys_image_is_given_no_picture_and_asks_for_nothing_that_trains(
    gallery: Path, tmp_path: Path
) -> None:
    full = shutil.copytree(gallery, tmp_path / "full")
    private = ["pictures/1.jpg", "index/index.db", "index/vectors-0.npy", "captions.csv", ".env"]
    private += ["data/scenes-1/captions.csv", "serve/thumbnails/1-384", "runs/2026/rows.npz"]
    for name in ("bundle/bundle.json", *private):
        (full / name).parent.mkdir(parents=True, exist_ok=True)
        (full / name).write_text("x")
    own = ["hooks.py", "pegboard.toml", "requirements-serve.txt"]
    assert context_of(full) == sorted([*own, "bundle/bundle.json"])
    text = (full / "requirements-serve.txt").read_text()
    assert re.findall(r"^pegboard-clip\[(.*)\]$", text, re.M) == ["serve"]


@pytest.mark.parametrize(
    ("architecture", "trains", "serves"),
    [
        ("small", "serve,train", "serve"),
        ("ViT-B-16", "clip,serve,train", "clip,serve"),
        ("chinese-clip", "chinese,serve,train", "serve"),
    ],
)
def test_a_gallery_asks_for_what_its_architecture_reads_texts_with(
    architecture: str, trains: str, serves: str, tmp_path: Path
) -> None:
    create(find_template("clip"), tmp_path / "mine", {"architecture": architecture})
    for name, extras in (("requirements.txt", trains), ("requirements-serve.txt", serves)):
        assert f"pegboard-clip[{extras}]" in (tmp_path / "mine" / name).read_text().splitlines()


def test_a_plugins_image_is_given_its_package_and_a_bundle(plugin: Path, tmp_path: Path) -> None:
    full = shutil.copytree(plugin, tmp_path / "full")
    (package,) = (path.parent.name for path in full.glob("*/hooks.py"))
    for name in ("bundle/bundle.json", ".env", "data/x.csv", f"{package}/__pycache__/a.pyc"):
        (full / name).parent.mkdir(parents=True, exist_ok=True)
        (full / name).write_text("x")
    given = context_of(full)
    assert {name.split("/")[0] for name in given} == {
        "README.md",
        "bundle",
        package,
        "pyproject.toml",
    }
    assert not [name for name in given if "__pycache__" in name]
    # Every path that COPY names from outside is among them.
    for name, rest in instructions(full / "Dockerfile"):
        flags, words = flags_and_rest(rest) if name == "COPY" else ({}, [])
        for word in [] if "from" in flags else words[:-1]:
            wanted = word.replace("${BUNDLE}", "bundle")
            assert any(path == wanted or path.startswith(f"{wanted}/") for path in given), word


def test_the_image_runs_as_nobody_in_particular_and_holds_no_secret(shipped: Path) -> None:
    project = shipped
    user, _, group = said(project, "USER").partition(":")
    assert int(user) > 0 < int(group)
    assert said(project, "STOPSIGNAL") == "SIGTERM"
    for name, rest in instructions(project / "Dockerfile"):
        if name in ("ENV", "ARG"):
            assert not SECRET.search(rest)
    assert "ORT_DISABLE_TELEMETRY=1" in said(project, "ENV").split()
    assert exec_form(said(project, "CMD"))[:2] == ["pegboard", "serve"]
    assert exec_form(said(project, "HEALTHCHECK"))[0] == "python"


def test_a_server_is_not_asked_to_install_what_trains(project: Path) -> None:
    text = (project / "requirements-serve.txt").read_text()
    assert re.findall(r"^pegboard-fraud\[(.*)\]$", text, re.M) == ["redis,serve"]
    development = (project / "requirements.txt").read_text()
    assert re.findall(r"^pegboard-fraud\[(.*)\]$", development, re.M) == ["redis,serve,train"]


def test_the_example_rules_are_valid_and_decide_nothing(project: Path) -> None:
    from pegboard_fraud.rules import load_rules

    rules = load_rules(project / "rules" / "rules.toml", hashed=str)
    assert {rule.mode for rule in rules.rules} == {"shadow"}


def test_compose_gives_no_service_more_than_it_needs(shipped: Path) -> None:
    services = composed(shipped)["services"]
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["restart"] == "unless-stopped"
        assert int(service["stop_grace_period"].removesuffix("s")) > ServeSettings().drain_seconds


def test_compose_lets_nobody_but_the_server_reach_the_store(project: Path) -> None:
    compose = composed(project)
    server, store = compose["services"]["server"], compose["services"]["store"]
    assert not {"ports", "expose", "network_mode"} & store.keys()
    assert store["networks"] == ["store"]
    assert compose["networks"]["store"]["internal"] is True
    assert all(port.startswith("127.0.0.1:") for port in server["ports"])
    assert server["depends_on"]["store"]["condition"] == "service_healthy"
    assert store["healthcheck"]["test"][0] == "CMD-SHELL"
    assert {volume.split(":")[0] for volume in store["volumes"]} <= compose["volumes"].keys()


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_every_variable_of_compose_is_explained_and_no_secret_has_a_default(
    project: Path, readme: str
) -> None:
    text = (project / "compose.yaml").read_text()
    explained = (project / readme).read_text(encoding="utf-8")
    found = VARIABLE.findall(text)
    assert {"PEGBOARD_SERVE_TOKEN", "PEGBOARD_REDIS_PASSWORD"} <= {name for name, _, _ in found}
    for name, kind, words in found:
        assert f"| `{name}` |" in explained
        assert kind == "?" or not SECRET.search(name)
        assert kind == "-" or "in .env" in words


def test_every_variable_of_a_plugins_compose_is_explained(plugin: Path) -> None:
    found = VARIABLE.findall((plugin / "compose.yaml").read_text())
    explained = (plugin / "README.md").read_text(encoding="utf-8")
    assert {name for name, _, _ in found} == set(re.findall(r"^\| `([A-Z_]+)` \|", explained, re.M))
    assert all(kind == "?" or not SECRET.search(name) for name, kind, _ in found)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_two_readmes_have_the_same_sections_and_commands(
    request: pytest.FixtureRequest, name: str
) -> None:
    project: Path = request.getfixturevalue(name)
    texts = [(project / f"README{end}.md").read_text(encoding="utf-8") for end in ("", ".zh-CN")]
    sections, commands = [], []
    for text in texts:
        sections.append(len(re.findall(r"^## ", text, flags=re.M)))
        blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.S)
        commands.append([re.sub(r"\s+# .*", "", "".join(block)) for block in blocks])
    assert sections[0] == sections[1]
    assert commands[0] == commands[1]


def composed(project: Path, **variables: str) -> Any:
    """Read compose.yaml with its variables filled in."""
    yaml = pytest.importorskip("yaml")

    def fill(found: re.Match[str]) -> str:
        name, kind, rest = found.groups()
        return variables.get(name, rest if kind == "-" else "given")

    return yaml.safe_load(VARIABLE.sub(fill, (project / "compose.yaml").read_text()))


# --------------------------------------------------------------------------- an image, undocked


@dataclass
class Image:
    """What building a Dockerfile gives, in a folder that stands for its root."""

    root: Path
    """Absolute paths of the Dockerfile lie below it."""
    environment: dict[str, str] = field(default_factory=dict)
    """`ENV`."""
    folder: Path = Path()
    """`WORKDIR`."""
    user: int | None = None
    """`USER`, where this machine lets us be another."""

    def below(self, text: str) -> str:
        """Return a text with the image's absolute paths as they are on this machine."""
        return re.sub(r"(?<![\w./}])/(?=opt/|build\b|app\b|var/lib/)", f"{self.root}/", text)

    def run(self, command: list[str] | str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Do what `docker exec` would, as the image's user."""
        return subprocess.run(
            command,
            shell=isinstance(command, str),
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            **self.identity(),
        )

    def identity(self) -> dict[str, Any]:
        """Return how `subprocess` becomes the image's user."""
        if self.user is None:
            return {}
        return {"user": self.user, "group": self.user, "extra_groups": []}


def built(project: Path, root: Path, tools: Path, **arguments: str) -> Image:
    """Do what a project's Dockerfile says."""
    image = Image(root=root)
    image.environment = {"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(root)}
    files = context_of(project)
    for name, rest in instructions(project / "Dockerfile"):
        if name == "ARG":
            key, _, default = rest.partition("=")
            arguments.setdefault(key, default)
            continue
        _do(image, name, rest, project, files, arguments)
    return image


def _do(
    image: Image,
    name: str,
    rest: str,
    project: Path,
    files: list[str],
    arguments: Mapping[str, str],
) -> None:
    if name == "RUN":
        _run(image, rest)
    elif name == "WORKDIR":
        image.folder = Path(image.below(rest))
        image.folder.mkdir(parents=True, exist_ok=True)
    elif name == "ENV":
        for key, value in (word.split("=", 1) for word in shlex.split(rest)):
            path = image.environment["PATH"]
            image.environment[key] = image.below(value).replace("$PATH", path)
    elif name == "COPY":
        for key, value in arguments.items():
            rest = rest.replace(f"${{{key}}}", value)
        _copy(image, rest, project, files)
    elif name == "USER" and may_be_another():
        image.user = int(rest.partition(":")[0])
    else:
        assert name in {"FROM", "VOLUME", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "CMD"}


def _run(image: Image, rest: str) -> None:
    command = image.below(re.sub(r"^(--\S+\s+)+", "", rest))
    if not may_be_another():
        command = re.sub(r"--(owner|group)=\d+", "", command)
    if command.startswith("install "):
        Path(command.split()[-1]).parent.mkdir(parents=True, exist_ok=True)
    # pip as this machine has it set up: where packages come from is not the image's matter.
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    ended = image.run(command, **pip)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def _copy(image: Image, rest: str, project: Path, files: list[str]) -> None:
    flags, words = flags_and_rest(rest)
    *sources, place = words
    if "from" in flags:  # Both stages share one root, so it is there.
        assert all(Path(image.below(source)).exists() for source in sources)
        return
    target = image.folder / place
    copied = 0
    for file in files:
        for source in sources:
            parts = file.split("/")
            depth = source.count("/") + 1
            if not _fits("/".join(parts[:depth]), source):
                continue
            # Of a folder the contents are copied, of a file itself.
            inside = target / Path(*(parts[depth:] or parts[-1:]))
            inside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(project / file, inside)
            inside.chmod(int(flags.get("chmod", "644"), 8))
            copied += 1
    assert copied, f"COPY {rest} finds nothing"


def may_be_another() -> bool:
    """Whether we are root and another user can use a Python of this machine."""
    return os.geteuid() == 0 and reachable(base_python())


def base_python() -> Path:
    """Return a Python that other users may execute, else the one that runs this."""
    ours = Path(sys.base_prefix, "bin", "python3").resolve()
    candidates = [ours, *(Path("/usr/bin", f"python3.{minor}") for minor in (11, 12, 13, 14))]
    return next((path for path in candidates if path.exists() and reachable(path)), ours)


def reachable(path: Path) -> bool:
    return all(part.stat().st_mode & 0o001 for part in (path.resolve(), *path.resolve().parents))


@pytest.fixture(scope="module")
def with_bundle(
    tmp_path_factory: pytest.TempPathFactory,
    pegboard: Callable[..., subprocess.CompletedProcess[str]],
) -> Path:
    """A project with a run, our distributions in wheels/, and things that must not be shipped."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("shop") / "shop"
    create(find_template("fraud"), folder, {})
    ended = pegboard("verify", "data.tiny=true", "train.epochs=1", folder=folder)
    assert ended.returncode == 0, ended.stderr
    for place in ("core", "plugins/fraud"):
        build = (sys.executable, "-m", "hatchling", "build", "-t", "wheel")
        wheels = ("-d", str(folder / "wheels"))
        subprocess.run((*build, *wheels), cwd=REPOSITORY / place, check=True, capture_output=True)
    (folder / ".env").write_text("PEGBOARD_SERVE_TOKEN=planted\n")
    return folder


@pytest.fixture(scope="module")
def image(with_bundle: Path) -> Iterator[Image]:
    """The project's image; the folder above pytest's own is closed to other users."""
    with tempfile.TemporaryDirectory(prefix="pegboard-image-") as made:
        root, tools = Path(made, "image"), Path(made, "tools")
        for folder in (Path(made), root, tools):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o755)
        (tools / "python").symlink_to(base_python())
        (tools / "pip").write_text(f'#!/bin/sh\nexec {sys.executable} -m pip "$@"\n')
        (tools / "pip").chmod(0o755)
        require_registry(Path(made, "probe"))
        (bundle,) = with_bundle.glob("runs/*/bundle")
        argument = bundle.relative_to(with_bundle).as_posix()
        yield built(with_bundle, root, tools, BUNDLE=argument)


def require_registry(folder: Path) -> None:
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder))
    if subprocess.run((*pip, "httptools"), capture_output=True).returncode:
        pytest.skip("no package registry can be reached, and an image is made from one")


@dataclass(frozen=True, kw_only=True)
class Container:
    """An image whose CMD runs."""

    process: subprocess.Popen[bytes]
    url: str
    healthy: Callable[[], bool]

    def ask(
        self, path: str, body: Any = None, token: str = "", method: str | None = None
    ) -> tuple[int, Any]:
        headers = {"content-type": "application/json"}
        headers |= {"authorization": f"Bearer {token}"} if token else {}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


@contextmanager
def running(image: Image, project: Path, **environment: str) -> Iterator[Container]:
    """Run the image's CMD, as `docker run --env` would, on a port that is free."""
    port = str(free_port())
    given = environment | {"PEGBOARD_SERVE__PORT": port}
    health, command = (exec_form(said(project, name)) for name in ("HEALTHCHECK", "CMD"))
    command[0] = str(shutil.which(command[0], path=image.environment["PATH"]))
    process = subprocess.Popen(
        command, cwd=image.folder, env=image.environment | given, **image.identity()
    )

    def healthy() -> bool:
        return image.run(health, **given).returncode == 0

    try:
        until = time.monotonic() + 60
        while not healthy() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        assert process.poll() is None, "the server ended"
        yield Container(process=process, url=f"http://127.0.0.1:{port}", healthy=healthy)
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    facts = {path: path.lstat() for path in folder.rglob("*")}
    return {str(path): (fact.st_size, fact.st_mtime_ns) for path, fact in facts.items()}


def payment(index: int) -> dict[str, Any]:
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + index))
    return {"id": f"p{index}", "time": moment, "customer": "c", "terminal": "t", "amount": 12.5}


@pytest.mark.slow
def test_the_image_holds_no_training_library_and_no_secret(image: Image) -> None:
    pip = (sys.executable, "-m", "pip", "--python", str(image.root / "opt/venv"))
    listed = subprocess.run((*pip, "list", "--format=json"), capture_output=True, text=True)
    installed = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert {"pegboard", "pegboard-fraud", "onnxruntime", "redis"} <= installed
    assert not TRAINING & installed
    assert "pip" not in installed
    app = image.root / "app"
    assert not [path for path in app.rglob("*") if path.is_file() and b"planted" in read(path)]
    (manifest,) = app.rglob("bundle.json")
    assert manifest == app / "bundles/current/bundle.json"


def read(path: Path) -> bytes:
    return path.read_bytes()


@pytest.mark.slow
def test_the_image_answers_and_ends_as_docker_asks(image: Image, with_bundle: Path) -> None:
    before = tree(image.root)
    manifest = json.loads((image.root / "app/bundles/current/bundle.json").read_text())
    token = secrets.token_hex(16)
    with running(image, with_bundle, PEGBOARD_SERVE_TOKEN=token) as container:
        if image.user is not None:
            facts = Path(f"/proc/{container.process.pid}/status").read_text()
            assert re.findall(r"^Uid:\s+(\d+)", facts, re.M) == [str(image.user)]
        example = manifest["signature"]["request"]
        assert container.ask("/predict", example)[0] == 401
        status, answered = container.ask("/predict", example, token)
        assert status == 200
        assert "queue" in answered["answers"][0], "the project's own hooks are not in the image"
        assert container.ask("/decisions", payment(0), token)[1]["recorded"] is True
        container.process.send_signal(getattr(signal, said(with_bundle, "STOPSIGNAL")))
        assert container.process.wait(30) == 0
        assert not container.healthy()
    volume = str(image.root / said(with_bundle, "VOLUME").lstrip("/"))
    changed = dict(tree(image.root).items() ^ before.items())
    assert [path for path in changed if not path.startswith(volume)] == []
    assert any(path.startswith(f"{volume}/") for path in changed), "nothing was remembered"


@pytest.mark.slow
def test_the_past_outlives_the_container_and_a_link_rolls_back(
    image: Image, with_bundle: Path
) -> None:
    """As docs/deploy.md has it: a folder of bundles with a link `current`, SIGHUP."""
    bundles = image.root / "app/bundles"
    original, first, second = (bundles / name for name in ("current", "first", "second"))
    admin = secrets.token_hex(16)
    original.rename(first)
    try:
        shutil.copytree(first, second)
        original.symlink_to("first")
        with running(image, with_bundle, PEGBOARD_ADMIN_TOKEN=admin) as container:
            asked = payment(1)
            assert container.ask("/decisions", asked)[1]["earlier"] is False
        with running(image, with_bundle, PEGBOARD_ADMIN_TOKEN=admin) as container:
            assert container.ask("/decisions", asked)[1]["earlier"] is True
            assert container.ask("/admin/bundle")[1]["folder"] == str(first)
            original.unlink()
            original.symlink_to("second")
            container.process.send_signal(signal.SIGHUP)
            until = time.monotonic() + 20
            while container.ask("/admin/bundle")[1]["folder"] != str(second):
                assert time.monotonic() < until
                time.sleep(0.1)
            back = container.ask("/admin/bundle", {"bundle": "first"}, admin, "PUT")
            assert (back[0], back[1]["folder"]) == (200, str(first))
    finally:
        original.unlink(missing_ok=True)
        first.rename(original)
        shutil.rmtree(second, ignore_errors=True)


@pytest.mark.slow
def test_the_services_of_compose_work_together(
    image: Image, with_bundle: Path, tmp_path: Path
) -> None:
    """Redis stands for Valkey where that is not installed; the command is compose's own."""
    password, port = secrets.token_hex(16), free_port()
    compose = composed(with_bundle, PEGBOARD_REDIS_PASSWORD=password)
    store, server = compose["services"]["store"], compose["services"]["server"]
    tools = valkey_tools(tmp_path)
    environment = {"PATH": f"{tools}:/usr/bin:/bin", **store["environment"]}
    command = [word.replace("$$", "$") for word in store["command"]]
    command[-1] = command[-1].replace("appendonly yes", f"appendonly yes\nport {port}\nsave ''")
    started = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    try:
        check = store["healthcheck"]["test"][1].replace("$$", "$")
        check = check.replace("valkey-cli", f"valkey-cli -p {port}")
        until = time.monotonic() + 20
        while subprocess.run(check, shell=True, env=environment, capture_output=True).returncode:
            assert time.monotonic() < until and started.poll() is None
            time.sleep(0.1)
        arguments = Path(f"/proc/{started.pid}/cmdline").read_bytes()
        assert password.encode() not in arguments
        wrong = environment | {"PEGBOARD_REDIS_PASSWORD": "wrong"}
        assert subprocess.run(check, shell=True, env=wrong, capture_output=True).returncode != 0
        given = dict(server["environment"])
        given["PEGBOARD_IDENTIFIER_KEY"] = secrets.token_hex(16)
        state = given["PEGBOARD_SERVE__STATE"]
        given["PEGBOARD_SERVE__STATE"] = state.replace("store:6379", f"127.0.0.1:{port}")
        token = given["PEGBOARD_SERVE_TOKEN"]
        with (
            running(image, with_bundle, **given) as one,
            running(image, with_bundle, **given) as two,
        ):
            asked = payment(2)
            first = one.ask("/decisions", asked, token)
            second = two.ask("/decisions", asked, token)
            assert (first[1]["earlier"], second[1]["earlier"]) == (False, True)
        started.terminate()
        assert started.wait(20) == 0
    finally:
        started.kill()
        started.wait()


def valkey_tools(folder: Path) -> Path:
    """Return a folder with Valkey's commands; Redis speaks the same."""
    tools = folder / "tools"
    tools.mkdir()
    for part in ("server", "cli"):
        found = shutil.which(f"valkey-{part}") or shutil.which(f"redis-{part}")
        if found is None:
            pytest.skip("neither Valkey nor Redis is installed")
        (tools / f"valkey-{part}").symlink_to(found)
    return tools

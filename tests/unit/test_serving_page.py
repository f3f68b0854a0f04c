"""The worked examples of serving: a question by HTTP and its answer; arrays, their scores, and that it is C."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from pages import Reader, commands, read_blocks

import flextopo
from flextopo.baselines.registry import make_selector
from flextopo.cli.serving import FALLBACK, SELECTOR
from flextopo.policies.runtime import load_policy
from flextopo.policies.serving.decider import Decider
from flextopo.policies.serving.extender import Extender
from flextopo.policies.serving.openapi import openapi_document
from flextopo.policies.serving.snapshot_file import load_snapshot
from flextopo.policies.serving.telemetry import CAUSES, Telemetry

PAGE = Path(flextopo.__file__).parents[1] / "docs" / "serving.md"
if not PAGE.exists():
    pytest.skip("installed without the repository's root", allow_module_level=True)
TEXT = PAGE.read_text()
FIRST = (PAGE.parent / "how-to" / "kube-scheduler.md").read_text()
CODE = re.findall(r"```c\n(.*?)```", TEXT, re.DOTALL)[0]
ARRAYS = {
    name: np.array(
        [float(text.rstrip("f")) for text in re.findall(r"-?\d+\.\d+f", body)], np.float32
    ).reshape([int(size) for size in re.findall(r"\d+", shape)])
    for name, shape, body in re.findall(
        r"static float (\w+)((?:\[\d+\])+) =\s*(\{.*?\});", CODE, re.DOTALL
    )
}

# As much of onnxruntime's interface as the example uses, so that a compiler can check it.
HEADER = """
#include <stddef.h>
#include <stdint.h>
#define ORT_API_VERSION 22
typedef struct OrtStatus OrtStatus; typedef struct OrtEnv OrtEnv;
typedef struct OrtSession OrtSession; typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtMemoryInfo OrtMemoryInfo; typedef struct OrtValue OrtValue;
typedef struct OrtRunOptions OrtRunOptions;
enum level { ORT_LOGGING_LEVEL_WARNING }; enum arena { OrtArenaAllocator };
enum memory { OrtMemTypeDefault }; enum element { ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT };
typedef struct {
    const char *(*GetErrorMessage)(const OrtStatus *);
    OrtStatus *(*CreateEnv)(enum level, const char *, OrtEnv **);
    OrtStatus *(*CreateSessionOptions)(OrtSessionOptions **);
    OrtStatus *(*SetIntraOpNumThreads)(OrtSessionOptions *, int);
    OrtStatus *(*CreateSession)(const OrtEnv *, const char *, const OrtSessionOptions *,
                                OrtSession **);
    OrtStatus *(*CreateCpuMemoryInfo)(enum arena, enum memory, OrtMemoryInfo **);
    OrtStatus *(*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo *, void *, size_t,
                                                 const int64_t *, size_t, enum element,
                                                 OrtValue **);
    OrtStatus *(*Run)(OrtSession *, const OrtRunOptions *, const char *const *,
                      const OrtValue *const *, size_t, const char *const *, size_t, OrtValue **);
    OrtStatus *(*GetTensorMutableData)(OrtValue *, void **);
} OrtApi;
typedef struct { const OrtApi *(*GetApi)(uint32_t); } OrtApiBase;
const OrtApiBase *OrtGetApiBase(void);
"""


def test_the_examples_arrays_are_the_artifacts() -> None:
    assert list(ARRAYS) == ["preemptor", "cluster", "candidates", "mask"]
    read = {part: len(names) for part, names in load_policy("deepset-imitation").names.items()}
    assert ARRAYS["preemptor"].shape == (1, read["preemptor"])
    assert ARRAYS["cluster"].shape == (1, read["cluster"])
    assert ARRAYS["candidates"].shape == (1, 2, read["candidates"])
    assert ARRAYS["mask"].shape == (1, 3)
    names = re.search(r"names\[\] = \{(.*?)\}", CODE)
    assert names is not None
    assert json.loads(f"[{names[1]}]") == list(ARRAYS)


def test_the_examples_scores_are_the_artifacts(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    from flextopo.policies.export import export_policy

    model = export_policy("deepset-imitation", tmp_path / "exported") / "model.onnx"
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (scores,) = session.run(["scores"], ARRAYS)
    printed = " ".join(f"{score:.3f}" for score in scores[0])
    assert f"```\n{printed}\n```" in TEXT, printed


def test_the_example_is_c(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    (tmp_path / "onnxruntime_c_api.h").write_text(HEADER)
    (tmp_path / "example.c").write_text(CODE)
    command = ["gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I."]
    done = subprocess.run(
        [*command, "example.c"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_page_names_every_route_and_every_cause() -> None:
    for path in openapi_document()["paths"]:
        assert path.rpartition("/")[2] in TEXT
    for cause in CAUSES:
        assert f"`{cause}`" in TEXT


def line_of(command: str) -> str:
    """Return the line of the first page that begins with a command."""
    lines = [line for block in read_blocks(FIRST) for line in block.text.splitlines()]
    (found,) = [line for line in lines if line.startswith(command)]
    return found


def test_the_first_question_is_answered_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reader, blocks = Reader(tmp_path, small=True), read_blocks(FIRST)
    for block in blocks:
        if block.file or block.text.startswith("flextopo topology"):
            reader.follow(block)
    subprocess.run(["sh", "-c", line_of("cat pods.yaml")], check=True)
    ((*_, url, _, body),) = commands(line_of("curl"))
    assert (url.rpartition("/")[2], body) == ("preempt", "@preempt.json")
    (asked,) = [i for i, block in enumerate(blocks) if "curl" in block.text]
    cache = load_snapshot(tmp_path / "cluster.yaml")
    assert not cache.problems
    decider = Decider(cache, make_selector(SELECTOR), make_selector(FALLBACK), 60.0)
    extender = Extender(decider, Telemetry(cache, write=lambda line: None))
    question = (tmp_path / "preempt.json").read_bytes()
    answer = extender.preempt(question).decode()
    assert answer == blocks[asked + 1].text.strip()
    assert extender.preempt(question).decode() == answer
    other = json.loads(extender.preempt(question.replace(b"u-online", b"u-other")))
    assert "u-1" not in str(other)
    assert other["NodeNameToMetaVictims"]["node-0"]["Pods"]


def test_the_image_is_named_where_the_page_says(tmp_path: Path) -> None:
    shutil.copytree(PAGE.parents[1] / "deploy", tmp_path / "deploy")
    subprocess.run(["sh", "-c", line_of("sed -i")], cwd=tmp_path, check=True)
    image = {"name": "flextopo", "newName": "registry.example/flextopo", "newTag": "mine"}
    for folder in ("base", "controller", "agent"):
        text = (tmp_path / "deploy" / folder / "kustomization.yaml").read_text()
        assert yaml.safe_load(text)["images"] == [image]
        assert f"`deploy/{folder}`" in FIRST
    assert f"-t {image['newName']}:{image['newTag']} ." in line_of("docker build")


def test_one_selector_is_the_one_to_begin_with() -> None:
    deploy = PAGE.parents[1] / "deploy"
    manifests = [deploy / "base" / "extender.yaml", deploy / "controller" / "controller.yaml"]
    for path in manifests:
        assert re.findall(r"--selector=(\S+)", path.read_text()) == [SELECTOR]
    values = yaml.safe_load((deploy / "chart" / "flextopo" / "values.yaml").read_text())
    assert values["selector"] == SELECTOR
    assert re.findall(r"Begin with `([\w-]+)`", FIRST) == [SELECTOR]
    assert f"The selector is `{SELECTOR}` unless" in TEXT

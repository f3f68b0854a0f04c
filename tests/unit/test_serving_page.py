"""The worked example in docs/serving.md: its arrays, its scores, and that it is C."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import flextopo
from flextopo.policies.runtime import load_policy
from flextopo.policies.serving.openapi import openapi_document
from flextopo.policies.serving.telemetry import CAUSES

PAGE = Path(flextopo.__file__).parents[1] / "docs" / "serving.md"
if not PAGE.exists():
    pytest.skip("installed without the repository's root", allow_module_level=True)
TEXT = PAGE.read_text()
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

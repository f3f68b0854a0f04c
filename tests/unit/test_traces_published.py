"""Published traces are read as they are, and converted to what users write."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trace_texts as texts

from flextopo.cli.app import main
from flextopo.cluster.errors import FlextopoError, WorkloadError
from flextopo.cluster.workload import trace_json
from flextopo.cluster.workload.batch_jobs import BatchJobs
from flextopo.cluster.workload.trace_convert import convert_traces
from flextopo.cluster.workload.trace_readers import KINDS, read_traces
from flextopo.cluster.workload.traces import read_jobs, read_services


def write(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("text", [texts.AZURE_2023, texts.AZURE_2023.split("\n", 1)[1]])
def test_azure_keeps_the_hour_of_day(tmp_path: Path, text: str) -> None:
    """Also a part of a file, which has no line of names."""
    read = read_services(write(tmp_path, text, "conv.csv"))
    assert read.names == ("conv",)
    assert read.first == 18 * 6 + 1
    # Two requests in the 177 s of the first window that are covered, one in the first 5 min of the next.
    np.testing.assert_allclose(read.rates, [[2 / 177, 1 / 301]])
    assert "day 0 is 2023-11-16" in read.notes


def test_azure_2024_has_days_and_an_offset(tmp_path: Path) -> None:
    read = read_services(write(tmp_path, texts.AZURE_2024))
    assert (read.aligned, read.first, read.rates.shape) == (True, 0, (1, 288))
    assert read.rates[0, 0] == pytest.approx(2 / 600)
    assert read.rates[0, -1] == pytest.approx(1 / 600)
    assert read.notes == "day 0 is 2024-05-10"


def test_mooncake_counts_milliseconds(tmp_path: Path) -> None:
    read = read_services(write(tmp_path, texts.MOONCAKE, "conversation_trace.jsonl"))
    assert read.names == ("conversation_trace",)
    np.testing.assert_allclose(read.rates, [[2 / 600, 1 / 60]])


def test_servegen_is_called_by_model_and_client(tmp_path: Path) -> None:
    read = read_services(write(tmp_path, texts.SERVEGEN, "m-large/chunk-7-trace.csv"))
    assert read.names == ("m-large/7",)
    np.testing.assert_allclose(read.rates, [[1.5, 0, 0.15]])


def test_philly_runs_for_the_sum_of_its_attempts(tmp_path: Path) -> None:
    jobs = read_jobs(write(tmp_path, texts.PHILLY, "cluster_job_log"))
    assert jobs.sources == ("philly",)
    # Seconds from 00:00 of the first day; the first attempt's GPUs; no time between attempts.
    assert jobs.submit_s.tolist() == [23 * 3600, 86400 + 4299, 30 * 86400 + 3600]
    assert jobs.duration_s.tolist() == [40, 60 + 86400, 600]
    assert jobs.total_gpus.tolist() == [12, 8, 2]
    assert jobs.notes[0].split(", ") == [
        "3 never started or without times left out",
        "1 run over 24 h",
        "1 with attempts of other GPUs than the first",
        "1 attempts that end before they start left out",
        "1 with the id of another",
        "day 0 is 2017-10-06",
    ]


def test_pollux_and_elasticflow(tmp_path: Path) -> None:
    jobs = read_jobs(write(tmp_path, texts.POLLUX, "philly.csv"))
    assert jobs.submit_s.tolist() == [6 * 3600 + 783, 86400 + 7 * 3600 + 115]
    assert jobs.total_gpus.tolist() == [20, 1]
    assert jobs.notes == ("1 run over 24 h, day 0 is 2017-10-08",)
    jobs = read_jobs(write(tmp_path, texts.ELASTICFLOW, "ef.csv"))
    assert jobs.submit_s.tolist() == [3715485, 3717550]
    assert jobs.total_gpus.tolist() == [1, 16]


def test_pai_sums_tasks_and_rounds_up_once(tmp_path: Path) -> None:
    tasks = write(tmp_path, texts.PAI_TASKS, "pai_task_table.csv")
    jobs = read_jobs(tasks)
    hour = 8 * 3600  # the trace's clock is UTC+8
    assert jobs.submit_s.tolist() == [1010 + hour, 2000 + hour, 57600 + hour]
    assert jobs.duration_s.tolist() == [3590, 600, 86401]
    assert jobs.total_gpus.tolist() == [2, 1, 24]
    assert jobs.notes[0].split(", ") == [
        "1 never ended left out",
        "1 CPU-only left out",
        "1 shares of a GPU rounded up to one",
        "1 run over 24 h",
        "1 tasks without inst_num left out",
    ]
    table = write(tmp_path, texts.PAI_JOBS, "pai_job_table.csv")
    for paths in ((tasks, table), (table, tasks)):
        (rows,) = read_traces(paths)
        again: BatchJobs = rows.jobs()  # type: ignore[union-attr]
        assert again.submit_s.tolist() == [900 + hour, 2000 + hour, 57590 + hour]
        assert "1 started before their submission, submitted as started" in again.notes[0]


@pytest.mark.parametrize("name", sorted(texts.DEMAND))
def test_converted_demand_is_read_the_same(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, texts.DEMAND[name], "m.csv")
    made = write(tmp_path, convert_traces([path]).text, "converted.csv")
    ours, theirs = read_services(made), read_services(path)
    assert (ours.names, ours.first, ours.aligned) == (theirs.names, theirs.first, theirs.aligned)
    np.testing.assert_array_equal(ours.rates, theirs.rates)


@pytest.mark.parametrize("name", sorted(texts.BATCH))
def test_converted_jobs_are_read_the_same(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, texts.BATCH[name], "m.csv")
    made = write(tmp_path, convert_traces([path]).text, "converted.csv")
    ours, theirs = read_jobs(made), read_jobs(path)
    for field in ("submit_s", "duration_s", "gpus", "pods", "rest", "sources"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))


def test_parts_of_one_service_and_several_services(tmp_path: Path) -> None:
    head, *rows = texts.AZURE_2024.splitlines(keepends=True)
    parts = [write(tmp_path, head + rows[0], "xaa"), write(tmp_path, "".join(rows[1:]), "xab")]
    made = write(tmp_path, convert_traces(parts, service="code", tokens_per_s=10).text)
    whole = read_services(write(tmp_path, texts.AZURE_2024, "code.csv"))
    assert read_services(made).names == ("code",)
    np.testing.assert_array_equal(read_services(made).rates, whole.rates)
    # Other dates: on the clock of the earliest, and gaps where one has nothing.
    clock = [write(tmp_path, head + rows[0], "early"), write(tmp_path, head + rows[2], "late")]
    lines = convert_traces(clock).text.splitlines()
    assert lines[1].startswith("early,0,0.")
    assert f"late,{287 * 600},{1 / 60}" in lines
    assert "late,0," in lines


def test_tokens_tell_replicas(tmp_path: Path) -> None:
    path = write(tmp_path, texts.REQUESTS, "r.csv")
    (said, _) = convert_traces([path], tokens_per_s=0.3).said
    assert said == (
        "r: 3 requests of 135 tokens in and 9 out; 1 tokens/s in the busiest 10 min, 3 replicas of "
        "0.3 tokens/s"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            texts.AZURE_2023.replace("18:17:04", "18:61:04"),
            ":3: TIMESTAMP = '2023-11-16 18:61:04.0",
        ),
        (
            texts.AZURE_2023.replace("2023-11-16 18:25", "0023-11-16 18:25"),
            ":4: TIMESTAMP = '0023-",
        ),
        (
            texts.AZURE_2024.replace("05-11 23:59:59.929501+00", "05-11 23:59:59.929501+08"),
            ":4: TIM",
        ),
        (
            texts.AZURE_2023.replace("3180", "nan"),
            ":3: ContextTokens = 'nan'; legal: a number from",
        ),
        (
            texts.SERVEGEN.replace("600,0,", "600,-1,"),
            ":2: rate_rps = '-1'; legal: a number from 0",
        ),
        (texts.SERVEGEN.replace("1200", "600"), ":3: t_s = 600 of 'trace' twice; legal: once for"),
        (texts.MINUTES + "1,5\n", ":5: minute = 1 twice; legal: each minute once"),
        (texts.MOONCAKE.replace("599999", "NaN"), ":2: NaN is no number; legal: objects of JSON"),
        (
            texts.MOONCAKE.replace("599999", '"5"'),
            ":2: timestamp = \"'5'\"; legal: a number from 0",
        ),
        (texts.MOONCAKE.replace("599999", "1e400"), ":2: timestamp = 'Infinity'; legal: a number"),
        (texts.MOONCAKE.replace('{"timestamp": 599999,', "{"), ":2: no 'timestamp'; legal: one in"),
        (
            texts.MOONCAKE.replace('"input_length": 20', '"timestamp": 1'),
            ":2: key 'timestamp' twice",
        ),
        (texts.MOONCAKE + "[1]\n", ":4: '[1]\\n'; legal: objects of JSON"),
        ('{"timestamp": ' + "[" * 9000 + "]" * 9000 + "}", ":1: nested too deeply; legal:"),
        ("[]", ": a list without an object; legal: one at least"),
        (
            texts.SERVICES + "chat,0,2\n",
            ":7: t_s = 0 of 'chat' twice; legal: once for each service",
        ),
    ],
)
def test_illegal_demand_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(WorkloadError) as caught:
        read_services(path)
    assert str(caught.value).startswith(f"{path}{message}")
    assert "\n" not in str(caught.value)


def changed(**fields: Any) -> str:
    return json.dumps([texts.PHILLY_JOBS[1] | fields])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (changed(attempts=None), ":1: attempts missing; legal: a list of up to 10000"),
        (changed(attempts=[3]), ":1: an attempt = 3; legal: a map of fields"),
        (changed(attempts=[{"detail": [1]}]), ":1: a detail = 1; legal: a map of fields"),
        (
            changed(attempts=[texts.philly_attempt("noon", None)]),
            ":1: time = 'noon'; legal: a time",
        ),
        (
            changed(submitted_time="2017-02-30 00:00:00"),
            ":1: time = '2017-02-30 00:00:00'; legal: a",
        ),
        (
            changed(submitted_time=5),
            ":1: submitted_time = 5; legal: a text of up to 256 characters",
        ),
        (texts.PHILLY[:-1], ":185: no single list; legal: [ objects ] and nothing else"),
        (texts.PHILLY + "]", ":185: no single list; legal: [ objects ] and nothing else"),
        (
            texts.PHILLY[:-1] + ",]",
            ":163: a comma before the ]; legal: an object behind each comma",
        ),
        (texts.PHILLY[:-1] + "5]", ":163: '5]' after an object; legal: , or ]"),
        (texts.PAI_JOBS, ":1: columns job_name,inst_id,user,status,start_time,end_time; legal:"),
        (
            texts.PAI_TASKS.replace("24.0", "1e6").replace("100.0,T4", "1000,T4"),
            ":5: inst_num x plan",
        ),
        (texts.ELASTICFLOW.replace(",16,", ",inf,"), ":3: num_gpu = 'inf'; legal: a number from 0"),
    ],
)
def test_illegal_jobs_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(WorkloadError) as caught:
        read_jobs(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_json_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_json, "MAX_ROWS", 2)
    with pytest.raises(WorkloadError, match=r"log:3: more than 2 rows; legal: up to 2"):
        read_services(write(tmp_path, texts.MOONCAKE, "log"))
    monkeypatch.setattr(trace_json, "MAX_OBJECT", 640)
    with pytest.raises(WorkloadError, match=r"log:2: .*and no end within 640 characters"):
        read_jobs(write(tmp_path, texts.PHILLY, "log"))
    long = texts.MOONCAKE.replace("6758", '"' + "x" * 300 + '"')
    with pytest.raises(WorkloadError, match=r"log:1: input_length of 302 characters; legal: up to"):
        read_services(write(tmp_path, long, "log"))


def test_an_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pai_task_table.tar.gz"
    path.write_bytes(gzip.compress(b"pai_task_table.csv".ljust(257, b"\0") + b"ustar"))
    with pytest.raises(WorkloadError, match=r"a tar archive; legal: the file in it, after `tar"):
        read_jobs(path)


@pytest.mark.parametrize(
    ("names", "more", "message"),
    [
        (
            ("azure-2023", "pollux"),
            {},
            "1 of 2 files have jobs and the others demand; legal: one of",
        ),
        (("pollux",), {"service": "x"}, "service 'x' with files of jobs; legal: with logs"),
        (("servegen",), {"service": "x"}, "service 'x' with rates of named services; legal: with"),
        (("requests", "azure-2023"), {"service": "x"}, "times without dates beside others with"),
        (("services", "services"), {}, "services.csv: given twice; legal: each file once"),
        (("requests",), {"tokens_per_s": 0.0}, "tokens_per_s = 0; legal: above 0"),
        (("requests",), {"kind": "azur"}, "unknown kind of trace 'azur'; legal: azure, "),
        (
            ("requests",),
            {"kind": "azure"},
            r"requests.csv:1: columns t_s,input_tokens,output_tokens",
        ),
    ],
)
def test_what_does_not_go_together_is_named(
    tmp_path: Path, names: tuple[str, ...], more: dict[str, Any], message: str
) -> None:
    every = {**texts.DEMAND, **texts.BATCH}
    paths = [write(tmp_path, every[name], f"{name}.csv") for name in names]
    with pytest.raises(FlextopoError, match=message):
        convert_traces(paths, **more)


def test_names_in_two_files_are_told(tmp_path: Path) -> None:
    paths = [write(tmp_path, texts.SERVICES, f"{part}/services.csv") for part in "ab"]
    with pytest.raises(
        WorkloadError, match=r"service 'chat' in services\.csv, services\.csv; legal:"
    ):
        convert_traces(paths)
    paths = [write(tmp_path, texts.JOBS, f"{part}/jobs.csv") for part in "ab"]
    with pytest.raises(
        WorkloadError, match="source 'jobs' of jobs in two files; legal: files with"
    ):
        convert_traces(paths)


def test_the_table_of_jobs_alone_tells_no_gpus(tmp_path: Path) -> None:
    table = write(tmp_path, texts.PAI_JOBS)
    with pytest.raises(
        WorkloadError, match="pai_job_table, which tells no GPUs; legal: one, togeth"
    ):
        convert_traces([table])


def test_a_file_given_twice_counts_once(tmp_path: Path) -> None:
    path = write(tmp_path, texts.AZURE_2023)
    with pytest.raises(WorkloadError, match=r"trace\.csv: given twice; legal: each file once"):
        convert_traces([path, tmp_path / "." / "trace.csv"], service="code")


def test_every_kind_has_a_text_here() -> None:
    every = {**texts.DEMAND, **texts.BATCH}
    assert {name.partition("-")[0] for name in every} == set(KINDS)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in arguments])
    said = capsys.readouterr()
    return int(stop.value.code or 0), said.out, said.err


@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz"])
def test_the_command_writes_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path, out = write(tmp_path, texts.SERVICES), tmp_path / "made" / name
    code, said, _ = run(capsys, "trace", "convert", path, "--out", out)
    assert code == 0
    assert said == (
        "2 services over 0.5 h; in a comparison: 2 gaps of 10 min interpolated, shorter than a day, so "
        f"not aligned to the hour of day\n{out}: 6 rows\n"
    )
    np.testing.assert_array_equal(read_services(out).rates, read_services(path).rates)
    code, said, _ = run(capsys, "trace", "convert", path, "--out", out, "--json")
    assert json.loads(said)["rows"] == 6


def test_a_mistake_leaves_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write(tmp_path, texts.SERVICES + "chat,x,1\n"), tmp_path / "s.csv"
    code, said, error = run(capsys, "trace", "convert", path, "--out", out)
    assert (code, said) == (2, "")
    assert error == f"error: {path}:7: t_s = 'x'; legal: a number from 0 to 1e+11\n"
    assert not out.exists()
    for place in (tmp_path, tmp_path / "s.txt"):
        code, _, error = run(capsys, "trace", "convert", path, "--out", place)
        assert code == 2
        assert error == f"error: --out {place}; legal: a file to write, .csv or .csv.gz\n"


def test_what_is_left_out_is_counted_once(tmp_path: Path) -> None:
    """A pod that was online, never scheduled and without a GPU is one pod, not three."""
    jobs = read_jobs(
        write(
            tmp_path,
            "num_gpu,gpu_milli,qos,creation_time,deletion_time,scheduled_time\n"
            "1,1000,BE,0,9,1\n0,0,LS,0,9,\n0,0,BE,0,9,\n0,0,BE,0,9,1\n",
        )
    )
    assert jobs.notes == (
        "1 online (LS) left out, 1 never scheduled left out, 1 CPU-only left out",
    )


def test_a_job_of_philly_without_attempts_never_started(tmp_path: Path) -> None:
    job = json.loads(texts.PHILLY)[0]
    never = {**job, "jobid": "never", "attempts": []}
    jobs = read_jobs(write(tmp_path, json.dumps([job, never]), "cluster_job_log"))
    assert "1 never started or without times left out" in jobs.notes[0]
    assert "CPU-only" not in jobs.notes[0]


@pytest.mark.parametrize(
    "text",
    [
        'service,t_s,rate_rps\n"a\nb",0,1\n', "service,t_s,rate_rps\n ,0,1\n",
        "model,t_s,rate_rps,valid\na\x1b[31m,0,1,1\n", "submit_s,duration_s,gpus,source\n0,5,1,\n",
    ],
)  # fmt: skip
def test_names_are_of_printed_characters(tmp_path: Path, text: str) -> None:
    with pytest.raises(WorkloadError, match=r":[23]: .* legal: a name of printed characters"):
        convert_traces([write(tmp_path, text)])
    for service in ("", "a\nb"):
        with pytest.raises(WorkloadError, match="legal: a name of printed characters"):
            convert_traces([write(tmp_path, texts.MOONCAKE)], service=service)


def test_what_is_read_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write(tmp_path, "submit_s,duration_s,gpus\n0,5,1\n"), tmp_path / "out.csv"
    before = path.read_bytes()
    for more in (["-o", path], ["-o", out, "--json", path], ["-o", out, "--json", out]):
        code, _, said = run(capsys, "trace", "convert", path, *more)
        assert code == 2
        assert "is a file of this call already; legal: another" in said
        assert path.read_bytes() == before
        assert not out.exists()

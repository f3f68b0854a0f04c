"""Readers of traces: every format, every bad input, and the tapes made of them."""

from __future__ import annotations

import gzip
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flextopo.cluster.errors import WorkloadError
from flextopo.cluster.workload.batch_jobs import BatchJobs, join_jobs
from flextopo.cluster.workload.generator import WorkloadConfig
from flextopo.cluster.workload.tape import Tape
from flextopo.cluster.workload.trace_rates import ServiceRates
from flextopo.cluster.workload.traces import read_jobs, read_services, tape_from_traces

DAY = 86400
OPENB_HEADER = (
    "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,"
    "creation_time,deletion_time,scheduled_time\n"
)


def write(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    return path


def make_services(days: int = 3, services: int = 4) -> ServiceRates:
    """Services whose rate tells day, step and service apart."""
    step = np.arange(days * 144)
    wave = 2 + np.sin(2 * np.pi * step / 144)
    rates = wave * (1 + step // 144)[None] * (1 + np.arange(services))[:, None]
    return ServiceRates(tuple("abcdefgh"[:services]), rates.astype(np.float64), True, "made.csv")


def make_jobs(days: int = 3, per_day: int = 500, gpus: int = 2) -> BatchJobs:
    count = days * per_day
    submit = np.linspace(0, days * DAY - 1, count).astype(np.int64)
    ones = np.ones(count, np.int64)
    duration = 600 + np.arange(count) % 7 * 1000
    return BatchJobs(submit, duration, gpus * ones, ones, 0 * ones, ("made",), ("2 left out",))


def new_batch(tape: Tape) -> npt.NDArray[np.bool_]:
    return ~tape.pods["online"] & (tape.pods["arrive_s"] > -tape.warmup_s)


def test_reads_services_with_gaps(tmp_path: Path) -> None:
    rows = [f"{s},{t},{t / 600 + 1},0.5" for s in ("b", "a") for t in range(0, DAY, 600)]
    rows[2] = "b,1200,,0.5"
    for name in ("s.csv", "s.csv.gz"):
        read = read_services(
            write(tmp_path, "service,t_s,rate_rps,iat_cv\n" + "\n".join(rows), name)
        )
        assert read.names == ("a", "b")
        assert read.aligned
        np.testing.assert_allclose(read.rates, [np.arange(1, 145)] * 2)
        assert read.notes == "1 gaps of 10 min interpolated"
        assert read.source == name


def test_reads_totals_and_leaves_invalid_windows_out(tmp_path: Path) -> None:
    text = "model,t_s,rate_rps,valid\nm,0,1,1\nm,600,99,0\nm,1200,3,1\nn,0,5,0\n"
    read = read_services(write(tmp_path, text))
    assert read.names == ("m",)
    np.testing.assert_allclose(read.rates, [[1, 2, 3]])
    assert "1 services without a rate left out" in read.notes
    assert "not aligned" in read.notes
    assert not read.aligned


def test_finer_windows_are_averaged_and_incomplete_days_cut(tmp_path: Path) -> None:
    times = range(DAY - 3000, 2 * DAY + 1200, 300)
    rows = "".join(f"x,{t},{1 + t // 300 % 2}\n" for t in times)
    read = read_services(write(tmp_path, "service,t_s,rate_rps\n" + rows))
    assert read.aligned
    np.testing.assert_allclose(read.rates, np.full((1, 144), 1.5))


def test_reads_requests_of_each_minute(tmp_path: Path) -> None:
    rows = "".join(f"{minute},{60 if minute < 10 else 120},1,1\n" for minute in range(15))
    read = read_services(write(tmp_path, "minute,requests,input_tokens,output_tokens\n" + rows))
    assert read.names == ("trace",)
    np.testing.assert_allclose(read.rates, [[1.0, 2.0]])


def test_reads_a_list_of_requests(tmp_path: Path) -> None:
    rows = "".join(f"{second / 2},100,10\n" for second in range(1800))
    read = read_services(write(tmp_path, "t_s,input_tokens,output_tokens\n" + rows, "r.csv.gz"))
    np.testing.assert_allclose(read.rates, [[2.0, 2.0]], rtol=0.01)


def test_reads_jobs_of_several_sources(tmp_path: Path) -> None:
    text = (
        "source,submit_s,duration_s,gpus,gpu_frac,cpus,mem_gib,qos,priority\n"
        "openb,50,100,1,0.5,6,12,BE,0\n"
        "openb,40,100,1,1.0,6,12,LS,2\n"
        "openb,45,100,2,,6,12,Burstable,1\n"
        "openb,46,100,2,,6,12,Guaranteed,3\n"
        "philly,10.7,99.6,8,1,,,LS,0\n"
        "philly,20,0,0,1,,,,0\n"
    )
    jobs = read_jobs(write(tmp_path, text))
    assert jobs.sources == ("openb", "philly")
    assert jobs.submit_s.tolist() == [10, 45, 50]
    assert jobs.duration_s.tolist() == [100, 100, 100]
    assert jobs.gpus.tolist() == [8, 2, 1]
    assert jobs.pods.tolist() == [1, 1, 1]
    assert jobs.source.tolist() == [1, 0, 0]
    assert jobs.notes == (
        "2 online (LS) left out, 1 shares of a GPU rounded up to one",
        "1 CPU-only left out",
    )


@pytest.mark.parametrize(
    "columns", ["submit_s,duration_s,nodes,gpus,cpus", "submit_s,duration_s,vc,gpus,cpus"]
)
def test_jobs_over_eight_gpus_become_groups(tmp_path: Path, columns: str) -> None:
    jobs = read_jobs(write(tmp_path, f"{columns}\n0,104.0,8,64,960\n5,10.0,1,8,96\n9,7,2,12,1\n"))
    assert jobs.gpus.tolist() == [8, 8, 8]
    assert jobs.pods.tolist() == [8, 1, 2]
    assert jobs.rest.tolist() == [0, 0, 4]
    assert jobs.total_gpus.tolist() == [64, 8, 12]


def test_reads_openb_as_published(tmp_path: Path) -> None:
    rows = (
        "p0,12000,16384,1,1000,,LS,Running,0,12537496,0\n"
        "p1,6000,12288,1,460,,BE,Failed,100,400,150\n"
        "p2,6000,12288,0,0,,BE,Running,100,400,150\n"
        "p3,6000,12288,1,1000,,BE,Pending,100,400,\n"
        "p4,6000,12288,8,1000,T4,Burstable,Succeeded,90,1090,90\n"
    )
    jobs = read_jobs(write(tmp_path, OPENB_HEADER + rows, "openb_pods.csv"))
    assert jobs.submit_s.tolist() == [90, 100]
    assert jobs.duration_s.tolist() == [1000, 250]
    assert jobs.gpus.tolist() == [8, 1]
    assert len(jobs.notes) == 1
    assert jobs.notes[0].split(", ") == [
        "1 online (LS) left out",
        "1 never scheduled left out",
        "1 CPU-only left out",
        "1 shares of a GPU rounded up to one",
    ]


JOBS = "submit_s,duration_s,gpus\n"
SERVICES = "service,t_s,rate_rps\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (JOBS + "0,60,1\n5,-3,1\n", ":3: duration_s = '-3'; legal: a number from 0 to"),
        (JOBS + "-1,60,1\n", ":2: submit_s = '-1'; legal: a number from 0 to"),
        (JOBS + "0,60,1\n\n0,abc,1\n", ":4: duration_s = 'abc'; legal: a number"),
        (JOBS + "0,,1\n", ":2: duration_s = ''; legal: a number"),
        (JOBS + "0,nan,1\n", ":2: duration_s = 'nan'; legal: a number"),
        (JOBS + "0,inf,1\n", ":2: duration_s = 'inf'; legal: a number"),
        (JOBS + "0,1_0,1\n", ":2: duration_s = '1_0'; legal: a number"),
        (JOBS + "0,60,16\n", ":2: gpus = '16'; legal: a number from 0 to 8"),
        (JOBS + "0,60,1\n5,60\n", ":3: 2 fields; legal: 3, as in the header"),
        (JOBS + "0,60,1,9\n", ":2: 4 fields; legal: 3, as in the header"),
        (JOBS + "0,60,0\n", ": no batch job with a GPU; legal: one at least"),
        (JOBS, ": a header and no rows; legal: one row at least"),
        ("", ": empty file; legal: a header line and one row at least"),
        (" \n\n", ": empty file; legal: a header line and one row at least"),
        ("a,b\n1,2\n", ":1: columns a,b; legal: submit_s,duration_s,gpus or num_gpu,gpu_milli"),
        ("a,a\n1,2\n", ":1: column 'a' twice; legal: each name once"),
        (
            OPENB_HEADER + "p,1,1,1,1000,,BE,Failed,100,40,50\n",
            ":2: deletion_time = '40'; legal: scheduled_time = 50 or more",
        ),
    ],
)
def test_bad_jobs_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(WorkloadError) as caught:
        read_jobs(path)
    assert str(caught.value).startswith(f"{path}{message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SERVICES + "a,0,1\na,600,-2\n", ":3: rate_rps = '-2'; legal: a number from 0 to"),
        (SERVICES + "a,zero,1\n", ":2: t_s = 'zero'; legal: a number from 0 to"),
        (SERVICES + "a,0,\n", ": no window with a rate; legal: one at least"),
        (SERVICES + "a,0,1\na,9e10,1\n", ":3: t_s spans 150000001 steps"),
        ("minute,requests\n0,1\n1000000000,5\n", ":3: t_s spans 100000000 steps"),
        ("minute,requests\n0,x\n", ":2: requests = 'x'; legal: a number"),
        ("t_s,rate\n0,1\n", ":1: columns t_s,rate; legal: service,t_s,rate_rps or model,"),
    ],
)
def test_bad_services_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(WorkloadError) as caught:
        read_services(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"none\.csv: no such file; legal: a trace as csv"):
        read_jobs(tmp_path / "none.csv")
    with pytest.raises(WorkloadError, match="legal: a readable csv"):
        read_services(str(tmp_path))


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_gzip_is_named(tmp_path: Path, damage: str) -> None:
    path = write(
        tmp_path, JOBS + "".join(f"{i},{i * 37 % 991},1\n" for i in range(999)), "j.csv.gz"
    )
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 0xFF
    path.write_bytes(data[: len(data) // 2] if damage == "cut" else data)
    with pytest.raises(WorkloadError, match=r"j\.csv\.gz: damaged or cut-off gzip file"):
        read_jobs(path)


def test_bytes_that_are_not_utf8_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes(JOBS.encode() + b"0,60,1\n5,\xe9,1\n")
    with pytest.raises(WorkloadError, match=r"latin\.csv:3: byte 0xe9 is not UTF-8; legal: UTF-8"):
        read_jobs(path)


def test_a_byte_order_mark_and_carriage_returns_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "bom.csv"
    path.write_bytes(b"\xef\xbb\xbf" + (JOBS + "0,60,1\n").replace("\n", "\r\n").encode())
    assert read_jobs(path).duration_s.tolist() == [60]


def test_fifty_thousand_rows_are_all_read(tmp_path: Path) -> None:
    path = write(tmp_path, JOBS + "".join(f"{i},{i % 997},{i % 8 + 1}\n" for i in range(50_000)))
    jobs = read_jobs(path)
    assert len(jobs) == 50_000
    rows = np.arange(50_000)
    assert (np.sort(jobs.duration_s) == np.sort(rows % 997)).all()


@pytest.mark.parametrize("load", [0.3, 0.65, 2.0])
def test_jobs_are_thinned_or_repeated_to_the_load(load: float) -> None:
    config = WorkloadConfig(batch_load=load)
    jobs = make_jobs()
    tape, report = tape_from_traces(make_services(), jobs, config, 128, 0)
    new = new_batch(tape)
    capacity = 128 * 36 * 3600
    played = (tape.pods["gpus"] * tape.pods["duration_s"])[new].sum() / capacity
    assert played == pytest.approx(load, abs=0.01)
    assert report.load == pytest.approx(load, abs=0.01)
    # 500 jobs a day, 2 GPUs each, 3600 s on average.
    assert report.load_found == pytest.approx(500 / DAY * 2 * 3600 / 128, rel=0.01)
    assert report.factor == pytest.approx(load / report.load_found)
    word = "thinned to" if report.factor < 1 else "repeated"
    assert word in report.jobs[0]
    assert report.jobs[0].endswith("2 left out.")
    assert str(report) == f"{report.services}\n{report.jobs[0]}"


def test_thinned_jobs_keep_their_recorded_second() -> None:
    jobs = make_jobs()
    tape, _ = tape_from_traces(make_services(), jobs, WorkloadConfig(batch_load=0.3), 128, 0)
    new = tape.pods["arrive_s"][new_batch(tape)] % DAY
    assert len(new) > 100
    assert set(new.tolist()) <= set((jobs.submit_s % DAY).tolist())


def test_no_load_plays_no_jobs() -> None:
    tape, _ = tape_from_traces(make_services(), make_jobs(), WorkloadConfig(batch_load=0.0), 128, 0)
    assert tape.pods["online"].all()


def test_equal_seeds_give_equal_tapes_and_others_another_stretch() -> None:
    services, jobs = make_services(days=7), make_jobs(days=7)
    first, text = tape_from_traces(services, jobs, WorkloadConfig(), 128, 4)
    again, same_text = tape_from_traces(services, jobs, WorkloadConfig(), 128, 4)
    assert text == same_text
    for spec in fields(first):
        np.testing.assert_array_equal(getattr(first, spec.name), getattr(again, spec.name))
    texts = {tape_from_traces(services, jobs, WorkloadConfig(), 128, s)[1].jobs for s in range(9)}
    assert len(texts) > 3


def test_hour_of_day_is_kept() -> None:
    jobs = make_jobs(days=5)
    night = jobs.take(jobs.submit_s % DAY < 2 * 3600)
    config = WorkloadConfig(batch_load=0.05)
    tape, _ = tape_from_traces(make_services(), night, config, 128, 3)
    hours = tape.pods["arrive_s"][new_batch(tape)] % DAY / 3600
    # The warm-up from 12:00 to 24:00 has none, the account none after 02:00 and the copies' shift.
    assert len(hours) > 20
    assert ((hours < 2.51) | (hours > 23.49)).all()


def test_short_traces_go_round() -> None:
    services = ServiceRates(("one",), np.array([[1.0, 2.0, 3.0]]), False, "short.csv", "short")
    jobs = make_jobs(days=1, per_day=40)
    jobs = jobs.take(jobs.submit_s < 3600)
    tape, report = tape_from_traces(services, jobs, WorkloadConfig(), 128, 0)
    assert "each about 6 times" in report.services
    assert "going round the trace's 0.5 h" in report.services
    assert tape.pods["service"].max() == 5
    assert tape.pods["arrive_s"][new_batch(tape)].max() > 0


def test_as_many_services_as_the_rule_asks_for() -> None:
    config = WorkloadConfig(services=3)
    tape, report = tape_from_traces(make_services(), make_jobs(), config, 128, 0)
    assert set(tape.pods["service"].tolist()) == {-1, 0, 1, 2}
    assert report.services.startswith("made.csv: 3 services played from 4 recorded, from day ")


def test_large_jobs_become_groups_or_are_left_out() -> None:
    jobs = make_jobs(gpus=8)
    pods = np.where(np.arange(len(jobs)) % 2, 40, 2)
    tape, report = tape_from_traces(
        make_services(), replace(jobs, pods=pods), WorkloadConfig(), 128, 0, gpus_per_server=4
    )
    assert "750 larger than the cluster left out" in report.jobs[0]
    groups = np.unique(tape.pods["group"][tape.pods["group"] >= 0])
    assert len(groups) > 10
    for group in groups:
        rows = np.flatnonzero(tape.pods["group"] == group)
        np.testing.assert_array_equal(rows, rows[0] + np.arange(4))
        assert (tape.pods["gpus"][rows] == 4).all()


def play_once(jobs: BatchJobs, num_gpus: int, gpus_per_server: int = 8) -> npt.NDArray[Any]:
    """Return the pods of a day's jobs, each played once: the load asked for is theirs."""
    load = float(jobs.gpu_s.sum()) / (num_gpus * DAY)
    config = WorkloadConfig(
        warmup_h=0, horizon_h=24, initial_jobs=False, batch_load=load, elastic_share=0.5
    )
    tape, report = tape_from_traces(
        make_services(), jobs, config, num_gpus, 0, gpus_per_server=gpus_per_server
    )
    assert report.factor == pytest.approx(1)
    pods: npt.NDArray[Any] = tape.pods[~tape.pods["online"]]
    return pods


def test_jobs_of_several_servers_ask_for_as_many_gpus_as_recorded(tmp_path: Path) -> None:
    sizes = (9, 10, 12, 20, 8, 4)
    rows = "".join(f"{3600 * i},3600,1,{gpus}\n" for i, gpus in enumerate(sizes))
    jobs = read_jobs(write(tmp_path, "submit_s,duration_s,nodes,gpus\n" + rows))
    pods = play_once(jobs, 64)
    assert int((pods["gpus"] * pods["duration_s"]).sum()) == 63 * 3600
    groups = [pods["gpus"][pods["group"] == group].tolist() for group in range(4)]
    assert groups == [[8, 1], [8, 2], [8, 4], [8, 8, 4]]
    assert (pods["cores"] == 7 * pods["gpus"]).all()


def test_smaller_servers_split_the_rest_again(tmp_path: Path) -> None:
    text = "submit_s,duration_s,nodes,gpus\n0,3600,2,9\n60,3600,3,20\n90,3600,1,6\n"
    pods = play_once(read_jobs(write(tmp_path, text)), 32, gpus_per_server=4)
    groups = [pods["gpus"][pods["group"] == group].tolist() for group in range(3)]
    assert groups == [[4, 4, 1], [4, 4, 4, 4, 4], [4, 2]]


@pytest.mark.parametrize(("num_gpus", "per_server", "fits"), [(24, 12, True), (16, 8, False)])
def test_the_rest_of_a_job_needs_a_place_of_its_own(
    num_gpus: int, per_server: int, fits: bool
) -> None:
    one = np.ones(1, np.int64)
    large = BatchJobs(0 * one, 3600 * one, 8 * one, 3 * one, 0 * one, rest=4 * one)
    small = BatchJobs(0 * one, 3600 * one, one, one, 0 * one)
    config = WorkloadConfig(batch_load=0.1)
    _, report = tape_from_traces(
        make_services(), join_jobs(large, small), config, num_gpus, 0, gpus_per_server=per_server
    )
    assert (
        "1 of its jobs are PodGroups" if fits else "1 larger than the cluster left out"
    ) in report.jobs[0]


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 64), min_size=1, max_size=8),
    hours=st.integers(1, 5),
    per_server=st.sampled_from([1, 3, 4, 8, 12, 16]),
)
def test_gpu_hours_of_a_trace_are_conserved(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], hours: int, per_server: int
) -> None:
    rows = "".join(f"{600 * i},{3600 * hours},1,{gpus}\n" for i, gpus in enumerate(sizes))
    path = write(tmp_path_factory.mktemp("trace"), "submit_s,duration_s,nodes,gpus\n" + rows)
    pods = play_once(read_jobs(path), 40 * per_server + 64, per_server)
    assert int((pods["gpus"] * pods["duration_s"]).sum()) == sum(sizes) * hours * 3600
    assert pods["gpus"].max() <= min(per_server, 8)
    of_groups = pods[pods["group"] >= 0]
    totals = np.bincount(of_groups["group"], of_groups["gpus"]).astype(int).tolist()
    assert totals == [gpus for gpus in sizes if gpus > min(per_server, 8)]


def test_a_cluster_smaller_than_every_job_is_named() -> None:
    with pytest.raises(WorkloadError, match="1500 jobs of 8 GPUs or more for 4 GPUs; legal: one"):
        tape_from_traces(make_services(), make_jobs(gpus=8), WorkloadConfig(), 4, 0)


def test_a_trace_too_thin_for_the_load_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flextopo.cluster.workload.traces.MAX_JOBS", 1000)
    jobs = make_jobs(days=1, per_day=1)
    with pytest.raises(WorkloadError, match=r"of 1200 GPU-s in the stretch .* 1000 jobs at most"):
        tape_from_traces(make_services(), jobs, WorkloadConfig(), 128, 0)


def test_durations_are_cut_as_in_the_generator() -> None:
    jobs = make_jobs()
    duration = np.where(np.arange(len(jobs)) % 2, 1, 10**6)
    config = WorkloadConfig(max_duration_s=86400, initial_jobs=False)
    tape, report = tape_from_traces(
        make_services(), replace(jobs, duration_s=duration), config, 512, 0
    )
    run_s = tape.pods["duration_s"][new_batch(tape)]
    assert set(run_s.tolist()) == {60, 86400}
    longest, every = (run_s == 86400).sum(), len(run_s)
    cut = f"{longest} of {every} jobs cut at 1 day, {every - longest} of {every} jobs lengthened"
    assert f"; 2 left out; {cut} to 60 s." in report.jobs[0]
    assert tape.notes == f"{cut} to 60 s"


def test_what_no_trace_records_is_drawn_as_in_the_generator() -> None:
    config = WorkloadConfig(elastic_share=1.0, spot_share=1.0, backoff_s=7, initial_jobs=False)
    tape, _ = tape_from_traces(make_services(), make_jobs(gpus=8), config, 128, 0)
    batch = tape.pods[new_batch(tape)]
    assert set(batch["gpus"].tolist()) == {2}
    assert (batch["group"] == -1).all()
    low = (batch["batch_class"] == 0) & batch["preemptible"]
    np.testing.assert_array_equal(batch["protection_s"], np.where(low, 3600, 0))
    online = tape.pods[tape.pods["online"]]
    assert len(set(online["deadline_s"].tolist())) > 1
    assert len(set(online["sensitivity"].tolist())) > 1
    assert tape.backoff_s == 7


def test_one_endless_job_does_not_make_the_whole_load() -> None:
    """Jobs count with the mean of their source, or a day with a long one would have no other."""
    jobs = make_jobs(per_day=1000)
    duration = np.where(np.arange(len(jobs)) % 500 == 0, 20 * DAY, 600)
    config = WorkloadConfig(initial_jobs=False)
    counts = []
    for seed in range(8):
        tape, report = tape_from_traces(
            make_services(), replace(jobs, duration_s=duration), config, 128, seed
        )
        assert report.load == pytest.approx(0.65, abs=0.01)
        counts.append(int(new_batch(tape).sum()))
    mean_gpu_s = 2 * duration.mean()
    assert counts == pytest.approx([0.65 * 128 * 36 * 3600 / mean_gpu_s] * 8, abs=1.01)


def test_a_small_file_cannot_ask_for_all_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = tmp_path / "bomb.csv.gz"
    with gzip.open(bomb, "wb", 1) as packed:
        packed.write(JOBS.encode())
        for _ in range(140):
            packed.write(b"0,1.0,1\n" * 2**17)  # 1 MiB
    with pytest.raises(WorkloadError, match=r"bomb\.csv\.gz: more than 128 MiB of text"):
        read_jobs(bomb)
    wide = write(tmp_path, JOBS + "0,1.0,1\n" * 5 + f"0,1.0,{'1' * 257}\n", "wide.csv")
    with pytest.raises(
        WorkloadError, match=r"wide\.csv:7: a cell of 257 characters; legal: up to 256"
    ):
        read_jobs(wide)
    monkeypatch.setattr("flextopo.cluster.workload.trace_tables.MAX_ROWS", 3)
    long = write(tmp_path, JOBS + "0,1.0,1\n" * 5, "long.csv")
    with pytest.raises(WorkloadError, match=r"long\.csv:5: more than 3 rows; legal: up to 3"):
        read_jobs(long)


def test_days_are_told_on_the_clock_of_the_trace(tmp_path: Path) -> None:
    rows = "".join(f"x,{t},{1 + t % 7}\n" for t in range(9 * DAY + 600, 12 * DAY, 600))
    services = read_services(write(tmp_path, SERVICES + rows))
    jobs = read_jobs(write(tmp_path, JOBS + f"{20 * DAY + 7},6000,1\n" * 99, "jobs.csv"))
    assert (services.first, services.aligned) == (10 * 144, True)
    _, report = tape_from_traces(services, jobs, WorkloadConfig(), 32, 0)
    assert report.services.split("from day ")[1][:2] in ("10", "11")
    assert "jobs from day 20 on" in report.jobs[0]
    evening = read_services(write(tmp_path, SERVICES + f"x,{DAY + 64800},1\nx,{DAY + 65400},2\n"))
    _, report = tape_from_traces(evening, jobs, WorkloadConfig(), 32, 0)
    assert re.search(r"from day 1 18:[01]0 on", report.services)

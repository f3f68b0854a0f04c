"""Traces in every format that is read, a few rows each, written here by hand."""

from __future__ import annotations

import json
from typing import Any

SERVICES = "service,t_s,rate_rps\nchat,0,1.5\nchat,600,\nchat,1200,2\ncode,0,0\ncode,1200,3.25\n"
MODELS = "model,t_s,rate_rps,valid\nm,0,1,1\nm,600,9,0\nm,1200,3,1\n"
MINUTES = "minute,requests\n0,60\n1,30\n12,90\n"
REQUESTS = "t_s,input_tokens,output_tokens\n0.5,100,20\n1.25,300,0\n700,5,6\n"
AZURE_2023 = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:25:00.0000000,100,28
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:00+00:00,2399,6
2024-05-11 23:59:59.929501+00:00,4725,8
"""
MOONCAKE = """{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}
{"timestamp": 599999, "input_length": 20, "output_length": 4, "hash_ids": []}
{"timestamp": 600000, "input_length": 30, "output_length": 6, "hash_ids": [2]}
"""
SERVEGEN = """0,1.5,8.5,Weibull,0.375,0.396
600,0,0,,0,0
1200,0.15,4.06,Gamma,0.06,103.6
"""
JOBS = "submit_s,duration_s,gpus,gpu_frac\n10,90000,8,1\n20,60.5,1,0.5\n5,60,0,1\n"
OPENB = """num_gpu,gpu_milli,qos,creation_time,deletion_time,scheduled_time
1,1000,LS,0,900,0
1,460,BE,100,400,150
8,1000,Burstable,90,1090,90
1,1000,BE,100,400,
"""
POLLUX = """timestamp,duration,num_gpus,gpu_time,cluster
2017-10-09 07:01:55,66.0,1,66.0,11cb48
2017-10-08 06:13:03,90000.0,20,2951.0,6214e9
"""
ELASTICFLOW = """job_id,submit_time,iteration,model_name,ddl,batch_size,num_gpu,duration
0,3715485,2011,cifar10,3719996,4096,1,5644
1,3717550,1548,ncf,3717583,32768,16,66
"""
PAI_TASKS = """j1,ps,2.0,Terminated,1000.0,5000.0,600.0,29.2,,
j1,worker,3.0,Terminated,1010.0,4600.0,600.0,29.2,50.0,MISC
j2,tensorflow,1.0,Failed,2000.0,2600.0,600.0,29.2,100.0,V100
j3,worker,1.0,Running,3000.0,0.0,600.0,29.2,100.0,T4
j4,worker,24.0,Terminated,57600.0,144001.0,600.0,29.2,100.0,T4
j5,worker,,Waiting,,,600.0,29.2,100.0,T4
"""
PAI_JOBS = """j1,i1,u,Terminated,900.0,5000.0
j2,i2,u,Failed,2500.0,2600.0
j4,i4,u,Terminated,57590.0,144001.0
"""


def philly_attempt(begin: str | None, end: str | None, *gpus: int) -> dict[str, Any]:
    """Return an attempt on as many servers as there are counts of GPUs."""
    detail = [
        {"ip": f"m{i}", "gpus": [f"gpu{gpu}" for gpu in range(count)]}
        for i, count in enumerate(gpus)
    ]
    return {"start_time": begin, "end_time": end, "detail": detail}


def philly_job(name: str, submitted: str, *attempts: dict[str, Any]) -> dict[str, Any]:
    return {
        "status": "Pass",
        "vc": "ee9e8c",
        "jobid": name,
        "attempts": list(attempts),
        "submitted_time": submitted,
        "user": "ce2f4c",
    }


PHILLY_JOBS = [
    philly_job(
        "a",
        "2017-10-07 01:11:39",
        philly_attempt("2017-10-07 01:12:09", "2017-10-07 01:13:09", 8),
        philly_attempt("2017-10-07 01:13:30", "2017-10-08 01:13:30", 8, 8),
    ),
    philly_job(
        "b",
        "2017-10-06 23:00:00",
        philly_attempt("2017-10-06 23:00:05", "2017-10-06 23:00:45", 8, 4),
    ),
    philly_job("c", "2017-10-07 02:00:00"),
    philly_job("d", "2017-10-07 03:00:00", philly_attempt("2017-10-07 03:00:00", None, 1)),
    philly_job(
        "e",
        "2017-11-05 01:00:00",
        philly_attempt("2017-11-05 01:50:00", "2017-11-05 01:10:00", 2),
        philly_attempt("2017-11-05 02:00:00", "2017-11-05 02:10:00", 2),
    ),
    philly_job("e", "2017-11-05 04:00:00", philly_attempt("None", "", 2)),
]
PHILLY = json.dumps(PHILLY_JOBS, indent=4)

DEMAND = {
    "services": SERVICES,
    "models": MODELS,
    "minutes": MINUTES,
    "requests": REQUESTS,
    "azure-2023": AZURE_2023,
    "azure-2024": AZURE_2024,
    "mooncake": MOONCAKE,
    "servegen": SERVEGEN,
}
BATCH = {
    "jobs": JOBS,
    "openb": OPENB,
    "pollux": POLLUX,
    "elasticflow": ELASTICFLOW,
    "pai": PAI_TASKS,
    "philly": PHILLY,
}

"""Ask the service at --url, or one started here, whom to evict, over HTTP. Takes two seconds."""

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request


def snapshot():
    """Return a full server with eight batch pods, and a pod of two GPUs that waits."""
    batch = {"gpus": 1, "cores": 7, "priority": 500, "node": "node-0", "checkpoint_s": 1800}
    pods = [{"name": f"batch-{i}", "gpus_held": [i], "start_s": 400 * i, **batch} for i in range(8)]
    wants = {"requirement": "guaranteed", "gpus": 2, "cores": 14, "priority": 1000}
    pods.append({"name": "online", "online": True, **wants})
    servers = [{"name": "node-0", "model": "rtx4090"}]
    return {"servers": servers, "pods": pods, "preemptor": "online", "now_s": 4000}


def fetch(url, body=None):
    """Return the answer to a GET, or to a POST of a JSON body."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=10) as answer:
        return answer.read()


def main():
    """Ask once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="of a service that runs already, as http://127.0.0.1:8080")
    parser.add_argument("--selector", default="greedy-cost", help="for the service started here")
    options = parser.parse_args()
    server, url = None, options.url
    if not url:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "flextopo", "serve", "--port", str(port)]
        server = subprocess.Popen([*command, "--selector", options.selector])
    try:
        while server is not None and server.poll() is None:
            with contextlib.suppress(OSError):
                fetch(f"{url}/readyz")
                break
            time.sleep(0.1)
        print(fetch(f"{url}/v1/decide", snapshot()).decode())
    finally:
        if server is not None:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()

"""What the child process of llama.cpp runs: xllamacpp's native server, until its parent lets go of stdin.

Started as a file, not as part of the package: only xllamacpp is imported, so that it starts in a second.
One line of JSON comes on stdin (`path`, `context`, `threads`, `key`: on a command line anyone could read it),
one goes out on stdout, the server's address, once the model is loaded; errors go to stderr.
"""

import json
import os
import sys

PING_SECONDS = 5
"""How often a stream says that it lives, while a long prompt is read."""


def main() -> None:
    """Serve until stdin ends, which it does however the parent ends."""
    settings = json.loads(sys.stdin.readline())
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["path"]
    params.n_ctx = settings["context"]
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    params.cpuparams.poll = params.cpuparams_batch.poll = 0
    params.n_threads_http = 2
    params.sse_ping_interval = PING_SECONDS
    params.fit_params = False  # the context is what the parent counts with
    params.cache_ram_mib = 0
    params.warmup = False
    params.verbosity = 1  # errors only
    params.check_tensors = True  # a NaN among the weights would be generated from without a word
    # Reachable from this machine, by who knows the key, for generating alone.
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [settings["key"]]
    params.ui = params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = False
    # Prompts come as ids; a template from a foreign file is not for C++ to run.
    params.use_jinja = False
    params.chat_template = "chatml"
    try:
        server = xllamacpp.Server(params)
    except RuntimeError:  # the log has said why
        sys.exit(1)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()
    os._exit(0)  # at once: the server's threads need no farewell


if __name__ == "__main__":
    main()

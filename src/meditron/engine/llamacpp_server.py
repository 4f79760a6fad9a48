"""The script of llama.cpp's child process: xllamacpp's native server, until its stdin ends.

The script is started as a file, not as part of the package, and imports nothing but xllamacpp, so it starts
in a second. The settings (`path`, `context`, `slots`, `threads`, `gpu_layers`, `embeddings`, `key`) are one
line of JSON on stdin, because every user of the machine can read a command line. One line on stdout, the
server's address, says that the model is loaded. Errors go to stderr.
"""

import json
import os
import sys

PING_SECONDS = 5
"""Interval of the pings in a stream while a long prompt is processed."""
EMBEDDING_TOKENS = 2048
"""Longest text of an embedding: it is processed in one batch, whose buffers grow with its square."""


def main() -> None:
    """Serve until stdin ends, which happens at the latest when the parent ends."""
    settings = json.loads(sys.stdin.readline())
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["path"]
    params.n_ctx = settings["context"]
    # The slots share one context: if each slot had its own, a single long conversation could use only a
    # quarter of the memory.
    params.n_parallel = settings["slots"]
    params.kv_unified = True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    params.cpuparams.poll = params.cpuparams_batch.poll = 0
    # A stream occupies a thread, and one whose client has gone away does so for up to a second longer.
    params.n_threads_http = 2 * settings["slots"] + 2
    if settings["gpu_layers"] >= 0:
        params.n_gpu_layers = settings["gpu_layers"]
    if settings["embeddings"]:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        params.n_batch = params.n_ubatch = min(settings["context"], EMBEDDING_TOKENS)
    params.sse_ping_interval = PING_SECONDS
    params.fit_params = False  # the parent computes with this context; llama.cpp must not lower it
    params.cache_ram_mib = 0
    params.warmup = False
    params.verbosity = 1  # errors only
    params.check_tensors = True  # NaN weights would generate garbage without an error
    # The server is reachable from this machine only, requires the key, and serves completions only.
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [settings["key"]]
    params.ui = params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = False
    # Prompts arrive as token ids, so the file's own chat template is not needed; a template from an untrusted
    # file must not run in C++.
    params.use_jinja = False
    params.chat_template = "chatml"
    try:
        server = xllamacpp.Server(params)
    except RuntimeError:  # llama.cpp has written the reason to stderr
        sys.exit(1)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()
    os._exit(0)  # without waiting for the server's threads


if __name__ == "__main__":
    main()

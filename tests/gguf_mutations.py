"""A process that reads mutated GGUF headers under limits of memory and time; started by a test.

Arguments: a folder, a seed and the number of mutations. Prints as JSON how many were read and refused, and
the largest memory peak of a mutation.
"""

import json
import random
import resource
import signal
import struct
import sys
import tracemalloc
from pathlib import Path

import gguf
import numpy as np

from meditron.core.errors import MeditronError
from meditron.release.verify.verification import verify
from meditron.store.gguf import GGUF

LIMIT = 64 << 20
SECONDS = 60
SPECIAL = [0, 1, 2, 8, 9, 31, 32, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62]
SPECIAL += [2**63 - 1, 2**63, 2**64 - 1]


def write_seed_file(path: Path, big: bool, tokens: int) -> bytes:
    """Write a model with a vocabulary and tensors of several types; return its bytes."""
    order = gguf.GGUFEndian.BIG if big else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(path, "llama", endianess=order)
    writer.add_name("mutated")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(tokens)])
    writer.add_token_types([1] * tokens)
    writer.add_token_scores([0.5] * tokens)
    writer.add_token_merges([f"t{i} t{i + 1}" for i in range(tokens // 2)])
    writer.add_bos_token_id(1)
    writer.add_bool("a.flag", True)
    writer.add_float64("a.float", 0.25)
    data = np.linspace(-1, 1, tokens * 32, dtype=np.float32).reshape(tokens, 32)
    for name, kind in (
        ("token_embd.weight", "Q8_0"),
        ("output.weight", "F16"),
        ("blk.0.attn_q.weight", "Q4_0"),
    ):
        code = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(data, code), raw_dtype=code)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def header_end(path: Path) -> int:
    """Return the first byte after a file's header."""
    with GGUF(path) as file:
        return min(info.offset for info in file.tensors.values())


def mutate(random_source: random.Random, content: bytes, header: int) -> bytes:
    """Change, insert, remove or repeat bytes of the header, or cut the file."""
    data = bytearray(content)
    for _ in range(random_source.choice((1, 1, 1, 2, 4))):
        # The first numbers of a file decide the most, so they are changed more often than their share.
        at = random_source.randrange(24 if random_source.random() < 0.15 else header)
        match random_source.randrange(7):
            case 0:
                data[at] ^= 1 << random_source.randrange(8)
            case 1:
                data[at] = random_source.randrange(256)
            case 2 | 3:
                form = random_source.choice("IQ")
                value = random_source.choice(SPECIAL) + random_source.choice((-1, 0, 0, 0, 1))
                sign = random_source.choice("<<<>")
                if at + 8 <= len(data):
                    bits = 32 if form == "I" else 64
                    struct.pack_into(f"{sign}{form}", data, at, value % (1 << bits))
            case 4:
                data[at:at] = random_source.randbytes(random_source.randrange(1, 40))
            case 5:
                del data[at : at + random_source.randrange(1, 40)]
            case 6:
                if random_source.random() < 0.3:
                    del data[at:]
                else:
                    piece = data[at : at + random_source.randrange(1, 60)]
                    place = random_source.randrange(header)
                    data[place : place + len(piece)] = piece
        if len(data) < header:
            break
    return bytes(data)


def read_all(path: Path) -> bool:
    """Read a file with everything that reads headers; return whether it was accepted."""
    try:
        with GGUF(path) as file:
            for name in file.tensors:
                file.dequantize(name)
    except MeditronError:
        accepted = False
    else:
        accepted = True
    result = verify(path)
    if not accepted and result["ok"]:
        raise AssertionError("verify accepts a file that the reader refuses")
    return accepted


def main(folder: Path, seed: int, count: int) -> None:
    """Run `count` mutations."""
    folder.mkdir(parents=True)
    seeds = []
    for index, (big, tokens) in enumerate(((False, 8), (False, 1000), (True, 8), (False, 40))):
        path = folder / f"seed{index}.gguf"
        seeds.append((write_seed_file(path, big, tokens), header_end(path)))
        if not read_all(path):
            raise AssertionError(f"seed {index} is not accepted")
    # All libraries are loaded now. What the process may map from here on is a file, its copies and the limit.
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    largest = max(len(content) for content, _ in seeds)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 4 * largest + LIMIT,) * 2)
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"a mutation took more than {SECONDS} s"))
    source, path = random.Random(seed), folder / "mutated.gguf"
    read = peak = 0
    for number in range(count):
        content, header = seeds[source.choice((0, 0, 0, 1, 2, 2, 3))]
        data = mutate(source, content, header)
        path.write_bytes(data)
        if number % 10 == 0:  # tracing is slow; the limit of address space applies to all
            tracemalloc.start()
        signal.alarm(SECONDS)
        try:
            read += read_all(path)
        except BaseException:
            (folder / "failed.gguf").write_bytes(data)
            sys.stderr.write(f"mutation {number} of seed {seed} fails: {folder / 'failed.gguf'}\n")
            raise
        signal.alarm(0)
        if tracemalloc.is_tracing():
            allocated = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            peak = max(peak, allocated)
            if allocated > len(data) + LIMIT:
                raise AssertionError(f"mutation {number} allocated {allocated:,} bytes")
        path.unlink()
    sys.stdout.write(json.dumps({"read": read, "refused": count - read, "peak": peak}))


if __name__ == "__main__":
    from meditron.core.console import configure

    configure(quiet=True)
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

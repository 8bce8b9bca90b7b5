"""A tiny random model as a folder of real files, its weights rounded to 16 bits, so that every device has the same ones.

python3 test/tiny_half_model.py FOLDER
"""

import json
import pathlib
import struct
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parents[3] / "tests" / "real_server"))

import tiny_model  # noqa: E402


def to_half(path):
    """Rewrites a safetensors file of 32-bit floats with 16-bit ones."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header, data, offset = json.loads(content[8 : 8 + length]), b"", 0
    start = 8 + length
    for name, entry in sorted(header.items(), key=lambda item: item[1].get("data_offsets", [0])[0]):
        if name == "__metadata__":
            continue
        assert entry["dtype"] == "F32", name
        begin, end = entry["data_offsets"]
        numbers = struct.unpack(f"<{(end - begin) // 4}f", content[start + begin : start + end])
        data += struct.pack(f"<{len(numbers)}e", *numbers)
        entry.update(dtype="F16", data_offsets=[offset, offset + 2 * len(numbers)])
        offset += 2 * len(numbers)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


if __name__ == "__main__":
    to_half(tiny_model.write(sys.argv[1]) / "model.safetensors")

"""A model folder that loads in an instant: the random weights of a fixture, with a tokenizer and a chat template.

Its words mean nothing, but every part is real: safetensors, configuration, tokenizer, template, sampling defaults.
"""

import json
import pathlib
import shutil

FIXTURE = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "models" / "llama"

# Rotary positions need no weights, so the model may be as long as the tests like.
LENGTH = 16384

TEMPLATE = (
    "{% for message in messages %}{{ '[' + message.role + '] ' + (message.content or '') + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def byte_character(byte):
    """How byte-level tokenizers write a byte: printable ones as they are, others from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in printable:
        return chr(byte)
    return chr(256 + [other for other in range(256) if other not in printable].index(byte))


def tokenizer():
    """Ids 0 to 3 are special; then a token per printable ASCII character, line feed, some parts of UTF-8 letters."""
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    some_bytes = [*range(32, 127), 10, 0xC3, 0xE2, 0xF0, 0x9F, *range(0x80, 0x98)]
    characters = [byte_character(byte) for byte in some_bytes]
    vocabulary = {character: 4 + index for index, character in enumerate(characters)}
    vocabulary |= {content: index for index, content in enumerate(special)}
    assert sorted(vocabulary.values()) == list(range(128))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": index, "content": content, **flags} for index, content in enumerate(special)],
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "vocab": vocabulary, "merges": []},
    }  # fmt: skip


def write(folder):
    """Writes the model into `folder` and returns it."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(FIXTURE / "model.safetensors", folder)
    config = json.loads((FIXTURE / "config.json").read_text())
    config["max_position_embeddings"] = LENGTH
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, **names}))
    return folder

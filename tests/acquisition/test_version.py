"""A store keeps what a download made: whoever changes what it makes of the same source gives it
another version.
"""

import hashlib
import json

from hdm.acquisition.download import SCHEMA
from hdm.acquisition.inventory import Inventory
from hdm.acquisition.settings import DownloadSettings
from hdm.acquisition.sources import open_source
from tests.acquisition.misbehaving import png

RESULTS = {4: "ffbefd0e352f47f9725020481fe4bbd1bcd76f1e79fae4cb0525b3005bd6ee66"}
"""Version → sha256 of what came of SOURCE. A line is added with each version, and none is
changed.
"""
SOURCE = {
    "a.txt": b"a fox\nan animal",
    "b.txt": "un renard près de l’étang".encode("cp1252"),
    "c.txt": "赤い狐".encode("shift_jis"),
    "d.txt": "a – b".encode("utf-16"),
    "e.txt": b"one\n\ntext",
    "f.json": b'{"Caption": ["a fox", "an animal"]}',
    "g.json": b'{"other": "a red fox"}',
    "h.caption": "狐".encode(),
    "i.png.TXT": b"a fox",
    "metadata.csv": "file_name,text,alt\nJ.png,a fox,other\nk,ein Bär,\nx.png,lost,\n".encode(
        "cp1252"
    ),
    "sub/metadata.jsonl": b'{"file_name": "sub\\\\l.png", "text": "a fox", "licence": "CC0"}\n',
    "sub/l.png": png(11),
    **{f"{name}.png": png(number) for number, name in enumerate("abcdefghijkm")},
}


def test_the_same_source_gives_the_same_items_or_the_version_is_another(tmp_path):
    for name, content in SOURCE.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    inventory = Inventory()
    reader = open_source(str(tmp_path), "auto", DownloadSettings())[1]
    items = [[i.key, i.source, i.captions, i.licence] for i in reader.items(inventory)]
    entries = [[entry.what, entry.fate, entry.place] for entry in inventory.entries]
    said = json.dumps(
        [items, sorted(entries), sorted(inventory.counts.items())], ensure_ascii=False
    )
    assert RESULTS.get(SCHEMA) == hashlib.sha256(said.encode()).hexdigest(), said

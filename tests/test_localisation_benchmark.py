"""The benchmark of segments in their videos and of transfer, at a tiny size."""

import json

from benchmarks import localisation
from benchmarks.localisation import measure, report


def test_a_seed_goes_through_all_commands_once(tmp_path, monkeypatch):
    once = {"rate": 0.01, "epochs": 1}
    setting = {name: once for name in localisation.SETTING if name != "videos"}
    setting |= {"videos": 40, "rated_shards": [1, 1]}
    monkeypatch.setattr(localisation, "_NETVLAD", {"clusters": 2, "hidden_size": 4})
    monkeypatch.setattr(localisation, "VIDEOS_OF_SHARD", 30)
    monkeypatch.setattr(localisation, "SCORED_OTHERS", 40)
    path = tmp_path / "results.jsonl"
    (found,) = measure(path, range(1), setting)
    for name in ("applied", "fine_tuned", "scratch", "aware", "average"):
        assert 0 < found[name]["map"] < 1 and 0 < found[name]["context"] < 1
    assert found["aware"] != found["fine_tuned"] != found["scratch"]
    assert 0 < found["pretrained"]["map"] != found["fresh"]["map"]
    assert measure(path, range(1), setting) == [json.loads(path.read_text())]
    text = report([found, found])
    assert text.count("met.") + text.count("missed.") == 5
    assert "± 0.000" in text and "| context aware | 2 | 0." in text

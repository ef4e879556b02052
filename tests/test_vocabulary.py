"""Vocabularies of every format, by the classes' numbers and not by the rows'."""

import pytest

from yt8m.data.vocabulary import load_vocabulary
from yt8m.errors import DataError, UserError

VOCABULARY = (
    "Index,TrainVideoCount,KnowledgeGraphId,Name,WikiUrl,Vertical1,Vertical2,"
    "Vertical3,WikiDescription\n"
    '0,900,/m/a,Game,url,Games,,,"Rules, and\na second line of ""play"""\n'
    "2,500,/m/c,Piano,url,Arts & Entertainment,Shopping,,text\n"
    '1,500,/m/b,"Nike, Inc.",url,Shopping,,,text\n'
    "4,10,/m/e,,url,,,,\n"
)


def loaded(tmp_path, text, name="names.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_vocabulary(str(path))


def test_a_vocabulary_goes_by_its_index_column(tmp_path):
    found = loaded(tmp_path, VOCABULARY)
    assert len(found) == 4
    names = [found.name(i) for i in range(5)]
    assert names == ["Game", "Nike, Inc.", "Piano", "class 3", "/m/e"]
    assert found.verticals == {
        0: ["Games"],
        2: ["Arts & Entertainment", "Shopping"],
        1: ["Shopping"],
    }


def test_the_vocabulary_of_segments_has_no_verticals(tmp_path):
    found = loaded(
        tmp_path,
        "Index,KnowledgeGraphId,Name,PositiveSegmentCount,TotalSegmentCount\r\n"
        "7,/m/0k4j,Car,159,246\r\n3,/m/01jddz,,181,240\r\n",
    )
    assert (len(found), found.name(7), found.name(3)) == (2, "Car", "/m/01jddz")
    assert found.verticals == {}


def test_kaggles_names_may_have_bare_commas_and_quotation_marks(tmp_path):
    found = loaded(
        tmp_path,
        '\ufefflabel_id,label_name\n0,Toys "R" Us\n1,Nike, Inc.\n\n2, /m/c\n'
        '3,"Toys ""R"" Us"\n4,\n',
    )
    names = [found.name(i) for i in range(5)]
    assert names == ['Toys "R" Us', "Nike, Inc.", "/m/c", 'Toys "R" Us', "class 4"]
    assert len(found) == 5


def test_a_label_map_names_the_class_of_its_line_s_number(tmp_path):
    found = loaded(tmp_path, "Game\nNike, Inc.\n???\nPokémon\n", "label_map.txt")
    names = [found.name(i) for i in range(4)]
    assert names == ["Game", "Nike, Inc.", "class 2", "Pokémon"]
    assert (len(found), found.verticals) == (4, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("VideoId,Labels\na,1\n", "line 1: .*header.* found 'VideoId,Labels'"),
        ("", "line 1: .*header"),
        ("Index\n3\n", "line 1: there is no column Name"),
        ("Index,Name\n0,a\nx,b\n", "line 3: a class must be .* not 'x'"),
        ("label_id,label_name\n-1,b\n", "line 2: a class must be .* not '-1'"),
        ("Index,Name\n0,a\n1\n", "line 3: 1 fields, where the header has 2"),
        ("Index,Name\n0,a\n0,b\n", "line 3: class 0 is there twice"),
        (VOCABULARY + "2,,,,,,,,\n", "line 7: class 2 is there twice"),
        (b"Index,Name\n0,a\n1,\xff\n", "line 3: not text in UTF-8"),
        ("Index,Name\n0," + "a" * 200_000 + "\n", "line 2: field larger"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(tmp_path, text, message):
    with pytest.raises(DataError, match=rf"names\.csv, {message}") as caught:
        loaded(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_an_empty_label_map_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(DataError, match="map.txt is empty"):
        loaded(tmp_path, "", "map.txt")
    with pytest.raises(UserError, match="none.csv cannot be read: .*No such file"):
        load_vocabulary(str(tmp_path / "none.csv"))


def test_the_real_files_name_the_same_classes(real_data):
    def real(name):
        return load_vocabulary(str(real_data / "labels" / name))

    full, kaggle = real("vocabulary.csv"), real("label_names_2018.csv")
    label_map, segments = (
        real("mediapipe_label_map.txt"),
        real("segment_vocabulary.csv"),
    )
    assert len(full) == len(kaggle) == len(label_map) == 3862
    assert (len(segments), len(real("label_names_2017.csv"))) == (1000, 4716)
    # The row of class 31 comes before that of class 30.
    for vocabulary in (full, kaggle, label_map, segments):
        assert vocabulary.name(30) == "Motorcycle"
        assert vocabulary.name(31) == "Piano"
    for vocabulary in (full, kaggle, label_map):
        assert vocabulary.name(271) == "Nike, Inc."
        assert vocabulary.name(3861) != "class 3861"
    assert full.name(120) == kaggle.name(120) == "/m/0dxrf"
    assert label_map.name(120) == "class 120"
    assert sum(full.name(c).startswith("/m/") for c in range(3862)) == 56
    for c in range(3862):
        assert label_map.name(c) in (full.name(c), f"class {c}")
    assert set(full.verticals) == set(range(3862))
    assert full.verticals[30] == ["Autos & Vehicles"]
    assert sum("Games" in names for names in full.verticals.values()) == 843
    assert max(map(len, full.verticals.values())) == 3

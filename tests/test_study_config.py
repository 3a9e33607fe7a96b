"""The configuration of a study: what a file may say, and what is told of one that says something else."""

import pytest

from tlcgcnn_jax.config import from_dict, to_dict
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.files import to_json
from tlcgcnn_jax.strategies import FeatureStrategy, Phase, Strategy
from tlcgcnn_jax.study_config import StudyConfig, StudyTarget, below, read_study, target_name

TARGET = '[[targets]]\ndata = "crystals.json"\ncolumn = "k_vrh"\n'


def written(path, text):
    path.write_text(text)
    return path


def test_a_file(tmp_path):
    path = written(
        tmp_path / "study.toml",
        """
        strategies = ["full", "mine", "features:svr@auto", "ensemble:mine+ridge"]
        baselines = ["ridge"]
        learning_rates = [1e-3, 4e-3]
        sizes = [50, 100]
        test = 40

        [[targets]]
        data = "crystals.json"
        column = "k_vrh"
        unit = "GPa"
        transform = "log10"

        [[sources]]
        model = "mp-formation-energy"

        [[sources]]
        data = "energies.json"
        column = "energy"
        sizes = [500, 1000]

        [[own]]
        name = "mine"
        summary = "convolutions at a tenth of the rate, after the head alone"
        reinitialise = ["head/*"]
        rates = [["conv_*", 0.1], ["*", 1]]

        [[own.before]]
        share = 0.25
        rates = [["head/*", 1.0], ["*", 0.0]]

        [model]
        width = 32
        """,
    )
    study = read_study(path)
    assert study.sizes == (50, 100) and study.test == 40.0 and study.model.width == 32
    assert [source.sizes for source in study.sources] == [(), (500, 1000)]
    before = (Phase(0.25, (("head/*", 1.0), ("*", 0.0))),)
    mine = study.strategy("mine")
    assert isinstance(mine, Strategy)
    assert mine.rates == (("conv_*", 0.1), ("*", 1.0)) and mine.before == before
    assert study.strategy("features:svr@auto") == FeatureStrategy("features:svr", "svr")
    assert target_name(study.targets[0]) == "log10 k_vrh"


def test_in_python_lists_are_tuples_and_wrong_types_are_told():
    assert StudyConfig([StudyTarget("a.json", "k")], sizes=[50, 100]).sizes == (50, 100)
    with pytest.raises(InputError, match="StudyConfig: strategies is 'full': a list was expected"):
        StudyConfig((StudyTarget("a.json", "k"),), strategies="full")
    with pytest.raises(InputError, match="StudyTarget: sizes is 5: a list was expected"):
        StudyTarget("a.json", "k", sizes=5)


def test_through_json():
    import json

    study = StudyConfig((StudyTarget("a.json", "k"),), own=(Strategy("mine", "", (), (("*", 1.0),)),))
    assert from_dict(StudyConfig, json.loads(to_json(to_dict(study)))) == study


BAD = {
    "not TOML": ("sizes = [", "not TOML"),
    "no target": ("sizes = [10]", "targets"),
    "unknown key": (TARGET + 'colunm = "x"', "no setting colunm"),
    "unknown key above": ("sise = 3\n" + TARGET, "no setting sise"),
    "a string for a list": ('sizes = "100"\n' + TARGET, "a list was expected"),
    "an unknown transform to learn": (TARGET + 'learn = "sqrt"', "target k_vrh: learn is 'sqrt'"),
    "an unknown transform": (TARGET + 'transform = "sqrt"', "target k_vrh: transform is 'sqrt'"),
    "the logarithm of a logarithm": (
        TARGET + 'transform = "log10"\nlearn = "log10"',
        "k_vrh: the log10 of the log10 would be learnt: give transform for errors of the log10, or learn for errors of",
    ),
    "an unknown transform of a source": (
        TARGET + '[[sources]]\ndata = "x"\ncolumn = "e"\ntransform = "sqrt"',
        "e: transform is 'sqrt'",
    ),
    "a source without epochs": (TARGET + '[[sources]]\ndata = "x"\ncolumn = "e"\nepochs = 0', "epochs is 0"),
    "a rate that trains uphill": (
        TARGET + '[[own]]\nname = "a"\nsummary = ""\nreinitialise = []\nrates = [["*", -1.0]]',
        r"multiplier of '\*' is -1",
    ),
    "a name that is taken": (
        TARGET + '[[own]]\nname = "full"\nsummary = ""\nreinitialise = []\nrates = []',
        "own strategy full: there is one of this name already",
    ),
    "an unknown combination": (
        TARGET + '[[own]]\nname = "a"\nsummary = ""\nreinitialise = []\nrates = []\ncombine = "sum"',
        "a: combine is 'sum'",
    ),
    "too small": ("sizes = [2]\n" + TARGET, "at least 5"),
    "no seed": ("seeds = 0\n" + TARGET, "seeds is 0"),
    "unknown strategy": ('strategies = ["ful"]\n' + TARGET, "no strategy 'ful'"),
    "unknown source": ('strategies = ["full@mine"]\n' + TARGET, "no source mine"),
    "parts that are not there": ('strategies = ["ensemble:full+svr"]\nbaselines = []\n' + TARGET, "full, svr is not"),
    "an ensemble of one": ('strategies = ["ensemble:full"]\n' + TARGET, "at least two"),
    "two targets of a name": (TARGET + TARGET, "a name of its own"),
    "two targets of one file": (
        TARGET + 'name = "K (GPa)"\n' + TARGET + 'name = "K/GPa"\n',
        "named K \\(GPa\\), K/GPa: .* as a file's",
    ),
    "two sources of one file": (
        TARGET + '[[sources]]\nmodel = "x"\nname = "a b"\n[[sources]]\nmodel = "y"\nname = "a_b"\n',
        "sources are named a b, a_b",
    ),
    "an unknown baseline": ('baselines = ["svm"]\n' + TARGET, "no baseline svm; there are: mean"),
    "an unknown regressor": ('strategies = ["features:oracle"]\n' + TARGET, "features:oracle: no such regressor"),
    "a part from a source that it is not run from": (
        'strategies = ["full", "ensemble:full@gap+ridge"]\n' + TARGET,
        "full@gap is not among",
    ),
    "a part that is many": (
        'strategies = ["full@pool", "ensemble:full@pool+ridge"]\n' + TARGET,
        "full@pool is not among",
    ),
    "one source and all": ('strategies = ["full@all"]\n' + TARGET, "full@all takes one source: .* full@auto"),
    "several sources and one": ('strategies = ["multi_source@auto"]\n' + TARGET, "write multi_source"),
    "a part of a source of several sizes": (
        'strategies = ["full", "ensemble:full@e+svr"]\nbaselines = ["svr"]\n'
        + TARGET
        + '[[sources]]\ndata = "x"\ncolumn = "e"\nsizes = [500, 1000]\n',
        "e has several sizes",
    ),
    "a source of nothing": (TARGET + '[[sources]]\nname = "a"', "either model, or data"),
    "a source without a column": (TARGET + '[[sources]]\ndata = "a"', "without a column|a source: data"),
    "a reserved name": (TARGET + '[[sources]]\nmodel = "x"\nname = "all"', "stands for a choice"),
    "a source by its name": (
        'sources = ["mp-elastic"]\n' + TARGET,
        r"sources is \['mp-elastic'\]: a table \[\[sources\]\] each was expected, with model = \"mp-elastic\"",
    ),
    "a target that is no list": ('[targets]\ncolumn = "k"\n', r"a table \[\[targets\]\] each was expected"),
    "too long a list": (
        TARGET + '[[own]]\nname = "a"\nsummary = ""\nreinitialise = []\nrates = [["*", 1, 2]]',
        "2 entr",
    ),
}


@pytest.mark.parametrize(("text", "told"), BAD.values(), ids=BAD)
def test_bad_files(tmp_path, text, told):
    path = written(tmp_path / "study.toml", text)
    with pytest.raises(InputError, match=told) as error:
        read_study(path)
    assert "study.toml" in str(error.value)


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="nowhere.toml: cannot be read"):
        read_study(tmp_path / "nowhere.toml")


def test_data_of_the_same_name_beside_are_not_meant(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "k.csv").touch()
    monkeypatch.chdir(tmp_path / "here")
    study = StudyConfig((StudyTarget("k.csv", "k"),))
    assert below(study, tmp_path / "there").targets[0].data == str(tmp_path / "there" / "k.csv")
    with pytest.raises(InputError, match="nowhere: no such folder of data"):
        below(study, tmp_path / "nowhere")


def test_relative_paths_are_found_below_a_folder(tmp_path):
    (tmp_path / "a.json").touch()
    study = StudyConfig((StudyTarget("a.json", "k", splits="a.json"), StudyTarget("b.json", "g")))
    found = below(study, tmp_path)
    assert [target.splits for target in found.targets] == [str(tmp_path / "a.json"), ""]
    assert [target.data for target in found.targets] == [str(tmp_path / "a.json"), "b.json"]
    assert found.sources[0].model == "mp-formation-energy"

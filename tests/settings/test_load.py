"""Settings: what is typed is checked, what is misspelled is named."""

import pathlib

import pytest

from paligemma_jax.settings import load, presets, schema

CONFIG = """
from paligemma_jax.settings import parse_arg, presets

def get_config(arg=""):
    arg = parse_arg(arg, res=224, version=1, overfit=False)
    c = presets.finetune(model=f"paligemma{arg.version}-3b", res=arg.res)
    c.total_examples = 512
    c.evals.val = dict(fname="val.jsonl", log_percent=1 / 8)
    return c
"""


@pytest.fixture
def config_file(tmp_path: pathlib.Path) -> str:
    (tmp_path / "mine.py").write_text(CONFIG)
    return str(tmp_path / "mine.py")


def test_argument_is_typed_by_its_default(config_file):
    config = load.load(f"{config_file}:res=448,version=2")
    assert (config.res, config.model_init) == (448, "pt_3b_448")
    assert config.model.llm.variant == "gemma2_2b"


@pytest.mark.parametrize(
    ("line", "is_read"),
    [
        ("arg = parse_arg(arg, res=448)", True),
        ("c.lr = 3.0 if arg == 'res=448' else 1.0", True),
        ("c.lr = 3.0 if arg in ('a', 'b') else 1.0", False),
        ("c.lr = 3.0 if 'big' in arg else 1.0", False),
        ("c.lr = {'big': 3.0}.get(arg, 1.0)", False),
        ("c.lr = float(arg.partition('=')[2])", True),
        ("c.lr = float(len(arg))", True),  # asked in no other way, and yet it says something
        ("c.lr = 1.0 if arg else 1.0", False),
        ("pass", False),
    ],
)
def test_an_argument_that_the_file_does_not_read_is_an_error(line, is_read, tmp_path):
    lines = "    c = presets.finetune(model='paligemma2-3b')\n    " + line + "\n    return c\n"
    head = "from paligemma_jax.settings import parse_arg, presets\n\ndef get_config(arg):\n"
    (tmp_path / "mine.py").write_text(head + lines)
    if is_read:
        load.load(f"{tmp_path}/mine.py:res=448")
        return
    with pytest.raises(ValueError, match=r"mine.py: get_config makes nothing of the argument 're"):
        load.load(f"{tmp_path}/mine.py:res=448")
    load.load(f"{tmp_path}/mine.py")


@pytest.mark.parametrize("name", ["fracture_224", "fracture_224.py"])
def test_a_shipped_config_is_found_from_anywhere_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load.load(f"{name}:res=448").res == 448
    (tmp_path / "fracture_224.py").write_text("raise ValueError('mine')")
    with pytest.raises(ValueError, match="mine"):
        load.load("fracture_224.py")


def test_a_config_that_is_not_there_shows_the_nearest_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"no file fracture_24. Did you mean 'fracture_224'"):
        load.load("fracture_24")


def test_switch_needs_no_value():
    assert load.parse_arg("overfit,res=448", res=224, overfit=False).overfit is True


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("ress=448", "'ress' is not known. Did you mean 'res'"),
        ("res=abc", "expected int, found str"),
        ("res", "needs a value"),
        ("overfit=3", "expected bool, found int"),
    ],
)
def test_wrong_argument_is_named(arg, message):
    with pytest.raises(ValueError, match=message):
        load.parse_arg(arg, res=224, overfit=False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lrr=3", "'lrr' is not known. Did you mean 'lr'"),
        ("input.batchsize=3", "'input.batchsize' is not known. Did you mean 'input.batch_size'"),
        ("lora.rnk=3", "'lora.rnk' is not known. Did you mean 'lora.rank'"),
        ("input.total_epoch=3", "'input.total_epoch' is not known. Did you mean 'total_epochs'"),
        ("inptu.batch_size=3", "'inptu' is not known. Did you mean 'input'"),
        ("lr=abc", "lr=abc: expected float, found str"),
        ("seed=False", "seed=False: expected int, found bool"),
        ("evals.val.log_steps=True", "evals.val.log_steps=True: expected int or None, found bool"),
        ("evals.val.batchsize=2", "Did you mean 'evals.val.batch_size'"),
        ("compute_dtype=bfloat", "Did you mean 'bfloat16'"),
        ("total_steps=3", "total_steps and total_examples are set: keep one"),
        ("lr", "expected key=value"),
        ("accumulation_steps=0", "accumulation_steps=0: expected 1 or more"),
        ("evals.val.num_examples=-1", "evals.val.num_examples=-1: expected 1 or more"),
        ("seed=-1", "seed=-1: expected 0 or more"),
        ("total_steps=-2", "total_steps=-2: expected -1 or more"),
        ("task=None", "task=None: expected str, found NoneType"),
        ("evals=None", "evals=None: expected dict"),
        ("evals={'a/b': {'fname': 'a.jsonl'}}", "evals.a/b: a name of files"),
        ("input.augment.scale=[(1, 2)]", r"augment.scale: expected int or float in the list"),
        ("input.augment.scale=[None, 2]", r"in the list, found None"),
        ("evals.val.scores=[3]", r"scores: expected str in the list, found 3"),
        ("mesh=[3]", r"mesh: expected pairs \('text', int\), found 3"),
        ("lr_mults=[('.*',)]", r"lr_mults: expected pairs \('text', int or float\)"),
        ("schedule=[('.*', 'cosine')]", r"schedule: expected pairs \('text', dict or None\)"),
        ("quantize=nf5", r"quantize='nf5': expected one of .*Did you mean 'nf4'"),
        ("quantize=[('.*', 'nf5')]", r"quantize '\.\*'='nf5': expected one of .*'nf4'"),
        ("quantize=[('.*', 4)]", r"quantize '\.\*'=4: expected one of .*int8"),
        (
            "mesh=" + "-" * 9000 + "1",
            r"^config:\s*mesh='-{199}: expected list or tuple, found str$",
        ),
        ("mesh=" + "(" * 9000, r"mesh='\({199}: expected list or tuple, found str"),
        ("evals={1: {'fname': 'a'}}", "evals.1: a name of files"),
        ("total_steps=" + "9" * 400, "total_steps=9+: expected whole numbers below 2"),
        ("optax={1: 2}", r"optax=\{1: 2\}: expected names, as text, before the colons"),
        ("schedule=[('.*', {None: 1})]", "schedule=.*: expected names, as text"),
        (
            "schedule={'warmup_steps': 1" + "0" * 30 + "}",
            "schedule=.*: expected whole numbers below",
        ),
        ("=3", "override '=3': expected key=value"),
        (".=3", r"config key '' is not known\. .*In \.=3"),
        ("input..data=3", r"config key 'input\.' is not known\. .*In input\.\.data"),
        ("task.x=3", "config key 'task.x' is not known: task is a value without keys"),
        ("lr=" + "9" * 400, "lr: a number of 400 digits; expected one below 1e308"),
    ],
)
def test_wrong_override_is_named(config_file, override, message):
    with pytest.raises(ValueError, match=message):
        load.load(config_file, [override])


def test_a_run_of_no_steps_is_a_length_too(config_file):
    with pytest.raises(ValueError, match="total_steps and total_examples are set: keep one"):
        load.load(config_file, ["total_steps=0"])


def test_override_with_none_unsets_a_text(config_file):
    assert load.load(config_file, ["model_init=None"]).model_init is None


def test_override_adds_to_the_schedule(config_file):
    config = load.load(config_file, ["schedule.cooldown_steps=3"])
    assert config.schedule["cooldown_steps"] == 3


def test_override_keeps_the_type(config_file):
    config = load.load(config_file, ["lr=1", "optax.b2=0.95", "input.data.fname=a.jsonl"])
    assert config.lr == 1.0
    assert isinstance(config.lr, float)
    assert config.optax["b2"] == 0.95
    assert config.input.data.fname == "a.jsonl"


def test_typo_inside_a_config_file_names_file_and_line(tmp_path, monkeypatch):
    (tmp_path / "bad.py").write_text(CONFIG.replace("c.total_examples", "c.total_exampels"))
    message = r"bad.py:7: config key 'total_exampels' .* Did you mean 'total_examples'\? $"
    with pytest.raises(ValueError, match=message):
        load.load(str(tmp_path / "bad.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        load.load("bad.py")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def get_config(arg=''):\n    return (", r"bad.py:2: not Python"),
        ("import nothing_like_this", r"bad.py:1: No module named 'nothing_like_this'"),
        ("def get_config(arg=''):\n    return presets", r"bad.py:2: name 'presets' is not defined"),
        ("def get_config(arg=''):\n    pass", r"bad.py: get_config returned NoneType"),
        ("", r"bad.py: defines no get_config"),
        ("def get_config(arg=''):\n    return 1 / 0", r"bad.py:2: ZeroDivisionError: division by"),
        ("def get_config(arg=''):\n    raise SystemExit(3)", r"bad.py:2: SystemExit: 3"),
        ("def get_config(arg=''):\n    return get_config(arg)", r"bad.py:2: RecursionError: max"),
        (
            "def get_config(arg=''):\n    assert not arg == '', 'no'",
            r"bad.py:2: AssertionError: no",
        ),
        ("def get_config(arg=''):\n    int('x')", r"bad.py:2: invalid literal for int"),
    ],
)
def test_what_is_wrong_with_a_config_file_is_said(tmp_path, source, message):
    (tmp_path / "bad.py").write_text(source)
    with pytest.raises(ValueError, match=message):
        load.load(str(tmp_path / "bad.py"))


def test_missing_file_shows_the_nearest(config_file):
    with pytest.raises(ValueError, match=r"Did you mean 'mine.py'"):
        load.load(config_file.replace("mine", "mime"))


def test_run_folder_gives_the_same_config_back(config_file, tmp_path):
    config = load.load(config_file, ["schedule=[('img/.*', None), ('.*', {'warmup_steps': 2})]"])
    (tmp_path / "config.json").write_text(load.to_json(config))
    again = load.from_json(tmp_path / "config.json")
    assert load.to_json(again) == load.to_json(config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff", "not JSON that can be read: .*can't decode byte 0xff"),
        (b"[" * 100_000, "not JSON that can be read: maximum recursion"),
        (b"[]", "expected an object, found a list"),
        (b"{", r":1: not JSON"),
        (b'{"a.b": 1}', r"config key 'a\.b': expected objects within objects"),
        (b'{"input": []}', r"config key 'input' is not known"),
        (b'{"lr": "x"}', r"config:\s*lr='x': expected int or float"),
        (b'{"evals": {"": {}}}', r"evals\.: a name of files"),
    ],
)
def test_a_damaged_config_of_a_run_is_named(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load.from_json(path)
    assert str(path) in str(error.value)


def test_what_is_no_group_in_a_run_is_compared_as_it_is(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"input": [], "evals": {"val": 3}}')
    values = load.read_values(path)
    assert values["input"] == [] and values["evals"] == {"val": 3}


def test_reference_table_has_every_key():
    table = schema.markdown()
    assert all(f"`{key.name}`" in table for key in schema.KEYS)
    assert all(f"`evals.NAME.{key.name}`" in table for key in schema.EVAL_KEYS)


def test_defaults_are_valid_and_locked():
    config = presets.defaults()
    assert load.typed(config) == schema.Settings()
    with pytest.raises(AttributeError):
        config.learning_rate = 1


def test_a_config_file_with_the_former_import_is_told_the_new_one(tmp_path):
    (tmp_path / "old.py").write_text("from paligemma_jax.config import presets, settings\n")
    with pytest.raises(ValueError, match=r"old.py:1: .*paligemma_jax.settings import parse_arg"):
        load.load(f"{tmp_path}/old.py")
